"""Each ability, asked directly, by OpenAI's function calls and by LangChain's, of a server with an expert behind it."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from langchain_core.messages import ToolCall as LangChainCall
from langchain_core.messages import ToolMessage
from openai.types.chat import ChatCompletionMessageToolCall
from PIL import Image

from qwen3vl_compat.adapters import abilities
from qwen3vl_compat.adapters.client import InvalidInput, Qwen3VLClient, ToolCall
from qwen3vl_compat.adapters.results import Located, Result
from qwen3vl_compat.adapters.tools import NAMES, Toolbox
from qwen3vl_compat.demo import SAMPLE
from tests.adapters.faulty import Says, faulty, whole
from tests.media.crafted import drawing, encoded
from tests.media.films import film, steady
from tests.serving import Served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tools may open: a photograph that lies on its side and is too large to be sent as it is, and a film."""
    made = tmp_path_factory.mktemp("media")
    exif = Image.Exif()
    exif[0x0112] = 6
    (made / "photo.jpg").write_bytes(encoded(drawing(2400, 300), "JPEG", exif=exif))
    (made / "film.mp4").write_bytes(film(steady([drawing(64, 64, seed=n) for n in range(4)], 1), rate=1))
    return made


@pytest.fixture(scope="module")
def client(expert: Served) -> Iterator[Qwen3VLClient]:
    with Qwen3VLClient(expert.url, expert.key) as made:
        yield made


COLOUR = {"type": "object", "properties": {"colour": {"type": "string"}, "wheels": {"type": "integer"}}}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("read_text", {"markup": "markdown"}, {"text": "# Annual report", "prompt": "read_text.markdown@1"}),
    ("read_text", {"markup": "html"}, {"unit": "pixel", "blocks": [
        {"kind": "h1", "text": "Annual report",
         "box": {"left": 30, "top": 120, "right": 270, "bottom": 360, "label": ""}}]}),
    ("describe", {}, {"text": "[256x2048] A red car.", "prompt": "describe@1"}),
    ("describe", {"question": "What colour is it?"}, {"text": "[256x2048] red", "prompt": "describe.question@1"}),
    ("locate", {"what": ["car"]}, {"unit": "pixel", "size": [300, 2400], "points": [], "prompt": "locate.boxes@1",
        "boxes": [{"left": 30, "top": 480, "right": 90, "bottom": 960, "label": "car"}]}),
    ("locate", {"what": ["car"], "shape": "points"}, {"points": [{"x": 150, "y": 2399, "label": "car"}]}),
    ("find_in_video", {"what": "it rains"}, {"spans": [{"start": 1.5, "end": 63.0}], "prompt": "find_in_video@1"}),
    ("extract", {"schema": COLOUR}, {"value": {"colour": "red", "wheels": 4}, "prompt": "extract@1"}),
    ("to_html", {"kind": "sketch"}, {"html": "<main>sketch</main>", "prompt": "to_html@1"}),
    ("next_action", {"goal": "open the mail"}, {"unit": "pixel", "prompt": "next_action.computer_use@1", "action": {
        "type": "click", "at": {"x": 299, "y": 600, "label": ""}, "button": "left", "times": 1}}),
    ("next_action", {"goal": "press submit", "vocabulary": "named"},
        {"action": {"type": "click_button", "name": "submit"}, "prompt": "next_action.named@1"}),
    ("next_action", {"goal": "read on", "vocabulary": "named"}, {"action": {"type": "scroll_to", "name": "settings"}}),
]  # fmt: skip
"""A tool, its arguments, and what has to be in its answer."""
cases = pytest.mark.parametrize(("name", "arguments", "expected"), CASES)


def test_the_cases_leave_no_tool_out() -> None:
    assert {name for name, _, _ in CASES} == set(NAMES)


def media_of(name: str) -> str:
    return "film.mp4" if name == "find_in_video" else "photo.jpg"


