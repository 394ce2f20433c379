"""The families' own clients, pointed at a running server; each is closed by leaving its `with`."""

import anthropic
import openai
from google import genai
from google.genai import types

from tests.serving import Served


def openai_client(served: Served, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url + "/v1", api_key=key or served.key, max_retries=0)


def anthropic_client(served: Served, key: str | None = None) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.url, api_key=key or served.key, max_retries=0)


def google_client(served: Served, version: str = "v1beta", key: str | None = None) -> genai.Client:
    options = types.HttpOptions(base_url=served.url, api_version=version)
    return genai.Client(api_key=key or served.key, http_options=options)
