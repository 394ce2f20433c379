"""Who owns which block of KV memory, and which blocks already hold the beginning of a new prompt; plain Python."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class Blocks:
    """`count` blocks of `size` tokens each, reference-counted.

    A full, computed block is `name`d and can then be shared by every sequence that begins the same way. Nobody's blocks
    keep their names until their room is needed, the longest unused going first.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.hits = self.queries = 0
        """Tokens found and tokens looked for, by all prompts so far."""
        self._empty = list(range(count - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * count
        self._names: list[bytes | None] = [None] * count
        self._named: dict[bytes, int] = {}

    @property
    def tokens(self) -> int:
        """Tokens that all blocks together hold."""
        return self.count * self.size

    @property
    def free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._empty) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that somebody refers to."""
        return self.count - self.free

    def match(self, names: Iterable[bytes]) -> list[int]:
        """The blocks that hold the longest beginning of `names`; not yet referred to."""
        found: list[int] = []
        for name in names:
            block = self._named.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of these nobody refers to: sharing them lowers `free` by as many."""
        return sum(not self._references[block] for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Refer to blocks once more."""
        for block in blocks:
            self._idle.pop(block, None)
            self._references[block] += 1

    def allocate(self, number: int) -> list[int]:
        """`number` blocks of one's own; there must be as many free."""
        assert number <= self.free, "more blocks were asked for than are free"
        blocks = [self._next() for _ in range(number)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def _next(self) -> int:
        if self._empty:
            return self._empty.pop()
        block, _ = self._idle.popitem(last=False)
        name = self._names[block]
        assert name is not None, "an idle block without a name"
        del self._named[name]
        self._names[block] = None
        return block

    def name(self, block: int, name: bytes) -> bool:
        """From now on the block can be found; False if another of the same content already can."""
        if name in self._named or self._names[block] is not None:
            return False
        self._named[name] = block
        self._names[block] = name
        return True

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one reference to each. The tail is forgotten before the head, without which it cannot be found."""
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0, "a block was released twice"
            if self._references[block]:
                continue
            if self._names[block] is None:
                self._empty.append(block)
            else:
                self._idle[block] = None

    def check(self, owned: Iterable[Iterable[int]]) -> None:
        """Assert that exactly the sequences with these blocks refer to them, and that no block is lost."""
        wanted = Counter(block for blocks in owned for block in blocks)
        assert all(self._references[block] == wanted[block] for block in range(self.count)), "references do not add up"
        assert all(self._references[block] == 0 for block in (*self._empty, *self._idle)), "a free block is referred to"
        assert len({*self._empty, *self._idle}) == len(self._empty) + len(self._idle) == self.count - len(wanted)
        assert {block for block, name in enumerate(self._names) if name is not None} == set(self._named.values())
        assert all(self._names[block] is None for block in self._empty)
