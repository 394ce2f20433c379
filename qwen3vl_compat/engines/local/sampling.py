"""Logits to the next tokens: penalties, masks, temperature and truncation as tensor code over rows.

The order is bias, repetition penalty, presence and frequency penalties, mask, temperature, top_k, top_p, min_p, as in
transformers' generate(). A row's token is a function of its own logits, parameters, seed, choice and position, whatever
other rows there are.
"""

from collections.abc import Sequence as Items
from typing import Protocol

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from qwen3vl_compat.engines.local.decoding import Scores

NEVER = -1e30
"""Added to the logit of a token that must not come; less than half of it is no token."""
CANDIDATES = (64, 1024)
"""How many of the likeliest tokens are looked at for top_k and top_p, before all of them are sorted."""
CHUNK = 128
"""Tokens that are looked at together; Qwen's vocabularies are multiples of it."""
JUST_BELOW = 1 - 2**-50
"""Keeps a draw of nearly 1 below a sum that was rounded."""

Ids = NDArray[np.int64]
Bits = NDArray[np.uint32]
"""One bit a token, the lowest first: whether it may come."""


class Chooser(Struct, frozen=True, kw_only=True):
    """How one choice's tokens are drawn; see messages.Sampling for the fields."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    seed: int = 0
    choice: int = 0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature <= 1e-5 or self.top_k == 1

    @property
    def counts(self) -> bool:
        """Whether it matters what was said before."""
        return bool(self.presence or self.frequency) or self.repetition != 1

    @property
    def only_lowers(self) -> bool:
        """Whether what was said before can only become less likely."""
        return self.presence >= 0 and self.frequency >= 0 and self.repetition >= 1


class Mask(Protocol):
    """Which tokens may come."""

    def permits(self, token: int) -> bool:
        """Whether this one may."""
        ...

    def bits(self) -> Bits:
        """All of them; this may take much longer. Raises InvalidRequest."""
        ...


class Seen:
    """The different tokens of a prompt and an answer, and how often each is in the answer."""

    def __init__(self, prompt: Items[int]) -> None:
        self._places = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        room = len(self._places) + 64
        self._ids, self._counts = np.zeros(room, dtype=np.int64), np.zeros(room, dtype=np.float32)
        self._ids[: len(self._places)] = list(self._places)

    def __contains__(self, token: int) -> bool:
        return token in self._places

    def add(self, token: int) -> None:
        """Count a token of the answer."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1

    def arrays(self) -> tuple[Ids, NDArray[np.float32]]:
        """Ids and counts; valid until the next token."""
        return self._ids[: len(self._places)], self._counts[: len(self._places)]


class Row(Struct, frozen=True):
    """A row of logits, and how its token is found. `position` counts the answer's tokens."""

    row: int
    chooser: Chooser
    position: int
    seen: Seen | None = None
    """Needed where the chooser counts."""
    allowed: Mask | None = None
    banned: tuple[int, ...] = ()
    forced: int | None = None
    """The token, if it is settled."""

    def takes(self, likeliest: int) -> bool:
        """Whether the likeliest token of the logits as they are is surely the one."""
        chooser = self.chooser
        if not chooser.greedy or chooser.bias or likeliest in self.banned:
            return False
        if chooser.counts and not (chooser.only_lowers and self.seen is not None and likeliest not in self.seen):
            return False
        return self.allowed is None or self.allowed.permits(likeliest)

    @property
    def changes(self) -> bool:
        """Whether the logits must be changed before a token is drawn from them."""
        return bool(self.chooser.bias or self.chooser.counts or self.banned) or self.allowed is not None


class Drawn(Struct, frozen=True):
    """A token, None where none is allowed, and ln(its share) and that of the likeliest ones if they were asked for.

    These are shares of the model's own distribution: the logits as they are, before everything that changes them here.
    """

    token: int | None
    likeliest: int = -1
    """The token the model itself would have had."""
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


