"""The one fetcher: the only place that opens a network connection for media.

A URL is read by one strict parser, its host is looked up once, every answer is held against a table of networks, and
the addresses so checked are the ones dialled. Each redirect goes through all of it again.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
import string
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from urllib.parse import quote

import certifi
import httpcore
from msgspec import Struct

PORTS = frozenset({80, 443})
"""Where media may be fetched from, unless the operator says otherwise."""
LONGEST_URL = 8192
"""Characters of a URL, counted as it is sent."""
LOOKUP_SECONDS = 2.0
"""What one lookup of a name may take."""
DIAL_SECONDS = 3.0
"""What one address may take to accept a connection, and to shake hands for https."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Looks up a host for a port; gives its addresses as text, in the order to try them."""

_DENIED = tuple(
    ipaddress.ip_network(text)
    for text in (
        # The IANA registries of special-purpose addresses, also where they call a range globally reachable: what has a
        # special purpose serves no pictures.
        "0.0.0.0/8",  # this network; Linux takes 0.0.0.0 for loopback
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # behind a carrier's NAT; Alibaba's metadata service 100.100.100.200
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; most clouds' metadata service 169.254.169.254
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata service 192.0.0.192
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # relays for 6to4
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; broadcast 255.255.255.255
        "168.63.129.16/32",  # Azure's host, from within a virtual machine; it looks like any public address
        # IPv6: only 2000::/3 is handed out for general use, so the rest is denied whole.
        "::/3",  # :: and ::1, the IPv4 forms ::/96 and ::ffff:0:0/96, NAT64 64:ff9b::/96 and 64:ff9b:1::/48, 100::/64
        "4000::/2",  # segment routing 5f00::/16
        "8000::/1",  # unique local fc00::/7, link-local fe80::/10, site-local fec0::/10, multicast ff00::/8
        "2001::/23",  # protocol assignments: Teredo 2001::/32, benchmarks 2001:2::/48, ORCHID 2001:10::/28 and 20::/28
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, with any IPv4 address inside
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\\\s\ud800-\udfff]|%00")
"""Nowhere in a URL: what parsers strip, stop at or read in two ways."""
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[^]]*]|[^/?#:@[\]]+)(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?:#.*)?",
    re.ASCII | re.IGNORECASE,
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.ASCII | re.IGNORECASE)
_NAME = re.compile(
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+"
    r"[a-z][a-z0-9-]{0,61}[a-z0-9]"  # not a digit first: 0x7f would be read as part of a number
)
_LABEL = re.compile(r"[a-z](?:[a-z0-9_-]{0,61}[a-z0-9])?")
"""A name without a dot, as of a machine or a container nearby."""
_USUAL_PORT = {"http": 80, "https": 443}

