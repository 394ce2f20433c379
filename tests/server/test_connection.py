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
