"""What an answer depends on: all of the request but its form and who within the tenant asks, and all of the model."""

import asyncio
from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from qwen3vl_compat.messages import Part, Received, Request, ToolResult
from qwen3vl_compat.policies.media import Gathered

FORM = 1
"""Of the material; another one for every change of what the same words mean."""
LARGE = 2**20
GREEDY = 1e-5
"""The engines take a temperature of at most this for 0."""


def form_of(wire: str, request: Request) -> str:
    """What the bytes of a whole answer depend on beside all that."""
    form = wire if request.thinking.shown else f"{wire} without thoughts"
    form = f"{form} behind its prompt" if request.echo else form
    return f"{form} as {request.alias}" if request.alias else form


def deterministic(request: Request, *, greedy: bool) -> bool:
    """Whether the same request gives the same answer again: it draws nothing, or always the same.

    `greedy` says that its model draws nothing where no temperature is named.
    """
    sampling = request.sampling
    cold = greedy if sampling.temperature is None else sampling.temperature <= GREEDY
    return cold or sampling.top_k == 1 or sampling.seed is not None


async def material_of(gathered: Gathered, model: str) -> bytes:
    """All that the answer depends on; `model` is what tells the model and the rules around it from any others."""
    looks = await asyncio.to_thread(gathered.looks) if gathered.size > LARGE else gathered.looks()
    request = gathered.request
    told = [
        FORM,
        request.caller.tenant,
        request.model,
        model,
        [[message.role, list(_parts(message.parts))] for message in request.messages],
        looks,
        request.sampling,
        [replace(tool, param="") for tool in request.tools],
        request.tool_choice,
        replace(request.format, param=""),
        replace(request.thinking, shown=True),
        request.choices,
        request.raw,
    ]
    return msgspec.msgpack.encode(told)


def _parts(parts: Iterable[Part]) -> Iterable[object]:
    """The parts with nothing in a medium's place: `looks` tells of those, in their order."""
    for part in parts:
        if isinstance(part, ToolResult):
            yield [part.id, part.name, list(_parts(part.parts))]
        else:
            yield None if isinstance(part, Received) else part
