"""The program with answers for LangChain's tests, and every file of the web on a shelf, at $SHELF.

What the script says in its calls it finds in the question, as a model has to.
"""

import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import ClassVar

from qwen3vl_compat import cli, engines
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.media.fetch import Fetcher
from qwen3vl_compat.server import app
from qwen3vl_compat.settings import Settings

CUSTOMER = (
    '<tool_call>{"name": "unicode_customer", "arguments": '
    r'{"customer_name": "\1", "description": "\2"}}</tool_call>'
)


class LangChainEngine(ScriptedEngine):
    LINES: ClassVar[Sequence[tuple[str, str]]] = (
        (r"(?s)value of (\w+)\((\d+)\)", r'<tool_call>{"name": "\1", "arguments": {"input": \2}}</tool_call>'),
        (r"the weather in (.*)\?", r'<tool_call>{"name": "get_weather", "arguments": {"location": "\1"}}</tool_call>'),
        (r"(?s)Create a customer named '(.*)' (.*)", CUSTOMER),
        (r"a joke about (\w+)\. Return .* '(\w+)' and '(\w+)' keys", r'{"\2": "Why \1?", "\3": "Why not \1?"}'),
    )

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, script=(*self.LINES, *self.SCRIPT))


class ShelfFetcher(Fetcher, frozen=True):
    async def __call__(self, url: str, limit: int) -> bytes:
        return await super().__call__(f"{os.environ['SHELF']}/{PurePosixPath(url).name}", limit)


if __name__ == "__main__":
    engines.ENGINES["scripted"] = "tests.adapters.langchain_server:LangChainEngine"
    app.Fetcher = ShelfFetcher
    cli.main()
