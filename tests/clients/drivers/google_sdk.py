"""google-genai, of either major version."""

from driver import Asked, look_up, run
from google import genai
from google.genai import types


def client(asked: Asked) -> genai.Client:
    return genai.Client(api_key=asked.key, http_options=types.HttpOptions(base_url=asked.address))


def listing(asked: Asked) -> list[str | None]:
    with client(asked) as google:
        return [model.name for model in google.models.list()]


def plain(asked: Asked) -> str | None:
    with client(asked) as google:
        return google.models.generate_content(model=asked.model, contents=asked.prompt).text


def streamed(asked: Asked) -> list[str]:
    with client(asked) as google:
        stream = google.models.generate_content_stream(model=asked.model, contents=asked.prompt)
        return [chunk.text for chunk in stream if chunk.text]


def picture(asked: Asked) -> str | None:
    part = types.Part.from_bytes(data=asked.picture.read_bytes(), mime_type="image/png")
    with client(asked) as google:
        return google.models.generate_content(model=asked.model, contents=[part, asked.prompt]).text


def tool(asked: Asked) -> str | None:
    """The client calls the function by itself."""
    config = types.GenerateContentConfig(tools=[look_up])
    with client(asked) as google:
        return google.models.generate_content(model=asked.model, contents=asked.prompt, config=config).text


run(listing=listing, plain=plain, streamed=streamed, picture=picture, tool=tool)
