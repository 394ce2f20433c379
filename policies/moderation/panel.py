"""The moderators of one request, on its tenant's terms."""

import asyncio
from collections.abc import Sequence

from qwen3vl_compat.errors import ModerationUnavailable
from qwen3vl_compat.policies.moderation import Moderator, Unavailable, Verdict
from qwen3vl_compat.settings import ModerationTerms, Stage

UNAVAILABLE, FLAGGED = "unavailable", "flagged"
"""Noted of what could not be looked at and was let pass: only that, or that somebody should."""


class Panel:
    """Asks them one at a time. `notes` is what is to be said of what is let pass, as the ledger writes it."""

    def __init__(self, moderators: Sequence[Moderator], terms: ModerationTerms) -> None:
        self.moderators = [each for each in moderators if each.name not in terms.off]
        self._on_failure = terms.on_failure
        self._turn = asyncio.Lock()
        self.notes: list[str] = []

    def at(self, stage: Stage) -> list[Moderator]:
        """Those who look then."""
        return [each for each in self.moderators if stage in each.stages]

    async def objection(self, stage: Stage, texts: Sequence[str], pictures: Sequence[bytes] = ()) -> str:
        """What the first who objects says, as the ledger writes it; empty if nobody does."""
        for moderator in self.at(stage):
            verdict = await self.ask(moderator, texts, pictures)
            if verdict.flagged:
                return said_of(moderator.name, verdict)
        return ""

    async def ask(self, moderator: Moderator, texts: Sequence[str], pictures: Sequence[bytes] = ()) -> Verdict:
        """What one has to say; pictures are shown to it in as many questions as it takes, the words with each.

        ModerationUnavailable if it cannot be asked and the terms let nothing pass without it.
        """
        batches = _batches(pictures, moderator.pictures)
        scores: dict[str, float] = {}
        for batch in batches:
            if not (texts or batch):
                continue
            try:
                async with self._turn:
                    verdict = await moderator.look(texts, batch)
            except Unavailable:
                self._let_pass(moderator.name)
                break
            scores |= {name: max(score, scores.get(name, 0.0)) for name, score in verdict.scores.items()}
            if verdict.flagged:
                return Verdict(True, verdict.categories, scores)
        return Verdict(scores=scores)

    def _let_pass(self, name: str) -> None:
        if self._on_failure == "closed":
            raise ModerationUnavailable(f"{name}:{UNAVAILABLE}")
        note = f"{name}:{UNAVAILABLE if self._on_failure == 'open' else FLAGGED}"
        if note not in self.notes:
            self.notes.append(note)


def said_of(name: str, verdict: Verdict) -> str:
    """An objection as the ledger writes it."""
    return f"{name}:{','.join(verdict.categories) or FLAGGED}"


def _batches(pictures: Sequence[bytes], most: int) -> list[Sequence[bytes]]:
    """Pictures as they can be shown; one empty batch where there are none, or none can be."""
    if not (pictures and most):
        return [()]
    return [pictures[start : start + most] for start in range(0, len(pictures), most)]
