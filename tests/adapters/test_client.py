"""The client without a server: what is sent for what is asked, when to try again, and what it takes to import it."""

import dataclasses
import inspect
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_compat.adapters import client
from qwen3vl_compat.adapters.calling.failures import failure_of, named_pause
from qwen3vl_compat.adapters.calling.sending import IN_FLIGHT, may_be_repeated, pause_for
from qwen3vl_compat.adapters.calling.steps import Call, Lost, Reply
from qwen3vl_compat.adapters.client import (
    AsyncQwen3VLClient,
    Attachment,
    InvalidInput,
    Qwen3VLClient,
    Sampling,
    Thinking,
    tool,
    tool_result,
)
from qwen3vl_compat.messages import OutputFormat, ToolCall, ToolChoice
from tests.adapters.faulty import faulty, whole
from tests.media.crafted import drawing, encoded

HEAVY = ("torch", "transformers", "litestar", "sqlalchemy", "numpy", "av", "pypdfium2", "tiktoken", "uvicorn")
ROOMS = ("server", "engines", "policies", "accounts", "media", "settings")


def test_importing_it_is_light() -> None:
    probe = "import sys, qwen3vl_compat.adapters.client; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    assert "qwen3vl_compat.adapters.client" in out
    assert [name for name in out if name.partition(".")[0] in HEAVY] == []
    assert [name for name in out if name.startswith(tuple(f"qwen3vl_compat.{room}" for room in ROOMS))] == []


def test_both_faces_have_the_same_methods() -> None:
    def face(kind: type) -> dict[str, Any]:
        methods = {name: each for name, each in vars(kind).items() if inspect.isfunction(each) and name[:2] != "__"}
        return {name: list(inspect.signature(each).parameters.values()) for name, each in methods.items()}

    assert face(Qwen3VLClient) == face(AsyncQwen3VLClient)
    assert inspect.signature(Qwen3VLClient) == inspect.signature(AsyncQwen3VLClient)
    assert set(face(client.Stream)) == set(face(client.AsyncStream))


def test_all_that_is_named_is_there() -> None:
    assert [name for name in client.__all__ if not hasattr(client, name)] == []
    errors = {name for name, each in vars(client).items() if isinstance(each, type) and issubclass(each, Exception)}
    assert errors <= set(client.__all__)


# ------------------------------------------------------------------------------------------------------ what is sent


def sent(*asked: Any, **options: Any) -> dict[str, Any]:
    """The body of a request."""
    with faulty(whole("yes")) as server, Qwen3VLClient(server.url, longest_side=0) as asking:
        asking.generate(*asked, **options)
        return json.loads(server.seen[0].body)


@dataclasses.dataclass
class Sign:
    text: str


class Pydantic:
    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {"type": "object"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"temperature": 0.7, "max_completion_tokens": 2048, "model": "qwen3-vl"}),
        ({"temperature": None, "max_tokens": None}, {"model": "qwen3-vl"}),
        ({"temperature": 0, "max_tokens": 5}, {"temperature": 0, "max_completion_tokens": 5}),
        ({"sampling": Sampling(seed=1, stop=("x",), temperature=2)}, {"seed": 1, "stop": ["x"], "temperature": 0.7}),
        ({"sampling": Sampling(temperature=2), "temperature": None}, {"temperature": 2}),
        ({"model": "other", "choices": 2}, {"model": "other", "n": 2}),
        ({"system": "Be brief."}, {"messages": [{"role": "system", "content": "Be brief."},
                                                {"role": "user", "content": "Well?"}]}),
        ({"schema": {"type": "object"}}, {"response_format": {"type": "json_schema", "json_schema": {
            "name": "answer", "schema": {"type": "object"}, "strict": True}}}),
        ({"schema": Pydantic}, {"response_format": {"type": "json_schema", "json_schema": {
            "name": "answer", "schema": {"type": "object"}, "strict": True}}}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"format": OutputFormat(kind="json_object")}, {"response_format": {"type": "json_object"}}),
        ({"choice": ["a", "ü"]}, {"choice": ["a", "ü"]}),
        ({"tools": [tool("f", "It is f.")]}, {"tools": [
            {"type": "function", "function": {"name": "f", "description": "It is f.", "strict": False}}]}),
        ({"tools": [tool("f", parameters={"type": "object"})], "tool_choice": "required"}, {"tool_choice": "required"}),
        ({"tools": [tool("f")], "tool_choice": "none"}, {"tool_choice": "none"}),
        ({"tools": [tool("f")], "tool_choice": ToolChoice(mode="required", parallel=False)},
         {"tool_choice": "required", "parallel_tool_calls": False}),
        ({"tools": [tool("f")], "tool_choice": "f"}, {"tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]}}}),
        ({"thinking": Thinking(budget=9)}, {"thinking_budget": 9}),
    ],
)  # fmt: skip
def test_what_is_sent_for_an_option(options: dict[str, Any], expected: Mapping[str, Any]) -> None:
    body = sent("Well?", **options)
    assert {name: body.get(name) for name in expected} == dict(expected)