def draw(scores: Scores, rows: Items[Row]) -> list[Drawn]:
    """A token for each row."""
    logits, best = scores
    likeliest = best.tolist()
    tokens: list[int | None] = [likeliest[row.row] if row.forced is None else row.forced for row in rows]
    worked = [place for place, row in enumerate(rows) if row.forced is None and not row.takes(likeliest[row.row])]
    as_they_are = [place for place in worked if not (rows[place].changes or rows[place].chooser.greedy)]
    changed = [place for place in worked if place not in set(as_they_are)]
    if as_they_are:
        whole = _whole(_at(logits, [rows[place].row for place in as_they_are]))
        for place, token in zip(as_they_are, _sample(whole, [rows[at] for at in as_they_are]).tolist(), strict=True):
            tokens[place] = token
    if changed:
        copied = _whole(_at(logits, [rows[place].row for place in changed]), copy=True)
        for place, token in zip(changed, _pick(copied, [rows[at] for at in changed]), strict=True):
            tokens[place] = token
    drawn = [Drawn(token, likeliest[row.row]) for token, row in zip(tokens, rows, strict=True)]
    asked = [place for place, row in enumerate(rows) if row.chooser.logprobs is not None and tokens[place] is not None]
    if asked:
        told = _logprobs(_whole(_at(logits, [rows[place].row for place in asked])), [rows[place] for place in asked],
                         [tokens[place] or 0 for place in asked])  # fmt: skip
        for place, (logprob, top) in zip(asked, told, strict=True):
            drawn[place] = replace(drawn[place], logprob=logprob, top=top)
    return drawn


