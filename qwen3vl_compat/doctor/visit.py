"""One server, asked as one caller: the only place of the doctor that has sockets."""

import time
from collections.abc import Mapping
from typing import Any, TypeVar

import httpx
import msgspec
from msgspec import Struct

from qwen3vl_compat.doctor.finding import Failed

T = TypeVar("T")
Json = dict[str, Any]

MOST_BYTES = 4 * 2**20
"""No answer to a check is longer; what is comes from something else."""
USUAL_MODEL = "qwen3-vl"
"""What is asked where the key may not list the models."""
ORIGIN = "Is --url the server's address, and does nothing else listen there?"
_BROKEN: Mapping[type[httpx.RequestError], str] = {
    httpx.ConnectError: "no connection can be made",
    httpx.RemoteProtocolError: "what came is no HTTP, or the connection was closed without an answer",
}


class Ask(Struct, frozen=True):
    """A request; `content` is its body in httpx's words (`json`, or `files` and `data`)."""

    method: str
    path: str
    headers: Mapping[str, str] = {}
    content: Mapping[str, Any] = {}


class Reply(Struct, frozen=True):
    """An answer that was read to its end; seconds are counted from the request on, to its first and last bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    first_s: float
    last_s: float

    def read(self, shape: type[T], what: str) -> T:
        """The JSON body as what a client reads out of it; raises Failed."""
        return decoded(self.body, shape, what)


class Visit:
    """Asks, and counts what was asked and used."""

    def __init__(self, client: httpx.AsyncClient, key: str, model: str = "") -> None:
        """Without a `model` it is the first that the server lists; without a `key` none is sent."""
        self._client = client
        self.key, self.named, self.model = key, model, model or USUAL_MODEL
        self.requests = self.tokens = 0

    async def send(self, ask: Ask) -> Reply:
        """Send it and read all of the answer, whatever its status; raises Failed where none comes."""
        self.requests += 1
        begun, first, body = time.monotonic(), 0.0, bytearray()
        try:
            async with self._client.stream(ask.method, ask.path, headers=ask.headers, **ask.content) as answer:
                async for block in answer.aiter_bytes():
                    first = first or time.monotonic() - begun
                    body += block
                    if len(body) > MOST_BYTES:
                        raise Failed("a short answer", f"more than {MOST_BYTES:,} bytes", ORIGIN)
        except httpx.RequestError as error:
            said = _BROKEN.get(type(error), "the connection broke") + (f" ({error})" if str(error) else "")
            raise Failed("an answer", said, _hint(str(error))) from None
        return Reply(answer.status_code, answer.headers, bytes(body), first, time.monotonic() - begun)


def decoded(body: bytes | str, shape: type[T], what: str) -> T:
    """JSON as a `shape`; raises Failed."""
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = body if isinstance(body, str) else body.decode("utf-8", "replace")
        raise Failed(what, f"{str(error).rstrip('.')}: {text[:120]}", ORIGIN) from None


def _hint(error: str) -> str:
    if "CERTIFICATE" in error.upper():
        return "SSL_CERT_FILE names a file of certificates that are trusted beside the usual ones."
    return "Is the server running, and is --url its address?"


def origin_of(url: str) -> str:
    """The address without what clients' own base URLs have behind it (`/v1`, `/v1beta`); raises ValueError."""
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo or parsed.query or parsed.fragment:
        raise ValueError("--url is the server's address, as http://127.0.0.1:8080, without a name, a key or a query.")
    path = parsed.path.rstrip("/")
    return str(parsed.copy_with(path=path.removesuffix("/v1").removesuffix("/v1beta") or "/")).rstrip("/")


def checked_key(key: str) -> str:
    """A key that can stand in a header; raises ValueError."""
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError("--key, or QWEN3VL_API_KEY, is no API key: it holds characters that no key has.")
    return key
