"""Every feature on every wire that carries it, whole and streamed, by the engine that proves it.

`demo` is the bundled model, `thinking` and `experts` are tiny random checkpoints, `scripted` plays a script: what needs
sense is proved there, what needs a real decoder on the others.
"""

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import jsonschema
import pytest
from msgspec.structs import replace

from qwen3vl_compat.demo import MODEL, SAMPLE
from qwen3vl_compat.events import Choice, Completion, fold
from qwen3vl_compat.messages import (
    Media,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Request,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from qwen3vl_compat.tokens import Vocabulary
from qwen3vl_compat.wire import google_client, openai_client
from tests.serving import Served

VOCABULARY = Vocabulary.load(MODEL)
BOTH, OPENAI = ("openai", "google"), ("openai",)
WHO = "Who are you and what can you do?"
PLAIN = "I am a small demonstration model: I can only read one short line of text in a picture."
PICTURE = Media(source=SAMPLE.read_bytes(), wanted="image", mime_type="image/png")
READ = (PICTURE, Text("Read the text."))

Ask = Callable[..., Choice]
Check = Callable[[Completion, "Asker"], None]


def request_of(*parts: Part | Message, **fields: Any) -> Request:
    """A request of one user's turn, or of whole messages; what Sampling knows goes there, greedy unless said."""
    sampling = {name: fields.pop(name) for name in list(fields) if name in Sampling.__struct_fields__}
    turns = [part for part in parts if isinstance(part, Message)]
    return Request(
        id="", created=0, model="qwen3-vl",
        messages=tuple(turns) or (Message("user", tuple(part for part in parts if not isinstance(part, Message))),),
        sampling=Sampling(**({"temperature": 0.0} | sampling)), **fields,
    )  # fmt: skip


@dataclass
class Asker:
    """Asks a server over one wire, whole or streamed."""

    served: Served
    wire: str
    streamed: bool

    def __call__(self, request: Request) -> Completion:
        request = replace(request, stream=self.streamed, stream_usage=self.streamed)
        headers = {"authorization": f"Bearer {self.served.key}", "content-type": "application/json"}
        client, path = (openai_client, "/v1/chat/completions")
        if self.wire == "google":
            method = "streamGenerateContent?alt=sse" if self.streamed else "generateContent"
            client, path = google_client, f"/v1beta/models/qwen3-vl:{method}"
        content = client.encode_request(request)
        answer = httpx.post(self.served.url + path, content=content, headers=headers, timeout=60, verify=False)
        assert answer.status_code == 200, answer.text
        body = answer.content if self.streamed else self._as_stream(answer.json())
        body.decode("utf-8")

        async def chunks() -> AsyncIterator[bytes]:
            yield body

        return asyncio.run(fold(client.decode_stream(chunks())))

    def _as_stream(self, body: dict[str, Any]) -> bytes:
        """A whole answer in the form of a stream of one chunk, for the same reader."""
        for choice in body.get("choices", ()):
            message = choice.pop("message")
            for place, call in enumerate(message.get("tool_calls") or ()):
                call["index"] = place
            choice["delta"] = {name: value for name, value in message.items() if value is not None}
        return b"data: " + json.dumps(body).encode() + b"\n\n"


@dataclass
class Feature:
    """A row: what is asked, of whom, and what must come of it."""

    name: str
    engine: str
    request: Request
    check: Check
    wires: tuple[str, ...] = BOTH


def only(completion: Completion) -> Choice:
    (choice,) = completion.choices
    return choice


def says(text: str, reason: str = "stop") -> Check:
    def check(completion: Completion, _: Asker) -> None:
        choice = only(completion)
        assert (choice.text, choice.reason) == (text, reason)

    return check


def same_as(**other: Any) -> Check:
    """The same answer as the same request with these fields."""

    def check(completion: Completion, ask: Asker) -> None:
        assert [choice.text for choice in completion.choices] == [
            choice.text for choice in ask(request_of(Text(WHO), **other)).choices
        ]

    return check


def differs_from(**other: Any) -> Check:
    def check(completion: Completion, ask: Asker) -> None:
        assert only(completion).text != only(ask(request_of(Text(WHO), **other))).text

    return check


def ids(text: str) -> list[int]:
    return VOCABULARY.encode(text)


# ----------------------------------------------------------------------------------------------------------- sampling

HOT: dict[str, Any] = {"temperature": 2.0, "max_tokens": 24}
PLAINLY = {"thinking": Thinking(enabled=False)}
"""What makes the random thinking checkpoint a random one."""


def two_choices(completion: Completion, ask: Asker) -> None:
    assert [choice.index for choice in completion.choices] == [0, 1]
    assert len({choice.text for choice in completion.choices}) == 2
    assert completion == ask(request_of(Text(WHO), **HOT, **PLAINLY, seed=5, choices=2))


def logprobs(completion: Completion, ask: Asker) -> None:
    choice = only(completion)
    assert "".join(each.chosen.data.decode() for each in choice.logprobs) == choice.text == "HELLO42"
    for each in choice.logprobs:
        assert len(each.top) == 3
        assert each.top[0].data == each.chosen.data
        assert each.top[0].logprob == each.chosen.logprob <= 0
        assert sum(math.exp(top.logprob) for top in each.top) <= 1 + 1e-6


def no_logprobs_unasked(completion: Completion, _: Asker) -> None:
    assert only(completion).logprobs == ()


def at_least(count: int) -> Check:
    def check(completion: Completion, _: Asker) -> None:
        assert completion.usage.completion >= count

    return check


def exactly(count: int) -> Check:
    def check(completion: Completion, _: Asker) -> None:
        assert completion.usage.completion == count
        assert only(completion).reason == "length"

    return check


def never_twice(completion: Completion, _: Asker) -> None:
    """A penalty of 100 leaves no token of the prompt or the answer a chance to come again."""
    tokens = ids(only(completion).text)
    assert len(tokens) == len(set(tokens)) >= 20


SAMPLING = [
    Feature("temperature 0", "demo", request_of(Text(WHO)), says(PLAIN)),
    Feature("temperature", "demo", request_of(Text(WHO), **HOT, seed=1), differs_from(**HOT, seed=2)),
    Feature("seed", "demo", request_of(Text(WHO), **HOT, seed=7), same_as(**HOT, seed=7)),
    Feature("negative seed", "demo", request_of(Text(WHO), **HOT, seed=-7), same_as(**HOT, seed=-7)),
    Feature("top_p 0 is greedy", "demo", request_of(Text(WHO), temperature=2.0, top_p=0.0), says(PLAIN)),
    Feature("top_k 1 is greedy", "demo", request_of(Text(WHO), temperature=2.0, top_k=1), says(PLAIN)),
    Feature("min_p 1 is greedy", "demo", request_of(Text(WHO), temperature=2.0, min_p=1.0), says(PLAIN), OPENAI),
    Feature("n", "thinking", request_of(Text(WHO), **HOT, **PLAINLY, seed=5, choices=2), two_choices),
    Feature("presence_penalty", "thinking", request_of(Text(WHO), max_tokens=24, **PLAINLY, presence_penalty=2.0),
            differs_from(max_tokens=24, **PLAINLY)),
    Feature("frequency_penalty", "thinking", request_of(Text(WHO), max_tokens=24, **PLAINLY, frequency_penalty=2.0),
            differs_from(max_tokens=24, **PLAINLY)),
    Feature("repetition_penalty", "demo", request_of(Text(WHO), max_tokens=30, repetition_penalty=100.0),
            never_twice, OPENAI),
    Feature("logit_bias", "demo", request_of(Text(WHO), max_tokens=4, logit_bias=((ids("I")[0], 100.0),)),
            says("IIII", "length"), OPENAI),
    Feature("logit_bias bans", "demo", request_of(*READ, logit_bias=((ids("H")[0], -100.0),), max_tokens=3),
            lambda completion, _: only(completion).text.startswith("H") and pytest.fail("H came"), OPENAI),
    Feature("logprobs", "demo", request_of(*READ, logprobs=3), logprobs),
    Feature("no logprobs", "demo", request_of(*READ), no_logprobs_unasked),
    Feature("max_tokens 1", "demo", request_of(*READ, max_tokens=1), says("H", "length")),
    Feature("min_tokens", "demo", request_of(Text(WHO), min_tokens=60, max_tokens=90), at_least(60), OPENAI),
    Feature("ignore_eos", "demo", request_of(Text(WHO), ignore_eos=True, max_tokens=50), exactly(50), OPENAI),
    Feature("stop", "demo", request_of(Text(WHO), stop=("demonstration",)), says("I am a small ")),
    Feature("stop across tokens", "demo", request_of(*READ, stop=("LO4",)), says("HEL")),
    Feature("stop at the first token", "demo", request_of(*READ, stop=("H",)), says("")),
    Feature("stop that never comes", "demo", request_of(*READ, stop=("42!", "xyz")), says("HELLO42")),
    Feature("stop_token_ids", "demo", request_of(*READ, stop_tokens=(ids("4")[0],)), says("HELLO"), OPENAI),
    Feature("experts are deterministic", "experts", request_of(Text(WHO), max_tokens=12), same_as(max_tokens=12)),
]  # fmt: skip

# --------------------------------------------------------------------------------------------------------- structure

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 30}, "sure": {"type": "boolean"}, "count": {"type": "integer"},
    },
    "required": ["text", "sure", "count"],
    "additionalProperties": False,
}  # fmt: skip


