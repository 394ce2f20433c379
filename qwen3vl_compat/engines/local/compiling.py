"""The decode step, compiled in a child process behind the running server and kept on disk.

The child needs the checkpoint's configuration only: the compiled step is a shared library that is given the running
model's own weights. Loading one takes milliseconds. Without a C++ compiler, or where the model cannot be compiled,
decoding goes on as it is.
"""

import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from torch.export import Dim

from qwen3vl_compat.engines.local import attention, decoding, packed, slots
from qwen3vl_compat.engines.local.blocks import Blocks
from qwen3vl_compat.engines.local.decoding import Decoding, Scores
from qwen3vl_compat.engines.local.library import Library
from qwen3vl_compat.engines.local.memory import Shape

log = logging.getLogger(__name__)

ROWS = ("one", "many")
"""One row is compiled apart: sizes of one cannot stand for others."""
WORK = "work-"
KEPT = 8
"""Compiled steps kept on disk, of 5 MB each."""
CHECKED = {torch.float32: 0.001, torch.bfloat16: 0.1, torch.float16: 0.02}
"""A compiled step's logits may differ from the plain one's by this share of their spread. Rounding to bfloat16 alone
makes 0.02 over 8 layers."""

OPTIONS = {"aot_inductor.package_constants_in_so": False, "aot_inductor.precompile_headers": False}
"""The weights are lent. To compile the headers ahead takes longer than the two steps then save by it."""


class Recipe(msgspec.Struct, frozen=True):
    """All that the compiled step depends on, beside the programs and the machine."""

    architecture: str
    config: str
    """As JSON."""
    dtype: str
    packed: bool
    rows: int
    context: int

    def name(self) -> str:
        """One for each recipe, version of the code it is made of, and kind of processor."""
        sources = "".join(Path(module.__file__ or "").read_text() for module in (attention, decoding, packed, slots))
        versions = (str(torch.__version__), transformers.__version__, Path(__file__).read_text())
        return hashlib.sha256(msgspec.json.encode((self, sources, versions, _processor()))).hexdigest()[:24]

    def decoding(self) -> tuple[Decoding, list[torch.Tensor]]:
        """The step and its memory's tensors. Both are address space only: nobody has written to them."""
        model_class: Any = getattr(transformers, self.architecture)
        config = model_class.config_class.from_dict(msgspec.json.decode(self.config))
        torch.set_default_dtype(getattr(torch, self.dtype))
        with torch.device("meta"):
            model = model_class(config)
        attention.register(model)
        if self.packed:
            packed.pack_linear(model, pack=False)
        text = model.model.language_model
        memory = slots.Slots(Shape.of(text), self.rows, self.context, Blocks(1, 1))
        step = Decoding(text, model.lm_head, memory.make_step)
        return step.to_empty(device="cpu").eval(), memory.layers

    def build(self, folder: Path) -> None:
        """Compile both into a folder."""
        step, memory = self.decoding()
        window = Dim("window", min=2, max=self.context)
        for name in ROWS:
            rows = 1 if name == "one" else 2
            inputs = example(rows, 0, memory)
            many = Dim("rows", min=2, max=self.rows) if rows > 1 else None
            shapes = ({0: many}, {1: many}, ({0: many}, {0: many, 3: window}, *[None for _ in memory]))
            with torch.no_grad():
                exported = torch.export.export(step, tuple(inputs), dynamic_shapes=shapes, strict=False)
                package = torch._inductor.aoti_compile_and_package(  # pyright: ignore[reportPrivateUsage]
                    exported,
                    package_path=str(folder / f"{name}.pt2"),
                    inductor_configs=OPTIONS,
                )
            _unpack(Path(package), folder, name)


def _unpack(package: Path, folder: Path, name: str) -> None:
    """Keep of a package, which is a zip archive, the shared library only, with its digest in its name."""
    with zipfile.ZipFile(package) as archive:
        (inside,) = (each for each in archive.namelist() if each.endswith(".so"))
        content = archive.read(inside)
    (folder / f"{name}.{_digest(content)}.so").write_bytes(content)
    package.unlink()


