"""Refusing early: what the engine has no place for has nothing decoded, no row opened and no counter claimed."""

from collections.abc import Callable
from contextlib import aclosing

from qwen3vl_compat.errors import OVERLOADED, Overloaded
from qwen3vl_compat.events import Events
from qwen3vl_compat.messages import Request
from qwen3vl_compat.policies import Generate, Policy

Places = Callable[[str], int]
"""How many more requests of a tenant the engine would take now."""


class Room:
    """Asks the engine for places, and counts who is on the way to one, so that none is promised twice.

    Only being booked is a way that counts, a few milliseconds; who decodes for long must not keep out who could go at
    once. What comes too late all the same is refused by the engine itself.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._coming: set[str] = set()
        """The ids of the requests being booked."""

    def check(self, tenant: str) -> None:
        """Raise Overloaded where there is no place for a tenant's next request."""
        if self._places(tenant) <= len(self._coming):
            raise Overloaded(OVERLOADED, retry_after=2)

    def around(self, booking: Policy) -> Policy:
        """The policy that books, for those who have a place to go to; they count until they have arrived behind it."""

        def wrap(generate: Generate) -> Generate:
            def arrived(request: Request) -> Events:
                self._coming.discard(request.id)
                return generate(request)

            booked = booking(arrived)

            async def inside(request: Request) -> Events:
                self.check(request.caller.tenant)
                self._coming.add(request.id)
                try:
                    async with aclosing(booked(request)) as events:
                        async for event in events:
                            yield event
                finally:
                    self._coming.discard(request.id)

            return inside

        return wrap
