"""How much memory the media of all requests together may take in this process."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from qwen3vl_compat.errors import Overloaded

Take = Callable[[int], None]
"""Notes so many bytes more; Overloaded where there is no room for them."""


class Room:
    """Counts bytes of media from when they come until their request is over."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    @contextmanager
    def taking(self) -> Generator[Take]:
        """What one request takes; it is given back at the end."""
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if self.held + size > self.most:
                raise Overloaded("There is no memory for more pictures, videos and documents now.", retry_after=2)
            self.held += size
            taken += size

        try:
            yield take
        finally:
            self.held -= taken