def _whole(folder: Path, name: str) -> Path:
    """The library of that name; one that is not as it was written would end this process. OSError if there is none."""
    for path in folder.glob(f"{name}.*.so"):
        if path.suffixes[0] == f".{_digest(path.read_bytes())}":
            return path
    raise OSError(f"there is no whole library '{name}' in {folder}")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def example(rows: int, past: int, memory: list[torch.Tensor]) -> list[torch.Tensor]:
    """Inputs of a step over rows that have `past` tokens already."""
    window = min((past // slots.WINDOW + 1) * slots.WINDOW, memory[0].shape[2] - 1)
    mask = torch.zeros(rows, 1, 1, window, dtype=memory[0].dtype)
    mask[..., past + 1 :] = -torch.inf
    places = torch.full((rows,), past)
    return [torch.arange(rows), places.expand(3, -1).contiguous(), places, mask, *memory]


class Compiled:
    """Both compiled steps over a running model's weights; to be called as the plain one is."""

    def __init__(self, folder: Path, step: Decoding) -> None:
        self._weights = step.weights()  # the libraries only borrow them
        self._one, self._many = (Library(_whole(folder, name), self._weights) for name in ROWS)

    def __call__(self, ids: torch.Tensor, *rest: torch.Tensor) -> Scores:
        """See Decoding."""
        logits, best = (self._one if len(ids) == 1 else self._many)([ids, *rest])
        return logits, best

    @torch.inference_mode()
    def agrees(self, step: Decoding, memory: list[torch.Tensor]) -> bool:
        """Whether it says what the plain step says; writes to the first places of some rows of a memory."""
        past = min(2 * slots.WINDOW, memory[0].shape[2] - 2)
        for half in memory:
            half[:3, :, :past].normal_()
        for rows in (1, 3):
            inputs = example(rows, past, memory)
            plain = step(*inputs)[0].float()
            if not (self(*inputs)[0] - plain).square().mean().sqrt() <= CHECKED[memory[0].dtype] * plain.std():
                return False
        return True


class Compiler:
    """Gets the compiled steps, from disk or from a child process, in a thread of its own.

    `adopt` is called from there with the folder they are in and says whether they are of use; what was found on disk
    and is not, is made once more. `done` is called last, once, with whether any were adopted.
    """

    def __init__(
        self, recipe: Recipe, cache: Path, adopt: Callable[[Path], bool], done: Callable[[bool], None]
    ) -> None:
        self._recipe, self._cache, self._adopt, self._done = recipe, cache, adopt, done
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="compiler", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """End the child, if there is one, and wait until nothing of it is left."""
        self._closed = True
        if self._child is not None:
            self._child.kill()
        self._thread.join(5)

    @property
    def _stopping(self) -> bool:
        """Whether the server is being stopped: some stop all of its processes at once, the child before it knows."""
        return self._closed or (self._child is not None and self._child.returncode == -signal.SIGTERM)

    def _work(self) -> None:
        folder, adopted = self._cache / self._recipe.name(), False
        try:
            found = folder.exists()
            adopted = self._offer(folder)
            if found and not adopted and not self._closed:
                shutil.rmtree(folder, ignore_errors=True)
                adopted = self._offer(folder)
        except Exception:
            if not self._stopping:
                log.warning("decoding stays uncompiled", exc_info=True)
        finally:
            self._done(adopted)

    def _offer(self, folder: Path) -> bool:
        if not (folder.exists() or self._compile(folder)):
            return False
        os.utime(folder)
        try:
            return self._adopt(folder)
        except (OSError, RuntimeError, AttributeError, LookupError):
            log.warning("the compiled step in %s cannot be loaded", folder, exc_info=True)
            return False

    def _compile(self, folder: Path) -> bool:
        if not _has_compiler():
            log.info("decoding stays uncompiled: there is no C++ compiler (g++)")
            return False
        log.info("decoding is being compiled in the background; this takes a minute or more, once")
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=WORK, ignore_cleanup_errors=True) as work:
            made = Path(work) / "made"
            made.mkdir()
            said = self._run_child(made, Path(work))
            if said is None:
                with suppress(OSError):  # another server may have been faster
                    made.replace(folder)
                self._prune()
            elif not self._stopping:
                log.warning("decoding stays uncompiled: %s", said)
        return folder.exists()

    def _prune(self) -> None:
        """Forget the steps that were not used for longest."""
        made = [path for path in self._cache.iterdir() if not path.name.startswith(WORK)]
        for path in sorted(made, key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)

    def _run_child(self, made: Path, work: Path) -> str | None:
        """Compile into a folder; returns what went wrong."""
        alone = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
        here = {"TMPDIR": str(work), "TORCHINDUCTOR_CACHE_DIR": str(work)}
        with (work / "said").open("wb") as sink:
            command = [sys.executable, "-P", "-m", __name__, str(made)]
            self._child = child = subprocess.Popen(  # noqa: S603 - our own module
                command,
                env=os.environ | alone | here,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=sink,
                process_group=0,  # a terminal's Ctrl-C is for the server, which ends it
            )
        assert child.stdin is not None
        with suppress(BrokenPipeError), child.stdin as source:  # it may have ended already
            source.write(msgspec.json.encode(self._recipe) + b"\n")
            source.flush()
            child.wait()
        if child.wait() == 0:
            return None
        said = (work / "said").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return said[-1] if said else f"the compiler's process ended with status {child.returncode}"


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)


def _processor() -> str:
    """What the compiler may have made use of."""
    try:
        told = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return torch.backends.cpu.get_cpu_capability()
    return next((line for line in told if line.lower().startswith(("flags", "features"))), "")


def main() -> None:
    """The child: a recipe on standard input, whose end is the parent's end; a folder on the command line."""
    recipe = msgspec.json.decode(sys.stdin.buffer.readline(), type=Recipe)
    folder = Path(sys.argv[1])

    def follow_the_parent() -> None:
        os.read(0, 1)  # a buffered read would hold the lock that the interpreter takes when it ends
        shutil.rmtree(folder.parent, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=follow_the_parent, daemon=True).start()
    os.nice(19)
    recipe.build(folder)


if __name__ == "__main__":
    main()
