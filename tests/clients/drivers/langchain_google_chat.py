"""langchain-google-genai."""

import langchain_chat
from driver import Asked, run
from langchain_google_genai import ChatGoogleGenerativeAI


def model(asked: Asked) -> ChatGoogleGenerativeAI:
    return ChatGoogleGenerativeAI(base_url=asked.address, api_key=asked.key, model=asked.model)


run(
    plain=lambda asked: langchain_chat.plain(model(asked), asked),
    streamed=lambda asked: langchain_chat.streamed(model(asked), asked),
    picture=lambda asked: langchain_chat.picture(model(asked), asked),
    tool=lambda asked: langchain_chat.tool(model(asked), asked),
)
