"""Pictures to embeddings, and the memory of those made before."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from math import prod

import torch

from qwen3vl_compat.engines.local.pace import Pace
from qwen3vl_compat.engines.local.scheduler import Piece
from qwen3vl_compat.engines.local.sequence import Sequence, Span
from qwen3vl_compat.messages import Picture

Key = tuple[str, str]
"""Tenant and digest: no tenant learns from the time it takes what another has shown."""


@dataclass
class Seen:
    """What the tower made of a picture: [1 + deepstack layers, tokens, width], the input embeddings first."""

    features: torch.Tensor
    holders: set[int] = field(default_factory=set[int])


class Vision:
    """Embeddings by tenant and digest, at most `limit` bytes of those that nobody is reading.

    `encode` runs the tower over several pictures at once.
    """

    def __init__(self, encode: Callable[[Items[Picture]], list[torch.Tensor]], limit: int) -> None:
        self._encode, self._limit = encode, limit
        self._seen: OrderedDict[Key, Seen] = OrderedDict()
        self.pace = Pace()
        """Of patches."""
        self.bytes = self.hits = self.queries = 0

    @property
    def held(self) -> int:
        """Pictures that some sequence still reads."""
        return sum(bool(seen.holders) for seen in self._seen.values())

    def patches(self, sequence: Sequence, span: Span) -> int:
        """Patches that would have to be encoded for this picture now."""
        if (sequence.tenant, span.digest) in self._seen:
            return 0
        return prod(self._picture(sequence, span).grid)

    def gather(self, pieces: Iterable[Piece]) -> None:
        """Make sure that every picture these pieces need is there; what is not is encoded in one call."""
        missing: dict[Key, Picture] = {}
        wanted: list[tuple[Key, Sequence]] = []
        for piece in pieces:
            for span in piece.spans:
                key = (piece.sequence.tenant, span.digest)
                if span.start >= piece.start:
                    self.queries += 1
                    self.hits += key in self._seen or key in missing
                if key not in self._seen:
                    missing[key] = self._picture(piece.sequence, span)
                wanted.append((key, piece.sequence))
        if missing:
            began = time.monotonic()
            for key, features in zip(missing, self._encode(list(missing.values())), strict=True):
                self._seen[key] = Seen(features)
                self.bytes += features.nbytes
            self.pace.saw(sum(prod(picture.grid) for picture in missing.values()), time.monotonic() - began)
        for key, sequence in wanted:
            self._seen[key].holders.add(id(sequence))
            self._seen.move_to_end(key)

    def features(self, sequence: Sequence, span: Span) -> torch.Tensor:
        """[1 + deepstack layers, tokens, width] of a picture that was gathered."""
        return self._seen[sequence.tenant, span.digest].features

    def let_go(self, sequence: Sequence, *, all_of_it: bool = False) -> None:
        """Give up the pictures a sequence has read to their end, or all; then forget the oldest beyond the limit."""
        for span in sequence.spans:
            seen = self._seen.get((sequence.tenant, span.digest))
            if seen is not None and (all_of_it or not self._needed(sequence, span.digest)):
                seen.holders.discard(id(sequence))
        for key in [key for key, seen in self._seen.items() if not seen.holders]:
            if self.bytes <= self._limit:
                break
            self.bytes -= self._seen.pop(key).features.nbytes

    def _needed(self, sequence: Sequence, digest: str) -> bool:
        return any(span.digest == digest and span.end > sequence.computed for span in sequence.spans)

    def _picture(self, sequence: Sequence, span: Span) -> Picture:
        return next(picture for picture in sequence.owner.prompt.pictures if picture.digest == span.digest)
