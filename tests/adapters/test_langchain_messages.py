"""LangChain's messages as the wire's: every form of block, and what is said of those that cannot be sent."""

import base64
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from qwen3vl_compat.adapters.client import InvalidInput
from qwen3vl_compat.adapters.langchain_messages import conversation
from qwen3vl_compat.messages import (
    Frames,
    Link,
    Media,
    Message,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    Upload,
)

DATA = b"\xfb\xff\xfe picture"
B64 = base64.b64encode(DATA).decode()
WORDS = base64.b64encode("Grüße".encode()).decode()
FILE = "file-0123456789abcdef01234567"
URL = "https://there.example/a"


def medium(part: Part) -> tuple[Any, ...]:
    """What of a medium is for the model; where it came from is for messages of errors."""
    assert isinstance(part, Media)
    return (part.wanted, part.source, part.name, part.detail, part.start, part.end, part.fps, part.pages)


def looks(wanted: str, source: Any, **more: Any) -> tuple[Any, ...]:
    known = {"name": "", "detail": "auto", "start": None, "end": None, "fps": None, "pages": None} | more
    return (wanted, source, *known.values())


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        # LangChain's own
        ({"type": "image", "base64": B64, "mime_type": "image/png"}, looks("image", DATA)),
        ({"type": "image", "url": URL}, looks("image", Link(URL))),
        ({"type": "image", "url": f"data:image/png;base64,{B64}"}, looks("image", DATA)),
        ({"type": "image", "file_id": FILE}, looks("image", Upload(FILE))),
        ({"type": "image", "url": URL, "extras": {"detail": "low"}}, looks("image", Link(URL), detail="low")),
        ({"type": "video", "base64": B64, "mime_type": "video/mp4"}, looks("video", DATA)),
        ({"type": "video", "url": URL, "extras": {"start": 1.5, "end": 3.0, "fps": 1.0}},
         looks("video", Link(URL), start=1.5, end=3.0, fps=1.0)),
        ({"type": "video", "file_id": FILE}, looks("video", Upload(FILE))),
        ({"type": "file", "base64": B64, "mime_type": "application/pdf"}, looks("any", DATA)),
        ({"type": "file", "base64": B64, "mime_type": "application/pdf", "filename": "a.pdf"},
         looks("any", DATA, name="a.pdf")),
        ({"type": "file", "url": URL, "extras": {"filename": "a.pdf", "pages": "2-3"}},
         looks("any", Link(URL), name="a.pdf", pages=(2, 3))),
        ({"type": "file", "file_id": FILE}, looks("any", Upload(FILE))),
        # OpenAI's
        ({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}, looks("image", Link(URL), detail="low")),
        ({"type": "image_url", "image_url": URL}, looks("image", Link(URL))),
        ({"type": "image_url", "image_url": {"url": URL, "detail": None}}, looks("image", Link(URL))),
        ({"type": "video_url", "video_url": {"url": URL, "fps": 2.0}}, looks("video", Link(URL), fps=2.0)),
        ({"type": "file", "file": {"file_id": FILE}}, looks("any", Upload(FILE))),
        ({"type": "file", "file": {"file_data": f"data:application/pdf;base64,{B64}", "filename": "a.pdf"}},
         looks("any", DATA, name="a.pdf")),
        ({"type": "file", "file": {"file_url": URL, "pages": 2}}, looks("any", Link(URL), pages=(2, 2))),
        # what langchain-core makes of the one before the last
        ({"type": "file", "base64": B64, "mime_type": "application/pdf",
          "extras": {"filename": None, "file_pages": "4"}}, looks("any", DATA, pages=(4, 4))),
        # Anthropic's
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64},
          "cache_control": {"type": "ephemeral"}}, looks("image", DATA)),
        ({"type": "image", "source": {"type": "url", "url": URL}}, looks("image", Link(URL))),
        ({"type": "image", "source": {"type": "file", "file_id": FILE}}, looks("image", Upload(FILE))),
        ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": B64},
          "title": "A"}, looks("any", DATA, name="A")),
        ({"type": "document", "source": {"type": "url", "url": URL}}, looks("any", Link(URL))),
        ({"type": "document", "source": {"type": "file", "file_id": FILE}}, looks("any", Upload(FILE))),
    ],
)  # fmt: skip
def test_media(block: dict[str, Any], expected: tuple[Any, ...]) -> None:
    wrapped = {"type": "non_standard", "value": block}
    user, tool = conversation(
        [
            HumanMessage([{"type": "text", "text": "?"}, block, wrapped]),
            ToolMessage([block], tool_call_id="c", name="f"),
        ]
    )
    assert [medium(part) for part in user.parts[1:]] == [expected, expected]
    (result,) = tool.parts
    assert isinstance(result, ToolResult)
    assert [medium(part) for part in result.parts] == [expected]


