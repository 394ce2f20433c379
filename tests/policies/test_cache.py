"""Names of what is asked: equal where the same answer is asked for, and nowhere else, whatever wire it comes by."""

import asyncio
import json
import random
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace
from PIL import Image

from qwen3vl_compat.media.limits import VideoSpec, VisionSpec
from qwen3vl_compat.media.room import Room
from qwen3vl_compat.media.sandbox import Sandbox
from qwen3vl_compat.messages import (
    Caller,
    Frames,
    Freshness,
    Idempotency,
    Link,
    Media,
    Message,
    OutputFormat,
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
from qwen3vl_compat.policies.caching import Shelf
from qwen3vl_compat.policies.caching.memory import MemoryStore
from qwen3vl_compat.policies.caching.naming import material_of
from qwen3vl_compat.policies.media import MediaPolicy
from qwen3vl_compat.policies.sources import Sources
from qwen3vl_compat.server.app import NoFiles
from qwen3vl_compat.settings import CacheSettings, MediaLimits
from qwen3vl_compat.wire import generate_content, openai_chat
from tests.media.crafted import drawing, encoded

SPEC = VisionSpec(min_pixels=1024, max_pixels=16_777_216, video=VideoSpec(min_pixels=2048, max_pixels=786_432))
PIXELS = drawing(100, 30)
WIDE = encoded(PIXELS, "PNG")
TALL = encoded(Image.frombytes("RGB", (30, 100), PIXELS.tobytes()), "PNG")
"""The same pixels in another shape."""
LIGHT = encoded(PIXELS, "PNG", compress_level=1)
"""The same picture in other bytes."""
USUAL = MediaLimits()
PDF = b"%PDF-1.4\n"
MP4 = b"\0\0\0\x18ftypisom\0\0\0\0isommp42"
SHELF = Shelf(MemoryStore(2**20), b"of the installation", CacheSettings())


def policy(limits: MediaLimits) -> MediaPolicy:
    """Media are gathered, never decoded: the children are not even started."""

    async def limits_of(tenant: str) -> MediaLimits:
        return limits

    async def fetch(url: str, limit: int) -> bytes:
        return {"https://a/wide": WIDE, "https://b/wide": WIDE, "https://a/tall": TALL}[url]

    return MediaPolicy(SPEC, 32_768, Sandbox(), Room(2**30), limits_of, Sources(fetch, NoFiles()))


def name(request: Request, model: str = "rev", limits: MediaLimits = USUAL) -> str:
    """The name of what is asked."""

    async def named() -> str:
        async with policy(limits).gathered(request) as gathered:
            return SHELF.name(await material_of(gathered, model))

    return asyncio.run(named())


# --------------------------------------------------------------------------------------------- a table for every field

PICTURE = Media(source=WIDE, wanted="image", param="p")
CLIP = Media(source=MP4, wanted="video")
PAGES = Media(source=PDF, name="a.pdf")
ASKED = Request(
    id="one",
    created=1,
    model="m",
    messages=(
        Message("system", (Text("be brief"),)),
        Message("user", (Text("look"), PICTURE, CLIP, PAGES, Frames((PICTURE, PICTURE), 2.0))),
        Message("assistant", (Reasoning("hm"), Text("well"), ToolCall("c", "f", "{}"))),
        Message("tool", (ToolResult("c", "f", (Text("so"), PICTURE)),)),
    ),
    tools=(Tool(name="f"),),
    caller=Caller("acme", "key"),
)

COUNTS: dict[type[Struct], dict[str, list[Any]]] = {
    Request: {
        "model": ["m2"],
        "messages": [ASKED.messages[1:], ASKED.messages[::-1], (*ASKED.messages, Message("user", (Text(""),)))],
        "sampling": [Sampling(seed=1)],
        "tools": [(), (Tool(name="f"), Tool(name="g")), (Tool(name="g"), Tool(name="f"))],
        "tool_choice": [ToolChoice(mode="none")],
        "format": [OutputFormat(kind="json_object")],
        "thinking": [Thinking(budget=9)],
        "choices": [2],
        "raw": [True],
        "caller": [Caller("other", "key")],
    },
    Sampling: {
        "temperature": [0.0, 0.5, 1.0],
        "top_p": [0.0, 0.5, 1.0],
        "top_k": [0, 1],
        "min_p": [0.0, 0.5],
        "repetition_penalty": [1.0, 1.5],
        "presence_penalty": [1.0, -1.0],
        "frequency_penalty": [1.0, -1.0],
        "logit_bias": [((1, 2.0),), ((1, 3.0),), ((2, 2.0),), ((1, 2.0), (2, 2.0))],
        "logprobs": [0, 1],
        "max_tokens": [1, 2],
        "min_tokens": [1],
        "ignore_eos": [True],
        "stop": [("a",), ("b",), ("a", "b"), ("ab",), ("b", "a")],
        "stop_tokens": [(1,), (1, 2), (12,)],
        "seed": [0, 1, -1],
    },
    Tool: {"name": ["g"], "description": ["does"], "parameters": ["{}", '{"type": "object"}'], "strict": [True]},
    ToolChoice: {"mode": ["none", "required"], "names": [("f",), ("g",), ("f", "g")], "parallel": [False]},
    OutputFormat: {
        "kind": ["json_object", "json_schema", "regex", "choice"],
        "value": ["{}", '{"type": "object"}'],
        "strict": [True],
    },
    Thinking: {"enabled": [True, False], "budget": [0, 1]},
    Caller: {"tenant": ["other"]},
    Message: {"role": ["system"], "parts": [(), (Text("a"),), (Text("b"), Text("a"))]},
    Text: {"text": ["b", ""]},
    Reasoning: {"text": ["b"]},
    ToolCall: {"id": ["d"], "name": ["g"], "arguments": ['{"a": 1}']},
    ToolResult: {"id": ["d"], "name": ["g"], "parts": [(), (Text("b"),), (Text("so"), replace(PICTURE, source=TALL))]},
    Media: {
        "source": [TALL, LIGHT],
        "detail": ["low", "medium", "high"],
        "budget": [1, 2],
        "start": [0.0, 1.0],
        "end": [1.0, 2.0],
        "fps": [1.0, 2.0],
        "pages": [(1, 1), (1, 2)],
    },
    Frames: {"images": [(PICTURE,), (PICTURE, replace(PICTURE, source=TALL))], "fps": [1.0, 2.5]},
}
"""Each field on which an answer depends, with other values for it, each of which is another question."""

ELSE: dict[type[Struct], dict[str, list[Any]]] = {
    Request: {
        "id": ["two"],
        "created": [2],
        "stream": [True],
        "stream_usage": [True],
        "echo": [True],
        "alias": ["gpt-4o"],
        "ignored": [("user",)],
        "wire": ["openai", "google"],
        "idempotency": [Idempotency("a", "b")],
        "seconds": [1.0],
        "freshness": [Freshness(read=False), Freshness(max_age=5)],
        "cache": ["miss", "hit"],
        "moderation": ["svc:flagged"],
    },
    Sampling: {},
    Tool: {"param": ["tools[0]"]},
    ToolChoice: {},
    OutputFormat: {"param": ["response_format"]},
    Thinking: {"shown": [False]},
    Caller: {"key": ["other"]},
    Message: {},
    Text: {},
    Reasoning: {},
    ToolCall: {},
    ToolResult: {},
    Media: {
        "source": [Link("https://a/wide"), Link("https://b/wide")],
        "wanted": ["any"],
        "mime_type": ["image/jpeg"],
        "name": ["a picture's"],
        "param": ["q"],
        "start_param": ["q"],
        "pages_param": ["q"],
    },
    Frames: {"param": ["q"]},
}
"""Each field on which it does not depend."""

HOLDERS: dict[type[Struct], tuple[Struct, Callable[[Any], Request]]] = {
    Request: (ASKED, lambda asked: asked),
    Sampling: (Sampling(), lambda sampling: replace(ASKED, sampling=sampling)),
    Tool: (ASKED.tools[0], lambda tool: replace(ASKED, tools=(tool,))),
    ToolChoice: (ToolChoice(), lambda choice: replace(ASKED, tool_choice=choice)),
    OutputFormat: (OutputFormat(), lambda form: replace(ASKED, format=form)),
    Thinking: (Thinking(), lambda thinking: replace(ASKED, thinking=thinking)),
    Caller: (ASKED.caller, lambda caller: replace(ASKED, caller=caller)),
    Message: (Message("user", (Text("a"), Text("b"))), lambda message: replace(ASKED, messages=(message,))),
    Text: (Text("a"), lambda part: replace(ASKED, messages=(Message("user", (part,)),))),
    Reasoning: (Reasoning("a"), lambda part: replace(ASKED, messages=(Message("user", (part,)),))),
    ToolCall: (ToolCall("c", "f", "{}"), lambda part: replace(ASKED, messages=(Message("user", (part,)),))),
    ToolResult: (
        ToolResult("c", "f", (Text("so"), PICTURE)), lambda part: replace(ASKED, messages=(Message("tool", (part,)),))
    ),
    Media: (PICTURE, lambda part: replace(ASKED, messages=(Message("user", (Text("look"), part)),))),
    Frames: (Frames((PICTURE, PICTURE), 2.0), lambda part: replace(ASKED, messages=(Message("user", (part,)),))),
}  # fmt: skip
"""What each kind of value is tried in."""


@pytest.mark.parametrize("kind", HOLDERS, ids=lambda kind: kind.__name__)
def test_every_field_is_in_one_table(kind: type[Struct]) -> None:
    """A new field has to be thought about; only a medium's source is in both, for its bytes count and not its place."""
    counts, others = set(COUNTS[kind]), set(ELSE[kind])
    assert counts | others == set(kind.__struct_fields__)
    assert counts & others == ({"source"} if kind is Media else set())


@pytest.mark.parametrize("kind", HOLDERS, ids=lambda kind: kind.__name__)
def test_a_field_makes_another_name_exactly_if_it_counts(kind: type[Struct]) -> None:
    value, held = HOLDERS[kind]
    names = [name(held(value))]
    for field, others in COUNTS[kind].items():
        names += [name(held(replace(value, **{field: other}))) for other in others]
    assert len(set(names)) == len(names)
    for field, others in ELSE[kind].items():
        assert {name(held(replace(value, **{field: other}))) for other in others} <= {names[0]}, field


def test_the_name_of_a_document_is_said_to_the_model() -> None:
    """That of a picture is not."""
    asked = [replace(PAGES, name=each) for each in ("a.pdf", "b.pdf")]
    assert len({name(replace(ASKED, messages=(Message("user", (part,)),))) for part in asked}) == 2


def test_another_model_and_other_moderators_make_another_name() -> None:
    assert len({name(ASKED, model) for model in ("rev a", "rev b", "")}) == 3


SHOWING = {
    "max_pages": 50, "max_pdf_pages": 50, "max_pixels": 10**6, "min_side": 5, "max_side": 9999, "max_aspect": 100,
    "longest_side": 512, "fps": 1.0, "max_frames": 16, "pdf_text": True,
}  # fmt: skip
REFUSING = {
    "types": ("png", "pdf", "mp4"), "max_images": 50, "max_videos": 5, "max_image_bytes": 2**20,
    "max_pdf_bytes": 2**20, "max_inline_video_bytes": 2**20, "max_video_bytes": 2**20, "max_fetched_bytes": 2**20,
    "max_total_pixels": 10**6,
}  # fmt: skip
"""These let a request pass or refuse it, each time, before it has a name."""


def test_limits_on_media_that_change_what_is_shown_make_another_name() -> None:
    assert set(SHOWING) | set(REFUSING) == set(MediaLimits.__struct_fields__)
    names = [name(ASKED, limits=MediaLimits(**{field: value})) for field, value in SHOWING.items()]
    assert len({name(ASKED), *names}) == len(names) + 1
    assert {name(ASKED, limits=MediaLimits(**{field: value})) for field, value in REFUSING.items()} == {name(ASKED)}
    words = replace(ASKED, messages=ASKED.messages[:1])
    assert {name(words, limits=MediaLimits(**{field: value})) for field, value in SHOWING.items()} == {name(words)}


# ----------------------------------------------------------------------------------------------- requests, two by two

SAID = st.sampled_from(["", "a", "b", "ab", "a\0b", '["a"]', "text", "é"])
media = st.builds(
    Media,
    source=st.sampled_from([WIDE, TALL, LIGHT, MP4, PDF]),
    detail=st.sampled_from(["auto", "low"]),
    budget=st.sampled_from([None, 64]),
    name=st.sampled_from(["", "a"]),
    param=st.sampled_from(["", "p"]),
    start=st.sampled_from([None, 0.0, 1.0]),
    fps=st.sampled_from([None, 1.0]),
    pages=st.sampled_from([None, (1, 1)]),
)
stills = st.builds(Media, source=st.sampled_from([WIDE, TALL]), detail=st.sampled_from(["auto", "low"]))
frames = st.builds(Frames, images=st.lists(stills, min_size=1, max_size=2).map(tuple), fps=st.sampled_from([1.0, 2.0]))
contents = st.one_of(st.builds(Text, SAID), media, stills, frames)
parts = st.one_of(
    contents,
    st.builds(Reasoning, SAID),
    st.builds(ToolCall, SAID, SAID, SAID),
    st.builds(ToolResult, SAID, SAID, st.lists(contents, max_size=2).map(tuple)),
)
messages = st.builds(
    Message, st.sampled_from(["system", "user", "assistant", "tool"]), st.lists(parts, max_size=3).map(tuple)
)
tools = st.builds(Tool, name=SAID, description=SAID, parameters=SAID, strict=st.booleans(), param=SAID)
requests = st.builds(
    Request,
    id=st.sampled_from(["1", "2"]),
    created=st.integers(0, 1),
    model=st.sampled_from(["m", "n"]),
    messages=st.lists(messages, max_size=3).map(tuple),
    tools=st.lists(tools, max_size=2).map(tuple),
    stream=st.booleans(),
    caller=st.builds(Caller, st.sampled_from(["a", "b"]), st.sampled_from(["k", "l"])),
    thinking=st.builds(Thinking, shown=st.booleans(), budget=st.sampled_from([None, 1])),
    wire=st.sampled_from(["openai", "google"]),
)


def meaning(value: object) -> object:
    """What is asked, as plain values that are equal where the same is asked: written apart from what makes names."""
    if isinstance(value, Media):
        document = value.source == PDF
        said = {"start", "end", "fps", "pages", "detail", "budget", "source", *(["name"] if document else [])}
        return ("medium", tuple((field, getattr(value, field)) for field in sorted(said)))
    if isinstance(value, Struct):
        fields = [field for field in value.__struct_fields__ if field not in ELSE[type(value)]]
        return (type(value).__name__, tuple((field, meaning(getattr(value, field))) for field in fields))
    if isinstance(value, tuple):
        return tuple(map(meaning, value))
    return value


def altered(asked: Request, choose: random.Random) -> Request:
    """The same with one thing taken out, doubled, moved or put elsewhere: the pairs that are nearly the same."""
    parts = [[*message.parts] for message in asked.messages]
    places = [(at, where) for at, those in enumerate(parts) for where in range(len(those))]
    if not places:
        return asked
    at, where = choose.choice(places)
    part = parts[at].pop(where)
    to = choose.randrange(len(parts))
    parts[to].insert(choose.randint(0, len(parts[to])), part)
    if choose.random() < 0.3:
        parts[at].insert(where, part)
    if choose.random() < 0.3 and isinstance(part, Media):
        parts[to].insert(0, Frames((part,), 1.0))
    changed = (replace(message, parts=tuple(those)) for message, those in zip(asked.messages, parts, strict=True))
    return replace(asked, messages=tuple(changed))


def of_one_part(*parts: Any) -> Request:
    return Request(id="", created=0, model="m", messages=(Message("user", parts),))


@settings(max_examples=200)
@given(requests, requests, st.randoms(use_true_random=False), st.booleans())
@example(of_one_part(Text("a"), Text("b")), of_one_part(Text("ab")), random.Random(1), False)
@example(of_one_part(PICTURE), of_one_part(Frames((PICTURE,), 2.0)), random.Random(1), False)
@example(of_one_part(PICTURE, PICTURE), of_one_part(Frames((PICTURE, PICTURE), 2.0)), random.Random(1), False)
@example(of_one_part(Frames((PICTURE,), 1.0)), of_one_part(Frames((PICTURE,), 2.0)), random.Random(1), False)
@example(of_one_part(ToolResult("", "", (Text("a"),))), of_one_part(Text("a")), random.Random(1), False)
def test_names_are_equal_exactly_where_the_same_is_asked(
    one: Request, other: Request, choose: random.Random, near: bool
) -> None:
    other = altered(one, choose) if near else other
    assert (name(one) == name(other)) == (meaning(one) == meaning(other))


# ------------------------------------------------------------------------------------------------------- the two wires


class Chat(Struct, frozen=True, kw_only=True):
    """What may be asked on either wire. Turns are the user's and the model's by turns, the latter of words alone."""

    system: str
    turns: tuple[tuple[str | bytes, ...], ...]
    detail: str
    sampling: dict[str, Any]
    stop: tuple[str, ...]
    n: int
    tool: str
    required: bool
    schema: str
    budget: int | None

    def told(self) -> object:
        """What is asked, without what means nothing or is so anyway."""
        usual = {"presence_penalty": 0, "frequency_penalty": 0}
        pictures = any(isinstance(part, bytes) for turn in self.turns for part in turn)
        return replace(
            self,
            detail=self.detail if pictures else "",
            required=bool(self.tool) and self.required,
            sampling=usual | self.sampling,
        )


sampled = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.0, 0.5]),
        "top_p": st.sampled_from([0.5, 1]),
        "top_k": st.sampled_from([0, 5]),
        "presence_penalty": st.sampled_from([0, 1.0]),
        "frequency_penalty": st.sampled_from([0.0, 1]),
        "max_tokens": st.sampled_from([5, 6]),
        "seed": st.sampled_from([0, 1]),
        "top_logprobs": st.sampled_from([0, 2]),
    },
)
shown = st.lists(st.sampled_from(["a", "b", "ab", WIDE, TALL]), min_size=1, max_size=2).map(tuple)
words = st.sampled_from(["a", "b", "ab"]).map(lambda word: (word,))
chats = st.builds(
    Chat,
    system=st.sampled_from(["", "be brief", "be long"]),
    turns=st.sampled_from([(shown,), (shown, words, shown)]).flatmap(lambda turns: st.tuples(*turns)),
    detail=st.sampled_from(["auto", "low"]),
    sampling=sampled,
    stop=st.lists(st.sampled_from(["a", "b"]), max_size=2).map(tuple),
    n=st.integers(1, 2),
    tool=st.sampled_from(["", "f", "g"]),
    required=st.booleans(),
    schema=st.sampled_from(["", '{"b": {}, "a": {}}', '{"a": {}, "b": {}}']),
    budget=st.sampled_from([None, 0, 64]),
)
MORE = {
    "openai": [{}, {"user": "u"}, {"stream": True, "stream_options": {"include_usage": True}}, {"store": False}],
    "google": [{}, {"labels": {"a": "b"}}, {"safetySettings": []}],
}
"""What is asked beside that and changes no answer."""


