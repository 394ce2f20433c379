"""What is drawn, against a plain reimplementation in float64; and that company changes nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen3vl_compat.engines.local.decoding import score
from qwen3vl_compat.engines.local.sampling import Bits, Chooser, Row, Seen, draw, uniform

Floats = NDArray[np.float64]
DRAWS, MANY = 4_000, 20_000
SIZE = 1050


def drawn(logits: torch.Tensor, rows: list[Row]) -> list[int | None]:
    return [each.token for each in draw(score(logits), rows)]


def reference(
    logits: Floats, chooser: Chooser, prompt: list[int], answer: list[int], allowed: list[int] | None = None
) -> Floats:
    """The shares of tokens, by the definitions in transformers' logits processors and OpenAI's reference."""
    values = logits.copy()
    for token, bias in chooser.bias:
        values[token] += bias
    for token in {*prompt, *answer}:
        values[token] = values[token] * chooser.repetition if values[token] < 0 else values[token] / chooser.repetition
    for token in set(answer):
        values[token] -= chooser.presence + chooser.frequency * answer.count(token)
    if allowed is not None:
        values[[token for token in range(len(values)) if token not in allowed]] = -np.inf
    values /= chooser.temperature
    if 0 < chooser.top_k < len(values):
        values[values < np.sort(values)[-chooser.top_k]] = -np.inf
    shares = np.exp(values - values.max())
    shares /= shares.sum()
    order = np.argsort(-shares, kind="stable")
    before = np.cumsum(shares[order]) - shares[order]
    shares[order[(before >= chooser.top_p) & (np.arange(len(order)) > 0)]] = 0
    shares[shares < chooser.min_p * shares.max()] = 0
    return shares / shares.sum()


class Listed:
    """A mask of these tokens."""

    def __init__(self, allowed: list[int], size: int = SIZE) -> None:
        flags = np.zeros(-(-size // 32) * 32, dtype=np.uint8)
        flags[allowed] = 1
        self._allowed, self._bits = set(allowed), np.packbits(flags, bitorder="little").view(np.uint32)

    def permits(self, token: int) -> bool:
        return token in self._allowed

    def bits(self) -> Bits:
        return self._bits


bits_of = Listed


PROMPT, ANSWER = [3, 5, 8, 8, 13], [5, 21, 21, 21, 34]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature low": {"temperature": 0.3},
    "temperature high": {"temperature": 1.9},
    "top_k": {"top_k": 7},
    "top_k over candidates": {"top_k": 200, "temperature": 2.0},
    "top_k of nearly all": {"top_k": SIZE - 1},
    "top_k of all": {"top_k": SIZE},
    "top_k of the padded logits": {"top_k": 1152, "top_p": 0.9},
    "top_k over all": {"top_k": 10_000_000, "temperature": 1.5},
    "top_p": {"top_p": 0.8},
    "top_p over candidates": {"top_p": 0.99, "temperature": 2.0},
    "top_k and top_p": {"top_k": 30, "top_p": 0.7},
    "top_p zero": {"top_p": 0.0},
    "min_p": {"min_p": 0.1},
    "min_p and the rest": {"min_p": 0.05, "top_k": 40, "top_p": 0.95, "temperature": 1.4},
    "presence": {"presence": 1.5},
    "frequency": {"frequency": 0.9},
    "negative": {"presence": -1.0, "frequency": -0.5},
    "repetition": {"repetition": 1.7},
    "repetition below one": {"repetition": 0.6},
    "bias": {"bias": ((3, 4.0), (7, -100.0), (21, 2.5))},
    "everything": {
        "temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "presence": 0.5, "frequency": 0.3,
        "repetition": 1.2, "bias": ((3, 2.0), (900, 5.0)),
    },
}  # fmt: skip


def seen() -> Seen:
    made = Seen(PROMPT)
    for token in ANSWER:
        made.add(token)
    return made


@pytest.mark.parametrize("draws", [DRAWS, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("masked", [False, True], ids=["free", "masked"])
@pytest.mark.parametrize("name", CASES)
def test_shares_are_the_reference_s(name: str, masked: bool, draws: int) -> None:
    """Chi-square over so many seeds; one in 10,000 right implementations would fail, and the seeds are fixed."""
    rng = np.random.default_rng(len(name))
    logits = rng.normal(0, 2.5, SIZE)
    allowed = [*rng.choice(SIZE, 300, replace=False).tolist(), 3, 5, 21] if masked else None
    options: dict[str, Any] = {"temperature": 1.0} | CASES[name]
    expected = reference(logits.astype(np.float32).astype(np.float64), Chooser(**options), PROMPT, ANSWER, allowed)
    row = torch.from_numpy(logits).float()[None]
    bits = bits_of(allowed) if allowed else None
    counts, memory = np.zeros(SIZE), seen()
    for start in range(0, draws, 1000):
        rows = [Row(0, Chooser(seed=seed, **options), 9, memory, bits) for seed in range(start, start + 1000)]
        np.add.at(counts, drawn(row, rows), 1)
    assert not counts[expected == 0].any(), "a token that must not come has come"
    common = expected * draws >= 8
    cells = [*zip(counts[common], expected[common] * draws, strict=True)]
    if (rest := expected[~common].sum() * draws) > 8:
        cells.append((counts[~common].sum(), rest))
    chi = sum((found - wanted) ** 2 / wanted for found, wanted in cells)
    freedom = len(cells) - 1
    # Wilson and Hilferty's approximation of the quantile for z = 3.72
    limit = freedom * (1 - 2 / (9 * max(freedom, 1)) + 3.72 * np.sqrt(2 / (9 * max(freedom, 1)))) ** 3
    assert chi <= limit + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_company_changes_nothing(dtype: torch.dtype) -> None:
    """Rows of a large vocabulary, with many equal logits in bfloat16: alone and in any company the same token."""
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(0, 3, (16, 20_000))).to(dtype)
    manners: list[dict[str, Any]] = [{}, {"top_k": 20, "top_p": 0.8}, {"top_p": 0.95}, {"top_k": 1000}, {"min_p": 0.02}]
    rows = [
        Row(place, Chooser(temperature=1.2, seed=place * 7 - 50, choice=place % 3, **manners[place % 5]), place)
        for place in range(16)
    ]
    alone = [drawn(logits, [row])[0] for row in rows]
    assert drawn(logits, rows) == alone
    assert drawn(logits, rows[::-1]) == alone[::-1]
    assert drawn(logits, rows[3:9]) == alone[3:9]


def test_draws_are_uniform_and_do_not_repeat() -> None:
    count = 40_000
    for seeds, choices, positions in (
        (range(count), [0] * count, [0] * count),
        ([5] * count, [0] * count, range(count)),
        ([-(2**63)] * count, [place % 4 for place in range(count)], [place // 4 for place in range(count)]),
    ):
        values = uniform(list(seeds), list(choices), list(positions)).numpy()
        assert len(set(values)) == count
        assert 0 <= values.min() < values.max() < 1
        cells = np.histogram(values, 100, (0, 1))[0]
        assert ((cells - count / 100) ** 2 / (count / 100)).sum() < 160
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02


def mixed(seed: int, choice: int, position: int) -> float:
    """SplitMix64 in plain integers, each value taken into the state in turn."""
    state, word = 0, 2**64
    for value in (seed, choice, position):
        state = (state + value + 0x9E3779B97F4A7C15) % word
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> shift)) * factor % word
        state ^= state >> 31
    return (state >> 11) / 2**53


def test_the_definition_of_a_draw_stays() -> None:
    """A seed kept by a client means the same answer in later versions."""
    cases = [(0, 0, 0), (1, 0, 5), (-1, 2, 9), (2**63 - 1, 3, 100_000), (-(2**63), 1, 1)]
    assert uniform(*map(list, zip(*cases, strict=True))).tolist() == [mixed(*case) for case in cases]


@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([{}, {"presence": 0.5}, {"repetition": 0.7}]))
def test_the_short_way_leads_where_the_long_one_does(seed: int, masked: bool, manner: dict[str, float]) -> None:
    """Where the likeliest token is surely the one, nothing is computed; it is what would have come out."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 2, (1, SIZE))).float()
    memory = Seen(rng.integers(0, SIZE, 30).tolist())
    allowed = rng.choice(SIZE, 700, replace=False).tolist()
    row = Row(0, Chooser(**manner), 0, memory, bits_of(allowed) if masked else None)
    plainly = Chooser(temperature=1e-3, top_k=1, **manner)
    expected = reference(logits[0].double().numpy(), plainly, list(memory._places), [], allowed if masked else None)
    assert drawn(logits, [row]) == [int(expected.argmax())]


