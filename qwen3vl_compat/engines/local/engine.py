"""The asyncio face of the one thread that owns the device: submit, deliver, cancel."""

import asyncio
import contextlib
import logging
import secrets
import threading
from collections import deque
from collections.abc import Generator, Iterator

import msgspec
import torch

from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.engines import EngineUnusable
from qwen3vl_compat.engines.local.checkpoint import Checkpoint, read_checkpoint
from qwen3vl_compat.engines.local.dialect import Dialect
from qwen3vl_compat.engines.local.prompt import Prompt, PromptBuilder, too_long
from qwen3vl_compat.engines.local.runner import Runner
from qwen3vl_compat.engines.local.sampling import Chooser
from qwen3vl_compat.errors import ApiError, EngineFailed, NotFound, Overloaded
from qwen3vl_compat.events import Event, Events, Finish, FinishReason, Started, TextDelta, Usage
from qwen3vl_compat.media.image import VisionSpec
from qwen3vl_compat.messages import ModelInfo, Request
from qwen3vl_compat.settings import Settings

log = logging.getLogger(__name__)


class _Job:
    """One request on its way: what goes in, where events come out, and whether anybody still listens."""

    def __init__(self, request: Request, prompt: Prompt, limit: int) -> None:
        self.request, self.prompt, self.limit = request, prompt, limit
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self.out: asyncio.Queue[Event | ApiError | None] = asyncio.Queue()

    def deliver(self, *events: Event | ApiError | None) -> None:
        """Hand events to the loop; called from the device's thread, once a step."""
        try:
            self._loop.call_soon_threadsafe(self._put, events)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            self.cancelled = True

    def _put(self, events: tuple[Event | ApiError | None, ...]) -> None:
        for event in events:
            self.out.put_nowait(event)


