"""A request with an Idempotency-Key is carried out once; whoever sends it again gets the first one's answer.

It is carried out by a task of its own, which goes on when the client has gone: so that the client, back again, finds a
whole answer. Errors are answers too, save those of requests of which nothing was done.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.accounts.replies import Asked, Found, Replies, RepliesUnavailable
from qwen3vl_compat.errors import ApiError, EngineFailed, InvalidRequest, Overloaded
from qwen3vl_compat.events import Event, Events, Finish, First, Headers, Started
from qwen3vl_compat.messages import Request
from qwen3vl_compat.policies import Generate

log = logging.getLogger(__name__)

NAME = "Idempotency-Key"
MOST_BYTES = 1_000_000
"""Of an answer that is kept, as MessagePack."""
SWEEP_S = 3600.0
"""Between two looks for answers whose time is over."""
PAUSE_S = 0.5
"""Between two batches that are removed, so that others come to write."""
CLOSE_S = 5.0
"""What is just being written at the end is waited for so long."""
REPLAYED: Headers = (("idempotent-replayed", "true"),)
IN_VAIN: Headers = (("x-should-retry", "false"),)


class Failure(Struct, frozen=True, tag="failure", array_like=True):
    """An answer's end that is an error."""

    status: int
    code: str
    message: str
    param: str | None
    retry_after: int | None


Kept = Event | Failure


class Idempotency:
    """The policy, outermost in the chain. Its methods are called from one asyncio loop."""

    def __init__(self, replies: Replies, *, most: int = MOST_BYTES, again_s: float = 1.0) -> None:
        """What could not be written is tried again after `again_s` seconds, then twice as long, up to a minute."""
        self._replies, self._most, self._again_s = replies, most, again_s
        self._answering: set[asyncio.Task[None]] = set()
        self._behind: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Remove what is over, now and from time to time."""
        _run(self._sweep_on(), self._behind)

    async def close(self) -> None:
        """Let what is just being written be written, and end; called when generations have come to their end."""
        if self._answering:
            await asyncio.wait(self._answering, timeout=CLOSE_S)
        left = self._answering | self._behind
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)

    def once(self, generate: Generate) -> Generate:
        """Wrap a generation: those of requests under one key are one."""

        def inside(request: Request) -> Events:
            return generate(request) if request.idempotency is None else self._followed(generate, request)

        return inside

    async def _followed(self, generate: Generate, request: Request) -> Events:
        reader = _Reader()
        _run(self._answer(generate, request, reader), self._answering)
        try:
            async for event in reader.events():
                yield event
        finally:
            reader.leave()

    async def _answer(self, generate: Generate, request: Request, reader: "_Reader") -> None:
        """The task: whatever becomes of it, the reader hears of an end."""
        ending: ApiError | None = Overloaded("The server is stopping.", retry_after=5)
        try:
            ending = await self._carry_out(generate, request, reader)
        except Exception:
            log.exception("request %s failed", request.id)
            ending = EngineFailed("The server failed on this request.")
        finally:
            reader.end(ending)

    async def _carry_out(self, generate: Generate, request: Request, reader: "_Reader") -> ApiError | None:
        """Generate, if this request is the first; returns the error it ends with."""
        assert request.idempotency is not None
        asked = Asked(
            tenant=request.caller.tenant,
            key_hash=request.idempotency.key_hash,
            fingerprint=request.idempotency.fingerprint,
            request=request.id,
        )
        try:
            found = await asyncio.to_thread(self._replies.begin, asked)
        except RepliesUnavailable as error:
            log.error("request %s cannot take its key: %s", request.id, error.__cause__)
            return Overloaded(f"Requests with an {NAME} cannot be taken now.", retry_after=5)
        if found is not None:
            return _told_again(found, asked, reader)
        record = _Record(First(request.id, request.created), self._most)
        failure = await _generated(generate, request, record, reader)
        # Before the client hears of the end: it may come back at once.
        await self._settle(asked, record, failure)
        return failure

    async def _settle(self, asked: Asked, record: "_Record", failure: ApiError | None) -> None:
        """Keep the answer or free the key; where that fails now, the client does not wait until it works."""
        free = failure is not None and not record.begun and not _is_the_requests_fault(failure)
        if failure is not None and not free:
            record.add(Failure(failure.status, failure.code, failure.message, failure.param, failure.retry_after))
        events = None if free else record.encoded()

        def write() -> bool:
            return self._replies.free(asked) if free else self._replies.keep(asked, events)

        if not await _written(write, asked):
            _run(self._settle_later(write, asked), self._behind)

    async def _settle_later(self, write: Callable[[], bool], asked: Asked) -> None:
        pause = self._again_s
        while True:
            await asyncio.sleep(pause)
            if await _written(write, asked):
                return
            pause = min(2 * pause, 60.0)

    async def _sweep_on(self) -> None:
        while True:
            removed = 0
            try:
                removed = await asyncio.to_thread(self._replies.sweep)
            except Exception:
                log.exception("expired answers could not be removed")
            await asyncio.sleep(PAUSE_S if removed else SWEEP_S)


async def _generated(generate: Generate, request: Request, record: "_Record", reader: "_Reader") -> ApiError | None:
    """Have the answer made, recorded and read; returns the error it ends with."""
    try:
        async with aclosing(generate(request)) as events:
            async for event in events:
                record.add(event)
                reader.put(event)
                if record.too_large:  # it is only in memory as long as nobody has read it
                    await reader.caught_up()
                    if reader.gone:
                        break  # and nobody will ever read the rest
    except ApiError as error:
        return error
    except Exception:
        log.exception("request %s failed", request.id)
        return EngineFailed("The server failed on this request.")
    return None


async def _written(write: Callable[[], bool], asked: Asked) -> bool:
    """Try to end a row; False if it has to be tried again."""
    try:
        ours = await asyncio.to_thread(write)
    except RepliesUnavailable as error:
        log.error("what request %s was answered could not be kept: %s", asked.request, error.__cause__)
        return False
    if not ours:
        log.warning("another process has taken the key of request %s: this one was thought dead", asked.request)
    return True


def _told_again(found: Found, asked: Asked, reader: "_Reader") -> ApiError | None:
    """Tell the reader what was kept; returns the error it ended with, or the one that says why nothing is told."""
    if found.fingerprint != asked.fingerprint:
        message = f"{NAME}: was used before, for another request"
        return InvalidRequest(message, param=NAME, code="idempotency_key_reuse", headers=IN_VAIN)
    if found.events is None:
        return _nothing_to_tell(found)
    for event in msgspec.msgpack.decode(found.events, type=tuple[Kept, ...]):
        if isinstance(event, Failure):
            return ApiError(
                event.message,
                param=event.param,
                code=event.code,
                status=event.status,
                retry_after=event.retry_after,
                headers=REPLAYED + IN_VAIN,
            )
        reader.put(event)
    return None


def _nothing_to_tell(found: Found) -> ApiError:
    if found.state == "too_large":
        message = f"{NAME}: the request was carried out, but its answer was too large to be kept"
        code = "idempotency_reply_too_large"
        return InvalidRequest(message, status=409, param=NAME, code=code, headers=IN_VAIN)
    message = f"{NAME}: the request is still being carried out"
    # As long again as it has taken already: a long one is not asked about more often than it is worth.
    wait = max(1, min(60, round(found.age)))
    return InvalidRequest(message, status=409, param=NAME, code="idempotency_in_flight", retry_after=wait)


def _is_the_requests_fault(failure: ApiError) -> bool:
    """Whether a request that never began would fail again, whenever it comes."""
    return 400 <= failure.status < 500 and failure.status not in (408, 429)


def _run(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    """Run a task of which somebody must know, lest it be collected."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