def strict(schema: Any) -> OutputFormat:
    return OutputFormat(kind="json_schema", value=json.dumps(schema), strict=True)


def valid(schema: Any) -> Check:
    def check(completion: Completion, _: Asker) -> None:
        for choice in completion.choices:
            assert choice.reason == "stop"
            jsonschema.validate(json.loads(choice.text), schema)

    return check


def in_order(completion: Completion, _: Asker) -> None:
    assert list(json.loads(only(completion).text)) == ["text", "sure", "count"]


def matches(pattern: str) -> Check:
    def check(completion: Completion, _: Asker) -> None:
        assert only(completion).reason == "stop"
        assert re.fullmatch(pattern, only(completion).text)

    return check


def logprobs_under_a_mask(completion: Completion, _: Asker) -> None:
    """They are the model's own: what the grammar forbids is among the likeliest."""
    choice = only(completion)
    assert "".join(each.chosen.data.decode() for each in choice.logprobs) == choice.text
    assert any(each.top[0].data != each.chosen.data for each in choice.logprobs)


ANY = {"type": "object"}
STRUCTURE = [
    Feature("json_object", "demo", request_of(*READ, format=OutputFormat(kind="json_object"), max_tokens=120),
            valid(ANY)),
    Feature("json_schema", "demo", request_of(*READ, format=strict(SCHEMA), max_tokens=200), valid(SCHEMA)),
    Feature("keys in order", "demo", request_of(Text(WHO), format=strict(SCHEMA), max_tokens=200), in_order),
    Feature("json_schema, drawn", "demo", request_of(*READ, format=strict(SCHEMA), temperature=1.5, seed=3, choices=2,
            max_tokens=200), valid(SCHEMA)),
    Feature("json_schema of experts", "experts", request_of(Text(WHO), format=strict(SCHEMA), max_tokens=200),
            valid(SCHEMA)),
    Feature("json_schema closed in time", "thinking", request_of(Text(WHO), max_tokens=64, **PLAINLY, format=strict(
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})), valid(ANY)),
    Feature("choice", "demo", request_of(*READ, format=OutputFormat(kind="choice", value='["HELLO", "HELP", "no"]')),
            says("HELLO")),
    Feature("regex", "demo", request_of(*READ, format=OutputFormat(kind="regex", value="[A-Z]{2}[0-9]?")),
            matches("[A-Z]{2}[0-9]?"), OPENAI),
    Feature("choice whatever min_tokens", "demo", request_of(*READ, min_tokens=50, ignore_eos=True,
            format=OutputFormat(kind="choice", value='["HELLO", "no"]')), says("HELLO"), OPENAI),
    Feature("logprobs under a mask", "demo", request_of(*READ, format=strict(SCHEMA), logprobs=2, max_tokens=200),
            logprobs_under_a_mask),
    Feature("penalties under a mask", "thinking", request_of(Text(WHO), format=strict(SCHEMA), frequency_penalty=1.0,
            presence_penalty=1.0, max_tokens=200, **PLAINLY), valid(SCHEMA)),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- tools

