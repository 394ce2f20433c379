"""This server's description of itself, for whoever asks: a client's generator has no key."""

import asyncio

from litestar import Response, get


@get(["/schema", "/schema/openapi.json"])
async def get_schema() -> Response[bytes]:
    """This document."""
    from qwen3vl_compat.server.openapi import document  # it knows all routes, this one too

    return Response(await asyncio.to_thread(document), media_type="application/json")