def test_greedy_keeps_to_penalties_and_masks() -> None:
    logits = torch.zeros(1, SIZE)
    logits[0, [5, 6, 7]] = torch.tensor([4.0, 3.0, 2.0])
    memory = Seen([])
    memory.add(5)
    assert drawn(logits, [Row(0, Chooser(), 0)]) == [5]
    assert drawn(logits, [Row(0, Chooser(presence=1.5), 0, memory)]) == [6]
    assert drawn(logits, [Row(0, Chooser(), 0, None, bits_of([7, 9]))]) == [7]
    assert drawn(logits, [Row(0, Chooser(), 0, banned=(5, 6))]) == [7]
    assert drawn(logits, [Row(0, Chooser(bias=((9, 9.0),)), 0)]) == [9]
    assert drawn(logits, [Row(0, Chooser(temperature=1.0, top_k=1), 0)]) == [5]
    assert drawn(logits, [Row(0, Chooser(temperature=1.0), 0, forced=77)]) == [77]


@given(st.floats(0.001, 2), st.floats(0, 1), st.integers(0, 3), st.floats(0, 1), st.integers(0, 2**63))
def test_nothing_outside_the_mask_is_ever_drawn(heat: float, top_p: float, top_k: int, min_p: float, seed: int) -> None:
    chooser = Chooser(temperature=heat, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed, bias=((8, 100.0),))
    logits = torch.linspace(-30, 30, SIZE)[None]
    assert drawn(logits, [Row(0, chooser, 0, None, bits_of([2, 900]))])[0] in (2, 900)
    assert drawn(logits, [Row(0, chooser, 0, None, bits_of([2]), banned=(2,))]) == [None]
    assert drawn(logits, [Row(0, chooser, 0, None, bits_of([]))]) == [None]


def test_a_mask_shorter_than_the_logits_forbids_the_rest() -> None:
    """Checkpoints pad their output layers."""
    logits = torch.zeros(1, 2000)
    logits[0, 1999] = 50
    assert drawn(logits, [Row(0, Chooser(), 0, None, bits_of([4]))]) == [4]


def test_logprobs_are_the_model_s_own() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (2, SIZE))
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = [
        Row(0, Chooser(temperature=2.0, top_k=5, logprobs=20, seed=4, bias=((1, 5.0),)), 0, None, bits_of([1, 2, 3])),
        Row(1, Chooser(logprobs=0), 0),
    ]
    first, second = draw(score(torch.from_numpy(logits).float()), rows)
    assert first.token in (1, 2, 3)
    assert first.logprob == pytest.approx(expected[0, first.token], abs=1e-5)
    assert [token for token, _ in first.top] == np.argsort(-expected[0])[:20].tolist()
    assert [value for _, value in first.top] == pytest.approx(np.sort(expected[0])[::-1][:20], abs=1e-5)
    assert (second.token, second.top) == (int(expected[1].argmax()), ())