@cases
def test_by_openais_function_calls(
    name: str, arguments: dict[str, Any], expected: dict[str, Any], client: Qwen3VLClient, folder: Path
) -> None:
    text = json.dumps({"source": media_of(name), **arguments})
    call = ChatCompletionMessageToolCall.model_validate(
        {"id": "c1", "type": "function", "function": {"name": name, "arguments": text}}
    )
    box = Toolbox(client, folder=folder)
    answered = box.run(call)
    assert (answered["role"], answered["tool_call_id"]) == ("tool", "c1")
    content = json.loads(answered["content"])
    assert {field: content.get(field) for field in expected} == expected
    assert "answer" not in content


@cases
def test_by_langchain(
    name: str, arguments: dict[str, Any], expected: dict[str, Any], client: Qwen3VLClient, folder: Path
) -> None:
    tools = {tool.name: tool for tool in Toolbox(client, folder=folder).langchain()}
    call = LangChainCall(name=name, args={"source": media_of(name), **arguments}, id="c1", type="tool_call")
    told = tools[name].invoke(call)
    assert isinstance(told, ToolMessage)
    assert (told.tool_call_id, told.status) == ("c1", "success")
    content = json.loads(str(told.content))
    assert {field: content.get(field) for field in expected} == expected
    assert isinstance(told.artifact, Result)
    assert told.artifact.prompt == content["prompt"]


def test_a_call_comes_in_any_form_with_and_without_a_loop(client: Qwen3VLClient, folder: Path) -> None:
    box = Toolbox(client, folder=folder, names=["locate"])
    arguments = {"source": "photo.jpg", "what": ["car"]}
    text = json.dumps(arguments)
    answered = box.run({"id": "c1", "type": "function", "function": {"name": "locate", "arguments": text}})
    assert '"right":90' in answered["content"]
    assert asyncio.run(box.run_aside(ToolCall("c1", "locate", text))) == answered
    (tool,) = box.langchain()
    assert asyncio.run(tool.ainvoke(arguments)) == answered["content"]


DIRECT = {
    "read_text": abilities.read_text,
    "describe": abilities.describe,
    "locate": abilities.locate,
    "find_in_video": abilities.find_in_video,
    "extract": abilities.extract,
    "to_html": abilities.to_html,
    "next_action": abilities.next_action,
}


@cases
def test_directly(
    name: str, arguments: dict[str, Any], expected: dict[str, Any], client: Qwen3VLClient, folder: Path
) -> None:
    """What the tools tell is what the functions find, and the books have its request."""
    result = client.run(DIRECT[name](folder / media_of(name), **arguments))
    told = json.loads(Toolbox(client, folder=folder).answer(name, {"source": media_of(name), **arguments}))
    assert told == {**told, **expected}
    assert result.prompt == told["prompt"]
    assert result.complete
    assert result.answer.usage.prompt_image + result.answer.usage.prompt_video > 0
    assert result.answer.request_id


# ---------------------------------------------------------------------------------------------- the bundled model


def test_the_bundled_model_reads_in_all_three_ways(demo: Served) -> None:
    with Qwen3VLClient(demo.url, demo.key) as asking:
        box = Toolbox(asking, folder=SAMPLE.parent)
        assert asking.run(abilities.read_text(SAMPLE)).text == "HELLO42"
        assert json.loads(box.answer("read_text", {"source": SAMPLE.name})) == {
            "prompt": "read_text.plain@1", "text": "HELLO42",
        }  # fmt: skip
        tools = {tool.name: tool for tool in box.langchain()}
        assert (
            json.loads(tools["describe"].invoke({"source": SAMPLE.name, "question": "Read the text."}))["text"]
            == "HELLO42"
        )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("locate", {"what": ["letter", "digit"]}),
        ("next_action", {"goal": "read on", "vocabulary": "named"}),
    ],
)
def test_a_model_that_cannot_is_held_to_the_form_all_the_same(
    demo: Served, name: str, arguments: dict[str, Any]
) -> None:
    """It knows nothing of places and actions, and still what it says can be read, and lies in the picture."""
    with Qwen3VLClient(demo.url, demo.key) as asking:
        result = Toolbox(asking, folder=SAMPLE.parent).perform(name, {"source": SAMPLE.name, **arguments})
    assert result.complete
    if isinstance(result, Located):
        assert all(0 <= box.left < box.right <= 192 and 0 <= box.top < box.bottom <= 48 for box in result.boxes)
        assert {each.label for each in result.boxes} <= {"letter", "digit"}


