"""anthropic: messages."""

from typing import Any

from anthropic import Anthropic
from driver import LOOK_UP, Asked, look_up, run


def client(asked: Asked) -> Anthropic:
    return Anthropic(base_url=asked.address, api_key=asked.key)


def says(content: Any) -> Any:
    return [{"role": "user", "content": content}]


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def listing(asked: Asked) -> list[str]:
    return [model.id for model in client(asked).models.list()]


def plain(asked: Asked) -> str:
    return text_of(client(asked).messages.create(model=asked.model, max_tokens=200, messages=says(asked.prompt)))


def streamed(asked: Asked) -> list[str]:
    stream = client(asked).messages.stream(model=asked.model, max_tokens=200, messages=says(asked.prompt))
    with stream as events:
        return list(events.text_stream)


def picture(asked: Asked) -> str:
    source = {"type": "base64", "media_type": "image/png", "data": asked.base64}
    messages = says([{"type": "image", "source": source}, {"type": "text", "text": asked.prompt}])
    return text_of(client(asked).messages.create(model=asked.model, max_tokens=200, messages=messages))


def tool(asked: Asked) -> str:
    create = client(asked).messages.create
    tools: Any = [{key.replace("parameters", "input_schema"): value for key, value in LOOK_UP.items()}]
    messages = says(asked.prompt)
    called = create(model=asked.model, max_tokens=200, messages=messages, tools=tools)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": look_up(**block.input)}
        for block in called.content
        if block.type == "tool_use"
    ]
    messages += [{"role": "assistant", "content": called.content}, *says(results)]
    return text_of(create(model=asked.model, max_tokens=200, messages=messages, tools=tools))


run(listing=listing, plain=plain, streamed=streamed, picture=picture, tool=tool)
