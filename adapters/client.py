"""The Python client: `Qwen3VLClient`, and `AsyncQwen3VLClient` for programs with an event loop.

    client = Qwen3VLClient("http://localhost:8080", "sk-...")
    print(client.generate("Read the text.", "sign.jpg"))

Both have the same methods with the same arguments. What they do is in `calling`; here are only the two faces.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Self, Unpack

import httpx

from qwen3vl_compat.adapters.calling.answers import Answer, tool_result, whole_of
from qwen3vl_compat.adapters.calling.caller import Caller, Model, Task
from qwen3vl_compat.adapters.calling.failures import (
    BadRequest,
    ClientError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    InvalidInput,
    NotFound,
    OutOfCredit,
    Overloaded,
    RateLimited,
    Refused,
    ServerFailed,
    TimedOut,
    TimeIsUp,
    Unauthorized,
    Unreadable,
)
from qwen3vl_compat.adapters.calling.files import RemoteFile
from qwen3vl_compat.adapters.calling.options import Common, Configuration, Options, Question, tool
from qwen3vl_compat.adapters.calling.pictures import LONGEST_SIDE
from qwen3vl_compat.adapters.calling.prompt import Attachment, Prompt
from qwen3vl_compat.adapters.calling.sending import Progress
from qwen3vl_compat.adapters.calling.steps import Steps, T
from qwen3vl_compat.adapters.calling.transport import AsyncRun, Ended, Run, certificates
from qwen3vl_compat.events import Choice, Delta, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from qwen3vl_compat.messages import Message, Sampling, Thinking, Tool, ToolCall

__all__ = [
    "Answer",
    "AsyncQwen3VLClient",
    "AsyncStream",
    "Attachment",
    "BadRequest",
    "Choice",
    "ClientError",
    "Conflict",
    "ConnectionFailed",
    "Forbidden",
    "InvalidInput",
    "Message",
    "Model",
    "NotFound",
    "OutOfCredit",
    "Overloaded",
    "Progress",
    "Prompt",
    "Qwen3VLClient",
    "RateLimited",
    "ReasoningDelta",
    "Refused",
    "RemoteFile",
    "Sampling",
    "ServerFailed",
    "Stream",
    "Task",
    "TextDelta",
    "Thinking",
    "TimeIsUp",
    "TimedOut",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "Unauthorized",
    "Unreadable",
    "Usage",
    "tool",
    "tool_result",
]


class Qwen3VLClient:
    """A client that waits; threads may share one."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        model: str = "qwen3-vl",
        timeout: float = 600.0,
        retries: int = 4,
        longest_side: int = LONGEST_SIDE,
    ) -> None:
        """A call may take `timeout` seconds and is sent at most `retries` times again; raises InvalidInput.

        Without an address it is QWEN3VL_BASE_URL's or http://localhost:8080, without a key QWEN3VL_API_KEY's or none.
        Pictures are brought down to `longest_side` pixels; 0 sends all files as they are.
        """
        configuration = Configuration.of(
            base_url, api_key, model=model, timeout=timeout, retries=retries, longest_side=longest_side
        )
        self._caller = Caller(configuration)
        self._http = httpx.Client(base_url=configuration.origin, verify=certificates(configuration.origin))

    def generate(
        self,
        prompt: Prompt,
        image_path: str | Path | None = None,
        temperature: float | None = 0.7,
        max_tokens: int | None = 2048,
        **options: Unpack[Options],
    ) -> Answer:
        """Ask for an answer and wait for all of it; raises a ClientError. None leaves a value to the server."""
        question = Question(prompt, image_path, temperature, max_tokens, options)
        return self._finish(self._caller.answer(question, stream=False))

    def stream(
        self,
        prompt: Prompt,
        image_path: str | Path | None = None,
        temperature: float | None = 0.7,
        max_tokens: int | None = 2048,
        **options: Unpack[Options],
    ) -> "Stream":
        """The same, as the answer is made. Nothing is sent before something is read."""
        question = Question(prompt, image_path, temperature, max_tokens, options)
        return Stream(Run(self._caller.answer(question, stream=True), self._http))

    def run(self, task: Task[T], **common: Unpack[Common]) -> T:
        """Carry out a task, as those of `abilities` are; raises a ClientError."""
        return self._finish(task(self._caller, common))

    def upload(
        self, source: str | Path | bytes, name: str = "", life: int | None = None, **common: Unpack[Common]
    ) -> RemoteFile:
        """Upload a file to be asked about more than once; it is kept for `life` seconds, two days if none are said."""
        return self._finish(self._caller.upload(source, name, life, common))

    def files(self, **common: Unpack[Common]) -> list[RemoteFile]:
        """The files that are kept, the newest first."""
        return self._finish(self._caller.files(common))

    def delete_file(self, file: RemoteFile | str, **common: Unpack[Common]) -> None:
        """Remove a file."""
        self._finish(self._caller.delete_file(file, common))

    def models(self, **common: Unpack[Common]) -> list[Model]:
        """The models that the key is for."""
        return self._finish(self._caller.models(common))

    def _finish(self, steps: Steps[T]) -> T:
        return Run(steps, self._http).finish()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream:
    """An answer in the making: iterate over it, or over its `texts`. Leaving its `with` ends the generation."""

    def __init__(self, run: Run[Answer]) -> None:
        self._run = run
        self._answer: Answer | None = None

    @property
    def answer(self) -> Answer:
        """All of it, once it has come to its end; raises InvalidInput before."""
        return whole_of(self._answer)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        told = self._run.advance()
        if isinstance(told, Ended):
            self._answer = told.value or self._answer
            raise StopIteration
        return told

    def texts(self) -> Iterator[str]:
        """The visible text of the first choice, piece by piece."""
        return (delta.text for delta in self if isinstance(delta, TextDelta) and delta.index == 0)

    def close(self) -> None:
        """Hang up; what is not made yet is not made then, unless the request has an idempotency key."""
        self._run.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncQwen3VLClient:
    """A client for programs with an asyncio loop."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        model: str = "qwen3-vl",
        timeout: float = 600.0,
        retries: int = 4,
        longest_side: int = LONGEST_SIDE,
    ) -> None:
        """A call may take `timeout` seconds and is sent at most `retries` times again; raises InvalidInput.

        Without an address it is QWEN3VL_BASE_URL's or http://localhost:8080, without a key QWEN3VL_API_KEY's or none.
        Pictures are brought down to `longest_side` pixels; 0 sends all files as they are.
        """
        configuration = Configuration.of(
            base_url, api_key, model=model, timeout=timeout, retries=retries, longest_side=longest_side
        )
        self._caller = Caller(configuration)
        self._http = httpx.AsyncClient(base_url=configuration.origin, verify=certificates(configuration.origin))

    async def generate(
        self,
        prompt: Prompt,
        image_path: str | Path | None = None,
        temperature: float | None = 0.7,
        max_tokens: int | None = 2048,
        **options: Unpack[Options],
    ) -> Answer:
        """Ask for an answer and wait for all of it; raises a ClientError. None leaves a value to the server."""
        question = Question(prompt, image_path, temperature, max_tokens, options)
        return await self._finish(self._caller.answer(question, stream=False))

    def stream(
        self,
        prompt: Prompt,
        image_path: str | Path | None = None,
        temperature: float | None = 0.7,
        max_tokens: int | None = 2048,
        **options: Unpack[Options],
    ) -> "AsyncStream":
        """The same, as the answer is made. Nothing is sent before something is read."""
        question = Question(prompt, image_path, temperature, max_tokens, options)
        return AsyncStream(AsyncRun(self._caller.answer(question, stream=True), self._http))

    async def run(self, task: Task[T], **common: Unpack[Common]) -> T:
        """Carry out a task, as those of `abilities` are; raises a ClientError."""
        return await self._finish(task(self._caller, common))

    async def upload(
        self, source: str | Path | bytes, name: str = "", life: int | None = None, **common: Unpack[Common]
    ) -> RemoteFile:
        """Upload a file to be asked about more than once; it is kept for `life` seconds, two days if none are said."""
        return await self._finish(self._caller.upload(source, name, life, common))

    async def files(self, **common: Unpack[Common]) -> list[RemoteFile]:
        """The files that are kept, the newest first."""
        return await self._finish(self._caller.files(common))

    async def delete_file(self, file: RemoteFile | str, **common: Unpack[Common]) -> None:
        """Remove a file."""
        await self._finish(self._caller.delete_file(file, common))

    async def models(self, **common: Unpack[Common]) -> list[Model]:
        """The models that the key is for."""
        return await self._finish(self._caller.models(common))

    async def _finish(self, steps: Steps[T]) -> T:
        return await AsyncRun(steps, self._http).finish()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncStream:
    """An answer in the making: iterate over it, or over its `texts`. Leaving its `async with` ends the generation."""

    def __init__(self, run: AsyncRun[Answer]) -> None:
        self._run = run
        self._answer: Answer | None = None

    @property
    def answer(self) -> Answer:
        """All of it, once it has come to its end; raises InvalidInput before."""
        return whole_of(self._answer)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        told = await self._run.advance()
        if isinstance(told, Ended):
            self._answer = told.value or self._answer
            raise StopAsyncIteration
        return told

    async def texts(self) -> AsyncIterator[str]:
        """The visible text of the first choice, piece by piece."""
        async for delta in self:
            if isinstance(delta, TextDelta) and delta.index == 0:
                yield delta.text

    async def close(self) -> None:
        """Hang up; what is not made yet is not made then, unless the request has an idempotency key."""
        await self._run.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
