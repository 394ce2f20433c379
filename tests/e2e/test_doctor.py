"""`qwen3vl-compat doctor` against servers of ours in many states, and against what is none."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from qwen3vl_compat import __version__, cli
from qwen3vl_compat.accounts.books import Accounts, open_accounts
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.doctor.checks import make_checks
from qwen3vl_compat.settings import Settings
from tests.serving import Served, serving

NAMES = [check.name for check in make_checks(b"")]
WIRES = ("OpenAI chat", "OpenAI responses", "Google", "Anthropic")
PATIENT = ("--timeout", "300")
MODERATED = '[[moderation.moderators]]\nkind = "words"\n[moderation.moderators.words]\nviolence = ["bomb*"]\n'

Examine = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Accounts]]:
    """The scripted engine with a price and a list of words, and its accounts."""
    folder = tmp_path_factory.mktemp("doctor")
    accounts = open_accounts(open_database(folder / "state"), Settings(), served=False)
    accounts.prices.set("*", text_in="1000", out="1000")
    (folder / "q.toml").write_text(MODERATED, encoding="utf-8")
    arguments = ("--config", str(folder / "q.toml"))
    with serving(folder, *arguments, environment={"QWEN3VL_MODEL__ENGINE": "scripted"}) as served:
        yield served, accounts


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Runs the command with --json; returns its status and what it printed."""
    monkeypatch.delenv("QWEN3VL_API_KEY", raising=False)

    def run(url: str, key: str = "", *words: str) -> tuple[int, dict[str, Any]]:
        status = 0
        try:
            cli.main(["doctor", "--url", url, *(["--key", key] if key else []), "--json", *words])
        except SystemExit as ended:
            status = int(str(ended.code))
        said = capsys.readouterr()
        assert said.err == ""
        assert not key or key not in said.out
        told = json.loads(said.out)
        assert [found["check"] for found in told["checks"]] == NAMES
        assert told["ok"] == (status == 0) == ("failed" not in results(told).values())
        return status, told

    return run


def results(told: dict[str, Any]) -> dict[str, str]:
    return {found["check"]: found["result"] for found in told["checks"]}


def finding(told: dict[str, Any], name: str) -> dict[str, str]:
    (found,) = [found for found in told["checks"] if found["check"] == name]
    return found


def failures(told: dict[str, Any]) -> list[str]:
    return [name for name, result in results(told).items() if result == "failed"]


# --------------------------------------------------------------------------------------------------------- all is well


def test_a_sound_server_passes_all(house: tuple[Served, Accounts], examine: Examine) -> None:
    served, accounts = house
    key = accounts.keys.create("default").secret_text
    status, told = examine(served.url + "/v1/", key, *PATIENT)
    assert (status, set(results(told).values())) == (0, {"ok"}), told
    assert told["url"] == served.url
    assert finding(told, "version")["seen"] == __version__
    assert finding(told, "OpenAI chat: answer")["seen"] == "'You said: Say hello.', stop, 6 + 4 tokens"
    assert {finding(told, f"{wire}: tokens")["seen"] for wire in WIRES} == {"6, as told with the answer"}
    assert all("12 tokens of picture" in finding(told, f"{wire}: picture")["seen"] for wire in WIRES)
    assert "The tool says: rain" in finding(told, "tool call")["seen"]
    assert finding(told, "moderation")["seen"] == "'Hello' passes"
    assert told["tokens"] < 1000


@pytest.mark.conformance
def test_the_demonstration_model_passes(demo: Served, examine: Examine) -> None:
    status, told = examine(demo.url, demo.key, *PATIENT)
    assert status == 0, told
    assert {name for name, result in results(told).items() if result != "ok"} == {"cache"}, "which is off here"
    assert finding(told, "cache")["seen"].startswith("no answers are kept")
    assert all(finding(told, f"{wire}: picture")["seen"].startswith("'HELLO42'") for wire in WIRES)
    assert finding(told, "moderation")["seen"].endswith("nobody has looked at it")