def by_openai(chat: Chat, more: Any) -> Request:
    roles = ["user", "assistant", "user"]
    system = [{"role": "system", "content": chat.system}] if chat.system else []
    body: Any = {
        "messages": [
            *system,
            *(
                {"role": role, "content": [_openai_part(part, chat.detail) for part in turn]}
                for role, turn in zip(roles, chat.turns, strict=False)
            ),
        ],
        "model": "m",
        "n": chat.n,
        "stop": chat.stop,
        **chat.sampling,
        **more,
    }
    if "top_logprobs" in body:
        body["logprobs"] = True
    if chat.tool:
        body["tools"] = [{"type": "function", "function": {"name": chat.tool, "parameters": {"type": "object"}}}]
        body["tool_choice"] = "required" if chat.required else "auto"
    if chat.schema:
        form = {"name": "x", "strict": True, "schema": json.loads(chat.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    if chat.budget is not None:
        body |= {"enable_thinking": chat.budget > 0, "thinking_budget": chat.budget}
    return openai_chat.decode_request(json.dumps(body).encode(), request_id="1", now=1)


def _openai_part(part: str | bytes, detail: str) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = f"data:image/png;base64,{b64encode(part).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": detail}}


NAMES = {
    "top_p": "topP", "top_k": "topK", "presence_penalty": "presencePenalty", "frequency_penalty": "frequencyPenalty",
    "max_tokens": "maxOutputTokens", "top_logprobs": "logprobs",
}  # fmt: skip


