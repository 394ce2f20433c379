"""The program with an engine that starts when the file $GO is there, and dies when it is asked to."""

import asyncio
import os

from qwen3vl_compat import cli, engines
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.events import Events
from qwen3vl_compat.messages import Request, Text


class MortalEngine(ScriptedEngine):
    async def start(self) -> None:
        while not os.path.exists(os.environ["GO"]):  # noqa: ASYNC110, ASYNC240, PTH110
            await asyncio.sleep(0.02)

    async def generate(self, request: Request) -> Events:
        if request.messages[-1].parts == (Text("die"),):
            os._exit(70)
        async for event in super().generate(request):
            yield event


if __name__ == "__main__":
    engines.ENGINES["scripted"] = "tests.engines.mortal:MortalEngine"
    cli.main()
