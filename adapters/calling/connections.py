"""Connections that many callers share: a pool for each address, and with an event loop for each address and loop.

Callers have different keys, so no pool keeps cookies; and a process that was forked has pools of its own, because two
cannot read from one connection.
"""

import asyncio
import atexit
import os
from collections.abc import AsyncGenerator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from threading import Lock
from typing import Any

import httpx

from qwen3vl_compat.adapters.calling.transport import certificates

_waiting: dict[tuple[int, str], httpx.Client] = {}
_lock = Lock()


def waiting(origin: str) -> httpx.Client:
    """The pool for callers that wait; it lasts as long as the program."""
    place = os.getpid(), origin
    with _lock:
        if place not in _waiting:
            _waiting[place] = httpx.Client(**_shared(origin))
            atexit.register(_waiting[place].close)
        return _waiting[place]


def _shared(origin: str) -> dict[str, Any]:
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    return {"base_url": origin, "verify": certificates(origin), "cookies": no_cookies}


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
        pools[origin] = httpx.AsyncClient(**_shared(origin))
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
