"""Several prompts in one request: each is a request of its own behind this, and their answers are one.

So each is moderated, cached, counted and booked like any other; they wait for the engine together.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from msgspec.structs import asdict, replace

from qwen3vl_compat.events import Event, Events, Finish, Headers, Started, Usage
from qwen3vl_compat.messages import Request

if TYPE_CHECKING:
    from qwen3vl_compat.policies import Generate

_OF_ONE = frozenset({"x-cache", "age", "x-cost-reserved", "x-cost-total", "x-cost-currency"})
"""Headers that tell of one prompt only."""


def apart(generate: "Generate") -> "Generate":
    """A policy: prompts are answered apart, and at once."""

    def inside(request: Request) -> Events:
        if not request.raw or len(request.messages) == 1:
            return generate(request)
        return _together([generate(each) for each in requests_of(request)], request.choices)

    return inside


def requests_of(request: Request) -> list[Request]:
    """One for each prompt; the first has the request's own id, the others a number behind it."""
    return [
        replace(request, messages=(message,), id=f"{request.id}-{place}" if place else request.id)
        for place, message in enumerate(request.messages)
    ]


async def _together(generations: Sequence[Events], choices: int) -> Events:
    """One answer with `choices` of each, told once all have begun: until then each may be refused."""
    usages, held = dict[int, Usage](), list[Event]()
    async with aclosing(_merged(generations)) as events:
        async for place, event in events:
            if isinstance(event, Started | Finish):
                usages[place] = event.usage
            begun = len(usages) == len(generations)
            match event:
                case Started() if begun:
                    yield Started(_sum(usages.values()), _common(event.headers))
                    for each in held:
                        yield each
                    continue
                case Started():
                    continue
                case Finish():
                    event = replace(event, usage=_sum(usages.values()), headers=_common(event.headers))
                case _:
                    pass
            event = replace(event, index=place * choices + event.index)
            if begun:
                yield event
            else:
                held.append(event)


async def _merged(generations: Sequence[Events]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of all as they come, none before the one before it is taken; the first failure ends all."""

    async def step(place: int) -> tuple[int, Event | None]:
        return place, await anext(generations[place], None)

    steps = {asyncio.create_task(step(place)) for place in range(len(generations))}
    try:
        while steps:
            done, _ = await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                place, event = each.result()
                steps.remove(each)
                if event is not None:
                    yield place, event
                    steps.add(asyncio.create_task(step(place)))
    finally:
        for each in steps:
            each.cancel()
        await asyncio.gather(*steps, return_exceptions=True)
        for events in generations:
            await events.aclose()


def _sum(usages: Iterable[Usage]) -> Usage:
    each = [asdict(usage) for usage in usages]
    return Usage(**{name: sum(usage[name] for usage in each) for name in Usage.__struct_fields__})


def _common(headers: Headers) -> Headers:
    return tuple((name, value) for name, value in headers if name not in _OF_ONE)