def test_frames_are_a_video() -> None:
    (turn,) = conversation([HumanMessage([{"type": "video", "video": [URL, URL], "fps": 1.0}])])
    (part,) = turn.parts
    assert isinstance(part, Frames)
    assert ([image.source for image in part.images], part.fps) == ([Link(URL), Link(URL)], 1.0)


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ("Hi", "Hi"),
        ({"type": "text", "text": "Hi", "cache_control": {}}, "Hi"),
        ({"text": "Hi"}, "Hi"),
        ({"type": "text-plain", "text": "Hi", "mime_type": "text/plain"}, "Hi"),
        ({"type": "text-plain", "text": "Hi", "title": "T", "context": "C"}, "T\nC\nHi"),
        ({"type": "text-plain", "base64": WORDS, "mime_type": "text/plain"}, "Grüße"),
        ({"type": "file", "base64": WORDS, "mime_type": "text/markdown"}, "Grüße"),
        ({"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "Hi"}},
         "T\nHi"),
    ],
)  # fmt: skip
def test_words(block: Any, text: str) -> None:
    assert conversation([HumanMessage([block])]) == [Message("user", (Text(text),))]


def test_the_context_of_a_document_goes_before_it() -> None:
    source = {"type": "base64", "media_type": "application/pdf", "data": B64}
    (turn,) = conversation([HumanMessage([{"type": "document", "source": source, "context": "C"}])])
    assert (turn.parts[0], medium(turn.parts[1])) == (Text("C"), looks("any", DATA))


def called(name: str = "f", arguments: str = '{"a": "ü"}') -> ToolCall:
    return ToolCall("c1", name, arguments)


