"""The batching engine against transformers' own `generate()`: in float32 every greedy token is the same.

Requests of several kinds arrive at random, in random company, with random sizes of pieces, too little memory and known
beginnings. A draw whose reference has two likeliest tokens closer than NEAR is compared up to that place only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as replace_struct
from PIL import Image

from benchmarks.agreement import model_inputs
from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.demo.pictures import examination
from qwen3vl_compat.engines.local.answer import Answer
from qwen3vl_compat.engines.local.blocks import Blocks
from qwen3vl_compat.engines.local.captured import Captured
from qwen3vl_compat.engines.local.checkpoint import Checkpoint, read_checkpoint
from qwen3vl_compat.engines.local.dialect import Dialect
from qwen3vl_compat.engines.local.guide import Rules
from qwen3vl_compat.engines.local.job import Job
from qwen3vl_compat.engines.local.memory import Shape
from qwen3vl_compat.engines.local.pages import Pages
from qwen3vl_compat.engines.local.prompt import Prompt, PromptBuilder, mrope_positions
from qwen3vl_compat.engines.local.runner import Runner
from qwen3vl_compat.engines.local.sampling import Chooser, Seen
from qwen3vl_compat.engines.local.sequence import Span
from qwen3vl_compat.engines.local.slots import Slots
from qwen3vl_compat.engines.local.worker import Delivery, Worker
from qwen3vl_compat.errors import ApiError
from qwen3vl_compat.events import Delta, Usage
from qwen3vl_compat.media.image import decode_image
from qwen3vl_compat.messages import Caller, Message, Picture, Request, Text
from qwen3vl_compat.settings import ModelSettings
from tests.engines.test_captured import rerun
from tests.media.crafted import encoded

NEAR = 1e-4
LENGTH = 12
KINDS = 9


@dataclass
class Bench:
    """A checkpoint, its reference answers, and runners of different shapes over the same weights."""

    checkpoint: Checkpoint
    prompts: list[Prompt]
    expected: list[list[int]]
    sure: list[int]
    """How many of the expected tokens are no near-tie."""
    runners: dict[tuple[int, str], Runner] = field(default_factory=dict[tuple[int, str], Runner])

    def runner(self, size: int, kind: str = "slots") -> Runner:
        """A runner with blocks of `size` tokens and memory for about three of the prompts."""
        if (size, kind) not in self.runners:
            tokens = 3 * max(len(prompt.ids) for prompt in self.prompts) + LENGTH
            made = Runner(self.checkpoint, ModelSettings(device="cpu", dtype="float32", kv_block=size, max_rows=6))
            made.blocks, shape = Blocks(tokens // size, size), Shape.of(made._text)
            if kind == "slots":
                made.memory = Slots(shape, 6, self.checkpoint.context, made.blocks)
                made.decoding = made.decoder(made.memory)
            else:
                made.memory = pages = Pages(shape, made.blocks, [made.device] * shape.layers)
                made.decoding = step = made.decoder(pages)
                if kind == "captured":
                    width = -(-tokens // size)
                    with torch.inference_mode():
                        made.decoding = Captured(step, 6, width, pages.spare, pages.layers, rerun)
            self.runners[size, kind] = made
        return self.runners[size, kind]


def prompts_of(checkpoint: Checkpoint) -> list[Prompt]:
    """Text, one picture, several, the same picture again, equal words around another picture of the same size."""
    tall = [item.picture for item in examination(3, 40) if item.picture.height >= 56]
    drawn = [tall[0], tall[1], tall[2], tall[0].transpose(Image.Transpose.ROTATE_180)]
    one, two, three, twin = (decode_image(encoded(each, "PNG"), checkpoint.spec) for each in drawn)
    words = Text("Look closely at this and answer with the text in it, please: ")
    users: list[tuple[Text | Picture, ...]] = [
        (Text("Hello"),),
        (one, Text("Read the text.")),
        (words, one, Text("Read the text.")),
        (words, twin, Text("Read the text.")),
        (words, one, Text("What does the picture say?")),
        (one, Text(" and "), two, Text(" and "), one, Text("?")),
        (three, two, Text("图中写了什么？")),
        (words, Text("What time is it? " * 5)),
    ]
    build = PromptBuilder(checkpoint).build
    made = [build(Request(id="r", created=0, model="m", messages=(Message("user", parts),))) for parts in users]
    return [*made, video(checkpoint, drawn[:2])]


def video(checkpoint: Checkpoint, frames: list[Image.Image]) -> Prompt:
    """Three pairs of frames with their times, as Qwen3-VL reads a video; the frames are all one size."""
    vocabulary, spec = checkpoint.vocabulary, checkpoint.spec
    same = [frame.resize((96, 64)) for frame in (*frames, *frames[::-1], frames[0], frames[0])]
    stills = [decode_image(encoded(frame, "PNG"), spec) for frame in same]
    pairs: list[Picture] = []
    for first, second in zip(stills[::2], stills[1::2], strict=True):
        each = [
            np.frombuffer(frame.patches, np.uint8).reshape(-1, 3, 1, spec.patch_size**2) for frame in (first, second)
        ]
        patches = np.concatenate(each, axis=2).tobytes()
        pairs.append(replace_struct(first, patches=patches, frames=2, digest=first.digest + second.digest))
    pad, start, end = (vocabulary.added[name] for name in ("<|video_pad|>", "<|vision_start|>", "<|vision_end|>"))
    ids, spans = vocabulary.encode("Watch this: "), list[Span]()
    for number, pair in enumerate(pairs):
        ids += [*vocabulary.encode(f"<{number + 0.5:.1f} seconds>"), start]
        spans.append(Span(len(ids), spec.tokens(pair.grid), pair.digest))
        ids += [*[pad] * spans[-1].length, end]
    ids += vocabulary.encode(" What happens?")
    positions, shift = mrope_positions(np.array(ids) == pad, pairs, spec.merge_size)
    usage = Usage(prompt_text=len(ids))
    return Prompt(np.array(ids, dtype=np.int64), positions, shift, tuple(pairs), tuple(spans), usage)


@contextmanager
def listening_to_routers(model: Any) -> Iterator[list[float]]:
    """For each call of the model the smallest gap, over tokens and layers, between an expert chosen and one not."""
    calls, gaps = list[float](), list[float]()

    def heard(module: Any, _: Any, results: Any) -> None:
        ranked = results[0].sort(-1, descending=True).values
        gaps.append(float((ranked[:, module.top_k - 1] - ranked[:, module.top_k]).min()))

    def ended(*_: Any) -> None:
        calls.append(min(gaps, default=1.0))
        gaps.clear()

    routers = [module for name, module in model.named_modules() if type(module).__name__.endswith("TopKRouter")]
    hooks = [router.register_forward_hook(heard) for router in routers] + [model.register_forward_hook(ended)]
    yield calls
    for hook in hooks:
        hook.remove()


def reference(prompt: Prompt, model: Any, runner: Runner) -> tuple[list[int], int]:
    """What `generate()` says, and how many tokens come before its first near-tie, of tokens or of experts."""
    ids = torch.from_numpy(prompt.ids)[None]
    with listening_to_routers(model) as routed:
        made = model.generate(
            **model_inputs(model.config, ids, prompt, runner),
            max_new_tokens=LENGTH,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert len(routed) == len(made.logits)
    tokens = made.sequences[0, len(prompt.ids) :].tolist()
    ranked = [row[0].topk(2).values for row in made.logits]
    gaps = [min(float(top[0] - top[1]), gap) for top, gap in zip(ranked, routed, strict=True)]
    sure = next((place for place, gap in enumerate(gaps) if gap < NEAR), len(tokens))
    return tokens, sure


@pytest.fixture(scope="module", params=["trained", "random", "moe"])
def bench(request: pytest.FixtureRequest) -> Bench:
    folders = {"trained": lambda: MODEL, "random": lambda: request.getfixturevalue("blank")}
    folder: Path = folders.get(request.param, lambda: request.getfixturevalue("moe"))()
    checkpoint = read_checkpoint(str(folder), "")
    model = getattr(transformers, checkpoint.architecture).from_pretrained(folder, dtype=torch.float32).eval()
    runner = Runner(checkpoint, ModelSettings(device="cpu", dtype="float32"))
    prompts = prompts_of(checkpoint)
    with torch.inference_mode():
        answers = [reference(prompt, model, runner) for prompt in prompts]
    return Bench(checkpoint, prompts, [tokens for tokens, _ in answers], [sure for _, sure in answers])


def test_hardly_a_reference_is_a_near_tie(bench: Bench) -> None:
    total = sum(map(len, bench.expected))
    assert len({tuple(tokens) for tokens in bench.expected}) >= 2 * KINDS // 3
    assert sum(bench.sure) >= 0.99 * total


@dataclass
class Asked:
    """A request in the test: when it comes, what it asks, for whom, and whether it leaves early."""

    turn: int
    kind: int
    tenant: str
    choices: int
    leaves: int | None


asked = st.builds(
    Asked,
    turn=st.integers(0, 12),
    kind=st.integers(0, KINDS - 1),
    tenant=st.sampled_from("ab"),
    choices=st.sampled_from((1, 1, 1, 2, 3)),
    leaves=st.none() | st.none() | st.integers(1, 14),
)


class Desk:
    """Drives a worker turn by turn and remembers each job's tokens."""

    def __init__(self, bench: Bench, runner: Runner, most: int) -> None:
        self.bench, self.failures = bench, list[ApiError]()
        options = ModelSettings(max_rows=6, piece_tokens=most)
        self.worker = Worker(runner, options, self.deliver)
        self.tokens: dict[int, list[list[int]]] = {}

    def deliver(self, deliveries: list[Delivery]) -> None:
        self.failures += [event for _, event in deliveries if isinstance(event, ApiError)]

    def job(self, each: Asked, **drawn: Any) -> Job:
        prompt, checkpoint = self.bench.prompts[each.kind], self.bench.checkpoint
        request = Request(id="r", created=0, model="m", messages=(), caller=Caller(each.tenant, "k"))
        defaults: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 1}
        rules = Rules(eos=checkpoint.end_ids, ends=checkpoint.end_ids, limit=LENGTH)
        answers = [
            Answer(
                Chooser(choice=choice, **(defaults | drawn)),
                Recorder(checkpoint.vocabulary, choice),
                rules,
                checkpoint.vocabulary,
                seen=Seen(()),
            )
            for choice in range(each.choices)
        ]
        return Job(request, prompt, answers)


