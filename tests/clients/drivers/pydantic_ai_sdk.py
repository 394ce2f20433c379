"""pydantic-ai, its chat model of OpenAI's."""

from driver import Asked, look_up, run
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def agent(asked: Asked) -> Agent:
    provider = OpenAIProvider(base_url=f"{asked.address}/v1", api_key=asked.key)
    return Agent(OpenAIChatModel(asked.model, provider=provider))


def plain(asked: Asked) -> str:
    return agent(asked).run_sync(asked.prompt).output


def streamed(asked: Asked) -> list[str]:
    stream = agent(asked).run_stream_sync(asked.prompt)
    return list(stream.stream_text(delta=True, debounce_by=None))


def picture(asked: Asked) -> str:
    content = BinaryContent(data=asked.picture.read_bytes(), media_type="image/png")
    return agent(asked).run_sync([content, asked.prompt]).output


def tool(asked: Asked) -> str:
    able = agent(asked)
    able.tool_plain(look_up)
    return able.run_sync(asked.prompt).output


run(plain=plain, streamed=streamed, picture=picture, tool=tool)