_HEADERS = (
    ("User-Agent", "qwen3vl-compat"),
    ("Accept", "*/*"),
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DIALS = 4
"""Addresses of one host that are tried."""
_HEAD_BYTES = 65_536
"""What may come before a body: status lines, headers, and any interim answers with theirs."""
_READ_BYTES = 16_384
"""Read at once: so much, cut into the smallest chunks, holds the event loop for some hundredths of a second."""
_PIECES = 50_000
"""Pieces a body may come in; each costs our time whatever its size, and 16 KiB is an ordinary one."""

_lookups = ThreadPoolExecutor(64, "media-lookup")
"""Apart from the event loop's own threads, so that dead name servers hold up only media."""


class FetchFailed(Exception):
    """Media could not be fetched. The message is always the same one; `reason` is for the log only."""

    def __init__(self, reason: str) -> None:
        super().__init__("could not fetch media")
        self.reason = reason


class Address(Struct, frozen=True):
    """A URL as it is dialled and asked for; `host` is lower case and, for IPv6, without brackets. `str` is the URL."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The Host header: the port is left out where the scheme implies it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _USUAL_PORT[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_url(text: str, ports: frozenset[int] = PORTS, *, local: bool = False) -> Address:
    """The only reading of a URL there is: http or https, a dotted name or an address, a port of `ports`.

    FetchFailed for all else, and for anything that another parser might read in another way. The fragment is dropped.
    `local` lets names without a dot pass: where only addresses of the operator's own lists can follow from them.
    """
    sent = "" if len(text) > LONGEST_URL or _FORBIDDEN.search(text) else quote(text, safe=string.punctuation)
    match = _URL.fullmatch(sent) if len(sent) <= LONGEST_URL else None
    if match is None:
        raise FetchFailed("malformed URL")
    scheme = match["scheme"].lower()
    port = int(match["port"] or _USUAL_PORT[scheme])
    if port not in ports:
        raise FetchFailed("port not allowed")
    target = (match["path"] or "/") + (match["query"] or "")
    return Address(scheme, _host(match["host"].lower(), local), port, target)


def _host(text: str, local: bool) -> str:
    """A name as it is, or an address in its usual spelling; text from beyond ASCII has become percent signs by now."""
    try:
        if text.startswith("[") and "%" not in text:  # which would bring a zone: one of our own interfaces
            return str(ipaddress.IPv6Address(text[1:-1]))
        if not text.strip("0123456789."):
            return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise FetchFailed("malformed host") from None
    if len(text) > 253 or not (_NAME.fullmatch(text) or (local and _LABEL.fullmatch(text))):
        raise FetchFailed("malformed host")
    return text


def redirected(address: Address, location: str, ports: frozenset[int] = PORTS, *, local: bool = False) -> Address:
    """Where a Location header, absolute or relative, leads from `address`; FetchFailed also for https to http."""
    origin = f"{address.scheme}://{address.authority}"
    path = address.target.partition("?")[0]
    if _SCHEME.match(location):
        text = location
    elif location.startswith("//"):
        text = f"{address.scheme}:{location}"
    elif location.startswith("/"):
        text = origin + location
    elif location.startswith("?"):
        text = origin + path + location
    else:
        relative = re.split("([?#].*)", location, maxsplit=1, flags=re.DOTALL)
        text = "".join([origin, _without_dots(path[: path.rindex("/") + 1] + relative[0]), *relative[1:]])
    found = parse_url(text, ports, local=local)
    if address.scheme == "https" and found.scheme == "http":
        raise FetchFailed("redirect from https to http")
    return found


def _without_dots(path: str) -> str:
    """A path with its segments `.` and `..` carried out (RFC 3986, section 5.2.4)."""
    segments = path.split("/")[1:]
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)


def denied(address: str, allow_networks: Sequence[str] = ()) -> bool:
    """Whether an address may not be dialled: it is in a denied network and in none of `allow_networks`, or is none.

    `allow_networks` are in CIDR notation; ValueError if one is not.
    """
    allowed = [ipaddress.ip_network(text) for text in allow_networks]
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return True
    if "%" in address:
        return True
    return any(found in network for network in _DENIED) and not any(found in network for network in allowed)


class Fetcher(Struct, frozen=True):
    """Fetches media by URL from networks that are open to everyone, and from `allow_networks` (CIDR) beside.

    `seconds` is for all of a fetch, lookups and at most `hops` redirects included; a failure takes at least `floor`
    seconds, so that its time tells little. Without `resolve` the system's resolver is asked; without `ssl_context`
    certifi's authorities are trusted. ValueError for a network that is not one.
    """

    allow_networks: Sequence[str] = ()
    ports: frozenset[int] = PORTS
    seconds: float = 10.0
    hops: int = 3
    resolve: Resolve | None = None
    ssl_context: ssl.SSLContext | None = None
    floor: float = 0.3

    def __post_init__(self) -> None:
        denied("", self.allow_networks)

    async def __call__(self, url: str, limit: int) -> bytes:
        """The body, 1 to `limit` bytes as they were sent; FetchFailed."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.seconds):
                return await self._followed(url, limit)
        except FetchFailed as failed:
            reason = failed.reason
        except Exception as error:  # whatever peers, resolvers and the network make the libraries raise
            reason = type(error).__name__
        await asyncio.sleep(started + self.floor - time.monotonic())
        raise FetchFailed(reason)

    async def _followed(self, url: str, limit: int) -> bytes:
        address = parse_url(url, self.ports, local=bool(self.allow_networks))
        for _ in range(self.hops + 1):
            found = await self._asked(address, limit)
            if isinstance(found, bytes):
                return found
            address = found
        raise FetchFailed("too many redirects")

    async def _asked(self, address: Address, limit: int) -> bytes | Address:
        """The body that one GET brings, or where it redirects to."""
        context = self.ssl_context or _trusting_certifi()
        dial = _Dial(await self._addresses(address), context if address.scheme == "https" else None)
        url = httpcore.URL(
            scheme=address.scheme.encode(),
            host=address.host.encode(),
            port=address.port,
            target=address.target.encode(),
        )
        headers = [("Host", address.authority), *_HEADERS]
        try:
            async with (
                httpcore.AsyncConnectionPool(context, network_backend=dial) as connection,
                connection.stream("GET", url, headers=headers) as response,
            ):
                if response.status in _REDIRECTS:
                    return redirected(address, _location(response.headers), self.ports, local=bool(self.allow_networks))
                _check_head(response.status, response.headers, limit)
                dial.allow(2 * limit)
                return await _body(response.aiter_stream(), limit)
        finally:
            dial.abort()

    async def _addresses(self, address: Address) -> list[str]:
        """What the host stands for, looked up this once and all of it allowed."""
        if not (_NAME.fullmatch(address.host) or _LABEL.fullmatch(address.host)):
            found = [address.host]
        else:
            async with asyncio.timeout(LOOKUP_SECONDS):
                found = list(await (self.resolve or _looked_up)(address.host, address.port))
        if not found:
            raise FetchFailed("no address")
        if any(denied(text, self.allow_networks) for text in found):
            raise FetchFailed("denied address")
        return found


async def _looked_up(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    answers = await loop.run_in_executor(
        _lookups, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    )
    return [str(sockaddr[0]) for *_, sockaddr in answers]


@cache
def _trusting_certifi() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value.strip() for found, value in headers if found.lower() == name]


def _location(headers: Iterable[tuple[bytes, bytes]]) -> str:
    found = _values(headers, b"location")
    if len(found) != 1 or not found[0]:
        raise FetchFailed("redirect to nowhere")
    return found[0].decode()


def _check_head(status: int, headers: list[tuple[bytes, bytes]], limit: int) -> None:
    """What is refused before any of the body is read."""
    if status != 200:
        raise FetchFailed(f"status {status}")
    if any(value.lower() not in {b"", b"identity"} for value in _values(headers, b"content-encoding")):
        raise FetchFailed("encoded body")
    if any(int(value) > limit for value in _values(headers, b"content-length")):
        raise FetchFailed("body too large")


async def _body(pieces: AsyncIterable[bytes], limit: int) -> bytes:
    body = bytearray()
    count = 0
    async for piece in pieces:
        body += piece
        count += 1
        if len(body) > limit:
            raise FetchFailed("body too large")
        if count > _PIECES:
            raise FetchFailed("body in too many pieces")
    if not body:
        raise FetchFailed("empty body")
    return bytes(body)


class _Dial(httpcore.AsyncNetworkBackend):
    """Opens the one connection of a request, to addresses that were checked; `host` only has to be in the certificate.

    It keeps hold of what it opened: httpcore loses sight of a connection that is given up at the wrong moment.
    """

    def __init__(self, addresses: Sequence[str], context: ssl.SSLContext | None) -> None:
        self._addresses = addresses[:_DIALS]
        self._context = context
        self._stream: _Stream | None = None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        name = host if self._context else None
        for address in self._addresses:
            try:
                async with asyncio.timeout(DIAL_SECONDS):
                    opened = await asyncio.open_connection(address, port, ssl=self._context, server_hostname=name)
            except OSError:  # a TimeoutError or a certificate that is not right among them
                continue
            self._stream = _Stream(*opened)
            return self._stream
        raise FetchFailed("no connection")

    def allow(self, count: int) -> None:
        """Let so many more bytes come in."""
        if self._stream:
            self._stream.left += count

    def abort(self) -> None:
        if self._stream:
            self._stream.abort()


class _Stream(httpcore.AsyncNetworkStream):
    """An open connection, TLS and all, that takes in no more than `left` bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.left = _HEAD_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        await asyncio.sleep(0)  # or a peer that is always ahead of us would keep the event loop from everyone else
        data = await self._reader.read(min(max_bytes, _READ_BYTES))
        self.left -= len(data)
        if self.left < 0:
            raise FetchFailed("too much sent")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._writer.write(buffer)
        await self._writer.drain()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return self  # the handshake was part of dialling

    async def aclose(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._writer.transport.abort()
