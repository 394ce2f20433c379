"""Pages of other origins may call this server from a browser, if an operator names them (the Fetch standard's CORS).

Keys come in headers of the page's own making, never as cookies, so that no answer allows credentials.
"""

from collections.abc import Collection

from litestar.types import ASGIApp, Message, Receive, Scope, Send

ANY = "*"
_AGE_S = 600
"""A browser need not ask again for so long."""
_METHODS = b"GET, POST, PUT, PATCH, DELETE"


def with_origins(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """The application, open to pages of these origins (`https://app.example.org`), or of all with a `*`."""
    if not origins:
        return app

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        sent = dict(scope["headers"])
        origin = sent.get(b"origin", b"").decode("latin-1")
        if not origin or (ANY not in origins and origin not in origins):
            await app(scope, receive, send)
            return
        allowed = [
            (b"access-control-allow-origin", (ANY if ANY in origins else origin).encode("latin-1")),
            (b"vary", b"Origin"),
        ]
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in sent:
            wanted = sent.get(b"access-control-request-headers")
            await _allow(allowed, wanted, send)
            return

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), *allowed, (b"access-control-expose-headers", b"*")]
                message = {**message, "headers": headers}  # pyright: ignore[reportAssignmentType]
            await send(message)

        await app(scope, receive, tell)

    return served


async def _allow(allowed: list[tuple[bytes, bytes]], wanted: bytes | None, send: Send) -> None:
    """What a browser asks before a request: which methods and headers it may send. It needs no key."""
    headers = [*allowed, (b"access-control-allow-methods", _METHODS), (b"access-control-max-age", b"%d" % _AGE_S)]
    if wanted is not None:  # the clients' libraries send dozens of their own
        headers.append((b"access-control-allow-headers", wanted))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
