"""What a dead process has left open in the ledger is closed, by others or its successor, at the last checkpoint."""

from typing import Any

from sqlalchemy import Connection, select

from qwen3vl_compat.accounts.booking import Booking, Entry, Outcome
from qwen3vl_compat.accounts.heartbeat import Heartbeat
from qwen3vl_compat.accounts.money import Counts, Price
from qwen3vl_compat.accounts.tables import COUNTS, ledger, prices

BATCH = 200
"""Most rows closed in one transaction."""


def settle_some(connection: Connection, heartbeat: Heartbeat, owner: str, now_ms: int) -> list[tuple[Entry, Outcome]]:
    """Close up to BATCH rows of a dead process, and return them; without any left, bury it.

    One that has moved after all is left alone.
    """
    if not heartbeat.is_still(connection, owner):
        return []
    rows = _open_rows(connection, owner)
    if not rows:
        heartbeat.bury(connection, owner)
        return []
    booking = Booking(connection, owner, [entry for entry, _, _ in rows], set())
    states = booking.states(sorted(entry.id for entry, _, _ in rows))
    closed = [
        (entry, _interrupted(entry, started_at, counts, now_ms))
        for entry, started_at, counts in rows
        if states[entry.id][0] == "open"
    ]
    for entry, outcome in closed:
        booking.settle(entry, outcome)
    booking.write({})
    return closed


def _interrupted(entry: Entry, started_at: int | None, counts: Counts, now_ms: int) -> Outcome:
    return Outcome(
        state="interrupted",
        finish="interrupted",
        ended_at=now_ms,
        started_at=started_at,
        counts=counts,
        cost=entry.cost(counts) if started_at is not None else 0,
    )


def _open_rows(connection: Connection, owner: str) -> list[tuple[Entry, int | None, Counts]]:
    query = select(ledger).where(ledger.c.owner == owner, ledger.c.state == "open").order_by(ledger.c.id).limit(BATCH)
    rows = connection.execute(query).mappings().all()
    named = {row["price"] for row in rows} - {None}
    found = connection.execute(select(prices).where(prices.c.id.in_(named))).mappings()
    known = {row["id"]: Price(**row) for row in found}
    entries: list[tuple[Entry, int | None, Counts]] = []
    for row in rows:
        fields: dict[str, Any] = {name: row[name] for name in Entry.__struct_fields__}
        fields["price"] = known.get(row["price"])
        entry = Entry(**fields)
        entries.append((entry, row["started_at"], Counts(**{name: row[name] for name in COUNTS})))
    return entries
