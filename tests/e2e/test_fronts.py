"""`--workers`: several processes take requests for one engine, and whichever of them dies, the others do right."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from google import genai

from qwen3vl_compat.cli import main
from qwen3vl_compat.demo import SAMPLE
from tests.serving import ROOT, Served, serving

SCRIPTED = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_MODEL__PAUSE": "0.02", "QWEN3VL_LEDGER__LEASE": "0.5"}
LONG = {"model": "qwen3-vl", "messages": [{"role": "user", "content": "count to 100000"}], "stream": True}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two fronts; the tests that take something from it come last."""
    folder = tmp_path_factory.mktemp("fronts")
    (folder / "q.toml").write_text('[[moderation.moderators]]\nkind = "words"\nwords = { a = ["xyzzy"] }\n')
    with serving(folder, "--workers", "2", "--config", str(folder / "q.toml"), environment=SCRIPTED) as server:
        yield server


def fronts(served: Served) -> list[psutil.Process]:
    children = psutil.Process(served.process.pid).children()
    return [each for each in children if "qwen3vl_compat.server.front" in each.cmdline()]


def until(found: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def client_of(served: Served, front: psutil.Process) -> Iterator[httpx.Client]:
    """A client whose connection is this front's."""
    for _ in range(200):
        headers, one = {"authorization": f"Bearer {served.key}"}, httpx.Limits(max_connections=1)
        with httpx.Client(base_url=served.url, headers=headers, timeout=60, limits=one) as client:
            client.get("/livez")
            if _is_of(client, front):
                yield client
                return
    raise AssertionError("no connection reached this front")


def _is_of(client: httpx.Client, front: psutil.Process) -> bool:
    stream = client._transport._pool.connections[0]._connection._network_stream  # type: ignore[attr-defined]
    ours = stream.get_extra_info("client_addr")[1]
    return any(each.raddr and each.raddr.port == ours for each in front.net_connections())


@contextlib.contextmanager
def both(served: Served) -> Iterator[list[httpx.Client]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(client_of(served, front)) for front in fronts(served)]


def figures(client: httpx.Client, served: Served) -> dict[str, float]:
    told = client.get("/metrics", headers={"authorization": f"Bearer {served.admin_key}"})
    assert told.status_code == 200, told.text
    lines = (line.rpartition(" ") for line in told.text.splitlines() if line[0] != "#")
    return {name: float(value) for name, _, value in lines}


class Streaming(threading.Thread):
    """A client that reads a long stream to its end, whatever that is."""

    def __init__(self, client: httpx.Client, body: dict[str, Any] = LONG) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.failure: Exception | None = None
        self._client, self._body = client, body
        self.start()
        until(lambda: len(self.lines) > 3)

    def run(self) -> None:
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=self._body) as answer:
                self.lines.extend(line for line in answer.iter_lines() if line)
        except httpx.TransportError as failure:
            self.failure = failure


def test_both_sdks_through_both_fronts(served: Served) -> None:
    with both(served) as clients:
        before = figures(clients[0], served)
        for client in clients:
            with openai.OpenAI(base_url=served.url + "/v1", api_key=served.key, http_client=client) as sdk:
                asked: Any = [{"role": "user", "content": "say exactly: good morning"}]
                whole = sdk.chat.completions.create(model="qwen3-vl", messages=asked)
                assert whole.choices[0].message.content == "good morning"
                chunks = sdk.chat.completions.create(model="qwen3-vl", messages=asked, stream=True)
                assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "good morning"
                asked = [{"role": "user", "content": "word " * 33_000}]
                with pytest.raises(openai.BadRequestError) as refused:
                    sdk.chat.completions.create(model="qwen3-vl", messages=asked)
                assert refused.value.code == "context_length_exceeded"
    with both(served) as clients:
        for client in clients:
            options = genai.types.HttpOptions(base_url=served.url, httpx_client=client)
            with genai.Client(api_key=served.key, http_options=options) as sdk:
                picture = genai.types.Part.from_bytes(data=SAMPLE.read_bytes(), mime_type="image/png")
                answer = sdk.models.generate_content(model="qwen3-vl", contents=[picture, "Hello"])
                assert (answer.text or "").endswith("You said: Hello")
                counted = sdk.models.count_tokens(model="qwen3-vl", contents=[picture, "Hello"])
                assert answer.usage_metadata is not None
                assert counted.total_tokens == answer.usage_metadata.prompt_token_count
    with both(served) as clients:
        one, other = (figures(client, served) for client in clients)
        assert one == other
        name = 'qwen3vl_requests_total{cache="off",model="qwen3-vl",state="final"}'
        assert one[name] - before.get(name, 0) == 6
        name = 'qwen3vl_moderation_verdicts_total{moderator="words",verdict="passed"}'
        assert one[name] - before.get(name, 0) >= 12  # both fronts' questions and answers
        assert one["qwen3vl_fronts"] == 2


