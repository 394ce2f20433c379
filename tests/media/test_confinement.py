"""No file and no socket is opened while hostile files are decoded, as strace sees it, for C libraries tell no one."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.media.crafted import drawing
from tests.media.exposed import BEGIN
from tests.media.films import film, steady
from tests.serving import ROOT

CALLS = "openat,open,creat,socket,connect,bind,execve,prlimit64,setrlimit"
HARMLESS = re.compile(
    r'"(/sys/devices/system/cpu|/proc/(self|cpuinfo|meminfo|sys/vm)|/etc/localtime|/usr/share/zoneinfo)'
)
"""What the C library itself looks up, of the machine and the clock."""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A good video that nobody may open."""
    path = tmp_path / "canary.mp4"
    path.write_bytes(film(steady([drawing(64, 64, seed=number) for number in range(4)], 4)))
    return path


@pytest.fixture
def trap() -> Iterator[tuple[int, list[socket.socket]]]:
    """A port on which nothing may arrive, by TCP or by UDP."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(tcp.getsockname())
        tcp.listen()
        for each in (tcp, udp):
            each.setblocking(False)
        yield tcp.getsockname()[1], [tcp, udp]


def traced(mode: str, canary: Path, port: int) -> list[str]:
    """The system calls of one run, a line each."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: what C libraries open cannot be seen")
    log = canary.with_name("strace.log")
    command = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "200", "-e", f"trace={CALLS}", "-o", str(log)]
    run = subprocess.run(
        [*command, sys.executable, "-m", "tests.media.exposed", mode, str(canary), str(port)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if "ptrace" in run.stderr and "not permitted" in run.stderr:
        pytest.skip("strace may not trace here: what C libraries open cannot be seen")
    assert run.returncode == 0, run.stderr[-2000:]
    return log.read_text(errors="replace").splitlines()


def opened(lines: list[str]) -> list[str]:
    """The calls that open something, harmless ones left out."""
    calls = (line for line in lines if re.match(r"\d+ +(openat|open|creat|socket|connect|bind|execve)\(", line))
    return [line for line in calls if BEGIN not in line and not HARMLESS.search(line)]


def after_the_watch_began(lines: list[str]) -> list[str]:
    return lines[next(place for place, line in enumerate(lines) if BEGIN in line) :]


def confined(lines: list[str]) -> Iterator[str]:
    """What each child does once it has given up new files."""
    given_up: set[str] = set()
    for line in lines:
        process = line.split()[0]
        if process in given_up:
            yield line
        elif re.search(r"(prlimit64\(0|setrlimit\()?.*RLIMIT_NOFILE, \{rlim_cur=", line):
            given_up.add(process)


def test_children_open_nothing(canary: Path, trap: tuple[int, list[socket.socket]]) -> None:
    port, listening = trap
    lines = list(confined(traced("sandboxed", canary, port)))
    assert len({line.split()[0] for line in lines}) >= 3, "two children, and those that replaced the dead"
    assert opened(lines) == []
    for each in listening:
        with pytest.raises(BlockingIOError):
            each.accept() if each.type == socket.SOCK_STREAM else each.recv(1)


def test_a_told_format_keeps_ffmpeg_from_opening_what_a_file_names(
    canary: Path, trap: tuple[int, list[socket.socket]]
) -> None:
    port, _ = trap
    assert opened(after_the_watch_began(traced("guarded", canary, port))) == []


def test_without_the_format_it_opens_files_and_sockets(canary: Path, trap: tuple[int, list[socket.socket]]) -> None:
    """That the test above can fail."""
    port, _ = trap
    calls = opened(after_the_watch_began(traced("unguarded", canary, port)))
    assert any(canary.name in call for call in calls)
    assert any("socket(" in call for call in calls)