def _whole(logits: torch.Tensor, *, copy: bool = False) -> torch.Tensor:
    """Rows lengthened to whole chunks by tokens that never come; a copy, in float32, if one is asked for."""
    rows, size = logits.shape
    if size % CHUNK == 0 and not copy:
        return logits
    made = torch.empty(rows, -(-size // CHUNK) * CHUNK, dtype=torch.float32, device=logits.device)
    made[:, size:] = NEVER
    made[:, :size] = logits
    return made


def _at(values: torch.Tensor, places: list[int]) -> torch.Tensor:
    """These rows; no copy where they are all."""
    return values if places == list(range(len(values))) else values[places]


def _pick(logits: torch.Tensor, rows: Items[Row]) -> list[int | None]:
    """Tokens from logits [rows, whole chunks] in float32, which are changed."""
    _add_biases(logits, rows)
    _penalise(logits, rows)
    _mask(logits, rows)
    tokens = argmax(logits)
    reached = logits.gather(1, tokens[:, None])[:, 0].tolist()
    drawn = [place for place, row in enumerate(rows) if not row.chooser.greedy]
    if drawn:
        tokens[drawn] = _sample(_at(logits, drawn), [rows[place] for place in drawn])
    return [token if logit > NEVER / 2 else None for token, logit in zip(tokens.tolist(), reached, strict=True)]


def argmax(values: torch.Tensor) -> torch.Tensor:
    """The place of the largest in each row; numpy finds it ten times faster than torch does on a CPU."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argmax(-1))
    return values.argmax(-1)


def _add_biases(logits: torch.Tensor, rows: Items[Row]) -> None:
    biases = [(place, token, value) for place, row in enumerate(rows) for token, value in row.chooser.bias]
    if biases:
        places, tokens, values = (torch.tensor(each, device=logits.device) for each in zip(*biases, strict=True))
        logits.index_put_((places, tokens), values.to(logits.dtype), accumulate=True)


def _penalise(logits: torch.Tensor, rows: Items[Row]) -> None:
    """Only at the tokens that were seen."""
    seen = [
        (place, row.chooser, row.seen.arrays()) for place, row in enumerate(rows) if row.chooser.counts and row.seen
    ]
    if not seen:
        return
    lengths = [len(ids) for _, _, (ids, _) in seen]

    def spread(values: Items[float]) -> torch.Tensor:
        return torch.from_numpy(np.repeat(np.array(values, dtype=np.float32), lengths)).to(logits.device)

    places = np.concatenate([ids + place * logits.shape[1] for place, _, (ids, _) in seen])
    at = torch.from_numpy(places).to(logits.device)
    counts = torch.from_numpy(np.concatenate([counts for _, _, (_, counts) in seen])).to(logits.device)
    repetition = spread([chooser.repetition for _, chooser, _ in seen])
    frequency = spread([chooser.frequency for _, chooser, _ in seen])
    presence = spread([chooser.presence for _, chooser, _ in seen])
    values = logits.take(at)
    values = torch.where(values < 0, values * repetition, values / repetition)
    logits.put_(at, values - frequency * counts - presence * (counts > 0))


def _mask(logits: torch.Tensor, rows: Items[Row]) -> None:
    if any(row.allowed is not None for row in rows):
        blocked = np.zeros((len(rows), logits.shape[1] // 32), dtype=np.uint32)
        for place, row in enumerate(rows):
            if row.allowed is not None:
                allowed = row.allowed.bits()
                blocked[place] = 0xFFFFFFFF
                np.invert(allowed, out=blocked[place, : len(allowed)])
        bits = np.unpackbits(blocked.view(np.uint8), axis=-1, bitorder="little")
        # Arithmetic: filling by a mask takes twenty times as long on a CPU where the mask is irregular.
        torch.add(logits, torch.from_numpy(bits).to(logits.device), alpha=NEVER, out=logits)
    banned = [(place, token) for place, row in enumerate(rows) for token in row.banned]
    if banned:
        places, tokens = (torch.tensor(each, device=logits.device) for each in zip(*banned, strict=True))
        logits[places, tokens] = NEVER


def _sample(logits: torch.Tensor, rows: Items[Row]) -> torch.Tensor:
    """Tokens [rows] drawn from logits [rows, whole chunks]."""
    device, size = logits.device, logits.shape[1]

    def each(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

    heat = each([row.chooser.temperature for row in rows]).float()
    peaks = _chunks(logits).amax(-1)
    top = peaks.amax(-1, keepdim=True).float()
    bounds = [row.chooser.top_k if row.chooser.top_k < size else 0 for row in rows]
    tops = each([bound or size for bound in bounds])
    share, least = each([row.chooser.top_p for row in rows]), each([row.chooser.min_p for row in rows])
    chance = uniform([row.chooser.seed for row in rows], [row.chooser.choice for row in rows],
                     [row.position for row in rows]).to(device)[:, None]  # fmt: skip
    summed = [place for place, bound in enumerate(bounds) if not bound]
    total = torch.ones(len(rows), 1, dtype=torch.float64, device=device)
    tokens = torch.zeros(len(rows), dtype=torch.long, device=device)
    if summed:
        weights = _at(logits, summed).sub(top[summed]).div_(heat[summed]).exp_()
        total[summed] = _chunks(weights).sum(-1).double().sum(-1, keepdim=True)
        whole = [place for place, at in enumerate(summed) if rows[at].chooser.top_p >= 1]
        if whole:
            at = [summed[place] for place in whole]
            tokens[at] = _from_all(_at(weights, whole), least[at], chance[at])
    pending = [place for place, row in enumerate(rows) if bounds[place] or row.chooser.top_p < 1]
    for count in (*CANDIDATES, size):
        if not pending:
            break
        at, count = pending, min(count, size)
        values, ids = _ranked(_at(logits, at), _at(peaks, at), count)
        shares = ((values - top[at]) / heat[at]).exp().double()
        kept = torch.arange(count, device=device) < tops[at]
        sums = torch.where(tops[at] < size, (shares * kept).sum(-1, keepdim=True), total[at])
        kept &= shares.cumsum(-1) - shares < share[at] * sums
        kept[:, 0] = True
        used = kept.sum(-1, keepdim=True)
        # What lies outside the candidates may still belong inside, or be as likely as the last one that does.
        settled = ((used < count) & (values.gather(1, used - 1) > values[:, -1:])) | (count == size)
        shares *= kept & (shares >= least[at])
        reached = shares.cumsum(-1)
        place = (reached <= chance[at] * reached[:, -1:] * JUST_BELOW).sum(-1, keepdim=True)
        tokens[at] = ids.gather(1, place)[:, 0]
        pending = [each for each, done in zip(at, settled[:, 0].tolist(), strict=True) if not done]
    return tokens


def _chunks(values: torch.Tensor) -> torch.Tensor:
    return values.view(len(values), -1, CHUNK)


def _ranked(values: torch.Tensor, peaks: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest values and their places, in order; of equal ones the first place comes first.

    They stand in the chunks whose peaks are the largest. Which of several equal ones are the last is open.
    """
    chunks = _chunks(values)
    if 2 * count <= chunks.shape[1]:
        chosen = peaks.topk(count).indices
        near = chunks.gather(1, chosen[..., None].expand(-1, -1, CHUNK))
        found, at = near.flatten(1).topk(count)
        ids = chosen.gather(1, at // CHUNK) * CHUNK + at % CHUNK
    else:
        found, ids = values.topk(count)
    ids, order = ids.sort()
    found, order = found.float().gather(1, order).sort(descending=True, stable=True)
    return found, ids.gather(1, order)


def _from_all(weights: torch.Tensor, least: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """Places drawn in proportion to those weights [rows, whole chunks] that are at least `least`."""
    if least.any():
        weights = torch.where(weights >= least.float(), weights, 0.0)
    chunks = _chunks(weights)
    sums = chunks.sum(-1).double()
    ends = sums.cumsum(-1)
    goal = chance * ends[:, -1:] * JUST_BELOW
    chunk = (ends <= goal).sum(-1, keepdim=True)
    inside = chunks.gather(1, chunk[..., None].expand(-1, -1, CHUNK))[:, 0].double().cumsum(-1)
    goal = torch.minimum(goal - (ends - sums).gather(1, chunk), inside[:, -1:] * JUST_BELOW)
    return (chunk * CHUNK + (inside <= goal).sum(-1, keepdim=True))[:, 0]


def uniform(seeds: Items[int], choices: Items[int], positions: Items[int]) -> torch.Tensor:
    """Numbers in 0..1, float64, one for each (seed, choice, position): SplitMix64's mixer (Steele et al., 2014)."""
    state = torch.zeros(len(seeds), dtype=torch.int64)
    for values in (seeds, choices, positions):
        wrapped = [(value + 2**63) % 2**64 - 2**63 for value in values]
        state = _mix(state + torch.tensor(wrapped, dtype=torch.int64) - 7046029254386353131)
    return ((state >> 11) & (2**53 - 1)).double() * 2.0**-53


def _mix(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ ((state >> 30) & (2**34 - 1))) * -4658895280553007687
    state = (state ^ ((state >> 27) & (2**37 - 1))) * -7723592293110705685
    return state ^ ((state >> 31) & (2**33 - 1))


def _logprobs(
    logits: torch.Tensor, rows: Items[Row], tokens: Items[int]
) -> list[tuple[float, tuple[tuple[int, float], ...]]]:
    """ln(share) of each row's token, and (token, ln(share)) of the likeliest, as many as it asks for."""
    peaks = _chunks(logits).amax(-1)
    top = peaks.amax(-1, keepdim=True).float()
    total = top + _chunks((logits - top).exp_()).sum(-1).sum(-1, keepdim=True).log()
    at = torch.tensor(tokens, device=logits.device)[:, None]
    chosen = (logits.gather(1, at).float() - total)[:, 0].tolist()
    most = max(row.chooser.logprobs or 0 for row in rows)
    if not most:
        return [(logprob, ()) for logprob in chosen]
    values, ids = _ranked(logits, peaks, most)
    tops = [list(zip(*each, strict=True)) for each in zip(ids.tolist(), (values - total).tolist(), strict=True)]
    return [(logprob, tuple(top[: row.chooser.logprobs])) for row, logprob, top in zip(rows, chosen, tops, strict=True)]
