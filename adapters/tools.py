"""The abilities as tools for a text model of any vendor: OpenAI's function definitions, and LangChain's tools.

What a tool may open is bounded: files in one folder, uploaded files of the key's own tenant, and URLs, which the server
fetches and looks at first. What goes wrong is told to the model that called, in words.
"""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from msgspec import Meta, Struct

from qwen3vl_compat.adapters import abilities
from qwen3vl_compat.adapters.calling.caller import Task
from qwen3vl_compat.adapters.calling.failures import ClientError, InvalidInput
from qwen3vl_compat.adapters.calling.options import schema_text
from qwen3vl_compat.adapters.calling.prompt import located
from qwen3vl_compat.adapters.client import Qwen3VLClient
from qwen3vl_compat.adapters.results import Result
from qwen3vl_compat.messages import Link, ToolCall, Upload

if TYPE_CHECKING:
    from langchain_core.tools import StructuredTool


class Reach(Struct, frozen=True):
    """What tools may open."""

    folder: Path | None = None
    """Files in it, and below; None for none of this machine."""
    urls: bool = True

    def open(self, named: str) -> str | Path:
        """What a model named, if it may be opened; raises InvalidInput for the rest, whether it is there or not."""
        match located(named):
            case Link():
                if not self.urls:
                    raise _refused("URLs are not opened")
                return named
            case Upload():
                return named
            case _:
                return self._file(named)

    def _file(self, named: str) -> Path:
        if self.folder is None:
            raise _refused("no files of this machine are opened; name a URL or an uploaded file")
        folder = self.folder.resolve()
        try:
            path = (folder / named).resolve()  # follows links, so that none leads out
            inside, there = path.is_relative_to(folder), path.is_file()
        except (OSError, ValueError, RuntimeError):  # the last of links in a circle
            raise _refused("cannot be opened") from None
        if not inside:
            raise _refused("only files of the allowed folder are opened")
        if not there:
            raise _refused("there is no such file")
        return path


def _refused(why: str) -> InvalidInput:
    return InvalidInput(f"source: {why}", param="source")


Source = Annotated[str, Meta(description="A path, an http(s) URL or the id of an uploaded file.", max_length=4096)]


class _Arguments(Struct, frozen=True, forbid_unknown_fields=True):
    says: ClassVar[str]
    source: Source

    def task(self, source: str | Path) -> Task[Any]:
        raise NotImplementedError


class _ReadText(_Arguments, frozen=True):
    says = "Read all text in a picture or PDF: plain, or with its structure as Markdown or HTML."
    markup: abilities.Markup = "plain"

    def task(self, source: str | Path) -> Task[Any]:
        return abilities.read_text(source, self.markup)


class _Describe(_Arguments, frozen=True):
    says = "Describe a picture, video or PDF, or answer a question about it."
    question: Annotated[str, Meta(description="What to find out; empty for a description.")] = ""

    def task(self, source: str | Path) -> Task[Any]:
        return abilities.describe(source, self.question)


class _Locate(_Arguments, frozen=True):
    says = "Find where things are in a picture, as boxes or points, told in `unit` from the upper left corner."
    what: Annotated[list[str], Meta(description="The kinds of things to find.", min_length=1)]
    shape: abilities.Shape = "boxes"

    def task(self, source: str | Path) -> Task[Any]:
        return abilities.locate(source, self.what, self.shape)


class _FindInVideo(_Arguments, frozen=True):
    says = "Find when something happens in a video, in seconds."
    what: Annotated[str, Meta(description="What happens.")]

    def task(self, source: str | Path) -> Task[Any]:
        return abilities.find_in_video(source, self.what)


class _Extract(_Arguments, frozen=True):
    says = "Bring what a picture or PDF says into the form of a JSON Schema."
    schema: Annotated[dict[str, Any], Meta(description="The JSON Schema of an object.")]
    wishes: Annotated[str, Meta(description="What else is to be kept to.")] = ""

    def task(self, source: str | Path) -> Task[Any]:
        return abilities.extract(source, self.schema, self.wishes)


class _ToHtml(_Arguments, frozen=True):
    says = "Write the HTML of a screenshot or sketch of a page."
    kind: abilities.Drawn = "screenshot"
    wishes: Annotated[str, Meta(description="What else is to be kept to.")] = ""

    def task(self, source: str | Path) -> Task[Any]:
        return abilities.to_html(source, self.kind, self.wishes)


class _NextAction(_Arguments, frozen=True):
    says = "Decide what to do next on a screen to reach a goal. Places are told in `unit` from the upper left corner."
    goal: Annotated[str, Meta(description="What is to be reached.")]
    done: Annotated[list[str], Meta(description="What has been done already, in order.")] = []
    vocabulary: abilities.Vocabulary = "computer_use"

    def task(self, source: str | Path) -> Task[Any]:
        return abilities.next_action(source, self.goal, self.done, self.vocabulary)


