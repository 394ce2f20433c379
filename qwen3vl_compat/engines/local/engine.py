"""The asyncio face of the one thread that owns the device: submit, deliver, cancel, watch."""

import asyncio
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from prometheus_client.metrics_core import Metric

from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.engines import EngineUnusable
from qwen3vl_compat.engines.local.answer import Answer
from qwen3vl_compat.engines.local.checkpoint import Checkpoint, digest_of, read_checkpoint
from qwen3vl_compat.engines.local.compiling import Compiler
from qwen3vl_compat.engines.local.dialect import Dialect, Tags
from qwen3vl_compat.engines.local.grammar import grammars_of
from qwen3vl_compat.engines.local.grammars import Grammars
from qwen3vl_compat.engines.local.guide import Rules
from qwen3vl_compat.engines.local.job import Job
from qwen3vl_compat.engines.local.prompt import Prompt, PromptBuilder, too_long
from qwen3vl_compat.engines.local.ready import Ready
from qwen3vl_compat.engines.local.runner import Runner
from qwen3vl_compat.engines.local.sampling import Chooser, Seen
from qwen3vl_compat.engines.local.worker import Delivery, Worker
from qwen3vl_compat.errors import OVERLOADED, EngineFailed, InvalidRequest, NotFound, Overloaded, TooSlow
from qwen3vl_compat.events import Events, Started, Usage
from qwen3vl_compat.media.limits import VisionSpec
from qwen3vl_compat.messages import ModelInfo, Request
from qwen3vl_compat.queue import FairQueue, Occupancy
from qwen3vl_compat.settings import ModelSettings, Settings

log = logging.getLogger(__name__)

FAREWELL = "\n\nThat is enough thought; now the answer.\n"
"""How a thought that has used up its budget ends, before its closing tag."""
LOST = 70
"""The process's exit status when the device or the engine itself failed: whoever started it should start it again."""