LOOK_UP = Tool(name="look_up", description="Look a code up.", parameters=json.dumps({
    "type": "object", "properties": {"code": {"type": "string", "maxLength": 12}}, "required": ["code"],
    "additionalProperties": False}))  # fmt: skip
COUNT = Tool(name="count")
TOOLS: dict[str, Any] = {"tools": (LOOK_UP, COUNT), "max_tokens": 400}
ID = re.compile(r"call_\w+")


def calls(*names: str, arguments: list[Any] | None = None) -> Check:
    """These functions are called, with arguments that fit their schemas."""

    def check(completion: Completion, _: Asker) -> None:
        choice = only(completion)
        assert choice.reason == "tool_calls"
        assert [call.name for call in choice.calls] == list(names)
        assert len({call.id for call in choice.calls}) == len(names)
        for call in choice.calls:
            assert ID.fullmatch(call.id)
            tool = next(tool for tool in (LOOK_UP, COUNT) if tool.name == call.name)
            jsonschema.validate(json.loads(call.arguments), json.loads(tool.parameters or "{}"))
        assert arguments is None or [json.loads(call.arguments) for call in choice.calls] == arguments

    return check


def calls_something(completion: Completion, _: Asker) -> None:
    choice = only(completion)
    assert choice.reason == "tool_calls"
    assert {call.name for call in choice.calls} <= {"look_up", "count"}
    assert choice.text == ""


