"""Server-sent events, as far as these protocols use them: one `data:` line an event, and its name if it needs one."""

from collections.abc import AsyncIterator

CONTENT_TYPE = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
"""How OpenAI's streams end; the others simply end."""


def encode(data: bytes) -> bytes:
    """One event. The space after the colon and LF line ends matter to clients that do not parse, only split."""
    return b"data: " + data + b"\n\n"


def named(event: str, data: bytes) -> bytes:
    """One event with a name of its own, without which Anthropic's clients pass it over."""
    return b"event: " + event.encode() + b"\n" + encode(data)


async def decode(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event, however the bytes were cut in transit; comments and other fields are passed over."""
    rest, lines = b"", list[bytes]()
    async for chunk in chunks:
        rest += chunk
        *whole, rest = rest.split(b"\n")
        for line in whole:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                lines.append(line[5:].removeprefix(b" "))
            elif not line and lines:
                yield b"\n".join(lines)
                lines = []
