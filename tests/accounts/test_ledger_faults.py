"""The ledger while its database fails: nothing that was opened stays open, nothing that was closed is lost."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.ledger import Ledger, LedgerUnavailable
from qwen3vl_compat.accounts.money import Counts
from qwen3vl_compat.accounts.replies import Asked, Replies, RepliesUnavailable
from tests.accounts.test_ledger import AT, check, entry, outcome, rows
from tests.postgres import Server


@contextmanager
def lossy(engine: Engine, *, done: bool = True) -> Iterator[None]:
    """The next commit is done, or not, and its reply lost; then the database is away until the end."""
    dialect: Any = engine.dialect
    commit, lost = dialect.do_commit, [False]
    kind = sqlite3.OperationalError if dialect.name == "sqlite" else psycopg.OperationalError

    def do_commit(connection: Any) -> None:
        if lost[0]:
            raise kind("away")
        if done:
            commit(connection)
        lost[0] = True
        raise kind("the reply was lost")

    dialect.do_commit = do_commit
    try:
        yield
    finally:
        dialect.do_commit = commit


@pytest.mark.parametrize("how", ["time is over", "cancelled"])
async def test_a_row_opened_by_a_commit_whose_reply_was_lost_is_closed_again(
    engine: Engine, keys: Keys, how: str
) -> None:
    book = Ledger(engine, wait=0.4, lease=300)
    await book.start()
    with lossy(engine):
        opening = asyncio.create_task(book.open(entry("a", price=None)))
        if how == "cancelled":
            await asyncio.sleep(0.15)
            opening.cancel()
        with pytest.raises((LedgerUnavailable, asyncio.CancelledError)):
            await opening
        await asyncio.sleep(0.2)
    for number in range(40):  # the database is back, and the process goes on
        await book.open(entry(f"other{number}", price=None))
        if rows(engine)["a"].state != "open":
            break
        await asyncio.sleep(0.05)
    state = rows(engine)["a"].state
    await book.close()
    assert state == "aborted"


@contextmanager
def slow(engine: Engine) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The next commit says that it is under way, and waits until it is let."""
    dialect: Any = engine.dialect
    commit, under_way, let = dialect.do_commit, threading.Event(), threading.Event()

    def do_commit(connection: Any) -> None:
        under_way.set()
        let.wait(30)
        commit(connection)

    dialect.do_commit = do_commit
    try:
        yield under_way, let
    finally:
        let.set()
        dialect.do_commit = commit


@pytest.mark.parametrize("what", ["book", "settle"])
async def test_who_waits_longer_than_it_takes_to_give_up_is_told_what_is_just_being_written(
    engine: Engine, keys: Keys, what: str
) -> None:
    """Else it would be told that nothing can be written, and be charged."""
    book = Ledger(engine, wait=0.2, lease=300)
    await book.start()
    asked = entry("a", price=None)
    if what == "settle":
        await book.open(asked)
    with slow(engine) as (under_way, let):
        asking = asyncio.create_task(getattr(book, what)(asked, outcome()))
        await asyncio.to_thread(under_way.wait, 30)
        await asyncio.sleep(0.5)
        assert not asking.done()
        let.set()
        await asking
    await book.close()
    assert (rows(engine)["a"].state, rows(engine)["a"].cost) == ("final", 700)
    check(engine)


async def test_who_may_have_been_booked_hears_of_it_when_the_database_is_back(engine: Engine, keys: Keys) -> None:
    """The reply to the commit was lost: until it is known whether there is a row nobody is told that there is none."""
    closed: list[str] = []
    book = Ledger(engine, wait=0.2, lease=300, closed=lambda entry, outcome: closed.append(entry.id))
    await book.start()
    with lossy(engine):
        booking = asyncio.create_task(book.book(entry("a", price=None), outcome()))
        await asyncio.sleep(0.8)
        assert not booking.done()
    await booking
    await book.close()
    assert closed == ["a"]
    assert {name: (row.state, row.cost) for name, row in rows(engine).items()} == {"a": ("final", 700)}
    check(engine)


async def test_who_turns_out_not_to_be_booked_is_told_so(engine: Engine, keys: Keys) -> None:
    """As on a full disk, where no commit succeeds; and it is not booked later either."""
    book = Ledger(engine, wait=0.2, lease=300)
    await book.start()
    with lossy(engine, done=False), pytest.raises(LedgerUnavailable):
        await asyncio.wait_for(book.book(entry("a", price=None), outcome()), 30)
    await book.book(entry("b", price=None), outcome())
    await book.close()
    assert set(rows(engine)) == {"b"}
    check(engine)


