"""langchain-openai."""

import langchain_chat
from driver import Asked, run
from langchain_openai import ChatOpenAI


def model(asked: Asked) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{asked.address}/v1", api_key=asked.key, model=asked.model)  # type: ignore[arg-type]


run(
    plain=lambda asked: langchain_chat.plain(model(asked), asked),
    streamed=lambda asked: langchain_chat.streamed(model(asked), asked),
    picture=lambda asked: langchain_chat.picture(model(asked), asked),
    tool=lambda asked: langchain_chat.tool(model(asked), asked),
)