def by_google(chat: Chat, more: Any) -> Request:
    roles = ["user", "model", "user"]
    config: Any = {NAMES.get(key, key): value for key, value in chat.sampling.items()}
    config |= {"stopSequences": chat.stop, "candidateCount": chat.n}
    if "logprobs" in config:
        config["responseLogprobs"] = True
    if chat.schema:
        config |= {"responseMimeType": "application/json", "responseJsonSchema": json.loads(chat.schema)}
    if chat.budget is not None:
        config["thinkingConfig"] = {"thinkingBudget": chat.budget}
    if chat.detail == "low":
        config["mediaResolution"] = "MEDIA_RESOLUTION_LOW"
    contents = [
        {"role": role, "parts": [_google_part(part) for part in turn]}
        for role, turn in zip(roles, chat.turns, strict=False)
    ]
    body: Any = {"contents": contents, "generationConfig": config, **more}
    if chat.system:
        body["systemInstruction"] = {"parts": [{"text": chat.system}]}
    if chat.tool:
        body["tools"] = [{"functionDeclarations": [{"name": chat.tool, "parametersJsonSchema": {"type": "object"}}]}]
        body["toolConfig"] = {"functionCallingConfig": {"mode": "ANY" if chat.required else "AUTO"}}
    return generate_content.decode_request(json.dumps(body).encode(), model="m", request_id="2", now=2)


def _google_part(part: str | bytes) -> Any:
    if isinstance(part, str):
        return {"text": part}
    return {"inlineData": {"mimeType": "image/png", "data": b64encode(part).decode()}}


@settings(max_examples=100)
@given(chats, chats, st.sampled_from(sorted(Chat.__struct_fields__)), st.data())
def test_both_wires_give_one_name_to_the_same_and_two_to_different_chats(
    one: Chat, other: Chat, field: str, data: st.DataObject
) -> None:
    """The other one differs in one field at most."""
    other = replace(one, **{field: getattr(other, field)})
    made = {
        wire: [
            name(by(chat, data.draw(st.sampled_from(MORE[wire]), label=f"more on {wire}'s wire")))
            for chat in (one, other)
        ]
        for wire, by in (("openai", by_openai), ("google", by_google))
    }
    assert made["openai"] == made["google"]
    assert (made["openai"][0] == made["openai"][1]) == (one.told() == other.told())