def calls_and_text(completion: Completion, _: Asker) -> None:
    choice = only(completion)
    assert choice.reason == "tool_calls"
    assert choice.text == "Let me see. "
    assert [json.loads(call.arguments) for call in choice.calls] == [{"code": "ü}{"}, {}]


OPENER = VOCABULARY.added["<tool_call>"]
CALLED = Message("assistant", (Text("Let me see."), ToolCall("call_1", "look_up", '{"code": "A1"}')))
SAID = ToolResult("call_1", "look_up", (Text('{"found": "HELLO"}'),))
SHOWN = ToolResult("call_1", "look_up", (Text('{"found": "this"}'), PICTURE))
ASKED = Message("user", (Text("Look A1 up."),))


def about(completion: Completion, _: Asker) -> None:
    """The last word of the script is the whole result."""
    assert only(completion).text.startswith("[192x48] The tool says: ")


def counted_in(completion: Completion, _: Asker) -> None:
    assert completion.usage.prompt_image == 12


FORCED = ToolChoice(mode="required")
CALLING = [
    Feature("required", "demo", request_of(*READ, **TOOLS, tool_choice=FORCED), calls_something),
    Feature("named", "demo", request_of(*READ, **TOOLS, tool_choice=replace(FORCED, names=("count",), parallel=False)),
            calls("count", arguments=[{}]), OPENAI),
    Feature("allowed names", "demo", request_of(*READ, **TOOLS, tool_choice=replace(FORCED, names=("look_up",))),
            calls_something),
    Feature("one call only", "demo", request_of(*READ, **TOOLS, tool_choice=replace(FORCED, parallel=False)),
            lambda completion, _: pytest.fail("not one") if len(only(completion).calls) != 1 else None, OPENAI),
    Feature("required of experts", "experts", request_of(Text(WHO), **TOOLS, tool_choice=FORCED), calls_something),
    Feature("a call by itself is held to its schema", "demo", request_of(*READ, **TOOLS, logit_bias=((OPENER, 40.0),),
            tool_choice=ToolChoice(parallel=False)), calls_something, OPENAI),
    Feature("none", "demo", request_of(*READ, **TOOLS, tool_choice=ToolChoice(mode="none")), says("HELLO42")),
    Feature("none, scripted", "scripted", request_of(Text("call count with {}"), **TOOLS,
            tool_choice=ToolChoice(mode="none")), says("You said: call count with {}")),
    Feature("auto calls", "scripted", request_of(Text('call look_up with {"code": "你好"}'), **TOOLS),
            calls("look_up", arguments=[{"code": "你好"}])),
    Feature("auto answers", "scripted", request_of(Text("Hi"), **TOOLS), says("You said: Hi")),
    Feature("parallel calls after words", "scripted", request_of(Text(
            'say exactly: Let me see. <tool_call>{"name": "look_up", "arguments": {"code": "ü}{"}}</tool_call>'
            '<tool_call>{"name": "count", "arguments": {}}</tool_call>'), **TOOLS), calls_and_text),
    Feature("a result goes back in", "scripted", request_of(ASKED, CALLED, Message("tool", (SAID,)), **TOOLS),
            says('The tool says: {"found": "HELLO"}')),
    Feature("a picture in a result", "scripted", request_of(ASKED, CALLED, Message("tool", (SHOWN,)), **TOOLS), about),
    Feature("a picture in a result, read", "demo", request_of(ASKED, CALLED, Message("tool", (SHOWN,)), **TOOLS),
            counted_in),
    Feature("a schema or a call", "demo", request_of(*READ, **TOOLS, format=strict(SCHEMA)),
            lambda completion, _: only(completion).calls or json.loads(only(completion).text)),
]  # fmt: skip

