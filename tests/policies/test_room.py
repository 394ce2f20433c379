"""What has no place to go to is not booked, and no place is promised twice."""

import asyncio
from contextlib import aclosing

import pytest
from msgspec.structs import replace

from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.errors import Overloaded
from qwen3vl_compat.events import Events, Started, fold
from qwen3vl_compat.messages import Caller, Message, Request, Text
from qwen3vl_compat.policies import Generate
from qwen3vl_compat.policies.room import Room
from qwen3vl_compat.queue import Occupancy

ASKED = Request(
    id="r", created=0, model="qwen3-vl", messages=(Message("user", (Text("Hello"),)),), caller=Caller("acme", "k")
)


class Booking:
    """A policy that notes what comes through it, and looks for another place meanwhile."""

    def __init__(self, places: int) -> None:
        self.room = Room(lambda: Occupancy(places, {}))
        self.booked: list[str] = []
        self.left: list[bool] = []
        self.generate = self.room.around(self)(self.room.arrived(ScriptedEngine().generate))

    def __call__(self, generate: Generate) -> Generate:
        async def inside(request: Request) -> Events:
            self.booked.append(request.id)
            self.left.append(self.has_place())
            async with aclosing(generate(request)) as events:
                async for event in events:
                    yield event

        return inside

    def has_place(self) -> bool:
        try:
            self.room.check("acme")
        except Overloaded:
            return False
        return True


async def test_nothing_is_booked_for_what_has_no_place() -> None:
    booking = Booking(places=0)
    with pytest.raises(Overloaded, match="The model is overloaded") as refused:
        await fold(booking.generate(ASKED))
    assert refused.value.retry_after
    assert booking.booked == []


@pytest.mark.parametrize(("places", "left"), [(1, False), (2, True)])
async def test_who_is_being_booked_has_the_place_and_who_has_arrived_has_it_no_more(places: int, left: bool) -> None:
    """What has arrived is the engine's to count."""
    booking = Booking(places)
    async with aclosing(booking.generate(ASKED)) as events:
        assert isinstance(await anext(events), Started)
        assert booking.left == [left]
        assert booking.has_place()


async def test_who_is_held_up_between_its_row_and_the_engine_has_the_place_still() -> None:
    """As while is looked up who moderates its answer."""
    room, looked_up = Room(lambda: Occupancy(1, {})), asyncio.Event()
    generate = room.arrived(ScriptedEngine().generate)

    async def moderated(request: Request) -> Events:
        await looked_up.wait()
        async with aclosing(generate(request)) as events:
            async for event in events:
                yield event

    asking = asyncio.create_task(fold(room.around(lambda behind: behind)(moderated)(ASKED)))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        room.check("acme")
    looked_up.set()
    await asking
    room.check("acme")


async def test_who_is_refused_while_being_booked_leaves_the_place_to_others() -> None:
    room = Room(lambda: Occupancy(1, {}))

    def refusing(generate: Generate) -> Generate:
        def inside(request: Request) -> Events:
            raise Overloaded("not booked")

        return inside

    generate = room.around(refusing)(room.arrived(ScriptedEngine().generate))
    for number in range(3):
        with pytest.raises(Overloaded, match="not booked"):
            await fold(generate(replace(ASKED, id=f"r{number}")))
    room.check("acme")


async def test_who_is_long_in_being_booked_keeps_no_other_tenant_out() -> None:
    """As one whose grammars take long to be tried, with as many requests as there are places."""
    room, tried = Room(lambda: Occupancy(4, {})), asyncio.Event()

    def trying(generate: Generate) -> Generate:
        async def inside(request: Request) -> Events:
            await tried.wait()
            async with aclosing(generate(request)) as events:
                async for event in events:
                    yield event

        return inside

    generate = room.around(trying)(room.arrived(ScriptedEngine().generate))
    coming = [asyncio.create_task(fold(generate(replace(ASKED, id=f"r{number}")))) for number in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        room.check("acme")
    room.check("other")
    tried.set()
    await asyncio.gather(*coming)
    room.check("acme")