def test_the_table_is_for_people(
    house: tuple[Served, Accounts], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, accounts = house
    key = accounts.keys.create("default", endpoints=("generate", "usage")).secret_text
    monkeypatch.setenv("QWEN3VL_API_KEY", key)
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--url", served.url, "--model", "nobody", *PATIENT])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1
    assert lines[0] == served.url
    column = lines[2].index("RESULT")
    assert [line[:column].strip() for line in lines[3 : 3 + len(NAMES)]] == NAMES
    assert {line[column:].split("  ")[0] for line in lines[3 : 3 + len(NAMES)]} == {"ok", "failed", "not available"}
    told = lines.index("OpenAI chat: answer")
    assert lines[told + 1] == "  expected  200 from /v1/chat/completions"
    assert (
        lines[told + 2]
        == "  seen      404: The model 'nobody' does not exist or you have no access to it; there is qwen3-vl."
    )
    assert "--model" in lines[told + 3]
    assert lines[-2].startswith(f"{sum(' ok  ' in line for line in lines)} ok, 4 failed, ")
    assert " requests, 0 tokens, " in lines[-1]
    assert key not in "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("kind", ["wrong", "none", "admin", "revoked", "suspended"])
def test_a_key_that_is_of_no_use(house: tuple[Served, Accounts], examine: Examine, kind: str) -> None:
    served, accounts = house
    if kind == "suspended":
        accounts.tenants.create("out", status="suspended")
    made = accounts.keys.create("out" if kind == "suspended" else "default", admin=kind == "admin")
    if kind == "revoked":
        accounts.keys.revoke(made.key.public)
    keys = {"wrong": "sk-AAAAAAAAAAAA-" + "a" * 43, "none": ""}
    status, told = examine(served.url, keys.get(kind, made.secret_text), *PATIENT)
    assert status == 1
    assert failures(told) == ["key accepted"]
    found = finding(told, "key accepted")
    assert found["expected"] == "200 from /v1/models"
    assert found["seen"].startswith("403: " if kind in ("admin", "suspended") else "401: ")
    assert "key" in found["hint"]
    assert results(told)["files"] == "not available"


def test_what_a_key_may_not_do_is_no_failure(house: tuple[Served, Accounts], examine: Examine) -> None:
    served, accounts = house
    status, told = examine(served.url, accounts.keys.create("default", endpoints=("usage",)).secret_text, *PATIENT)
    assert status == 0
    unavailable = {name for name, result in results(told).items() if result == "not available"}
    assert unavailable == {*NAMES[NAMES.index("models") :]} - {"limits"}
    assert finding(told, "files")["seen"] == "This API key is not for the endpoint 'files'."
    status, told = examine(served.url, accounts.keys.create("default", endpoints=("generate",)).secret_text, *PATIENT)
    assert status == 0
    unavailable = {name for name, result in results(told).items() if result == "not available"}
    assert unavailable == {"models", "limits", "files", "moderation"}


def test_a_budget_that_is_used_up_fails(house: tuple[Served, Accounts], examine: Examine) -> None:
    served, accounts = house
    key = accounts.keys.create("default", limits={"budget": "0.000000001/day"}).secret_text
    status, told = examine(served.url, key, *PATIENT)
    assert status == 1
    assert failures(told) == [f"{wire}: answer" for wire in WIRES]
    assert finding(told, "limits")["seen"] == "key: 0.000000001 of 0.000000001 USD left this day"
    for wire in WIRES:
        found = finding(told, f"{wire}: answer")
        assert found["seen"].startswith("402: " if wire == "Anthropic" else "429: ")
        assert "budget" in found["hint"]


def test_a_limit_that_is_reached_is_no_failure(house: tuple[Served, Accounts], examine: Examine) -> None:
    served, accounts = house
    key = accounts.keys.create("default", limits={"requests": "5/day"}).secret_text
    status, told = examine(served.url, key, *PATIENT)
    assert status == 0
    assert finding(told, "limits")["seen"] == "key: requests 5/day; 1 requests left now"
    assert results(told)["OpenAI chat: answer"] == "ok"
    assert "The limit of this key is reached: 5 requests a day" in finding(told, "Anthropic: answer")["seen"]


# ----------------------------------------------------------------------------------------------------- none of ours


@contextmanager
def listening(say: Callable[[socket.socket, Event], None]) -> Iterator[str]:
    """Accepts connections and has each of them spoken to; the event is set at the end."""
    over = Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65_536)
            say(connection, over)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while not over.is_set():
                    Thread(target=answer, args=(listener.accept()[0],)).start()

        thread = Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join()