def test_nothing_is_sent_that_was_not_asked() -> None:
    assert sent("Well?", temperature=None, max_tokens=None) == {
        "model": "qwen3-vl", "messages": [{"role": "user", "content": "Well?"}],
    }  # fmt: skip


def test_a_types_schema() -> None:
    schema = sent("Well?", schema=Sign)["response_format"]["json_schema"]["schema"]
    assert (schema["type"], schema["properties"]) == ("object", {"text": {"type": "string"}})


PNG = encoded(drawing(32, 32), "PNG")
CALL = ToolCall("c1", "f", '{"a": 1}')
FILE = "file-0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        (["a", "b"], [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]),
        ([Attachment("https://x/y.png", detail="low"), "a"], [{"role": "user", "content": [
            {"type": "file", "file": {"file_data": "https://x/y.png", "detail": "low"}},
            {"type": "text", "text": "a"}]}]),
        ([Attachment(FILE, start=1.5, end=2.0, fps=1.0)], [{"role": "user", "content": [
            {"type": "file", "file": {"file_id": FILE, "start": 1.5, "end": 2.0, "fps": 1.0}}]}]),
        ([Attachment(b"%PDF-1.7", pages=(2, 3), name="b.pdf")], [{"role": "user", "content": [
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0xLjc=", "filename": "b.pdf",
                                      "pages": "2-3"}}]}]),
        ([Attachment(b"....ftypisom", start=1.0)], [{"role": "user", "content": [
            {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,Li4uLmZ0eXBpc29t", "start": 1.0}}]}]),
        (["a", tool_result(CALL, {"b": "ü"}), "c"], [
            {"role": "user", "content": "a"},
            {"role": "tool", "tool_call_id": "c1", "content": '{"b": "ü"}'},
            {"role": "user", "content": "c"}]),
    ],
)  # fmt: skip
def test_what_is_sent_for_a_prompt(prompt: list[Any], messages: list[Any]) -> None:
    assert sent(prompt)["messages"] == messages


def test_an_answer_goes_on_as_a_turn() -> None:
    with faulty(whole("yes"), whole("no")) as server, Qwen3VLClient(server.url) as asking:
        first = asking.generate("Well?")
        assert (str(first), first.finish_reason, first.cost, first.cached, first.ignored) == (
            "yes",
            "stop",
            None,
            False,
            (),
        )
        asking.generate(["Well?", first.message, "And now?"])
        turns = json.loads(server.seen[1].body)["messages"]
        assert [(turn["role"], turn["content"]) for turn in turns] == [
            ("user", "Well?"), ("assistant", "yes"), ("user", "And now?"),
        ]  # fmt: skip


def test_headers(tmp_path: Path) -> None:
    with faulty(whole("yes"), whole("yes"), whole("yes")) as server, Qwen3VLClient(server.url + "/v1/") as asking:
        asking.generate("Well?", headers={"Cache-Control": "no-cache"}, timeout=5)
        asking.generate("Well?", idempotency_key="")
        asking.generate("Well?", idempotency_key="mine")
        first, second, third = (seen.headers for seen in server.seen)
        assert {seen.path for seen in server.seen} == {"/v1/chat/completions"}
        assert first["cache-control"] == "no-cache"
        assert first["content-type"] == "application/json"
        assert first["user-agent"].startswith("qwen3vl-compat/")
        assert 0 < float(first["x-server-timeout"]) <= 5
        assert len(first["idempotency-key"]) == 32
        assert "idempotency-key" not in second
        assert third["idempotency-key"] == "mine"


# --------------------------------------------------------------------------------------------- what cannot be sent

NOWHERE = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("asked", "options", "param"),
    [
        (("",), {"nonsense": 1}, "nonsense"),
        (("",), {"temperature": math.nan}, "temperature"),
        (("",), {"temperature": "hot"}, "temperature"),
        *[(("",), {"max_tokens": most}, "max_tokens") for most in (math.inf, 0, -1, 2.5, "9", 10_000_001)],
        (("",), {"timeout": 0}, "timeout"),
        (("",), {"idempotency_key": "ü"}, "idempotency_key"),
        (("",), {"headers": {"x": "a\nb"}}, "headers[x]"),
        (("",), {"schema": {}, "regex": "a"}, "regex"),
        (("",), {"schema": object}, "schema"),
        (("",), {"schema": {"a": {1}}}, "schema"),
        (([],), {}, "prompt"),
        ((["a", 5],), {}, "prompt[1]"),
        ((["a"], "b.png"), {}, "image_path"),
        (("a", "no/such/file.png"), {}, "image_path"),
        (("a", "."), {}, "image_path"),
        ((["a", Path("no/such/file.png")],), {}, "prompt[1]"),
        ((["a", Attachment(b"")],), {}, "prompt[1]"),
        ((["a", Attachment(PNG[:500])],), {}, "prompt[1]"),
    ],
)
def test_what_cannot_be_sent_is_named(asked: Any, options: Any, param: str) -> None:
    with Qwen3VLClient(NOWHERE) as asking, pytest.raises(InvalidInput) as caught:
        asking.generate(*asked, **options)
    assert caught.value.param == param
    assert str(caught.value).startswith(f"{param}: ")


@pytest.mark.parametrize("asked", [{"prompt": "\ud800"}, {"prompt": "a", "system": "\ud800"}])
def test_half_a_character_cannot_be_sent(asked: Any) -> None:
    with Qwen3VLClient(NOWHERE) as asking, pytest.raises(InvalidInput, match="half of a character"):
        asking.generate(**asked)


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"base_url": "localhost:8080"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
        ({"base_url": "http://x:99999"}, "base_url"),
        ({"base_url": "ftp://x"}, "base_url"),
        ({"api_key": "sk-\n"}, "api_key"),
        ({"api_key": "schlüssel"}, "api_key"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"longest_side": -1}, "longest_side"),
    ],
)
@pytest.mark.parametrize("face", [Qwen3VLClient, AsyncQwen3VLClient])
def test_settings_that_cannot_be_meant_are_named(face: Any, settings: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{param}: ") as caught:
        face(**settings)
    assert caught.value.param == param


@pytest.mark.parametrize("face", [Qwen3VLClient, AsyncQwen3VLClient])
def test_the_environment_says_what_is_not_given(face: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(*given: str | None) -> tuple[str, str | None]:
        configuration = face(*given)._caller.configuration
        return configuration.base_url, configuration.api_key

    for name in ("QWEN3VL_BASE_URL", "QWEN3VL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert seen() == ("http://localhost:8080", None)
    monkeypatch.setenv("QWEN3VL_BASE_URL", "http://there:1")
    monkeypatch.setenv("QWEN3VL_API_KEY", "sk-env")
    assert seen() == ("http://there:1", "sk-env")
    assert seen("http://here:2", "sk-own") == ("http://here:2", "sk-own")


def test_a_stream_has_no_answer_before_its_end() -> None:
    with Qwen3VLClient(NOWHERE) as asking, pytest.raises(InvalidInput):
        _ = asking.stream("Well?").answer


# ------------------------------------------------------------------------------------------------ when to try again


@pytest.mark.parametrize(
    ("outcome", "code", "with_key", "without"),
    [
        (Lost("x", sent=False), "", True, True),
        (Lost("x"), "", True, False),
        (Lost("x", late=True), "", False, False),
        *[(Reply(status, {}), "", True, True) for status in (408, 429, 500, 503)],
        *[(Reply(status, {}), "", True, False) for status in (502, 504, 529)],
        *[(Reply(status, {}), "", False, False) for status in (302, 400, 401, 402, 403, 404, 409, 413, 422, 499)],
        *[(Reply(status, {"x-should-retry": "false"}), "", False, False) for status in (408, 429, 500, 503)],
        (Reply(400, {"x-should-retry": "true"}), "", False, False),
        (Reply(409, {}), IN_FLIGHT, True, True),
    ],
)
def test_what_may_be_repeated(outcome: Reply | Lost, code: str, with_key: bool, without: bool) -> None:
    for repeatable, expected in ((True, with_key), (False, without)):
        call = Call(method="POST", path="/", repeatable=repeatable)
        assert may_be_repeated(call, outcome, code) == expected


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "3", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "3", "retry-after-ms": "soon"}, 3),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 26 Nov 2020 10:00:00 GMT"}, 0),
    ],
)
def test_the_pause_a_server_names(headers: dict[str, str], seconds: float | None) -> None:
    assert named_pause(headers) == seconds


def test_the_pause_a_server_names_by_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    seconds = named_pause({"retry-after": soon})
    assert seconds is not None
    assert 20 < seconds <= 30


def test_pauses() -> None:
    """What is named, and up to a tenth more; else doubled up to a bound, half of it left to chance."""
    assert (pause_for(2.0, 1, 0.0), pause_for(2.0, 9, 1.0)) == (2.0, 2.2)
    assert [pause_for(None, tried, 1.0) for tried in range(1, 8)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert pause_for(None, 1, 0.0) == 0.25


def test_an_error_tells_all_that_is_known() -> None:
    body = b'{"error": {"message": "m", "type": "t", "param": null, "code": 7}}'
    error = failure_of(Reply(429, {"x-request-id": "r", "retry-after": "2"}, body))
    assert (str(error), error.status, error.code, error.param) == ("m", 429, "7", None)
    assert (error.request_id, error.retry_after) == ("r", 2)
