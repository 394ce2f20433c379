"""Keys that requests take: by one of many, for a time, and from a dead process by exactly one."""

import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from qwen3vl_compat.accounts import replies as module
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.replies import Asked, Found, Replies, RepliesUnavailable
from qwen3vl_compat.accounts.tables import replies as table
from qwen3vl_compat.settings import LedgerSettings
from tests.accounts.conftest import Clock

DAY = 24 * 3600
numbers = count()


def asked(key: str = "k", body: str = "b", tenant: str = "acme") -> Asked:
    """Another request under that key each time."""

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    return Asked(tenant=tenant, key_hash=digest(key), fingerprint=digest(body), request=f"r{next(numbers)}")


@pytest.fixture
def alive() -> set[str]:
    return {"us"}


@pytest.fixture
def make(engine: Engine, keys: Keys, clock: Clock, alive: set[str]) -> Callable[[str], Replies]:
    keys.add_tenant("other")
    return lambda owner: Replies(engine, owner, lambda other: other in alive, DAY, clock)


@pytest.fixture
def replies(make: Callable[[str], Replies]) -> Replies:
    return make("us")


def test_the_first_takes_the_key_and_the_next_finds_it_running(replies: Replies, clock: Clock) -> None:
    first, second = asked(), asked()
    assert replies.begin(first) is None
    clock.now += 3
    assert replies.begin(second) == Found(fingerprint=first.fingerprint, state="running", events=None, age=3.0)


def test_what_was_answered_is_found(replies: Replies) -> None:
    first = asked()
    replies.begin(first)
    assert replies.keep(first, b"\x90events")
    found = replies.begin(asked())
    assert found is not None
    assert (found.state, found.events) == ("kept", b"\x90events")


def test_an_empty_answer_is_an_answer(replies: Replies) -> None:
    first = asked()
    replies.begin(first)
    assert replies.keep(first, b"")
    found = replies.begin(asked())
    assert found is not None
    assert (found.state, found.events) == ("kept", b"")


def test_too_large_is_all_that_is_known_of_a_large_answer(replies: Replies) -> None:
    first = asked()
    replies.begin(first)
    assert replies.keep(first, None)
    found = replies.begin(asked())
    assert found is not None
    assert (found.state, found.events) == ("too_large", None)


def test_another_requests_fingerprint_is_told(replies: Replies) -> None:
    first = asked(body="one")
    replies.begin(first)
    found = replies.begin(asked(body="two"))
    assert found is not None
    assert found.fingerprint == first.fingerprint


def test_a_key_given_back_is_as_new(replies: Replies) -> None:
    first = asked()
    replies.begin(first)
    assert replies.free(first)
    assert replies.begin(asked(body="another")) is None


def test_keys_are_a_tenants_own(replies: Replies) -> None:
    assert replies.begin(asked(tenant="acme")) is None
    assert replies.begin(asked(tenant="other")) is None


def test_only_who_has_the_key_may_end_it(replies: Replies) -> None:
    first, second = asked(), asked()
    replies.begin(first)
    assert not replies.keep(second, b"mine")
    assert not replies.free(second)
    assert replies.keep(first, b"ours")
    assert not replies.keep(first, b"again")
    assert not replies.free(first)
    found = replies.begin(asked())
    assert found is not None
    assert found.events == b"ours"


@pytest.mark.parametrize("events", [b"kept", None])
def test_a_key_is_free_when_its_time_is_over(replies: Replies, clock: Clock, events: bytes | None) -> None:
    first = asked()
    replies.begin(first)
    replies.keep(first, events)
    clock.now += DAY - 1
    assert replies.begin(asked()) is not None
    clock.now += 1
    second = asked(body="another")
    assert replies.begin(second) is None
    assert replies.keep(second, b"second")


def test_what_is_under_way_here_never_expires(replies: Replies, clock: Clock) -> None:
    first = asked()
    replies.begin(first)
    clock.now += 2 * DAY
    assert replies.sweep() == 0
    assert replies.begin(asked()) is not None
    assert replies.keep(first, b"late")


# ---------------------------------------------------------------------------------------------------- dead processes


