"""The policy: who looks at which request and answer, and what becomes of what they say.

Before the device: the words of a request, then what the model would be shown. An objection there is a row that costs
nothing. During and after: see `stream`.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from qwen3vl_compat.accounts.booking import Outcome
from qwen3vl_compat.accounts.ledger import LedgerUnavailable
from qwen3vl_compat.errors import ContentRefused, Overloaded
from qwen3vl_compat.events import Events
from qwen3vl_compat.media.limits import VisionSpec
from qwen3vl_compat.messages import Message, Request
from qwen3vl_compat.policies import Generate
from qwen3vl_compat.policies.bookkeeping import Bookkeeping, entry_of
from qwen3vl_compat.policies.moderation import Moderator, Verdict
from qwen3vl_compat.policies.moderation.panel import FLAGGED, Panel
from qwen3vl_compat.policies.moderation.reading import jpegs_of, shown_in, texts_of, words_of
from qwen3vl_compat.policies.moderation.stream import Asking, Flagged, Follower, Following, Watch
from qwen3vl_compat.policies.moderation.words import Words
from qwen3vl_compat.settings import STAGES, ModerationSettings, ModerationTerms

ALL = 2**62
"""Characters that are held back of an answer that is sent whole."""
MOST_TERMS = 1000
"""Sets of moderators that tenants are without, of which is remembered what they say at once."""


class Terms(NamedTuple):
    """Where the terms of a tenant come from."""

    of: Callable[[str], Awaitable[ModerationTerms]]
    remembered: Callable[[str], ModerationTerms | None]
    """At once, or None."""


class Moderators:
    """All moderators of a server, as the chain of policies takes them."""

    def __init__(
        self,
        settings: ModerationSettings,
        moderators: Sequence[Moderator],
        terms: Terms,
        books: Bookkeeping,
        spec: VisionSpec,
    ) -> None:
        """`spec` is how the engine sees pictures."""
        self._settings, self._moderators, self._terms = settings, tuple(moderators), terms
        self._books, self._spec = books, spec
        self._instant: dict[tuple[str, ...], Callable[[str], bool] | None] = {}
        stages = {stage for each in moderators for stage in each.stages}
        self.see_pictures = any(each.pictures for each in moderators if "before" in each.stages)
        """Whether anybody is shown them."""
        self._ask_before, self._watch_answers = "before" in stages, bool({"during", "after"} & stages)

    async def text(self, request: Request) -> Request:
        """The request, if nobody objects to its words; ContentRefused, ModerationUnavailable, Overloaded."""
        return await self._judged(request, words_of(request), ()) if self._ask_before else request

    async def pictures(self, request: Request) -> Request:
        """The request, if nobody objects to its pictures and the words that go with them; raises as `text`.

        Those words are looked at again: what a document says is among them only now.
        """
        shown = shown_in(request.messages) if self._ask_before else []
        if not shown:
            return request
        texts = [text for message in shown for text in texts_of(message)]
        return await self._judged(request, texts, await self._jpegs(shown))

    def answer(self, generate: Generate) -> Generate:
        """The same verb; an answer that somebody objects to ends with `content_filter`, all its choices with it."""
        if not self._watch_answers:
            return generate

        async def inside(request: Request) -> Events:
            watch = self._watch(request, await self._panel(request.caller.tenant))
            try:
                async with aclosing(generate(request)) as events:
                    async for event in events:
                        for shown in await watch.seen(event):
                            yield shown
            except Flagged as flagged:  # by now the engine has stopped
                for event in watch.ends(flagged.said):
                    yield event
            finally:
                await watch.close()

        return inside

    async def judge(self, tenant: str, messages: Sequence[Message]) -> list[Verdict]:
        """What those who look at requests say of each message; raises ModerationUnavailable."""
        verdicts: list[Verdict] = []
        for message in messages:
            panel, scores = await self._panel(tenant), dict[str, float]()
            verdict = Verdict()
            for moderator in panel.at("before"):
                verdict = await panel.ask(moderator, texts_of(message), await self._jpegs([message]))
                scores |= verdict.scores
                if verdict.flagged:
                    break
            doubted = any(note.endswith(f":{FLAGGED}") for note in panel.notes)
            verdicts.append(Verdict(verdict.flagged or doubted, verdict.categories, scores))
        return verdicts

    def instant(self, tenant: str) -> Callable[[str], bool] | None:
        """Whether a text may be given on, as a plain function; None where it takes more than lists of words to say.

        That is so too where a service looks at requests: it is asked each time. On the same terms it is the same one.
        """
        if not self._moderators:
            return _always
        terms = self._terms.remembered(tenant)
        if terms is None:
            return None
        if terms.off not in self._instant:
            if len(self._instant) >= MOST_TERMS:
                self._instant.clear()
            self._instant[terms.off] = _passing(Panel(self._moderators, terms))
        return self._instant[terms.off]

    async def fingerprint(self, tenant: str) -> str:
        """What tells a tenant's moderators from others: 64 hexadecimal digits."""
        asked = (await self._panel(tenant)).moderators if self._moderators else []
        told = [(each.fingerprint, each.stages) for each in asked]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    async def close(self) -> None:
        """Nobody is asked any more."""
        for moderator in self._moderators:
            await moderator.close()

    async def _panel(self, tenant: str) -> Panel:
        return Panel(self._moderators, await self._terms.of(tenant))

    async def _jpegs(self, messages: Sequence[Message]) -> list[bytes]:
        if not self.see_pictures:
            return []
        return await asyncio.to_thread(jpegs_of, messages, self._spec, self._settings.frames)

    async def _judged(self, request: Request, texts: Sequence[str], pictures: Sequence[bytes]) -> Request:
        """The request with what is to be noted of it; who objects gets a row."""
        panel = await self._panel(request.caller.tenant)
        objection = await panel.objection("before", texts, pictures)
        notes = [note for note in panel.notes if note not in request.moderation.split(";")]
        if not (notes or objection):
            return request
        request = replace(request, moderation=";".join(filter(None, (request.moderation, *notes, objection))))
        if objection:
            await self._book(request)
            raise ContentRefused
        return request

    async def _book(self, request: Request) -> None:
        """The row of a request that went no further."""
        now = self._books.ledger.now_ms()
        entry = entry_of(request, await self._books.account(request, now), now, reserved_out=0, reserved=0)
        outcome = Outcome(state="final", finish="content_filter", ended_at=now, moderation=request.moderation)
        try:
            await self._books.ledger.book(entry, outcome)
        except LedgerUnavailable:
            raise Overloaded("The server cannot book requests now. Please try again later.", retry_after=5) from None

    def _watch(self, request: Request, panel: Panel) -> Watch:
        async def whole(texts: Sequence[str]) -> None:
            if said := await panel.objection("after", texts):
                raise Flagged(said)

        following = [Following(each.name, partial(self._begin, each, panel)) for each in panel.at("during")]
        kept = self._settings.chunk if request.stream else ALL
        return Watch(request, following, whole if panel.at("after") else None, kept, panel.notes)

    def _begin(self, moderator: Moderator, panel: Panel) -> Follower:
        if isinstance(moderator, Words):
            return moderator.follow()
        return Asking(partial(panel.ask, moderator), self._settings.window, self._settings.chunk)


def _passing(panel: Panel) -> Callable[[str], bool] | None:
    """What these say of a text, if all of them are lists of words."""
    moderators = {each.name: each for stage in STAGES for each in panel.at(stage)}
    if not all(isinstance(each, Words) for each in moderators.values()):
        return None
    lists = [each for each in moderators.values() if isinstance(each, Words) and {"during", "after"} & {*each.stages}]
    return lambda text: all(each.passes(text) for each in lists)


def _always(text: str) -> bool:
    return True
