"""LiteLLM as a client, its provider `openai`."""

import json
from typing import Any

import litellm
from driver import LOOK_UP, Asked, look_up, run


def complete(asked: Asked, messages: Any, **more: Any) -> Any:
    return litellm.completion(
        model=f"openai/{asked.model}",
        api_base=f"{asked.address}/v1",
        api_key=asked.key,
        messages=messages,
        **more,
    )


def says(content: Any) -> Any:
    return [{"role": "user", "content": content}]


def listing(asked: Asked) -> list[str]:
    return litellm.get_valid_models(
        check_provider_endpoint=True,
        custom_llm_provider="openai",
        api_base=f"{asked.address}/v1",
        api_key=asked.key,
    )


def plain(asked: Asked) -> str:
    return complete(asked, says(asked.prompt)).choices[0].message.content


def streamed(asked: Asked) -> list[str]:
    chunks = complete(asked, says(asked.prompt), stream=True)
    return [text for chunk in chunks if (text := chunk.choices[0].delta.content)]


def picture(asked: Asked) -> str:
    parts = [
        {"type": "image_url", "image_url": {"url": asked.data_url}},
        {"type": "text", "text": asked.prompt},
    ]
    return complete(asked, says(parts)).choices[0].message.content


def tool(asked: Asked) -> str:
    tools = [{"type": "function", "function": LOOK_UP}]
    messages = says(asked.prompt)
    called = complete(asked, messages, tools=tools).choices[0].message
    messages.append(called)
    for call in called.tool_calls:
        result = look_up(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return complete(asked, messages, tools=tools).choices[0].message.content


run(listing=listing, plain=plain, streamed=streamed, picture=picture, tool=tool)