async def test_a_ledger_that_ends_keeps_nobody_waiting(engine: Engine, keys: Keys) -> None:
    book = Ledger(engine, wait=0.2, lease=300)
    await book.start()
    with lossy(engine):
        booking = asyncio.create_task(book.book(entry("a", price=None), outcome()))
        await asyncio.sleep(0.4)
        await book.close()
        with pytest.raises(LedgerUnavailable):
            await booking


async def test_a_key_taken_by_a_commit_whose_reply_was_lost_is_free_again(engine: Engine, keys: Keys) -> None:
    shelf = Replies(engine, "a living process", lambda owner: True, 86_400)

    def asking(request: str) -> Asked:
        return Asked(tenant="acme", key_hash="a" * 64, fingerprint="b" * 64, request=request)

    with lossy(engine), pytest.raises(RepliesUnavailable):
        shelf.begin(asking("first"))
    found = shelf.begin(asking("again"))
    assert found is None


async def _state_in_time(engine: Engine, name: str) -> str:
    for _ in range(60):
        if rows(engine)[name].state != "open":
            break
        await asyncio.sleep(0.05)
    state: str = rows(engine)[name].state
    return state


async def test_a_pool_that_is_used_up_for_a_while_loses_no_closing(engine: Engine, keys: Keys) -> None:
    """As by many slow reads of usage at once."""
    pool: Any = engine.pool
    pool._timeout = 0.2
    book = Ledger(engine, wait=2)
    await book.start()
    asked = entry("a", price=None)
    await book.open(asked)
    with ExitStack() as readers:
        for _ in range(15):
            readers.enter_context(engine.connect())
        with pytest.raises(LedgerUnavailable):
            await book.settle(asked, outcome())
    state = await _state_in_time(engine, "a")
    await book.close()
    assert state == "aborted"  # the answer that waited for it got no end


async def test_a_server_that_is_read_only_for_a_while_loses_no_closing(
    postgres: Server, server: Engine, clock: Any
) -> None:
    """Read-only is what a demoted primary is, and what cloud services make of a full disk: psycopg's InternalError."""
    Keys(server, clock, ticks=clock).add_tenant("acme")
    book = Ledger(server, wait=2)
    await book.start()
    asked = entry("a", price=None)
    await book.open(asked)

    def set_read_only(value: str) -> None:
        postgres.run(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        postgres.run("SELECT pg_reload_conf()")

    set_read_only("on")
    try:
        await asyncio.sleep(0.3)
        with pytest.raises(LedgerUnavailable):
            await book.settle(asked, outcome())
    finally:
        postgres.run("ALTER SYSTEM RESET default_transaction_read_only")
        postgres.run("SELECT pg_reload_conf()")
    await asyncio.sleep(0.3)
    await book.settle(entry("other", price=None), outcome())  # it writes again
    state = await _state_in_time(server, "a")
    await book.close()
    assert state == "aborted"


def fail_once(engine: Engine) -> None:
    """The next transaction that would write does not come about."""
    failures = [1]

    def refuse(connection: Connection) -> None:
        if connection.get_execution_options().get("writes") and failures:
            failures.pop()
            raise OperationalError("", {}, Exception("the connection was reset"))

    event.listen(engine, "begin", refuse)


async def test_one_failure_at_the_end_is_not_the_end(engine: Engine, keys: Keys) -> None:
    book = Ledger(engine, wait=2, lease=300)
    await book.start()
    asked = entry("a", price=None)
    await book.open(asked)
    fail_once(engine)
    with book._change:  # the thread takes the closing and the end together
        settling = asyncio.create_task(book.settle(asked, outcome()))
        closing = asyncio.create_task(book.close())
        for _ in range(3):
            await asyncio.sleep(0)
    await asyncio.gather(settling, closing, return_exceptions=True)
    assert rows(engine)["a"].state == "final"


async def test_a_checkpoint_that_could_not_be_written_is_written_later(engine: Engine, keys: Keys) -> None:
    book = Ledger(engine, lease=300)
    await book.start()
    asked = entry("a", price=None)
    await book.open(asked)
    fail_once(engine)
    book.note(asked, AT + 1, Counts(text_in=10, out=32))
    for number in range(10):
        await asyncio.sleep(0.05)
        await book.open(entry(f"other{number}", price=None))
    row = rows(engine)["a"]
    await book.close()
    assert (row.started_at, row.out) == (AT + 1, 32)
