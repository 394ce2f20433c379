"""What stands between a wire and an engine. A policy wraps a Generate: check before, watch during, settle after.

Refusing is raising. The order of the chain is stated once, here.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing

from qwen3vl_compat.events import Events
from qwen3vl_compat.messages import Request

Generate = Callable[[Request], Events]
Policy = Callable[[Generate], Generate]
Prepared = Callable[[Request], AbstractAsyncContextManager[Request]]


def around(prepared: Prepared) -> Policy:
    """A policy that changes or refuses the request on its way in, and holds what that took until the answer is over."""

    def wrap(generate: Generate) -> Generate:
        async def inside(request: Request) -> Events:
            async with prepared(request) as checked, aclosing(generate(checked)) as events:
                async for event in events:
                    yield event

        return inside

    return wrap


def chain(
    generate: Generate,
    *,
    media: Prepared,
    metering: Policy,
    bounds: Policy,
    idempotency: Policy,
) -> Generate:
    """The engine behind every policy: idempotency -> bounds -> media -> metering -> engine.

    `bounds` ends what takes too long. It is inside of `idempotency`, which lets a generation outlive its client.
    """
    return idempotency(bounds(around(media)(metering(generate))))
