"""What stands between a wire and an engine. A policy wraps a Generate: check before, watch during, settle after.

Refusing is raising. The order of the chain is stated once, here.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing

from qwen3vl_compat.events import Events
from qwen3vl_compat.messages import Request

Generate = Callable[[Request], Events]
Policy = Callable[[Generate], Generate]
Prepare = Callable[[Request], Awaitable[Request]]


def before(prepare: Prepare) -> Policy:
    """A policy that only changes or refuses the request on its way in."""

    def wrap(generate: Generate) -> Generate:
        async def prepared(request: Request) -> Events:
            async with aclosing(generate(await prepare(request))) as events:
                async for event in events:
                    yield event

        return prepared

    return wrap


def chain(generate: Generate, *, media: Prepare) -> Generate:
    """The engine behind every policy: media -> engine."""
    return before(media)(generate)