CALL: Any = {"name": "f", "args": {"a": "ü"}, "id": "c1", "type": "tool_call"}
BAD: Any = {"name": "f", "args": '{"a', "id": "c1", "error": "no JSON", "type": "invalid_tool_call"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (SystemMessage("Be brief."), Message("system", (Text("Be brief."),))),
        (HumanMessage("Hi", name="Ann"), Message("user", (Text("Hi"),))),
        (ChatMessage("Hi", role="developer"), Message("system", (Text("Hi"),))),
        (ToolMessage("5", tool_call_id="c1", name="f"), Message("tool", (ToolResult("c1", "f", (Text("5"),)),))),
        (ToolMessage([], tool_call_id="c1"), Message("tool", (ToolResult("c1", "", (Text(""),)),))),
        (AIMessage("Hi"), Message("assistant", (Text("Hi"),))),
        (AIMessage(""), Message("assistant", ())),
        (AIMessage("Hi", tool_calls=[CALL]), Message("assistant", (Text("Hi"), called()))),
        (AIMessage("", invalid_tool_calls=[BAD]), Message("assistant", (called(arguments='{"a'),))),
        (AIMessage(content_blocks=[{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "Hi"}, CALL]),
         Message("assistant", (Reasoning("Hm."), Text("Hi"), called()))),
        (AIMessage("Hi", additional_kwargs={"reasoning_content": "Hm."}),
         Message("assistant", (Reasoning("Hm."), Text("Hi")))),
        (AIMessage([{"type": "reasoning", "reasoning": "Hm."}, {"type": "reasoning", "reasoning": "So."}, "Hi"]),
         Message("assistant", (Reasoning("Hm.\nSo."), Text("Hi")))),
        # another model's, as its own API has them
        (AIMessage([{"type": "thinking", "thinking": "Hm.", "signature": "xyz"}, {"type": "text", "text": "Hi"},
                    {"type": "redacted_thinking", "data": "xyz"},
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": "ü"}}]),
         Message("assistant", (Reasoning("Hm."), Text("Hi"), called()))),
        (AIMessage([{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": "ü"}}], tool_calls=[CALL]),
         Message("assistant", (called(),))),
        (AIMessage([{"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "text", "text": "Hi"}],
                   response_metadata={"model_provider": "anthropic"}),
         Message("assistant", (Reasoning("Hm."), Text("Hi")))),
        (AIMessage([{"type": "text", "text": "Hi"}], response_metadata={"model_provider": "openai"}),
         Message("assistant", (Text("Hi"),))),
        # one of ours, as both versions keep it
        (AIMessage("Hi", additional_kwargs={"reasoning_content": "Hm."}, tool_calls=[CALL],
                   response_metadata={"model_provider": "qwen3vl"}),
         Message("assistant", (Reasoning("Hm."), Text("Hi"), called()))),
        (AIMessage([{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "Hi"}, CALL],
                   additional_kwargs={"reasoning_content": "Hm."}, tool_calls=[CALL],
                   response_metadata={"model_provider": "qwen3vl", "output_version": "v1"}),
         Message("assistant", (Reasoning("Hm."), Text("Hi"), called()))),
        (AIMessage([{"type": "text", "text": "Hi"}], response_metadata={"model_provider": "qwen3vl"}),
         Message("assistant", (Text("Hi"),))),
    ],
)  # fmt: skip
def test_a_turn(message: BaseMessage, expected: Message) -> None:
    assert conversation([message]) == [expected]


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"type": "audio", "base64": B64, "mime_type": "audio/wav"},
         "messages[1].content[0]: the model hears nothing; 'audio' blocks cannot be sent"),
        ({"type": "input_audio", "input_audio": {"data": B64, "format": "wav"}},
         "messages[1].content[0]: the model hears nothing; 'input_audio' blocks cannot be sent"),
        ({"type": "server_tool_call", "id": "1", "name": "search", "args": {}},
         "messages[1].content[0].type: blocks of the type 'server_tool_call' cannot be sent"),
        ({"x": 1}, "messages[1].content[0].type: is required"),
        ({"type": "text", "text": 5}, "messages[1].content[0].text: Expected a string, got a whole number"),
        ({"type": "text"}, "messages[1].content[0].text: is required"),
        ({"type": "image"}, "messages[1].content[0]: must hold exactly one of base64, url, file_id"),
        ({"type": "image", "base64": B64, "url": URL},
         "messages[1].content[0]: must hold exactly one of base64, url, file_id"),
        ({"type": "image", "base64": "%", "mime_type": "image/png"}, "messages[1].content[0].url: not valid base64"),
        ({"type": "image", "url": "a.png"}, "messages[1].content[0].url: must be an http(s) URL, the id of"),
        ({"type": "image_url", "image_url": {"url": URL, "detail": "best"}},
         "messages[1].content[0].detail: must be one of low, medium, high"),
        ({"type": "file", "url": URL, "extras": {"pages": "0"}}, "messages[1].content[0].pages: must be a page"),
        ({"type": "text-plain", "url": URL, "mime_type": "text/plain"},
         "messages[1].content[0]: a text has to come along, as text or base64"),
        ({"type": "text-plain", "base64": B64}, "messages[1].content[0].base64: is no text in UTF-8"),
        ({"type": "reasoning", "reasoning": "Hm."},
         "messages[1].content[0]: only messages of the model's think or call"),
        ({"type": "tool_use", "id": "1", "name": "f", "input": {}},
         "messages[1].content[0]: only messages of the model's think or call"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent(block: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        conversation([SystemMessage("x"), HumanMessage([block])])
    assert str(caught.value).startswith(sentence)
    assert caught.value.param
    assert str(caught.value).startswith(caught.value.param)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (ChatMessage("Hi", role="narrator"), "messages[0]: a message of the type 'chat' cannot be sent"),
        (RemoveMessage(id="1"), "messages[0]: a message of the type 'remove' cannot be sent"),
        (
            AIMessage("", tool_calls=[{"name": "f", "args": {"a": object()}, "id": "c1"}]),
            "messages[0].content[0]: the arguments of a call have no form in JSON (Object of type object is not",
        ),
    ],
)
def test_whose_turn_cannot_be_sent(message: BaseMessage, sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        conversation([message])
    assert str(caught.value).startswith(sentence)
