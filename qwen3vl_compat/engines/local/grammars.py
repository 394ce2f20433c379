"""Grammars that are known to be harmless: each new one is compiled and tried in a child process first.

A hostile schema or regex can take minutes, gigabytes or the whole process; there it takes COMPUTING and a child's life.
"""

import asyncio
import logging
import os
import resource
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from qwen3vl_compat.engines.local.grammar import Grammar
from qwen3vl_compat.engines.local.matching import Matching, TooComplex
from qwen3vl_compat.engines.local.ready import Ready
from qwen3vl_compat.errors import InvalidRequest, Overloaded
from qwen3vl_compat.tokens import Vocabulary

log = logging.getLogger(__name__)

COMPUTING = 0.4
"""Seconds of a processor that a grammar may take to be compiled and tried, whatever else the machine is doing."""
SECONDS = 8.0
"""Seconds on the clock after which the machine, not the grammar, is held to be at fault."""
START = 30.0
"""Seconds the child may take to start."""
QUEUE = 10.0
"""Seconds a request waits for its turn with the child."""
MEMORY = 2 * 2**30
"""Bytes of memory the child may take on top of its vocabulary."""
CHILD = f"import os; os.nice(5); from {__name__} import main; main()"
"""Its program: on a full machine it has a quarter of a core, from its beginning."""
KEPT, KEPT_CHARACTERS = 64, 2_000_000
"""Grammars that are kept, and characters of their texts."""
COMPILED = 16
"""Of those, how many stay compiled; each takes up to 60 MB, and a few milliseconds to compile again."""
SLACK = 1.25


class _Verdict(Struct):
    fault: str = ""
    shortest: int | None = None


class Grammars:
    """Compiles grammars for a checkpoint and keeps those used last."""

    def __init__(self, folder: Path, vocabulary: Vocabulary, end_ids: Iterable[int]) -> None:
        self._folder, self._vocabulary, self._end_ids = folder, vocabulary, sorted(end_ids)
        self._matching: Matching | None = None
        self._kept: OrderedDict[str, Ready] = OrderedDict()
        self._child: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._making = threading.Lock()

    @property
    def matching(self) -> Matching:
        """Made on first use; it takes half a second for a vocabulary of 150,000."""
        with self._making:
            self._matching = self._matching or Matching(self._vocabulary, self._end_ids)
            return self._matching

    async def prepare(self, grammar: Grammar) -> Ready:
        """The grammar, compiled; raises InvalidRequest that names its field."""
        ready = self._kept.get(grammar.text) or await self._make(grammar)
        self._kept.move_to_end(grammar.text)
        while len(self._kept) > KEPT or (len(self._kept) > 1 and sum(map(len, self._kept)) > KEPT_CHARACTERS):
            self._kept.popitem(last=False)
        for older in list(self._kept.values())[:-COMPILED]:
            older.forget()
        if not ready.compiled:
            await asyncio.to_thread(ready.first)
        return ready

    async def _make(self, grammar: Grammar) -> Ready:
        """One after the other, so that many who ask for the same at once wait for one."""
        try:
            async with asyncio.timeout(QUEUE):
                await self._turn.acquire()
        except TimeoutError:
            raise Overloaded("Too many new schemas are waiting to be checked.", retry_after=5) from None
        try:
            if (ready := self._kept.get(grammar.text)) is None:
                verdict = await self._check(grammar)
                if verdict.fault:
                    raise InvalidRequest(
                        f"{grammar.param}: this cannot be kept to: {verdict.fault}",
                        param=grammar.param or None,
                        code="invalid_schema",
                    )
                matching = await asyncio.to_thread(lambda: self.matching)
                reserve = None if verdict.shortest is None else int(verdict.shortest * SLACK) + 8
                ready = self._kept[grammar.text] = Ready(matching, grammar.text, reserve)
            return ready
        finally:
            self._turn.release()

    async def _check(self, grammar: Grammar) -> _Verdict:
        child = self._child
        if child is None or child.returncode is not None:
            child = await self._start()
        self._child = None  # whatever goes wrong from here on, this child is used no more
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            async with asyncio.timeout(SECONDS):
                child.stdin.write(msgspec.json.encode(grammar.text) + b"\n")
                await child.stdin.drain()
                line = await child.stdout.readline()
            verdict = msgspec.json.decode(line, type=_Verdict)
            self._child = child
        except TimeoutError:
            raise Overloaded("Schemas cannot be checked now.", retry_after=5) from None
        except (ConnectionError, msgspec.DecodeError):
            return _Verdict("it is too complex")
        finally:
            if self._child is None:
                await _end(child)
        return verdict

    async def _start(self) -> asyncio.subprocess.Process:
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", CHILD, str(self._folder), *map(str, self._end_ids),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=kept,
        )  # fmt: skip
        assert child.stdout is not None
        ready = b""
        try:
            async with asyncio.timeout(START):
                ready = await child.stdout.readline()
        finally:
            if not ready:
                await _end(child)
        if not ready:
            said = (await child.stderr.read()).decode(errors="replace").strip() if child.stderr else ""
            log.error("the process that checks schemas cannot start: %s", said.splitlines()[-1:] or "it says nothing")
            raise Overloaded("Schemas cannot be checked now.", retry_after=5)
        return child

    async def close(self) -> None:
        """End the child."""
        if self._child is not None:
            await _end(self._child)
            self._child = None


async def _end(child: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        child.kill()
    await child.wait()


def main() -> None:
    """The child: a checkpoint's folder and end ids on the command line, a grammar a line in, a verdict a line out."""
    folder, *ends = sys.argv[1:]
    matching = Matching(Vocabulary.load(Path(folder)), map(int, ends))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(4 * 2**20)  # less than the server's threads have: what fits here fits there

    def answer(line: bytes) -> None:
        try:
            verdict = _Verdict(shortest=matching.walk(matching.compile(msgspec.json.decode(line, type=str))))
        except TooComplex as fault:
            verdict = _Verdict(str(fault))
        except BaseException:  # a panic of llguidance's is no Exception; without a verdict everybody would wait
            verdict = _Verdict("it is too complex")
        sys.stdout.buffer.write(msgspec.json.encode(verdict) + b"\n")
        sys.stdout.buffer.flush()

    sys.stdout.buffer.write(b"ready\n")
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, COMPUTING)  # whose signal ends this process
        worker = threading.Thread(target=answer, args=(line,))
        worker.start()
        worker.join()
        signal.setitimer(signal.ITIMER_PROF, 0)
