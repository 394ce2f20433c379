"""Connections that many callers share: a pool for each address, and with an event loop for each address and loop."""

import asyncio
import atexit
from collections.abc import AsyncGenerator
from threading import Lock

import httpx

from qwen3vl_compat.adapters.calling.transport import certificates

_waiting: dict[str, httpx.Client] = {}
_lock = Lock()


def waiting(origin: str) -> httpx.Client:
    """The pool for callers that wait; it lasts as long as the program."""
    with _lock:
        if origin not in _waiting:
            _waiting[origin] = httpx.Client(base_url=origin, verify=certificates(origin))
            atexit.register(_waiting[origin].close)
        return _waiting[origin]


_Pools = dict[str, httpx.AsyncClient]
_looping: dict[asyncio.AbstractEventLoop, tuple[AsyncGenerator[_Pools, None], _Pools]] = {}


async def looping(origin: str) -> httpx.AsyncClient:
    """The pool for callers in this event loop; connections cannot outlive the loop they were opened in."""
    loop = asyncio.get_running_loop()
    for closed in [other for other in list(_looping) if other.is_closed()]:
        _looping.pop(closed, None)
    if loop not in _looping:
        keeping = _kept(loop)
        _looping[loop] = (keeping, await anext(keeping))
    pools = _looping[loop][1]
    if origin not in pools:
        pools[origin] = httpx.AsyncClient(base_url=origin, verify=certificates(origin))
    return pools[origin]


async def _kept(loop: asyncio.AbstractEventLoop) -> AsyncGenerator[_Pools, None]:
    """A generator, because asyncio.run ends those of its loop before it closes it: the only word of it there is."""
    pools: _Pools = {}
    try:
        yield pools
    finally:
        _looping.pop(loop, None)
        for pool in pools.values():
            await pool.aclose()
