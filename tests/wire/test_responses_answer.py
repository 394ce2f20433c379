"""A response as it is streamed and as it is whole, held against the types of OpenAI's own client."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from qwen3vl_compat.errors import ApiError, InvalidRequest, RateLimited
from qwen3vl_compat.events import (
    Event,
    Finish,
    FinishReason,
    First,
    Likely,
    Logprob,
    Progress,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.openai_responses import Answering, completed, decode_request, encode_error, encode_event

ID = "01a219e8522ba58bad627dad"
PROMPT = Usage(prompt_text=7, prompt_image=12, cached=4)
STREAMED: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TEXT = (TextDelta(0, "A", 1), Progress(0, 2), TextDelta(0, " cat.", 3))
THOUGHT = (ReasoningDelta(0, "so ", 1), ReasoningDelta(0, "then", 2))
CALLS = (
    ToolCallDelta(0, 0, "call_a", "f", "", 1),
    ToolCallDelta(0, 0, "", "", '{"x":', 2),
    ToolCallDelta(0, 0, "", "", "1}", 3),
    ToolCallDelta(0, 1, "call_b", "g", "{}", 4),
)


def answering(**fields: Any) -> Answering:
    body = {"model": "m", "input": "x", **fields}
    return Answering(completed(decode_request(json.dumps(body).encode(), request_id=ID, now=5), [], {}))


def ended(reason: FinishReason = "stop", details: str = "") -> Finish:
    usage = Usage(prompt_text=7, prompt_image=12, cached=4, completion=9, reasoning=2)
    return Finish(0, reason, usage, details)


def told(made: Sequence[Event], end: Finish | None = None, **fields: Any) -> tuple[list[Json], Json]:
    """The events of a stream, each checked, and the whole response."""
    answer = answering(**fields)
    events = [each for event in (Started(PROMPT), *made, end or ended()) for each in answer.push(event)]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        STREAMED.validate_python(event, strict=True)
    assert events[-1]["response"] == answer.response
    Response.model_validate(answer.response)
    return events, answer.response


def names(events: list[Json]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_a_text() -> None:
    events, response = told(TEXT)
    assert names(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[0]["response"]["status"] == events[1]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    assert events[2]["item"] == {
        "id": f"msg_{ID}_0", "type": "message", "role": "assistant", "status": "in_progress", "content": [],
    }  # fmt: skip
    assert [event["delta"] for event in events if "delta" in event] == ["A", " cat."]
    part = {"type": "output_text", "text": "A cat.", "annotations": [], "logprobs": []}
    message = {"id": f"msg_{ID}_0", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    assert events[6]["text"] == "A cat."
    assert (events[7]["part"], events[8]["item"], response["output"]) == (part, message, [message])
    assert (response["id"], response["created_at"], response["status"]) == (f"resp_{ID}", 5, "completed")
    assert response["usage"] == {
        "input_tokens": 19,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0, "text_tokens": 7, "image_tokens": 12,
                                 "video_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 28,
    }  # fmt: skip


def test_calls() -> None:
    events, response = told((*TEXT, *CALLS), ended("tool_calls"))
    assert names(events)[8:] == [
        "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert events[9]["item"] == {
        "id": f"fc_{ID}_1", "type": "function_call", "call_id": "call_a", "name": "f", "status": "in_progress",
        "arguments": "",
    }  # fmt: skip
    calls = response["output"][1:]
    assert [(call["call_id"], call["name"], call["arguments"]) for call in calls] == [
        ("call_a", "f", '{"x":1}'),
        ("call_b", "g", "{}"),
    ]
    assert [event["output_index"] for event in events if event["type"].endswith("output_item.done")] == [0, 1, 2]
    assert response["status"] == "completed"


def test_a_thought() -> None:
    events, response = told((*THOUGHT, *TEXT))
    assert names(events)[2:9] == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
    ]  # fmt: skip
    assert response["output"][0] == {
        "id": f"rs_{ID}_0", "type": "reasoning", "summary": [], "encrypted_content": None, "status": "completed",
        "content": [{"type": "reasoning_text", "text": "so then"}],
    }  # fmt: skip
    assert response["output"][1]["content"][0]["text"] == "A cat."


def test_a_thought_as_its_summary() -> None:
    events, response = told((*THOUGHT, *TEXT), reasoning={"summary": "auto"})
    assert names(events)[2:9] == [
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
        "reasoning_summary_text.delta", "reasoning_summary_text.done", "reasoning_summary_part.done",
        "output_item.done",
    ]  # fmt: skip
    assert events[4]["summary_index"] == 0
    assert response["output"][0]["summary"] == [{"type": "summary_text", "text": "so then"}]
    assert "content" not in response["output"][0]


def test_text_after_a_call_is_an_item_of_its_own() -> None:
    _, response = told((*TEXT, *CALLS, TextDelta(0, "Well.", 9)))
    assert [item["type"] for item in response["output"]] == ["message", "function_call", "function_call", "message"]
    assert response["output"][3]["id"] == f"msg_{ID}_3"


def test_a_call_into_a_namespace_is_told_by_both_names() -> None:
    function = {"type": "function", "name": "f"}
    tools = [function, {"type": "namespace", "name": "crm", "description": "", "tools": [function]}]
    calls = (ToolCallDelta(0, 0, "call_a", "crm.f", "{}", 1), ToolCallDelta(0, 1, "call_b", "f", "{}", 2))
    events, response = told(calls, ended("tool_calls"), tools=tools)
    assert [(item.get("namespace"), item["name"]) for item in response["output"]] == [("crm", "f"), (None, "f")]
    assert [event["name"] for event in events if event["type"].endswith("arguments.done")] == ["f", "f"]


@pytest.mark.parametrize(
    ("reason", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)  # fmt: skip
@pytest.mark.parametrize("made", [TEXT, CALLS[:2], THOUGHT, ()])
def test_what_is_cut_off_is_incomplete(reason: FinishReason, why: str, made: Sequence[Event]) -> None:
    events, response = told(made, ended(reason))
    assert names(events)[-1] == "incomplete"
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": why}
    assert [item["status"] for item in response["output"]] == (["incomplete"] if made else [])
    assert response["usage"]["output_tokens"] == 9


def test_an_empty_answer_is_an_empty_message() -> None:
    events, response = told(())
    assert names(events)[2:-1] == [
        "output_item.added", "content_part.added", "output_text.done", "content_part.done", "output_item.done",
    ]  # fmt: skip
    assert response["output"][0]["content"][0]["text"] == ""


def test_details_of_the_end_are_told() -> None:
    assert told(TEXT, ended("stop", "closed"))[1]["finish_details"] == {"type": "closed"}


def test_logprobs() -> None:
    likely = Likely(65, b"A", -0.25)
    made = TextDelta(0, "A", 1, (Logprob(likely, (likely, Likely(66, b"B", -2.5))),))
    events, response = told((made, TextDelta(0, "", 2, (Logprob(likely, (likely,)),))))
    one, two = response["output"][0]["content"][0]["logprobs"]
    assert [each["token"] for each in one["top_logprobs"]] == ["A", "B"]
    assert [event["logprobs"] for event in events if event["type"].endswith("text.delta")] == [[one], [two]]


def test_a_replayed_answer_has_the_first_ones_id() -> None:
    answer = answering()
    answer.push(Started(PROMPT, replays=First("f" * 24, 3)))
    answer.push(TEXT[0])
    answer.push(ended())
    assert (answer.response["id"], answer.response["created_at"]) == ("resp_" + "f" * 24, 3)
    assert answer.response["output"][0]["id"] == "msg_" + "f" * 24 + "_0"


@pytest.mark.parametrize(
    ("error", "code", "failed"),
    [
        (ApiError("engine lost", status=503, code="server_is_overloaded"), "server_is_overloaded", "server_error"),
        (
            RateLimited("slower", quota="q", retry_after=1, headers=()),
            "rate_limit_exceeded",
            "rate_limit_exceeded",
        ),
    ],
)
def test_a_failure_ends_the_stream(error: ApiError, code: str, failed: str) -> None:
    answer = answering()
    first = [each for event in (Started(PROMPT), *TEXT) for each in answer.push(event)]
    last = answer.fail(error)
    for event in last:
        STREAMED.validate_python(event, strict=True)
    assert names(last) == ["error", "failed"]
    assert last[0] == {
        "type": "error", "sequence_number": len(first), "code": code, "message": error.message, "param": None,
    }  # fmt: skip
    response = last[1]["response"]
    assert (response["status"], response["error"]) == ("failed", {"code": failed, "message": error.message})
    assert response["store"] is False
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "A cat."


def test_an_event_is_named_in_a_line_of_its_own() -> None:
    (created, _) = answering().push(Started(PROMPT))
    sent = encode_event(created)
    assert sent.startswith(b'event: response.created\ndata: {"type":"response.created","sequence_number":0,')
    assert sent.endswith(b"}\n\n")
    assert sent.count(b"\n") == 3


def test_errors_speak_of_this_apis_input() -> None:
    error = InvalidRequest("Input tokens exceed", param="messages", code="context_length_exceeded")
    told = json.loads(encode_error(error))["error"]
    assert (told["param"], told["code"], told["type"]) == ("input", "context_length_exceeded", "invalid_request_error")
    assert json.loads(encode_error(InvalidRequest("x", param="top_p")))["error"]["param"] == "top_p"
    with pytest.raises(InvalidRequest) as refused:
        decode_request(b'{"model": "m", "input": "x", "messages": []}', request_id="0" * 24, now=0)
    assert json.loads(encode_error(refused.value))["error"]["param"] == "messages"