# ---------------------------------------------------------------------------------------------------------- thinking


def thought(most: int) -> Check:
    """A thought of at most so many tokens, its closing words included, and then an answer."""

    def check(completion: Completion, _: Asker) -> None:
        choice = only(completion)
        assert choice.reasoning
        assert 0 < completion.usage.reasoning <= most
        assert completion.usage.completion > completion.usage.reasoning
        assert "</think>" not in choice.reasoning + choice.text

    return check


def no_thought(completion: Completion, _: Asker) -> None:
    assert only(completion).reasoning == ""
    assert completion.usage.reasoning == 0


def hidden_thought(completion: Completion, _: Asker) -> None:
    assert only(completion).reasoning == ""
    assert completion.usage.reasoning > 0


def thought_and_valid(completion: Completion, ask: Asker) -> None:
    assert only(completion).reasoning
    assert completion.usage.reasoning > 0
    valid(SCHEMA)(completion, ask)


def thought_and_called(completion: Completion, ask: Asker) -> None:
    assert only(completion).reasoning
    calls_something(completion, ask)


def all_thought(completion: Completion, _: Asker) -> None:
    choice = only(completion)
    assert (choice.text, choice.reason) == ("", "length")
    assert completion.usage.reasoning == completion.usage.completion == 30


def letters_open_nothing(completion: Completion, _: Asker) -> None:
    """The words of the script that spell a tag inside a JSON string are letters of it."""
    assert only(completion).reason == "stop"
    assert only(completion).reasoning == ""


