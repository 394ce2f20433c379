"""openai-agents, which speaks to the Responses API."""

import asyncio
from typing import Any

from agents import Agent, OpenAIProvider, RunConfig, Runner, function_tool
from driver import Asked, look_up, run


def agent(asked: Asked, **more: Any) -> tuple[Agent, RunConfig]:
    provider = OpenAIProvider(base_url=f"{asked.address}/v1", api_key=asked.key)
    return Agent(name="helper", model=asked.model, **more), RunConfig(model_provider=provider, tracing_disabled=True)


def plain(asked: Asked) -> str:
    helper, config = agent(asked)
    return Runner.run_sync(helper, asked.prompt, run_config=config).final_output


def streamed(asked: Asked) -> list[str]:
    helper, config = agent(asked)

    async def pieces() -> list[str]:
        events = Runner.run_streamed(helper, asked.prompt, run_config=config).stream_events()
        raw = [event.data async for event in events if event.type == "raw_response_event"]
        return [data.delta for data in raw if data.type == "response.output_text.delta"]

    return asyncio.run(pieces())


def picture(asked: Asked) -> str:
    helper, config = agent(asked)
    parts = [{"type": "input_image", "image_url": asked.data_url}, {"type": "input_text", "text": asked.prompt}]
    said: Any = [{"role": "user", "content": parts}]
    return Runner.run_sync(helper, said, run_config=config).final_output


def tool(asked: Asked) -> str:
    helper, config = agent(asked, tools=[function_tool(look_up)])
    return Runner.run_sync(helper, asked.prompt, run_config=config).final_output


run(plain=plain, streamed=streamed, picture=picture, tool=tool)
