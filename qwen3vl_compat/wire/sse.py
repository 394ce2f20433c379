"""Server-sent events, as far as these protocols use them: one `data:` line an event, and its name if it needs one."""

from collections.abc import AsyncIterator, Iterator

CONTENT_TYPE = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
"""How OpenAI's streams end; the others simply end."""


def encode(data: bytes) -> bytes:
    """One event. The space after the colon and LF line ends matter to clients that do not parse, only split."""
    return b"data: " + data + b"\n\n"


def named(event: str, data: bytes) -> bytes:
    """One event with a name of its own, as in Anthropic's streams, whose clients pass over others, and in responses."""
    return b"event: " + event.encode() + b"\n" + encode(data)


class Decoder:
    """The data of each event, however the bytes were cut in transit; comments and other fields are passed over."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The events that these bytes complete."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._lines.append(line[5:].removeprefix(b" "))
            elif not line and self._lines:
                data, self._lines = b"\n".join(self._lines), []
                yield data


async def decode(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event of a stream."""
    decoder = Decoder()
    async for chunk in chunks:
        for data in decoder.feed(chunk):
            yield data