class LocalEngine:
    """Runs a Qwen3-VL checkpoint here, one sequence at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.model
        self.checkpoint: Checkpoint = read_checkpoint(self._settings.path or str(MODEL), self._settings.revision)
        checkpoint = self.checkpoint
        self._prompts = PromptBuilder(checkpoint)
        self._info = ModelInfo(
            id=self._settings.name,
            created=int((checkpoint.folder / "config.json").stat().st_mtime),
            context=checkpoint.context,
            max_output=checkpoint.context,
            revision=checkpoint.revision,
        )
        self._waiting: deque[_Job] = deque()
        self._work = threading.Condition()
        self._closing = False
        self._failure: EngineUnusable | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._own_device, name="device", daemon=True)

    @property
    def vision(self) -> VisionSpec:
        """The checkpoint's picture grid."""
        return self.checkpoint.spec

    @property
    def alive(self) -> bool:
        """Whether the device's thread is there to take work."""
        return self._ready.is_set() and self._thread.is_alive() and not self._closing

    @property
    def _default_max_tokens(self) -> int:
        return self._settings.default_max_tokens or (32_768 if self.checkpoint.thinking else 4_096)

    def models(self) -> tuple[ModelInfo, ...]:
        """The one checkpoint, under the name it is served by."""
        return (self._info,)

    async def start(self) -> None:
        """Load the weights in the device's own thread."""
        self._thread.start()
        await asyncio.to_thread(self._ready.wait)
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """End the thread after the step it is in."""
        with self._work:
            self._closing = True
            self._work.notify()
        await asyncio.to_thread(self._thread.join, 10)

    async def count(self, request: Request) -> Usage:
        """The exact prompt tokens."""
        self._check_model(request)
        return (await asyncio.to_thread(self._prompts.build, request)).usage

    async def generate(self, request: Request) -> Events:
        """Queue the request and pass its events on; closing this ends the generation within a step."""
        self._check_model(request)
        prompt = await asyncio.to_thread(self._prompts.build, request)
        job = _Job(request, prompt, self._room(request, prompt.usage))
        with self._work:
            if not self.alive:
                raise Overloaded("The model is not running.", retry_after=5)
            if len(self._waiting) >= self._settings.max_waiting:
                raise Overloaded("The model is overloaded. Please try again later.", retry_after=2)
            self._waiting.append(job)
            self._work.notify()
        try:
            while (event := await job.out.get()) is not None:
                if isinstance(event, ApiError):
                    raise event
                yield event
        finally:
            job.cancelled = True
            with self._work, contextlib.suppress(ValueError):
                self._waiting.remove(job)

    def _check_model(self, request: Request) -> None:
        if request.model != self._settings.name:
            raise NotFound(
                f"The model '{request.model[:100]}' does not exist or you have no access to it.",
                param="model",
                code="model_not_found",
            )

    def _room(self, request: Request, usage: Usage) -> int:
        """Tokens the answer may have: what was asked, or the default, never more than the context leaves."""
        limit = self.checkpoint.context
        if usage.prompt >= limit:
            raise too_long(limit, f"{usage.prompt}")
        return min(request.sampling.max_tokens or self._default_max_tokens, limit - usage.prompt)

    # ------------------------------------------------------------------------------------------ the device's thread

    def _own_device(self) -> None:
        try:
            self._runner = Runner(self.checkpoint, self._settings)
        except EngineUnusable as failure:
            self._failure = failure
            return
        except Exception:
            log.exception("the model could not be set up")
            self._failure = EngineUnusable("The model cannot be set up on this device; the log says why.")
            return
        finally:
            self._ready.set()
        while (job := self._next_job()) is not None:
            self._serve(job)

    def _next_job(self) -> _Job | None:
        with self._work:
            while not self._waiting and not self._closing:
                self._work.wait()
            if not self._closing:
                return self._waiting.popleft()
            for job in self._waiting:
                job.deliver(Overloaded("The server is stopping.", retry_after=5))
            return None

    def _serve(self, job: _Job) -> None:
        if job.cancelled:
            return
        try:
            for event in self._generate(job):
                job.deliver(event)
            job.deliver(None)
        except Exception as error:
            if _out_of_memory(error):
                job.deliver(Overloaded("There is no memory for this request now.", retry_after=10))
                return
            log.exception("request %s failed in the engine", job.request.id)
            job.deliver(EngineFailed("The engine failed on this request."))

    def _generate(self, job: _Job) -> Iterator[Event]:
        yield Started(job.prompt.usage)
        total = 0
        for choice in range(job.request.choices):
            if job.cancelled:
                return
            made, reason = yield from self._choice(job, choice)
            total += made
            yield Finish(choice, reason, msgspec.structs.replace(job.prompt.usage, completion=total))

    def _choice(self, job: _Job, choice: int) -> Generator[TextDelta, None, tuple[int, FinishReason]]:
        """One answer's deltas; returns how many tokens were made and why it ended."""
        chooser = self._chooser(job, choice)
        dialect = Dialect(self.checkpoint.vocabulary, job.request.sampling.stop)
        sequence, logits = self._runner.prefill(job.prompt)
        made = 0
        reason: FinishReason = "length"
        while made < job.limit and not job.cancelled:
            if self._closing:
                raise Overloaded("The server is stopping.", retry_after=5)
            token = chooser.choose(logits, made)
            made += 1
            if token in self.checkpoint.end_ids:
                reason = "stop"
                break
            if text := dialect.push(token):
                yield TextDelta(choice, text, made)
            if dialect.stopped:
                reason = "stop"
                break
            if made < job.limit:
                logits = self._runner.step(sequence, token)
        if text := dialect.finish():
            yield TextDelta(choice, text, made)
        return made, reason

    def _chooser(self, job: _Job, choice: int) -> Chooser:
        asked, own = job.request.sampling, self.checkpoint
        return Chooser(
            temperature=own.temperature if asked.temperature is None else asked.temperature,
            top_p=own.top_p if asked.top_p is None else asked.top_p,
            top_k=own.top_k,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            choice=choice,
        )


def _out_of_memory(error: Exception) -> bool:
    """On a CPU torch says so in a plain RuntimeError's text only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
