"""The result cache: what was answered before is given again, and nothing is computed for it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing

from qwen3vl_compat.events import Events
from qwen3vl_compat.messages import Request
from qwen3vl_compat.policies import Generate, Moderation
from qwen3vl_compat.policies.media import Gathered

Gathering = Callable[[Request], AbstractAsyncContextManager[Gathered]]


class Cache:
    """The policy: gathers a request's media, has its words moderated, and decodes only what it cannot answer itself."""

    def __init__(self, gathering: Gathering, moderation: Moderation) -> None:
        self._gathering, self._moderation = gathering, moderation

    def __call__(self, fresh: Generate) -> Generate:
        """Wrap what answers afresh."""

        async def inside(request: Request) -> Events:
            async with (
                self._gathering(await self._moderation.text(request)) as gathered,
                aclosing(fresh(await gathered.rendered())) as events,
            ):
                async for event in events:
                    yield event

        return inside
