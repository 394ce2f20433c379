"""What is written in one turn of the loop goes out together, in order, and before the connection ends."""

import asyncio
import socket

from qwen3vl_compat.server.corked import Corked


async def corked() -> tuple[Corked, socket.socket]:
    """One end of a connection, and the other, read without waiting."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    theirs.setblocking(False)
    return Corked(transport, loop), theirs


async def test_nothing_is_sent_before_the_turn_is_over_and_all_then() -> None:
    transport, theirs = await corked()
    for piece in (b"head ", b"body ", b"end"):
        transport.write(piece)
    assert transport.get_write_buffer_size() == 13
    try:
        theirs.recv(99)
        raise AssertionError("it was sent at once")
    except BlockingIOError:
        pass
    await asyncio.sleep(0)
    assert theirs.recv(99) == b"head body end"
    transport.write(b"more")
    await asyncio.sleep(0)
    assert theirs.recv(99) == b"more"
    transport.close()
    theirs.close()


async def test_closing_sends_what_there_is_and_aborting_does_not() -> None:
    for end, sent in (("close", b"last words"), ("abort", b"")):
        transport, theirs = await corked()
        transport.write(b"last words")
        getattr(transport, end)()
        assert transport.is_closing()
        await asyncio.sleep(0.01)
        received = b""
        while piece := theirs.recv(99):
            received += piece
        assert received == sent
        theirs.close()
