"""The client's two faces under one: whatever a test asks of it, both must do."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from qwen3vl_compat.adapters.client import Answer, AsyncQwen3VLClient, Delta, Qwen3VLClient


class Waiting:
    """The one that waits."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._client = Qwen3VLClient(*arguments, **settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return getattr(self._client, name)

    def stream(self, *asked: Any, most: int | None = None, **options: Any) -> tuple[list[Delta], Answer | None]:
        """What is told, the first `most` pieces if any are named, and the answer if it came to its end."""
        with self._client.stream(*asked, **options) as stream:
            told = [delta for delta, _ in zip(stream, range(most), strict=False)] if most else list(stream)
            return told, None if most else stream.answer

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()


class Looping:
    """The one with an event loop."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncQwen3VLClient(*arguments, **settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *asked, **options: self._runner.run(getattr(self._client, name)(*asked, **options))

    def stream(self, *asked: Any, most: int | None = None, **options: Any) -> tuple[list[Delta], Answer | None]:
        return self._runner.run(self._told(asked, most, options))

    async def _told(self, asked: Any, most: int | None, options: Any) -> tuple[list[Delta], Answer | None]:
        told: list[Delta] = []
        async with self._client.stream(*asked, **options) as stream:
            async for delta in stream:
                told.append(delta)
                if len(told) == most:
                    return told, None
            return told, stream.answer

    def __enter__(self) -> "Looping":
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


Face = Callable[..., AbstractContextManager[Any]]
FACES: dict[str, Face] = {"sync": Waiting, "async": Looping}
