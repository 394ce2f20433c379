"""An engine behind a socket, both ends in this process."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qwen3vl_compat.engines import Engine
from qwen3vl_compat.engines.host import Host
from qwen3vl_compat.engines.remote import RemoteEngine


@asynccontextmanager
async def across(engine: Engine | Host) -> AsyncIterator[RemoteEngine]:
    """A front's way to an engine that is started."""
    host = engine if isinstance(engine, Host) else Host(engine)
    host.ready = True
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(host.serve(ours))
    remote = await RemoteEngine.connect(theirs)
    await remote.start()
    try:
        yield remote
    finally:
        await remote.close()
        await remote.disconnect()
        await serving
