"""The server is killed at any moment and started again: what its clients saw and what its ledger says agree.

Clients keep a journal: an answer whose last byte came, with the usage it told, or a stream that broke off, with the
tokens that came. The scripted engine makes one word a token, so a client can count them.
"""

import asyncio
import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import Struct

from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.money import Counts, Price
from qwen3vl_compat.accounts.sqlite import FILE
from tests.serving import Served, serving

PAUSE = 0.004
BEHIND = 32 + round(0.25 / PAUSE)
"""Tokens that a checkpoint may be behind: 32, and those made while it is written on a busy machine."""
ENVIRONMENT = {
    "QWEN3VL_MODEL__ENGINE": "scripted",
    "QWEN3VL_MODEL__PAUSE": str(PAUSE),
    "QWEN3VL_LEDGER__LEASE": "0.5",
}


class Seen(Struct):
    """What a client saw of one request."""

    stream: bool
    words: int = 0
    usage: dict[str, Any] | None = None
    """Of an answer that came to its end."""


class Journal:
    """What all clients saw, by the id of the request."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}
        self.refused: set[int] = set()

    async def ask(self, client: httpx.AsyncClient, seed: int) -> None:
        """One request, noted as far as it comes."""
        chance = random.Random(seed)
        stream, words = chance.random() < 0.7, chance.choice((1, 5, 40, 300))
        body = {
            "model": "qwen3-vl",
            "messages": [{"role": "user", "content": f"count to {words}"}],
            "stream": stream,
            "stream_options": {"include_usage": True},
        }
        if not stream:
            del body["stream_options"]
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                self.refused.add(answer.status_code)
                return
            seen = self.seen[answer.headers["x-request-id"]] = Seen(stream)
            if not stream:
                seen.usage = json.loads(await answer.aread())["usage"]
                return
            last: dict[str, Any] = {}
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    seen.usage = last["usage"]
                elif line.startswith("data: "):
                    last = json.loads(line.removeprefix("data: "))
                    for choice in last.get("choices", ()):
                        seen.words += len((choice["delta"].get("content") or "").split())

    async def fill(self, served: Served, key: str, until: asyncio.Event, seed: int) -> None:
        """Keep eight requests under way until the server is gone."""
        headers = {"authorization": f"Bearer {key}"}

        async def client(number: int) -> None:
            async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=30) as one:
                asked = 0
                while not until.is_set():
                    asked += 1
                    try:
                        await self.ask(one, hash((seed, number, asked)))
                    except httpx.TransportError:
                        return

        await asyncio.gather(*(client(number) for number in range(8)))


async def live_and_die(served: Served, key: str, journal: Journal, seed: int) -> None:
    """Ask for a while, and kill the server in the middle of it."""
    gone = asyncio.Event()
    asking = asyncio.create_task(journal.fill(served, key, gone, seed))
    await asyncio.sleep(random.Random(seed).uniform(0.05, 0.9))
    served.process.kill()
    await asyncio.to_thread(served.process.wait)
    gone.set()
    await asking


def rows(state: Path) -> dict[str, sqlite3.Row]:
    with closing(sqlite3.connect(state / FILE)) as connection:
        connection.row_factory = sqlite3.Row
        return {row["id"]: row for row in connection.execute("SELECT * FROM ledger")}


def check(state: Path, journal: Journal, price: Price) -> None:
    """The promises of docs/metering.md, over everything that was ever asked."""
    found = rows(state)
    assert journal.seen.keys() <= found.keys(), "an answer has no row"
    assert {row["state"] for row in found.values()} <= {"final", "aborted", "interrupted"}
    for name, seen in journal.seen.items():
        row = found[name]
        if seen.usage is not None:
            assert row["state"] == "final"
            told = (seen.usage["prompt_tokens"], seen.usage["completion_tokens"])
            assert (row["text_in"] + row["vision_in"] + row["cached_in"], row["out"]) == told
        else:
            assert seen.words - row["out"] <= BEHIND, f"{seen.words} tokens came, {row['out']} are paid for"
            assert row["out"] <= row["reserved_out"]
    for row in found.values():
        counts = Counts(**{name: row[name] for name in Counts.__struct_fields__})
        assert row["cost"] == (price.cost(counts) if row["started_at"] is not None else 0)
    with closing(sqlite3.connect(state / FILE)) as connection:
        months = "FROM spending WHERE scope LIKE 'tenant:%' AND length(period) = 7"
        spent = connection.execute(f"SELECT sum(spent), sum(reserved) {months}")
        assert spent.fetchone() == (sum(row["cost"] for row in found.values()), 0)
        summed = connection.execute("SELECT sum(requests), sum(text_in), sum(out), sum(cost) FROM daily").fetchone()
    wanted = [sum(row[name] for row in found.values()) for name in ("text_in", "out", "cost")]
    assert summed == (len(found), *wanted)


async def killed(folder: Path, times: int) -> None:
    from qwen3vl_compat.cli import main

    state = folder / "state"
    open_database(state).dispose()
    main(["prices", "set", "*", "--text-in", "1", "--out", "2", "--state-dir", str(state)])
    price = Price(
        id=1, model="*", effective_from=0, text_in=10**9, vision_in=10**9, cached_in=10**9, out=2 * 10**9,
        reasoning=2 * 10**9, per_request=0,
    )  # fmt: skip
    journal, key = Journal(), ""
    for number in range(times):
        with serving(folder, environment=ENVIRONMENT) as served:
            key = key or served.key
            await live_and_die(served, key, journal, seed=number)
    with serving(folder, environment=ENVIRONMENT) as served:
        for _ in range(200):
            if all(row["state"] != "open" for row in rows(state).values()):
                break
            await asyncio.sleep(0.1)
    check(state, journal, price)
    complete = [seen for seen in journal.seen.values() if seen.usage is not None]
    broken = [seen for seen in journal.seen.values() if seen.usage is None]
    interrupted = [row for row in rows(state).values() if row["state"] == "interrupted"]
    print(
        f"{times} kills: {len(complete)} whole answers, {len(broken)} broken ones, {len(interrupted)} interrupted rows"
    )
    assert complete
    assert interrupted
    assert journal.refused <= {503}


async def test_a_server_that_is_killed_keeps_its_books(tmp_path: Path) -> None:
    await killed(tmp_path, 3)


@pytest.mark.slow
async def test_a_server_that_is_killed_fifty_times_keeps_its_books(tmp_path: Path) -> None:
    await killed(tmp_path, 50)