_TOOLS: Mapping[str, type[_Arguments]] = {
    "read_text": _ReadText,
    "describe": _Describe,
    "locate": _Locate,
    "find_in_video": _FindInVideo,
    "extract": _Extract,
    "to_html": _ToHtml,
    "next_action": _NextAction,
}
NAMES = tuple(_TOOLS)


class Toolbox:
    """The abilities, or those of them that are named, for a model to call; threads may share one."""

    def __init__(
        self,
        client: Qwen3VLClient,
        *,
        folder: str | Path | None = None,
        urls: bool = True,
        names: Iterable[str] = NAMES,
    ) -> None:
        """Files are opened only in `folder` and below; raises InvalidInput, also where there is no such folder."""
        if folder is not None and not Path(folder).is_dir():
            raise InvalidInput(f"folder: there is no folder {folder}", param="folder")
        self._client = client
        self._reach = Reach(None if folder is None else Path(folder), urls)
        self._tools = {name: _tool(name) for name in names}

    def definitions(self) -> list[dict[str, Any]]:
        """What to tell the model of them, in the form of OpenAI's chat completions."""
        return [
            {"type": "function", "function": {"name": name, "description": kind.says, "parameters": _parameters(kind)}}
            for name, kind in self._tools.items()
        ]

    def perform(self, name: str, arguments: str | Mapping[str, Any]) -> Result:
        """Do what is called for, by JSON text or an object; raises a ClientError."""
        if name not in self._tools:
            raise InvalidInput(f"name: there is no tool {name!r}, only {', '.join(self._tools)}", param="name")
        kind = self._tools[name]
        try:
            said = arguments.encode() if isinstance(arguments, str) else msgspec.json.encode(arguments)
            given = msgspec.json.decode(said or b"{}", type=kind)
        except (msgspec.MsgspecError, TypeError, UnicodeError, RecursionError) as error:
            raise InvalidInput(f"arguments: {error}", param="arguments") from error
        return self._client.run(given.task(self._reach.open(given.source)))

    def answer(self, name: str, arguments: str | Mapping[str, Any]) -> str:
        """The same, as it is told to a model: JSON, or what went wrong."""
        try:
            return told(self.perform(name, arguments))
        except ClientError as error:
            return f"Error: {error.message}"

    def run(self, call: Any) -> dict[str, str]:
        """Carry out a tool call, as OpenAI's client or JSON has it, or our own; returns the message that answers it."""
        known = _call(call)
        return {"role": "tool", "tool_call_id": known.id, "content": self.answer(known.name, known.arguments)}

    async def run_aside(self, call: Any) -> dict[str, str]:
        """The same in a thread, for programs with an event loop."""
        return await asyncio.to_thread(self.run, call)

    def langchain(self) -> "list[StructuredTool]":
        """The same for LangChain; a message's `artifact` is the Result. Needs the extra `langchain`."""
        from langchain_core.tools import StructuredTool, ToolException

        def one(name: str, kind: type[_Arguments]) -> StructuredTool:
            def perform(**arguments: Any) -> tuple[str, Result]:
                try:
                    result = self.perform(name, arguments)
                except ClientError as error:
                    raise ToolException(f"Error: {error.message}") from error
                return told(result), result

            return StructuredTool.from_function(
                perform,
                name=name,
                description=kind.says,
                args_schema=_parameters(kind),
                infer_schema=False,
                response_format="content_and_artifact",
                handle_tool_error=True,
            )

        return [one(name, kind) for name, kind in self._tools.items()]


def told(result: Result) -> str:
    """A result as JSON, for a model to read."""
    known: dict[str, Any] = msgspec.to_builtins(result)
    del known["answer"]
    return msgspec.json.encode(known if result.complete else {**known, "complete": False}).decode()


def _tool(name: str) -> type[_Arguments]:
    if name not in _TOOLS:
        raise InvalidInput(f"names: there is no tool {name!r}, only {', '.join(NAMES)}", param="names")
    return _TOOLS[name]


def _parameters(kind: type[_Arguments]) -> dict[str, Any]:
    made = msgspec.json.decode(schema_text(kind), type=dict[str, Any])
    return {name: made[name] for name in ("type", "properties", "required", "additionalProperties")}


class _Function(Struct):
    name: str
    arguments: str


class _Named(Struct):
    id: str
    function: _Function


def _call(call: Any) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    try:
        named = msgspec.convert(call, _Named, from_attributes=True)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"call: is no tool call ({error})", param="call") from error
    return ToolCall(named.id, named.function.name, named.function.arguments)
