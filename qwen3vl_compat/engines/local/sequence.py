"""One answer in the making: its tokens, how far they are computed, and where that is kept."""

from array import array
from collections.abc import Sequence as Items
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any


@dataclass(frozen=True)
class Span:
    """The slots of one picture in a prompt: where they begin, how many, and the digest of what fills them."""

    start: int
    length: int
    digest: str

    @property
    def end(self) -> int:
        """The place behind the last slot."""
        return self.start + self.length


class Sequence:
    """The tokens of one choice of one request, prompt first.

    `computed` tokens have their keys and values stored, in `blocks` and, while it runs, in row `row`. A sequence that
    lost its blocks keeps its tokens and is computed again.
    """

    def __init__(
        self, prompt: Items[int], spans: tuple[Span, ...], *, tenant: str, forks: int = 0, owner: Any = None
    ) -> None:
        self.tokens = array("q", prompt)
        self.prompt_length = len(prompt)
        self.spans, self.tenant, self.owner = spans, tenant, owner
        self.forks = forks
        """Choices that will split off when the prompt is read."""
        self.choice = 0
        self.computed = 0
        self.blocks: list[int] = []
        self.row: int | None = None
        self._names: list[bytes] = []

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def made(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def decoding(self) -> bool:
        """Whether only its newest token is not computed yet, and that one was generated."""
        return self.made > 0 and self.computed == len(self.tokens) - 1

    def append(self, token: int) -> None:
        """Add a generated token, which is not computed yet."""
        self.tokens.append(token)

    def fork(self, choice: int) -> "Sequence":
        """Another choice that begins with the same prompt; it has no blocks yet."""
        other = Sequence((), self.spans, tenant=self.tenant, owner=self.owner)
        other.tokens = self.tokens[: self.prompt_length]
        other.prompt_length, other.choice = self.prompt_length, choice
        return other

    def names(self, size: int, count: int) -> list[bytes]:
        """The names of the first `count` blocks of `size` tokens: each is a digest of all that decides its content.

        That is the block before it, the tokens, every picture that reaches into it, with its place relative to the
        block (pictures of one size look alike as tokens), and the tenant, so that none learns what another has asked.
        """
        while len(self._names) < count:
            start = len(self._names) * size
            state = blake2b(self._names[-1] if self._names else self.tenant.encode(), digest_size=16)
            state.update(self.tokens[start : start + size].tobytes())
            for span in self.spans:
                if span.start < start + size and span.end > start:
                    state.update(f"\0{span.digest}\0{span.start - start}\0{span.length}".encode())
            self._names.append(state.digest())
        return self._names[:count]
