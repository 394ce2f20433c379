"""How HTTP servers treat clients that drip, hang up or do not read: `python -m benchmarks.servers`.

uvicorn as it comes, uvicorn with this project's connections, and granian (put into `.build/granian`),
each serving the same small ASGI application over loopback.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

GIVE_UP = 35.0
NOTES = Path(".build/servers.txt")
"""Where the application notes what it sees."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    """`/wait` until the client leaves, `/flood` answers without end, anything else reads its body."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/wait":
        await receive()
        began = time.monotonic()
        while (await receive())["type"] != "http.disconnect":
            pass
        note(f"left {time.time()} {time.monotonic() - began}")
        return
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
    if scope["path"] == "/flood":
        await send(start)
        sent = 0
        with suppress(Exception):
            async with asyncio.timeout(5):
                while True:
                    await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})
                    sent += 2**16
                    await asyncio.sleep(0)
        note(f"flooded {sent}")
        return
    while (message := await receive()).get("more_body"):
        if message["type"] == "http.disconnect":
            return
    await send(start)
    await send({"type": "http.response.body", "body": b"ok"})


def note(text: str) -> None:
    """Append a line for the driver to read."""
    with NOTES.open("a") as file:
        file.write(text + "\n")


def ours() -> None:
    """Run uvicorn with the project's connections."""
    import uvicorn

    from qwen3vl_compat.server.connection import with_patience

    uvicorn.run("benchmarks.servers:app", port=int(sys.argv[2]), http=with_patience(5.0), log_level="error", ws="none")


def closed_after(port: int, first: bytes, drip: bytes, *, pause: float = 1.0) -> str:
    """Seconds until the server ends a connection on which a byte comes each second, and what it says."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(pause)
        connection.sendall(first)
        began = time.monotonic()
        while time.monotonic() - began < GIVE_UP:
            with suppress(TimeoutError):
                try:
                    said = connection.recv(4096)
                except ConnectionError:
                    said = b""
                line = said.split(b"\r\n")[0].decode("latin-1")[9:12] or "closed"
                return f"{line} after {time.monotonic() - began:.0f} s"
            with suppress(OSError):
                connection.sendall(drip)
    return f"waits beyond {GIVE_UP:.0f} s"


def large_head(port: int) -> str:
    """The answer to a header of 1 MB."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection, suppress(OSError):
        with suppress(OSError):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 2**20 + b"\r\n\r\n")
        return connection.recv(4096).split(b"\r\n")[0].decode("latin-1")[9:12]
    return "closed"


def left(port: int) -> str:
    """Milliseconds until the application hears of a hang-up."""
    NOTES.write_text("")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.5)
        gone = time.time()
    for _ in range(40):
        if lines := [line.split() for line in NOTES.read_text().splitlines() if line.startswith("left")]:
            return f"{(float(lines[0][1]) - gone) * 1000:.0f} ms"
        time.sleep(0.05)
    return "never"


def unread(port: int) -> str:
    """Megabytes that are taken of an application whose client reads nothing for 5 s."""
    NOTES.write_text("")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(7)
    time.sleep(0.5)
    lines = [line.split() for line in NOTES.read_text().splitlines() if line.startswith("flooded")]
    return f"{int(lines[0][1]) / 1e6:.1f} MB" if lines else "?"


CHECKS: dict[str, Callable[[int], str]] = {
    "a head that drips": lambda port: closed_after(port, b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"a"),
    "a header of 1 MB": large_head,
    "a body that drips": lambda port: closed_after(
        port, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n", b"a"
    ),
    "an idle connection": lambda port: closed_after(port, b"", b""),
    "hears of a hang-up after": left,
    "takes for a client that reads nothing": unread,
}


def free_port() -> int:
    """A port nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """Run each server and print the table."""
    if sys.argv[1:2] == ["ours"]:
        ours()
        return
    NOTES.parent.mkdir(exist_ok=True)
    place = "benchmarks.servers:app"
    servers: dict[str, Callable[[str], list[str]]] = {
        "uvicorn": lambda port: ["-m", "uvicorn", place, "--port", port, "--log-level", "error"],
        "uvicorn, our connections": lambda port: ["-m", "benchmarks.servers", "ours", port],
        "granian": lambda port: ["-m", "granian", "--interface", "asginl", "--port", port, "--no-log", place],
    }
    found: dict[str, dict[str, str]] = {}
    for name, arguments in servers.items():
        port = free_port()
        path = os.pathsep.join((".build/granian", os.environ.get("PYTHONPATH", "."), "."))
        process = subprocess.Popen([sys.executable, *arguments(str(port))], env=os.environ | {"PYTHONPATH": path})
        try:
            for _ in range(100):
                time.sleep(0.1)
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
            found[name] = {check: run(port) for check, run in CHECKS.items()}
        finally:
            process.kill()
            process.wait()
    print("| | " + " | ".join(servers) + " |\n|" + "---|" * (len(servers) + 1))
    for check in CHECKS:
        print(f"| {check} | " + " | ".join(found[name][check] for name in servers) + " |")


if __name__ == "__main__":
    main()
