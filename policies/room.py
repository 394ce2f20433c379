"""Refusing early: what the engine has no place for has nothing decoded, no row opened and no counter claimed."""

from collections.abc import Callable
from contextlib import aclosing

from qwen3vl_compat.errors import OVERLOADED, Overloaded
from qwen3vl_compat.events import Events
from qwen3vl_compat.messages import Request
from qwen3vl_compat.policies import Generate, Policy
from qwen3vl_compat.queue import Occupancy


class Room:
    """Asks the engine for places, and counts who is on the way to one, so that none is promised twice.

    Only being booked is a way that counts; who decodes for long must not keep out who could go at once. Who is coming
    counts as waiting already: however many of one tenant's have a grammar tried before they are booked, another's are
    let in as they would be by the engine. What comes too late all the same is refused by the engine itself.
    """

    def __init__(self, occupancy: Callable[[], Occupancy]) -> None:
        """`occupancy` is the engine's."""
        self._occupancy = occupancy
        self._coming: dict[str, str] = {}
        """The tenants of the requests being booked, by the requests' ids."""

    def check(self, tenant: str) -> None:
        """Raise Overloaded where there is no place for a tenant's next request."""
        if not self._occupancy().joined_by(self._coming.values()).places(tenant):
            raise Overloaded(OVERLOADED, retry_after=2)

    def arrived(self, generate: Generate) -> Generate:
        """The engine's verb, which is to be read at once; whoever comes to it counts no more here, but there."""

        def inside(request: Request) -> Events:
            self._coming.pop(request.id, None)
            return generate(request)

        return inside

    def around(self, booking: Policy) -> Policy:
        """The policy that books, for those who have a place to go to; they count until they have `arrived`."""

        def wrap(generate: Generate) -> Generate:
            booked = booking(generate)

            async def inside(request: Request) -> Events:
                self.check(request.caller.tenant)
                self._coming[request.id] = request.caller.tenant
                try:
                    async with aclosing(booked(request)) as events:
                        async for event in events:
                            yield event
                finally:
                    self._coming.pop(request.id, None)

            return inside

        return wrap