class _Record:
    """An answer as it will be told again."""

    def __init__(self, first: First, most: int) -> None:
        self.begun = self.too_large = False
        self._first, self._most = first, most
        self._parts: list[msgspec.Raw] = []
        self._size = 0

    def add(self, event: Kept) -> None:
        """Note what comes next. Headers are not told again: what they say was true then."""
        if isinstance(event, Started):
            self.begun = True
            event = replace(event, headers=REPLAYED, replays=self._first)
        elif isinstance(event, Finish):
            event = replace(event, headers=())
        if self.too_large:
            return
        part = msgspec.msgpack.encode(event)
        self._parts.append(msgspec.Raw(part))
        self._size += len(part)
        if self._size > self._most:
            self.too_large = True
            self._parts.clear()

    def encoded(self) -> bytes | None:
        """All of it, None if that is too large."""
        return None if self.too_large else msgspec.msgpack.encode(self._parts)


class _Reader:
    """The client's end of the task: what has come and is not taken yet."""

    def __init__(self) -> None:
        self.gone = False
        self._waiting: list[Event] = []
        self._ending: ApiError | None = None
        self._ended = False
        self._come, self._taken = asyncio.Event(), asyncio.Event()

    def put(self, event: Event) -> None:
        """Something has come."""
        if not self.gone:
            self._waiting.append(event)
            self._taken.clear()
            self._come.set()

    def end(self, error: ApiError | None) -> None:
        """Nothing more will."""
        self._ended, self._ending = True, error
        self._come.set()

    async def caught_up(self) -> None:
        """Wait until all is taken, or nobody is there to take it."""
        await self._taken.wait()

    def leave(self) -> None:
        """Nobody reads on."""
        self.gone = True
        self._waiting.clear()
        self._taken.set()

    async def events(self) -> Events:
        """What comes, to the end; raises the error that it ends with."""
        while True:
            waiting, self._waiting = self._waiting, []
            for event in waiting:
                yield event
            if self._waiting:
                continue
            if self._ended:
                break
            self._taken.set()
            self._come.clear()
            await self._come.wait()
        if self._ending is not None:
            raise self._ending
