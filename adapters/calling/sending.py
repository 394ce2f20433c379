"""Sending a request, and sending it again: as the server says, and never where that could be charged twice."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.adapters.calling.failures import ClientError, TimedOut, failure_of, named_pause
from qwen3vl_compat.adapters.calling.steps import Call, Lost, Pause, Reply, Steps, send

FIRST_S, LONGEST_S = 0.5, 8.0
"""The pause before the first repetition where the server names none, doubled each time up to the second."""
LONGEST_NAMED_S = 120.0
"""Whoever is asked to wait longer is told so instead."""
IN_FLIGHT = "idempotency_in_flight"


class Progress(Struct, frozen=True):
    """How far a call is: bytes of a file or of the request that are sent, or tokens of the answer.

    While a stream comes its pieces are counted, of which the last may be less than all; its end tells the tokens.
    """

    stage: Literal["upload", "request", "answer"]
    done: int
    total: int | None = None
    """None as long as it is not known."""


Told = Callable[[Progress], None]


class Sending(Struct, frozen=True, kw_only=True):
    """What all requests of one call have in common."""

    headers: Mapping[str, str]
    retries: int
    deadline: float
    """On the monotonic clock, in seconds."""
    told: Told | None = None
    chance: Callable[[], float] = random.random
    """Numbers from 0 to 1, so that many clients do not come back all at once."""

    @property
    def left(self) -> float:
        """Seconds until the time is over; raises TimedOut when it is."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimedOut("The time given for the call is over.")
        return left

    def counter(self, stage: Literal["upload", "request"], size: int) -> Callable[[int], None] | None:
        """Whom to tell of bytes that are sent."""
        told = self.told
        return None if told is None else lambda done: told(Progress(stage, done, size))


def carried_out(call: Call, sending: Sending) -> Steps[Reply]:
    """The good reply to a request, sent as often as it takes and may be; raises what the last one failed with."""
    call = replace(call, headers={**sending.headers, **call.headers})
    tried = 0
    while True:
        outcome = yield from send(replace(call, seconds=sending.left))
        if isinstance(outcome, Reply) and 200 <= outcome.status < 300:
            return outcome
        failure = failure_of(outcome)
        # Its first request is at work: asking after it is no new attempt, only the time bounds it.
        if failure.code != IN_FLIGHT:
            tried += 1
        if tried > sending.retries or not may_be_repeated(call, outcome, failure.code):
            raise failure
        yield from pause_after(outcome, failure, tried, sending)


def pause_after(outcome: Reply | Lost, failure: ClientError, tried: int, sending: Sending) -> Steps[None]:
    """Wait as long as the server asks; raises the failure where that is longer than anybody waits."""
    named = named_pause(outcome.headers) if isinstance(outcome, Reply) else None
    pause = pause_for(named, tried, sending.chance())
    if (named or 0) > LONGEST_NAMED_S or time.monotonic() + pause >= sending.deadline:
        raise failure
    yield Pause(pause)


def may_be_repeated(call: Call, outcome: Reply | Lost, code: str) -> bool:
    """Whether a request that came to this may be sent again.

    What the server refuses or fails at costs nothing. Where it is not known what became of a request, or only a proxy
    speaks, it has to be one that may be carried out twice.
    """
    if isinstance(outcome, Lost):
        return not outcome.late and (call.repeatable or not outcome.sent)
    if outcome.headers.get("x-should-retry", "").lower() == "false":
        return False
    match outcome.status:
        case 409:
            return code == IN_FLIGHT
        case 408 | 429 | 500 | 503:
            return True
        case status:
            return status > 500 and call.repeatable


def pause_for(named: float | None, tried: int, chance: float) -> float:
    """Seconds before the `tried`-th repetition: what the server named and a little more, else a guess."""
    if named is not None:
        return named * (1 + 0.1 * chance)
    return min(LONGEST_S, FIRST_S * 2 ** max(0, tried - 1)) * (0.5 + 0.5 * chance)
