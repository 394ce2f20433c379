"""How much memory the media of all requests together may take in this process."""

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager

from qwen3vl_compat.errors import Overloaded

Take = Callable[[int], None]
"""Notes so many bytes more; Overloaded where there is no room for them."""
LEFT = 4
"""A tenant may hold so many times what it leaves free: alone four fifths of all, and never what others begin with."""


class Room:
    """Counts bytes of media from when they come until their request is over."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._of: Counter[str] = Counter()

    @contextmanager
    def taking(self, tenant: str = "") -> Generator[Take]:
        """What one request takes; it is given back at the end."""
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if self._of[tenant] + size > LEFT * (self.most - self.held - size):
                raise Overloaded("There is no memory for more pictures, videos and documents now.", retry_after=2)
            taken += size
            self._hold(tenant, size)

        try:
            yield take
        finally:
            self._hold(tenant, -taken)

    def _hold(self, tenant: str, size: int) -> None:
        self.held += size
        self._of[tenant] += size
        if not self._of[tenant]:
            del self._of[tenant]
