"""Rows of the ledger as a metering leaves them, with the sums beside them, for what only reads them."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, insert, select, update

from qwen3vl_compat.accounts.database import writing
from qwen3vl_compat.accounts.tables import COUNTS, daily, ledger, tenants

Row = dict[str, Any]


def row(number: int, created_at: int, **changes: Any) -> Row:
    """A row that cost a nano-unit a token; `created_at` in milliseconds since 1970."""
    made: Row = {
        "id": f"{number:024x}",
        "tenant": "acme",
        "key": "A" * 12,
        "model": "qwen3-vl",
        "wire": "openai",
        "stream": False,
        "state": "final",
        "finish": "stop",
        "owner": "process",
        "created_at": created_at,
        "started_at": created_at + 10,
        "ended_at": created_at + 500,
        "text_in": 10,
        "vision_in": 5,
        "cached_in": 3,
        "out": 7,
        "reasoning": 2,
        "pictures": 1,
        "reserved_out": 100,
        "reserved": 1000,
        "cost": 25,
        "cache": "off",
    } | changes
    if made["state"] == "open":
        made |= {"ended_at": None, "finish": ""}
    return made


def day_of(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d}"


def record(engine: Engine, rows: Sequence[Row]) -> None:
    """Write rows, and add those that are over to their days' sums."""
    sums: dict[tuple[str, ...], Counter[str]] = {}
    for each in rows:
        if each["state"] != "open":
            group = day_of(each["created_at"]), each["tenant"], each["key"], each["model"], each["cache"]
            counts = {name: each[name] for name in (*COUNTS, "cost")}
            sums.setdefault(group, Counter()).update(requests=1, **counts)
    with writing(engine).begin() as connection:
        known = set(connection.execute(select(tenants.c.id)).scalars())
        for tenant in {each["tenant"] for each in rows} - known:
            connection.execute(insert(tenants).values(id=tenant, name=tenant, created_at=0))
        if rows:
            connection.execute(insert(ledger), rows)
        for (day, tenant, key, model, cached), added in sums.items():
            whose = {"day": day, "tenant": tenant, "key": key, "model": model, "cache": cached}
            same = (daily.c[name] == value for name, value in whose.items())
            raised = {name: daily.c[name] + value for name, value in added.items()}
            if not connection.execute(update(daily).where(*same).values(raised)).rowcount:
                connection.execute(insert(daily).values(**whose, **added))
