"""openai: chat completions."""

import json
from typing import Any

from driver import LOOK_UP, Asked, look_up, run
from openai import OpenAI


def client(asked: Asked) -> OpenAI:
    return OpenAI(base_url=f"{asked.address}/v1", api_key=asked.key)


def says(content: Any) -> Any:
    return [{"role": "user", "content": content}]


def listing(asked: Asked) -> list[str]:
    return [model.id for model in client(asked).models.list()]


def plain(asked: Asked) -> str | None:
    answer = client(asked).chat.completions.create(model=asked.model, messages=says(asked.prompt))
    return answer.choices[0].message.content


def streamed(asked: Asked) -> list[str]:
    with client(asked).chat.completions.stream(model=asked.model, messages=says(asked.prompt)) as stream:
        return [event.delta for event in stream if event.type == "content.delta"]


def picture(asked: Asked) -> str | None:
    parts = [
        {"type": "image_url", "image_url": {"url": asked.data_url}},
        {"type": "text", "text": asked.prompt},
    ]
    answer = client(asked).chat.completions.create(model=asked.model, messages=says(parts))
    return answer.choices[0].message.content


def tool(asked: Asked) -> str | None:
    create = client(asked).chat.completions.create
    messages = says(asked.prompt)
    tools: Any = [{"type": "function", "function": LOOK_UP}]
    called = create(model=asked.model, messages=messages, tools=tools).choices[0].message
    messages.append(called)
    for call in called.tool_calls or ():
        assert call.type == "function"
        result = look_up(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return create(model=asked.model, messages=messages, tools=tools).choices[0].message.content


run(listing=listing, plain=plain, streamed=streamed, picture=picture, tool=tool)
