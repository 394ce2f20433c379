"""What keeps a silent stream from being taken for a dead one by whoever stands between server and client."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from litestar.types import Send

PING = b": ping\n"
"""A comment. It ends with one line's end: two would end an event, which some clients then take for an empty one."""


@asynccontextmanager
async def kept_alive(send: Send, seconds: float, ping: bytes = PING) -> AsyncGenerator[Send]:
    """The same `send`; when nothing was sent by it for so many seconds, `ping` is. 0: never."""
    loop = asyncio.get_running_loop()
    last = loop.time()

    async def tell(message: object) -> None:
        nonlocal last
        last = loop.time()
        await send(message)  # pyright: ignore[reportArgumentType]

    async def repeat() -> None:
        while True:
            await asyncio.sleep(last + seconds - loop.time())
            if loop.time() - last >= seconds:
                await tell({"type": "http.response.body", "body": ping, "more_body": True})

    task = asyncio.create_task(repeat()) if seconds else None
    try:
        yield tell
    finally:
        if task is not None:
            task.cancel()