THINK = "think: Two and two. So four. then say: Four."
SHORT = Thinking(enabled=True, budget=8)
END_THINK = VOCABULARY.added["</think>"]
THINKING = [
    Feature("an opened thought", "thinking", request_of(Text(WHO), max_tokens=30), all_thought),
    Feature("a budget closes it", "thinking", request_of(Text(WHO), max_tokens=120, thinking=SHORT), thought(60)),
    Feature("budget 0", "thinking", request_of(Text(WHO), max_tokens=20, thinking=Thinking(enabled=False, budget=0)),
            no_thought),
    Feature("thoughts nobody asked for", "thinking", request_of(Text(WHO), max_tokens=120,
            thinking=replace(SHORT, shown=False)), hidden_thought),
    Feature("a schema after the thought", "thinking", request_of(Text(WHO), max_tokens=300, format=strict(SCHEMA),
            thinking=SHORT), thought_and_valid),
    Feature("a schema leaves thoughts no more than the limit", "thinking", request_of(Text(WHO), max_tokens=300,
            format=strict(SCHEMA)), thought_and_valid),
    Feature("a forced tool after the thought", "thinking", request_of(Text(WHO), **TOOLS, tool_choice=FORCED,
            thinking=SHORT), thought_and_called),
    Feature("stop strings are for the visible text", "scripted", request_of(Text(THINK), stop=("two", "ur")),
            lambda completion, _: says("Fo")(completion, _) or thought(9)),
    Feature("a thought, scripted", "scripted", request_of(Text(THINK)), says("Four.")),
    Feature("a budget, scripted", "scripted", request_of(Text(THINK), thinking=Thinking(enabled=True, budget=2)),
            lambda completion, _: None if only(completion).reasoning == "Two and" else pytest.fail("not two")),
    Feature("a thought goes back in", "thinking", request_of(Message("user", (Text("Hi"),)),
            Message("assistant", (Reasoning("so"), Text("Hello"))), Message("user", (Text(WHO),)), max_tokens=30),
            all_thought),
    Feature("no thought without a template for it", "demo", request_of(*READ, thinking=SHORT), says("HELLO42")),
]  # fmt: skip

# -------------------------------------------------------------------------------------------------------------- text


def repeats(text: str) -> Feature:
    return Feature(f"text {text[:12]}", "scripted", request_of(Text("say exactly: " + text), max_tokens=50), says(text))


TEXTS = [
    *map(repeats, ("👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪", "שלום עולם، مرحبا", "e\u0301 ﷽ \u202eabc\u202c", "你好，世界。")),
    Feature("half a character at the end", "demo", request_of(Text(WHO), max_tokens=1,
            logit_bias=((ids("é")[0], 100.0),)), says("\ufffd", "length"), OPENAI),
    Feature("characters of several tokens", "demo", request_of(Text(WHO), format=OutputFormat(kind="choice",
            value='["👩‍👩‍👧 שלום é"]'), logprobs=0), says("👩‍👩‍👧 שלום é")),
    Feature("a stop inside a character's neighbours", "demo", request_of(Text(WHO), stop=("ש",),
            format=OutputFormat(kind="choice", value='["👩‍👩‍👧 שלום é"]')), says("👩‍👩‍👧 ")),
]  # fmt: skip

TABLE = [*SAMPLING, *STRUCTURE, *CALLING, *THINKING, *TEXTS]
ROWS = [
    pytest.param(row, wire, streamed, id=f"{row.name}-{wire}-{'stream' if streamed else 'whole'}-{row.engine}")
    for row in TABLE
    for wire in row.wires
    for streamed in (False, True)
]
SERVERS = {"demo": "demo", "scripted": "scripted", "thinking": "thinking_server", "experts": "moe_server"}


@pytest.mark.parametrize(("row", "wire", "streamed"), ROWS)
def test_feature(request: pytest.FixtureRequest, row: Feature, wire: str, streamed: bool) -> None:
    ask = Asker(request.getfixturevalue(SERVERS[row.engine]), wire, streamed)
    completion = ask(row.request)
    row.check(completion, ask)
    usage = completion.usage
    assert usage.completion >= usage.reasoning >= 0
    assert usage.prompt_text > 0