class LocalEngine:
    """Runs a Qwen3-VL checkpoint here, many answers at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.model
        self._cache = Path(settings.server.state_dir).expanduser() / "compiled"
        self._compiler: Compiler | None = None
        self.checkpoint: Checkpoint = _with_context(
            read_checkpoint(self._settings.path or str(MODEL), self._settings.revision), self._settings
        )
        checkpoint = self.checkpoint
        self._prompts = PromptBuilder(checkpoint)
        self._tags = Tags.of(checkpoint.vocabulary)
        self._grammars = Grammars(checkpoint.folder, checkpoint.vocabulary, checkpoint.end_ids)
        self._info = ModelInfo(
            id=self._settings.name,
            created=int((checkpoint.folder / "config.json").stat().st_mtime),
            context=checkpoint.context,
            max_output=checkpoint.context,
            revision=checkpoint.revision,
            digest=digest_of(checkpoint.folder, repr(self._settings)),
            greedy=checkpoint.temperature == 0,
        )
        self._worker: Worker | None = None
        self._failure: EngineUnusable | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._own_device, name="device", daemon=True)
        self._waiting: FairQueue[Job] = FairQueue(self._settings.max_waiting)
        """Those of which no Started has come from the device's thread, which has its own order."""
        self._coming: list[str] = []
        """The tenants of those whose prompt is being built; they are to wait next."""

    @property
    def vision(self) -> VisionSpec:
        """The checkpoint's picture grid."""
        return self.checkpoint.spec

    @property
    def alive(self) -> bool:
        """Whether the device's thread is there to take work, and its step has not taken too long."""
        if self._worker is None or self._worker.ended or not self._thread.is_alive():
            return False
        since = self._worker.stepping_since
        return since is None or time.monotonic() - since < self._settings.stalled

    @property
    def _default_max_tokens(self) -> int:
        return self._settings.default_max_tokens or (32_768 if self.checkpoint.thinking else 4_096)

    def models(self) -> tuple[ModelInfo, ...]:
        """The one checkpoint, under the name it is served by."""
        return (self._info,)

    async def collect(self) -> Iterable[Metric]:
        """Queue, memory, tokens and times."""
        return self._worker.metrics.collect() if self._worker is not None else ()

    async def start(self) -> None:
        """Load the weights in the device's own thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        await asyncio.to_thread(self._ready.wait)
        if self._failure is not None:
            raise self._failure
        assert self._worker is not None
        runner = self._worker.runner
        log.info(
            "context %d tokens; room for %d tokens of keys and values in %.2f GiB; %s",
            self.checkpoint.context, runner.blocks.tokens, runner.blocks.tokens * runner.token_bytes / 2**30,
            runner.device,
        )  # fmt: skip
        if self._settings.compile and (recipe := runner.recipe()):
            self._worker.metrics.compiling = True
            self._compiler = Compiler(recipe, self._cache, self._worker.runner.adopt, self._compiled)
            self._compiler.start()

    def _compiled(self, adopted: bool) -> None:
        """Called once, from the compiler's thread."""
        assert self._worker is not None
        self._worker.metrics.compiled, self._worker.metrics.compiling = adopted, False

    async def close(self) -> None:
        """End the thread after the step it is in."""
        await self._grammars.close()
        if self._compiler is not None:
            await asyncio.to_thread(self._compiler.close)
        if self._worker is not None:
            self._worker.close()
        await asyncio.to_thread(self._thread.join, 10)

    async def count(self, request: Request) -> Usage:
        """The exact prompt tokens."""
        self._check_model(request)
        return (await asyncio.to_thread(self._prompts.build, request)).usage

    async def check(self, request: Request) -> None:
        """Refuse token ids that are none, and grammars that cannot be kept to; the others are kept for `generate`."""
        self._check_tokens(request)
        await self._grammars_of(request)

    def room(self, request: Request, usage: Usage) -> int:
        """Tokens each choice may have: what was asked, or the default, never more than context and memory leave."""
        if self._worker is None:
            raise Overloaded("The model is not running.", retry_after=5)
        limit = self.checkpoint.context
        if usage.prompt >= limit:
            raise too_long(limit, f"{usage.prompt}", request.field)
        room = self._worker.scheduler.blocks.tokens
        if not self._worker.scheduler.fits(usage.prompt, request.choices):
            raise InvalidRequest(
                f"{request.field}: {usage.prompt} tokens for {request.choices} choices do not fit a memory of {room} "
                "tokens",
                param=request.field,
                code="context_length_exceeded",
            )
        left = min(limit, room) - usage.prompt
        return min(request.sampling.max_tokens or self._default_max_tokens, left)

    @property
    def occupancy(self) -> Occupancy:
        """The queue, which all pass, once those who come to it are there."""
        return self._waiting.occupancy.joined_by(self._coming)

    async def generate(self, request: Request) -> Events:
        """Queue the request and pass its events on; closing this ends the generation within a step."""
        self._coming.append(request.caller.tenant)
        try:
            job = await self._job(request)
        finally:
            self._coming.remove(request.caller.tenant)
        if self._worker is None or not self.alive:
            raise Overloaded("The model is not running.", retry_after=5)
        self._queue(job)
        try:
            self._worker.submit(job)
            async for event in job.events():
                yield event
        finally:
            job.cancelled = True
            self._waiting.remove(job.tenant, job)
            self._worker.wake()

    async def _job(self, request: Request) -> Job:
        self._check_model(request)
        self._check_tokens(request)
        prompt = await asyncio.to_thread(self._prompts.build, request)
        rules = await self._rules(request, self.room(request, prompt.usage))
        answers = [self._answer(request, prompt, rules, choice) for choice in range(request.choices)]
        return Job(request, prompt, answers)

    def _queue(self, job: Job) -> None:
        """Let it wait, in another's place if need be; raises Overloaded where there is none."""
        pushed_out = self._waiting.push(job.tenant, job)
        if pushed_out is job:
            raise Overloaded(OVERLOADED, retry_after=2)
        if pushed_out is not None and not pushed_out.started:
            pushed_out.cancelled = True
            pushed_out.put(Overloaded(OVERLOADED, retry_after=2))

    def _check_tokens(self, request: Request) -> None:
        """Refuse token ids that are none."""
        asked = request.sampling
        for name, ids in (
            ("logit_bias", [token for token, _ in asked.logit_bias]),
            ("stop_token_ids", asked.stop_tokens),
        ):
            if any(not 0 <= token < self.checkpoint.vocabulary_size for token in ids):
                size = self.checkpoint.vocabulary_size
                raise InvalidRequest(f"{name}: token ids must be between 0 and {size - 1}", param=name)

    async def _grammars_of(self, request: Request) -> tuple[Ready | None, Ready | None]:
        """What holds for the visible answer and for calls, compiled; raises InvalidRequest."""
        if not request.tools and request.format.kind == "text":
            return None, None
        answer, call = await asyncio.to_thread(grammars_of, request, self._tags)
        return (
            await self._grammars.prepare(answer) if answer is not None else None,
            await self._grammars.prepare(call) if call is not None else None,
        )

    async def _rules(self, request: Request, limit: int) -> Rules:
        """What holds for all choices."""
        asked, own = request.sampling, self.checkpoint
        answer, call = await self._grammars_of(request)
        thought = self._tags.end_think
        return Rules(
            eos=own.end_ids,
            ends=frozenset() if asked.ignore_eos else own.end_ids,
            stops=frozenset(asked.stop_tokens),
            limit=limit,
            min_tokens=asked.min_tokens,
            answer=answer,
            call=call,
            close_early=self._settings.close_early,
            parallel=request.tool_choice.parallel,
            budget=request.thinking.budget,
            farewell=(*own.vocabulary.encode(FAREWELL), thought) if thought is not None else (),
            gap=tuple(own.vocabulary.encode("\n\n")),
        )

    def _answer(self, request: Request, prompt: Prompt, rules: Rules, choice: int) -> Answer:
        asked, own = request.sampling, self.checkpoint
        chooser = Chooser(
            temperature=own.temperature if asked.temperature is None else asked.temperature,
            top_p=own.top_p if asked.top_p is None else asked.top_p,
            top_k=own.top_k if asked.top_k is None else asked.top_k,
            min_p=own.min_p if asked.min_p is None else asked.min_p,
            repetition=own.repetition_penalty if asked.repetition_penalty is None else asked.repetition_penalty,
            presence=asked.presence_penalty,
            frequency=asked.frequency_penalty,
            bias=asked.logit_bias,
            logprobs=asked.logprobs,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            choice=choice,
        )
        calls = f"call_{request.id}_{choice}_" if request.tools and request.tool_choice.mode != "none" else None
        dialect = Dialect(
            own.vocabulary, choice, stops=asked.stop, calls=calls, thinking=prompt.thinking, raw=request.raw
        )
        seen = Seen(prompt.ids.tolist() if chooser.repetition != 1 else ())
        return Answer(chooser, dialect, rules, own.vocabulary, seen=seen, rambling=self._settings.rambling)

    def _deliver(self, deliveries: list[Delivery]) -> None:
        """Hand events to the loop; called from the device's thread, once or twice a step."""
        try:
            self._loop.call_soon_threadsafe(self._put, deliveries)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            for job, _ in deliveries:
                job.cancelled = True

    def _put(self, deliveries: list[Delivery]) -> None:
        for job, event in deliveries:
            if isinstance(event, Started):
                self._waiting.remove(job.tenant, job)
            job.put(event)
            if job.idle(self._settings.take_idle) and not job.cancelled:
                job.cancelled = True
                job.put(TooSlow("The answer was not read in time."))

    def _check_model(self, request: Request) -> None:
        if request.model != self._settings.name:
            raise NotFound(
                f"The model '{request.model[:100]}' does not exist or you have no access to it.",
                param="model",
                code="model_not_found",
            )

    # ------------------------------------------------------------------------------------------- the device's thread

    def _own_device(self) -> None:
        try:
            runner = Runner(self.checkpoint, self._settings)
            self._worker = Worker(runner, self._settings, self._deliver)
        except EngineUnusable as failure:
            self._failure = failure
            return
        except Exception:
            log.exception("the model could not be set up")
            self._failure = EngineUnusable("The model cannot be set up on this device; the log says why.")
            return
        finally:
            self._ready.set()
        try:
            self._worker.run()
        except Exception:
            log.exception("the engine failed; the process ends with status %d", LOST)
            try:
                self._worker.abandon(EngineFailed("The engine failed."))
                time.sleep(1)  # for the errors to go out
            finally:
                os._exit(LOST)


def _with_context(checkpoint: Checkpoint, settings: ModelSettings) -> Checkpoint:
    """The checkpoint as it is to be served: its native length, stretched by YaRN, cut to what was asked for."""
    longest = int(checkpoint.context * settings.yarn)
    if settings.max_model_len > longest:
        raise EngineUnusable(
            f"The setting model.max_model_len asks for {settings.max_model_len} tokens; this checkpoint reads "
            f"{longest} at model.yarn = {settings.yarn:g}."
        )
    return replace(checkpoint, context=settings.max_model_len or longest)
