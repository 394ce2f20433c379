"""What LangChain's chat models have in common; the other drivers of it name the model."""

from typing import Any

from driver import Asked, look_up
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.tools import tool as as_tool


def plain(model: Any, asked: Asked) -> str:
    return model.invoke(asked.prompt).text


def streamed(model: Any, asked: Asked) -> list[str]:
    return [chunk.text for chunk in model.stream(asked.prompt) if chunk.text]


def picture(model: Any, asked: Asked) -> str:
    parts: Any = [
        {"type": "image", "base64": asked.base64, "mime_type": "image/png"},
        {"type": "text", "text": asked.prompt},
    ]
    return model.invoke([HumanMessage(parts)]).text


def tool(model: Any, asked: Asked) -> str:
    found = as_tool(look_up)
    bound = model.bind_tools([found])
    messages: list[BaseMessage] = [HumanMessage(asked.prompt)]
    messages.append(bound.invoke(messages))
    messages += [found.invoke(call) for call in messages[-1].tool_calls]  # type: ignore[attr-defined]
    return bound.invoke(messages).text