def said(body: bytes, status: str = "200 OK", head: bytes = b"") -> Callable[[socket.socket, Event], None]:
    whole = b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n%b\r\n%b"
    return lambda connection, _: connection.sendall(whole % (status.encode(), len(body), head, body))


def drip(connection: socket.socket, over: Event) -> None:
    """A byte now and then, so that no wait for one is long."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not over.wait(0.05):
        connection.sendall(b" ")


def flood(connection: socket.socket, over: Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not over.is_set():
        connection.sendall(b" " * 65_536)


@pytest.mark.parametrize(
    ("say", "seen", "seconds"),
    [
        (lambda connection, _: connection.sendall(b"SSH-2.0-OpenSSH\r\n"), "no HTTP", "300"),
        (lambda connection, _: None, "closed without an answer", "300"),
        (lambda connection, over: over.wait(60), "nothing", "0.3"),
        (drip, "nothing", "0.3"),
        (flood, "more than 4,194,304 bytes", "300"),
        (said(b"<html>Hello</html>"), "<html>Hello</html>", "300"),
        (said(b'{"status": 5}'), "Expected `str`, got `int`", "300"),
        (said(b'{"status": "\xff"}'), "byte 0xff", "300"),
        (said(b"[" * 100_000), "[[[", "300"),
        (said(b"\x1b[2J\x07no", "404 Not Found"), "404: ?[2J?no", "300"),
        (said(b"", "301 Moved", b"Location: http://127.0.0.1/\r\n"), "301: nothing", "300"),
        (said(b"x" * 100, "500 Oops", b"Content-Encoding: gzip\r\n"), "", "300"),
    ],
)
def test_what_is_no_server_of_ours(
    examine: Examine, say: Callable[[socket.socket, Event], None], seen: str, seconds: str
) -> None:
    with listening(say) as url:
        status, told = examine(url, "sk-AAAAAAAAAAAA-" + "a" * 43, "--timeout", seconds)
    assert status == 1
    assert failures(told) == ["alive"]
    assert {*results(told).values()} == {"failed", "not available"}
    found = finding(told, "alive")
    assert seen in found["seen"]
    assert found["expected"]
    assert found["hint"]
    assert len(found["seen"]) <= 200


def test_nobody_listens(examine: Examine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    _, told = examine(url)
    assert "no connection can be made" in finding(told, "alive")["seen"]
    assert "running" in finding(told, "alive")["hint"]


class _Echo(BaseHTTPRequestHandler):
    """Alive and ready, and to everything else says the same, with the caller's secrets in it."""

    status = 401

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        alive = self.path in ("/livez", "/readyz")
        message = f"bad: {self.headers.get('authorization')} {self.headers.get('x-api-key')}"
        body = json.dumps({"status": "ok", "error": {"message": message}}).encode()
        self.send_response(200 if alive else self.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_DELETE = do_GET  # noqa: N815, the names are http.server's

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("status", [200, 401])
def test_the_key_is_not_printed_though_the_server_says_it(examine: Examine, status: int) -> None:
    handler = type("Handler", (_Echo,), {"status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            _, told = examine(f"http://127.0.0.1:{server.server_port}", "sk-AAAAAAAAAAAA-" + "a" * 43)
        finally:
            server.shutdown()
    assert results(told)["wrong key, Google"] == "failed"
    assert results(told)["version"] == "not available"
    if status == 200:
        assert {f"{wire}: answer" for wire in WIRES} < {*failures(told)}
        assert "Object missing required field" in finding(told, "Google: answer")["seen"]
    else:
        assert finding(told, "key accepted")["seen"] == "401: bad: Bearer sk-... None"


def test_the_variable_of_the_key_is_no_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who has exported it can still manage keys in the same shell."""
    open_database(tmp_path / "state").dispose()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "QWEN3VL_API_KEY", "sk-x")
    cli.main(["keys", "list", "--state-dir", str(tmp_path / "state")])
    assert "KEY" in capsys.readouterr().out