def test_a_dead_processs_key_is_taken_over(make: Callable[[str], Replies], alive: set[str]) -> None:
    dying, living = make("them"), make("us")
    alive.add("them")
    first, second = asked(), asked()
    assert dying.begin(first) is None
    assert living.begin(second) is not None
    alive.remove("them")
    assert living.begin(second) is None
    assert not dying.keep(first, b"from beyond")
    assert living.keep(second, b"answer")


def test_but_not_by_another_request(make: Callable[[str], Replies]) -> None:
    make("them").begin(asked(body="one"))
    found = make("us").begin(asked(body="two"))
    assert found is not None
    assert found.state == "running"


def test_what_a_dead_process_has_kept_is_kept(make: Callable[[str], Replies]) -> None:
    dead, first = make("them"), asked()
    dead.begin(first)
    dead.keep(first, b"answer")
    found = make("us").begin(asked())
    assert found is not None
    assert found.events == b"answer"


# -------------------------------------------------------------------------------------------------------------- races


def test_one_of_fifty_takes_the_key_also_from_two_processes(
    make: Callable[[str], Replies], state_dir: Path, ledger: LedgerSettings, alive: set[str], clock: Clock
) -> None:
    alive.add("them")
    second = open_database(state_dir, ledger)
    both = [make("us"), Replies(second, "them", lambda owner: owner in alive, DAY, clock)]
    with ThreadPoolExecutor(50) as threads:
        found = list(threads.map(lambda number: both[number % 2].begin(asked()), range(50)))
    second.dispose()
    assert [each is None for each in found].count(True) == 1
    assert {each.state for each in found if each} == {"running"}


@pytest.mark.parametrize("why", ["dead", "expired"])
def test_one_of_fifty_takes_a_key_over(make: Callable[[str], Replies], alive: set[str], clock: Clock, why: str) -> None:
    before, first = make("them"), asked()
    before.begin(first)
    if why == "expired":
        before.keep(first, b"old")
        clock.now += DAY
    ours = make("us")
    with ThreadPoolExecutor(50) as threads:
        found = list(threads.map(lambda _: ours.begin(asked()), range(50)))
    assert [each is None for each in found].count(True) == 1
    assert {each.state for each in found if each} == {"running"}


# ----------------------------------------------------------------------------------------------------------- sweeping


def rows(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_the_sweep_removes_what_is_over_and_nothing_else(
    make: Callable[[str], Replies], engine: Engine, clock: Clock
) -> None:
    ours, theirs = make("us"), make("them")
    for number in range(4):
        kept = asked(f"kept {number}")
        ours.begin(kept)
        ours.keep(kept, b"x" if number else None)
    ours.begin(asked("running"))
    theirs.begin(asked("left behind"))
    assert ours.sweep() == 0
    clock.now += DAY
    fresh = asked("fresh")
    ours.begin(fresh)
    ours.keep(fresh, b"x")
    assert ours.sweep() == 5
    assert rows(engine) == 2
    assert ours.sweep() == 0


def test_a_sweep_is_bounded(replies: Replies, engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    for number in range(7):
        one = asked(str(number))
        replies.begin(one)
        replies.keep(one, b"x")
    clock.now += DAY
    assert [replies.sweep() for _ in range(4)] == [3, 3, 1, 0]


# -------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)
def test_a_database_that_cannot_be_written_is_said_to_be_so(replies: Replies, engine: Engine, state_dir: Path) -> None:
    first = asked()
    replies.begin(first)
    shutil.rmtree(state_dir)
    engine.dispose()
    for call in (lambda: replies.begin(asked()), lambda: replies.keep(first, b""), lambda: replies.free(first)):
        with pytest.raises(RepliesUnavailable):
            call()
    with pytest.raises(RepliesUnavailable):
        replies.sweep()


def test_a_row_that_changes_between_two_looks_is_looked_at_again(engine: Engine, keys: Keys, clock: Clock) -> None:
    """The one with the dead owner is taken by a third while it is being asked about."""
    third = Replies(engine, "third", lambda owner: owner != "them", DAY, clock)

    def slowly(owner: str) -> bool:
        if owner == "them":
            assert third.begin(asked()) is None
        return owner != "them"

    ours = Replies(engine, "us", slowly, DAY, clock)
    Replies(engine, "them", lambda _: True, DAY, clock).begin(asked())
    found = ours.begin(asked())
    assert found is not None
    with engine.connect() as connection:
        assert connection.execute(select(table.c.owner)).scalars().all() == ["third"]
