"""How the values are read out of answers that are held to a schema."""

from collections.abc import AsyncIterator, Iterator
from operator import itemgetter
from typing import Any, Literal, cast

import msgspec
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

Method = Literal["json_schema", "function_calling", "json_mode"]


def parser_of(schema: dict[str, Any] | type, method: Method) -> Runnable[AIMessage, Any]:
    """What makes an instance of a pydantic class of an answer, or a dict for any other schema."""
    return RunnableGenerator(_whole, _whole_aside) | _reader_of(schema, method)


def _reader_of(schema: dict[str, Any] | type, method: Method) -> Runnable[AIMessage, Any]:
    pydantic = isinstance(schema, type) and is_basemodel_subclass(schema)
    if method != "function_calling":
        return PydanticOutputParser[Any](pydantic_object=cast("Any", schema)) if pydantic else JsonOutputParser()
    if pydantic:
        return PydanticToolsParser(tools=[cast("Any", schema)], first_tool_only=True)
    name = convert_to_openai_tool(schema)["function"]["name"]
    return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)


def _whole(pieces: Iterator[AIMessage]) -> Iterator[AIMessage]:
    """A message as it comes. One that was cut off is an error: LangChain's parsers would make up its end."""
    text = ""
    for piece in pieces:
        text += piece.text
        yield _told_whole(piece, text)


async def _whole_aside(pieces: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
    text = ""
    async for piece in pieces:
        text += piece.text
        yield _told_whole(piece, text)


def _told_whole(piece: AIMessage, text: str) -> AIMessage:
    reason = piece.response_metadata.get("finish_reason")
    if reason in ("length", "content_filter") and not _is_json(text):
        raise OutputParserException(f"The answer is not whole; it ended with {reason}.", llm_output=text)
    return piece


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def parsed(
    model: Runnable[LanguageModelInput, AIMessage], parser: Runnable[AIMessage, Any], *, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """The two in a row; with `include_raw` the message, what is read out of it, and why nothing could be."""
    if not include_raw:
        return model | parser
    read: Any = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed: Any = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | read.with_fallbacks([failed], exception_key="parsing_error")