# -------------------------------------------------------------------------------------------- what goes wrong is told


def test_the_definitions_are_json_schemas() -> None:
    with Qwen3VLClient("http://127.0.0.1:1") as client:
        definitions = Toolbox(client).definitions()
        assert [each["function"]["name"] for each in definitions] == list(NAMES)
        for each in definitions:
            function = each["function"]
            jsonschema.Draft202012Validator.check_schema(function["parameters"])
            assert function["description"].endswith(".")
            assert "source" in function["parameters"]["required"]
            assert not function["parameters"]["additionalProperties"]
        for name, arguments, _ in CASES:
            parameters = next(
                each["function"]["parameters"] for each in definitions if each["function"]["name"] == name
            )
            jsonschema.validate({"source": "a.png", **arguments}, parameters)
        assert [tool.name for tool in Toolbox(client, names=["locate"]).langchain()] == ["locate"]
        with pytest.raises(InvalidInput, match=r"^names: there is no tool 'fly'"):
            Toolbox(client, names=["fly"])


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder beside things that no model may see, with links that lead to them."""
    base = tmp_path_factory.mktemp("closed")
    (base / "secret.png").write_bytes(SAMPLE.read_bytes())
    (base / "open-not").mkdir()
    (base / "open-not" / "secret.png").write_bytes(SAMPLE.read_bytes())
    folder = base / "open"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "a.png").write_bytes(SAMPLE.read_bytes())
    (folder / "link.png").symlink_to(base / "secret.png")
    (folder / "way").symlink_to(base)
    (folder / "inner.png").symlink_to(folder / "below" / "a.png")
    (folder / "circle").symlink_to(folder / "circle")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.mark.parametrize(
    "named",
    ["/etc/passwd", "../secret.png", "below/../../secret.png", "link.png", "way/secret.png", "../open-not/secret.png",
     "{folder}-not/secret.png", "file:///etc/passwd", "data:image/png;base64,AAAA", "pipe", "", ".", "below",
     "circle", "circle/a.png", "a\0.png", "~/.ssh/id_rsa", "none.png", "x" * 4000],
)  # fmt: skip
def test_nothing_outside_of_the_folder_is_opened(named: str, closed: Path) -> None:
    """The server would be asked if it were: there is none."""
    with Qwen3VLClient("http://127.0.0.1:1", retries=0) as client:
        answer = Toolbox(client, folder=closed).answer("describe", {"source": named.format(folder=closed)})
    assert answer.startswith("Error: source: ")
    assert len(answer) < 200


def test_what_is_in_the_folder_is_opened(client: Qwen3VLClient, closed: Path) -> None:
    box = Toolbox(client, folder=closed)
    for named in ("below/a.png", "./below/../below/a.png", str(closed / "below/a.png"), "inner.png"):
        assert json.loads(box.answer("describe", {"source": named}))["text"] == "[192x48] A red car."
    file = client.upload(SAMPLE)
    assert json.loads(Toolbox(client).answer("describe", {"source": file.id}))["text"] == "[192x48] A red car."


def test_without_a_folder_no_file_is_opened_and_urls_can_be_left_out() -> None:
    with Qwen3VLClient("http://127.0.0.1:1", retries=0) as client:
        box = Toolbox(client, urls=False)
        assert "no files of this machine" in box.answer("describe", {"source": str(SAMPLE)})
        assert "URLs are not opened" in box.answer("describe", {"source": "HTTPS://example.org/a.png"})


def test_urls_are_fetched_by_the_server_which_looks_where_they_lead(expert: Served) -> None:
    with Qwen3VLClient(expert.url, expert.key) as client:
        answer = Toolbox(client).answer("describe", {"source": "http://127.0.0.1:1/a.png"})
    assert answer.endswith("could not fetch media")


WRONG: list[tuple[str, str, str]] = [
    ("fly", '{"source": "a.png"}', "there is no tool 'fly', only read_text"),
    ("locate", '{"source": "a.png"}', "missing required field `what`"),
    ("locate", '{"source": "a.png", "what": []}', "$.what"),
    ("locate", '{"source": "a.png", "what": ["a"], "shape": "circle"}', "$.shape"),
    ("describe", '{"source": 5}', "$.source"),
    ("describe", '{"source": "a.png", "colour": "red"}', "unknown field `colour`"),
    ("describe", "{", "arguments: "),
    ("describe", "", "missing required field `source`"),
]


@pytest.mark.parametrize(("name", "arguments", "why"), WRONG)
def test_wrong_calls_are_told_in_words(name: str, arguments: str, why: str) -> None:
    with Qwen3VLClient("http://127.0.0.1:1") as client:
        content = Toolbox(client).run({"id": "c", "function": {"name": name, "arguments": arguments}})["content"]
    assert content.startswith("Error: ")
    assert why in content


def nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(depth):
        made = {"a": made}
    return made


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("extract", '{"source": "sample.png", "schema": ' + '{"a": ' * 5000 + "{}" + "}" * 5001),
        ("extract", {"source": "sample.png", "schema": nested(5000)}),
        ("extract", {"source": "sample.png", "schema": {"a": object()}}),
        ("describe", {"source": "sample.png", "question": "\ud800"}),
        ("describe", '{"source": "sample.png", "question": "\ud800"}'),
        ("describe", {"source": "\ud800.png"}),
        ("describe", {1: 2}),
    ],
)
def test_hostile_calls_are_told_in_words(name: str, arguments: Any) -> None:
    with Qwen3VLClient("http://127.0.0.1:1", retries=0) as client:
        assert Toolbox(client, folder=SAMPLE.parent).answer(name, arguments).startswith("Error: arguments: ")


def test_an_answer_too_deep_to_be_read_is_told_in_words() -> None:
    with faulty(whole("[" * 5000)) as server, Qwen3VLClient(server.url) as client:
        box = Toolbox(client, folder=SAMPLE.parent)
        told = box.answer("extract", {"source": SAMPLE.name, "schema": {"type": "array", "items": {"$ref": "#"}}})
    assert told.startswith("Error: The text is no such JSON")


def test_no_call_at_all_is_the_programs_fault() -> None:
    with Qwen3VLClient("http://127.0.0.1:1") as client, pytest.raises(InvalidInput, match=r"^call: "):
        Toolbox(client).run({"id": "c"})


def test_failures_are_told_to_the_model_not_raised(folder: Path) -> None:
    """A refusal of the server's, an answer that cannot be read, and no server at all, in both forms."""
    refused = Says(400, b'{"error": {"message": "Too long.", "code": "x", "param": "messages"}}')
    with faulty(refused, refused) as server, Qwen3VLClient(server.url) as client:
        box = Toolbox(client, folder=folder)
        assert box.answer("describe", {"source": "photo.jpg"}) == "Error: Too long."
        (tool,) = Toolbox(client, folder=folder, names=["describe"]).langchain()
        told = tool.invoke(LangChainCall(name="describe", args={"source": "photo.jpg"}, id="c", type="tool_call"))
        assert (told.content, told.status) == ("Error: Too long.", "error")
    with Qwen3VLClient("http://127.0.0.1:1", retries=0) as client:
        answer = Toolbox(client, folder=folder).answer("describe", {"source": "photo.jpg"})
        assert answer.startswith("Error: The server at http://127.0.0.1:1 cannot be reached")


def test_a_folder_that_is_not_there_is_refused_at_once() -> None:
    with Qwen3VLClient("http://127.0.0.1:1") as client:
        for folder in ("nofolder", SAMPLE):
            with pytest.raises(InvalidInput, match=f"^folder: there is no folder {folder}"):
                Toolbox(client, folder=folder)


def test_an_action_that_lacks_something_is_told(client: Qwen3VLClient, folder: Path) -> None:
    answer = Toolbox(client, folder=folder).answer("next_action", {"source": "photo.jpg", "goal": "wait blindly"})
    assert answer == "Error: The action wait came without `time`."
