"""Messages over a socket: whole, in order, within bounds, and no wait without end."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_compat.engines import channel
from qwen3vl_compat.engines.channel import HEAD, Channel, TooLarge


class End:
    """One end and what it was told."""

    def __init__(self, kind: Any = Any) -> None:
        self.took: list[Any] = []
        self.gone = asyncio.Event()
        self.channel: Channel[Any] = Channel(kind, self.took.append, self.gone.set)

    async def until(self, found: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not found():  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    pair = socket.socketpair()
    both = End(), End()
    for end, each in zip(both, pair, strict=True):
        await end.channel.open(each)
    yield both
    for end in both:
        await end.channel.close()


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30)))
def test_messages_are_whole_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    end = End()
    data = b"".join(HEAD.pack(len(each)) + each for each in map(msgspec.msgpack.encode, messages))
    for cut in cuts:
        end.channel.data_received(data[:cut])
        data = data[cut:]
    end.channel.data_received(data)
    assert end.took == messages


async def test_both_ends_speak(ends: tuple[End, End]) -> None:
    one, other = ends
    for number in range(100):
        one.channel.send({"number": number})
        other.channel.send([number])
    await one.until(lambda: len(one.took) == len(other.took) == 100)
    assert other.took == [{"number": number} for number in range(100)]
    assert one.took == [[number] for number in range(100)]


async def test_a_message_that_is_too_large_is_not_sent(ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = ends
    monkeypatch.setattr(channel, "LARGEST", 1000)
    with pytest.raises(TooLarge):
        one.channel.send(bytes(1000))
    one.channel.send(bytes(990))
    await one.until(lambda: bool(other.took))
    assert other.took == [bytes(990)]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (HEAD.pack(channel.LARGEST + 1), "announces a message of 268435457 bytes, of which 268435456 are allowed"),
        (HEAD.pack(1) + b"\xc1", "cannot be read"),
        (HEAD.pack(1) + msgspec.msgpack.encode(5), "cannot be read"),
    ],
)
async def test_what_is_no_message_ends_the_connection(sent: bytes, said: str, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    end = End(str)
    with theirs, caplog.at_level(logging.ERROR):
        await end.channel.open(ours)
        theirs.sendall(sent)
        async with asyncio.timeout(20):
            await end.gone.wait()
    assert said in caplog.text
    assert not end.took
    assert not end.channel.open_still


async def test_whoever_sends_faster_than_is_read_waits_for_room(ends: tuple[End, End]) -> None:
    one, other = ends
    other.channel._transport.pause_reading()
    sent = 0
    while one.channel._room.is_set():
        one.channel.send(bytes(100_000))
        sent += 1
        assert sent < 100
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(one.channel.room(), 0.1)
    other.channel._transport.resume_reading()
    await one.channel.room()
    await one.until(lambda: len(other.took) == sent)


async def test_an_end_that_is_gone_is_told_of_and_spoken_to_in_vain(ends: tuple[End, End]) -> None:
    one, other = ends
    one.channel.send("last")
    await one.channel.close()
    async with asyncio.timeout(20):
        await other.gone.wait()
    assert other.took == ["last"]
    other.channel.send("nobody hears")
    await other.channel.room()
    assert not other.channel.open_still
