"""Connections whose request never becomes one."""

import asyncio
import socket
from typing import Any

import pytest
import uvicorn

from qwen3vl_compat.server import connection


async def test_a_head_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await _try_heads(listener)


async def _endless(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(500 if scope["path"] == "/endless" else 0):
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    await send({"type": "http.response.body", "body": b"done", "more_body": False})


async def _answers(app: Any, sent: bytes, *, read: bool, patience: float = 0.3) -> tuple[bytes, float]:
    """What a client gets that sends this and reads, or reads only once the server has let go; and how long it took."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = connection.with_patience(patience)
        server = uvicorn.Server(uvicorn.Config(app, http=made, lifespan="off", log_config=None))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname(), limit=1024)
        began = asyncio.get_running_loop().time()
        try:
            writer.write(sent)
            if read:
                got = await asyncio.wait_for(reader.read(), 5)
            else:
                while not server.started or server.server_state.connections:
                    await asyncio.sleep(0.02)
                    assert asyncio.get_running_loop().time() - began < 5
                got = b""
            return got, asyncio.get_running_loop().time() - began
        finally:
            writer.transport.abort()
            server.should_exit = True
            await serving


async def test_a_client_that_takes_nothing_loses_its_connection() -> None:
    await _answers(_endless, b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n", read=False)


async def test_a_body_nobody_read_ends_the_connection() -> None:
    head = b"GET /short HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nx"
    got, took = await _answers(_endless, head, read=True)
    assert got.endswith(b"done\r\n0\r\n\r\n")
    assert took < 2


async def _sends(pieces: int, *, ends: bool) -> bytes:
    """What a client hears that sends so many MiB of a body which nobody reads, and listens only then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(_endless, http=connection.with_patience(9), lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        try:
            size = pieces * 2**20 if ends else 2**40
            writer.write(b"POST /short HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(pieces):
                writer.write(bytes(2**20))
                await writer.drain()
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.transport.abort()
            server.should_exit = True
            await serving


async def test_who_is_still_sending_hears_the_answer() -> None:
    """A connection that is closed on what still comes is reset, and a client forgets what it had been told."""
    assert (await _sends(20, ends=True)).endswith(b"done\r\n0\r\n\r\n")


@pytest.mark.parametrize(("name", "bound"), [("LINGER_S", 0.2), ("LINGER_BYTES", 2**20)])
async def test_who_goes_on_sending_is_cut_off(monkeypatch: pytest.MonkeyPatch, name: str, bound: float) -> None:
    monkeypatch.setattr(connection, name, bound)
    with pytest.raises(ConnectionError):
        await _sends(2000, ends=False)


async def _no_app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("nothing was asked")


async def _try_heads(listener: socket.socket) -> None:
    config = uvicorn.Config(_no_app, http=connection.Connection, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        for piece in (b"GET / HTTP/1.1\r\n", b"Host: a\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.1)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 408")
        writer.close()
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 408")
        writer.close()
    finally:
        server.should_exit = True
        await serving