class Recorder(Dialect):
    """A dialect that also keeps the ids."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.ids: list[int] = []

    def push(self, token: int, *given: Any) -> list[Delta]:
        self.ids.append(token)
        return super().push(token, *given)


def run(bench: Bench, desk: Desk, all_asked: list[Asked], **drawn: Any) -> Iterator[tuple[Asked, Job]]:
    jobs = [(each, desk.job(each, **drawn)) for each in all_asked]
    for turn in range(2000):
        for each, job in jobs:
            if each.turn == turn:
                desk.worker.submit(job)
            if each.leaves is not None and turn == each.turn + each.leaves:
                job.cancelled = True
        desk.worker.turn()
        if turn > 30 and not desk.worker.busy:
            break
    assert not desk.failures
    assert not desk.worker.busy
    desk.worker.check()
    yield from jobs


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    all_asked=st.lists(asked, min_size=1, max_size=9),
    size=st.sampled_from((4, 7, 16)),
    most=st.sampled_from((5, 16, 33, 2048)),
    kind=st.sampled_from(("slots", "pages", "captured")),
)
def test_tokens_are_those_of_generate(bench: Bench, all_asked: list[Asked], size: int, most: int, kind: str) -> None:
    runner = bench.runner(size, kind)
    for each, job in run(bench, Desk(bench, runner, most), all_asked):
        expected, sure = bench.expected[each.kind], bench.sure[each.kind]
        for answer in job.answers:
            got = answer.dialect.ids  # type: ignore[attr-defined]
            ends = [token for token in expected[:sure] if token not in bench.checkpoint.end_ids]
            assert got[: len(ends)] == ends[: len(got)], (each, size, most)
            assert each.leaves is not None or len(got) >= len(ends)


def test_a_seed_gives_the_same_answer_in_any_company(bench: Bench) -> None:
    drawn = {"temperature": 8.0, "top_p": 0.95, "seed": 7}
    alone = Asked(0, 4, "a", 2, None)
    crowd = [Asked(turn, kind, "b", 1, None) for turn, kind in enumerate((1, 5, 0, 2, 7))]
    answers = []
    for company in ([alone], [*crowd, alone], [alone, *crowd]):
        desk = Desk(bench, bench.runner(16), 33)
        (job,) = [job for each, job in run(bench, desk, company, **drawn) if each is alone]
        answers.append([answer.dialect.ids for answer in job.answers])  # type: ignore[attr-defined]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0] != answers[0][1]


def test_the_comparison_would_notice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls: without deepstack, without the shift of positions, with two equal-sized pictures exchanged."""
    kinds = (1, 2, 3, 4, 5, 6)

    def answers() -> list[list[int]]:
        desk = Desk(bench, Runner(bench.checkpoint, ModelSettings(device="cpu", dtype="float32")), 2048)
        jobs = run(bench, desk, [Asked(0, kind, "a", 1, None) for kind in kinds])
        return [job.answers[0].dialect.ids for _, job in jobs]  # type: ignore[attr-defined]

    right, prompts = answers(), bench.prompts
    with monkeypatch.context() as patch:
        whole = Runner._run
        patch.setattr(Runner, "_run", lambda self, embeds, places, step, *_: whole(self, embeds, places, step))
        assert answers() != right
    assert all(prompts[kind].shift for kind in kinds), "every one of these holds a picture of several rows"
    bench.prompts = [replace(prompt, shift=0) for prompt in prompts]
    assert answers() != right
    swapped = replace(prompts[2], pictures=prompts[3].pictures, spans=prompts[3].spans)
    bench.prompts = [*prompts[:2], swapped, *prompts[3:]]
    assert answers() != right
    bench.prompts = prompts
    assert answers() == right
