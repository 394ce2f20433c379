"""instructor, whose every answer is an object: the arguments of a call that it demands, if not told otherwise."""

import json
from typing import Any

import instructor
from driver import Asked, run
from openai import OpenAI
from pydantic import BaseModel


class Answer(BaseModel):
    """What is to be said."""

    text: str


def client(asked: Asked, mode: instructor.Mode = instructor.Mode.TOOLS) -> instructor.Instructor:
    return instructor.from_openai(OpenAI(base_url=f"{asked.address}/v1", api_key=asked.key), mode=mode)


def says(asked: Asked) -> Any:
    """The prompt, in which the script is to call with what else it would have said."""
    before, _, text = asked.prompt.partition("say exactly: ")
    content = f"{before}call Answer with {json.dumps({'text': text})}" if text else asked.prompt
    return [{"role": "user", "content": content}]


def plain(asked: Asked) -> str:
    return client(asked).create(model=asked.model, messages=says(asked), response_model=Answer).text


def streamed(asked: Asked) -> list[str]:
    """The text as it grows, cut into what is new each time."""
    partial = client(asked).create_partial(model=asked.model, messages=says(asked), response_model=Answer)
    texts = [answer.text or "" for answer in partial]
    return [text.removeprefix(before) for before, text in zip(["", *texts], texts, strict=False) if text != before]


def picture(asked: Asked) -> str:
    """In another of its modes, as the bundled model makes no sense of a call."""
    able = client(asked, instructor.Mode.JSON_SCHEMA)
    messages: Any = [{"role": "user", "content": [instructor.Image.from_path(asked.picture), asked.prompt]}]
    return able.create(model=asked.model, messages=messages, response_model=Answer).text


run(plain=plain, streamed=streamed, picture=picture)
