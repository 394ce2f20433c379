"""What a fetcher may meet: servers whose every byte is ours, a name server, and an eye on every connection made."""

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import psutil
from dnslib import CNAME, QTYPE, RCODE, RR, A, DNSRecord

from qwen3vl_compat.media.fetch import Resolve

Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What a server does with one connection, once a request's head has come."""


class Server:
    """A listening socket: where it is, how many connections it accepted and what it was asked."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.accepted = 0
        self.asked: list[bytes] = []

    def url(self, path: str = "/x.png", scheme: str = "http", host: str | None = None) -> str:
        return f"{scheme}://{host or self.host}:{self.port}{path}"


@asynccontextmanager
async def serving(
    behave: Behave | bytes, host: str = "127.0.0.1", port: int = 0, context: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Answer one request a connection, with bytes or a behaviour; then close."""
    running: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            served.asked.append(await reader.readuntil(b"\r\n\r\n"))
            if isinstance(behave, bytes):
                writer.write(behave)
                await writer.drain()
            else:
                await behave(reader, writer)
        writer.close()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.accepted += 1
        task = asyncio.get_running_loop().create_task(answered(reader, writer))
        running[task] = writer

    listening = await asyncio.start_server(accepted, host, port, ssl=context)
    served = Server(host, listening.sockets[0].getsockname()[1])
    try:
        yield served
    finally:
        listening.close()
        for task, writer in running.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*running, return_exceptions=True)


@contextmanager
def trap(host: str = "127.0.0.1", port: int = 0) -> Iterator[socket.socket]:
    """A socket that listens and accepts nothing by itself; `dialled` counts who came."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=400) as listening:
        listening.setblocking(False)
        yield listening


def dialled(listening: socket.socket) -> int:
    """How many connections came to a trap since it was last asked."""
    count = 0
    with suppress(BlockingIOError):
        while True:
            listening.accept()[0].close()
            count += 1
    return count


def answer(body: bytes = b"picture", status: str = "200 OK", *headers: str, length: bool = True) -> bytes:
    """A whole response; without `length` the body ends where the connection does."""
    lines = [f"HTTP/1.1 {status}", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    return answer(b"", f"{status} Elsewhere", f"Location: {location}")


class Lookups:
    """A resolver with a table; of a name's answers each is given once, the last for ever. Keeps what it was asked."""

    def __init__(self, table: dict[str, list[list[str]]] | None = None, others: Sequence[str] = ()) -> None:
        self._table = table or {}
        self._others = others
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        answers = self._table.get(host)
        if answers is None:
            return self._others
        return answers.pop(0) if len(answers) > 1 else answers[0]


class NameServer(asyncio.DatagramProtocol):
    """A name server on UDP: of a name's replies each is sent once, the last for ever; None is silence.

    A reply lists IPv4 addresses, and names as aliases.
    """

    def __init__(self, zone: dict[str, list[list[str] | None]]) -> None:
        self._zone = zone
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = DNSRecord.parse(data)
        name = str(query.q.qname).rstrip(".")
        self.asked.append(name)
        replies = self._zone.get(name)
        reply = query.reply()
        if replies is None:
            reply.header.rcode = RCODE.NXDOMAIN
            texts = []
        else:
            texts = replies.pop(0) if len(replies) > 1 else replies[0]
        if texts is None:
            return
        for text in texts:
            kind, data_of = (QTYPE.A, A) if text[0].isdecimal() else (QTYPE.CNAME, CNAME)
            reply.add_answer(RR(name, kind, rdata=data_of(text)))
        self._transport.sendto(reply.pack(), addr)


class _Answer(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.came.set_result(data)


@asynccontextmanager
async def naming(zone: dict[str, list[list[str] | None]]) -> AsyncIterator[tuple[NameServer, Resolve]]:
    """A name server, and a resolver that asks it anew each time and follows aliases."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: NameServer(zone), ("127.0.0.1", 0))
    place = transport.get_extra_info("sockname")

    async def resolve(host: str, port: int) -> list[str]:
        asking, answered = await loop.create_datagram_endpoint(_Answer, remote_addr=place)
        try:
            asking.sendto(DNSRecord.question(host).pack())
            reply = DNSRecord.parse(await answered.came)
        finally:
            asking.close()
        if reply.header.rcode != RCODE.NOERROR:
            raise OSError("no such name")
        found: list[str] = []
        for record in reply.rr:
            if record.rtype == QTYPE.A:
                found.append(str(record.rdata))
            else:
                found += await resolve(str(record.rdata).rstrip("."), port)
        return found

    try:
        yield server, resolve
    finally:
        transport.close()


_connects: list[object] = []
_watching = False


def _hook(event: str, args: tuple[object, ...]) -> None:
    if _watching and event == "socket.connect":
        _connects.append(args[1])


sys.addaudithook(_hook)


@contextmanager
def watched() -> Iterator[list[object]]:
    """The addresses that sockets of this process are connected to meanwhile, whoever does it."""
    global _watching  # noqa: PLW0603 - an audit hook stays for good, so it is switched
    _connects.clear()
    _watching = True
    try:
        yield _connects
    finally:
        _watching = False


def open_files() -> int:
    return psutil.Process().num_fds()