def test_only_the_process_with_the_engine_may_load_torch(served: Served) -> None:
    for front in fronts(served):
        assert not [each.path for each in front.memory_maps() if "torch" in each.path]


def test_a_hang_up_frees_the_engines_place(served: Served) -> None:
    with both(served) as clients:
        for client in clients:
            with client.stream("POST", "/v1/chat/completions", json=LONG) as answer:
                lines = answer.iter_lines()
                next(lines)
                with client_of(served, fronts(served)[0]) as asking:
                    assert figures(asking, served)["qwen3vl_engine_requests"] == 1
            until(lambda client=client: figures(client, served)["qwen3vl_engine_requests"] == 0, 5)


def test_fronts_share_limits_from_the_start(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """Without Redis each takes its half."""
    main(["keys", "create", "--requests", "10/30minute", "--state-dir", str(served.state)])
    key = capsys.readouterr().out.strip()
    body = {"model": "qwen3-vl", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    with both(served) as clients:
        for client in clients:
            client.headers["authorization"] = f"Bearer {key}"
            codes = [client.post("/v1/chat/completions", json=body).status_code for _ in range(6)]
            assert codes == [200] * 5 + [429]


def test_the_address_is_not_shared_with_another_server(served: Served, tmp_path: Path) -> None:
    port = served.url.rpartition(":")[2]
    for workers in ("0", "2"):
        command = [sys.executable, "-m", "qwen3vl_compat", "serve", "--port", port, "--workers", workers]
        ended = subprocess.run(
            [*command, "--state-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (ended.returncode, "is taken" in ended.stderr) == (1, True)


def test_a_front_that_dies_is_replaced_and_the_other_goes_on(served: Served) -> None:
    dying, living = fronts(served)
    with (
        client_of(served, dying) as one,
        client_of(served, living) as other,
        client_of(served, living) as client,
    ):
        before = figures(client, served)
        cut, kept = Streaming(one), Streaming(other)
        assert figures(client, served)["qwen3vl_engine_requests"] == 2
        dying.kill()
        cut.join(10)
        assert isinstance(cut.failure, httpx.RemoteProtocolError | httpx.ReadError)
        until(lambda: figures(client, served)["qwen3vl_engine_requests"] == 1)
        for _ in range(5):
            assert httpx.get(served.url + "/readyz").status_code == 200
        count = len(kept.lines)
        until(lambda: len(kept.lines) > count + 10)
        until(lambda: figures(client, served)["qwen3vl_fronts"] == 2)
        assert "front 1 was ended by signal 9" in served.log()
        until(
            lambda: figures(client, served).get(
                'qwen3vl_requests_total{cache="off",model="qwen3-vl",state="interrupted"}'
            )
        )
        after = figures(client, served)
        assert after["qwen3vl_front_deaths_total"] == 1
        assert all(after[name] >= value for name, value in before.items() if "_total" in name)
        assert len({front.pid for front in fronts(served)} - {dying.pid, living.pid}) == 1
        with client_of(served, next(each for each in fronts(served) if each.pid != living.pid)) as new:
            assert new.get("/readyz").status_code == 200
        other.close()
        kept.join(10)


def test_fronts_do_not_outlive_the_process_with_the_engine(served: Served) -> None:
    """After this nobody serves here."""
    left = fronts(served)
    with client_of(served, left[0]) as client:
        cut = Streaming(client)
        served.process.kill()
        cut.join(20)
        last = json.loads(cut.lines[-1].removeprefix("data: "))
        assert last["error"]["message"] == "The engine failed."
    _, alive = psutil.wait_procs(left, 20)
    assert not alive
    with pytest.raises(httpx.ConnectError):
        httpx.get(served.url + "/livez")


def test_a_stop_drains_all_fronts(tmp_path: Path) -> None:
    said = LONG | {"messages": [{"role": "user", "content": "count to 80"}]}
    with (
        serving(tmp_path, "--workers", "2", environment=SCRIPTED) as served,
        both(served) as clients,
        both(served) as probes,
    ):
        left = fronts(served)
        streams = [Streaming(client, said) for client in clients]
        for each in (*left, served.process):  # as systemd does, which signals a whole group
            each.send_signal(signal.SIGTERM)
        for probe in probes:
            until(lambda probe=probe: probe.get("/readyz").status_code == 503, 5)
            assert probe.get("/livez").status_code == 200
            refused = probe.post("/v1/chat/completions", json=said)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        for stream in streams:
            stream.join(30)
            assert stream.lines[-1] == "data: [DONE]"
        assert served.process.wait(20) == 0
        assert not [front for front in left if front.is_running()]


def test_the_whole_ends_as_the_engine_does(tmp_path: Path) -> None:
    """Until it is loaded the fronts say 503; when it has lost its device everything ends, with its status."""
    seen: list[int] = []

    def look(url: str) -> None:
        end = time.monotonic() + 60
        while not seen and time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):
                seen.extend(httpx.get(url + path).status_code for path in ("/readyz", "/livez"))
            time.sleep(0.05)
        (tmp_path / "go").touch()

    environment, module = SCRIPTED | {"GO": str(tmp_path / "go")}, "tests.engines.mortal"
    with serving(tmp_path, "--workers", "2", environment=environment, during=look, module=module) as served:
        assert seen == [503, 200]
        left = fronts(served)
        body = {"model": "qwen3-vl", "messages": [{"role": "user", "content": "die"}]}
        answer = served.post("/v1/chat/completions", body)
        assert (answer.status_code, answer.json()["error"]["message"]) == (500, "The engine failed.")
        assert served.process.wait(10) == 70
        assert not psutil.wait_procs(left, 20)[1]


def test_what_a_front_cannot_start_for_ends_the_start(tmp_path: Path) -> None:
    wrong = SCRIPTED | {"QWEN3VL_LIMITS__REDIS": "redis://host:port"}
    with (
        pytest.raises(AssertionError, match=r"the server ended:[^!]*qwen3vl-compat: limits.redis cannot be used"),
        serving(tmp_path, "--workers", "2", environment=wrong),
    ):
        pass


@pytest.mark.slow
def test_a_front_that_hangs_is_replaced(tmp_path: Path) -> None:
    """It takes more than a minute: a front that is only slow is none that hangs."""
    with serving(tmp_path, "--workers", "2", environment=SCRIPTED) as served:
        hanging, living = fronts(served)
        hanging.suspend()
        until(lambda: len({front.pid for front in fronts(served)} - {hanging.pid, living.pid}) == 1, 150)
        assert "a front says nothing any more" in served.log()
        assert "front 1 was ended by signal 9" in served.log()
        assert living.is_running()
        with client_of(served, next(each for each in fronts(served) if each.pid != living.pid)) as new:
            until(lambda: new.get("/readyz").status_code == 200)


@pytest.mark.slow
def test_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", environment=SCRIPTED) as served, both(served) as clients:
        left = fronts(served)
        streams = [Streaming(client) for client in clients]
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(5) == 1
        assert not psutil.wait_procs(left, 5)[1]
        for stream in streams:
            stream.join(5)
