"""What tokens cost, and since when: rows are only ever added, so that an old bill can still be explained."""

import builtins
import time
from collections.abc import Callable, Iterable
from typing import Required, TypedDict, Unpack

from sqlalchemy import Connection, Engine, RowMapping, func, insert, select

from qwen3vl_compat.accounts.audit import COMMAND_LINE, Note, append
from qwen3vl_compat.accounts.database import writing
from qwen3vl_compat.accounts.money import Price, format_amount, parse_amount
from qwen3vl_compat.accounts.recent import CACHE_S, Recent
from qwen3vl_compat.accounts.tables import PRICES, prices
from qwen3vl_compat.accounts.terms import Unfit, check_model, check_time

ANY = "*"
"""Stands for every model that has no price of its own."""
Near = tuple[Price, ...]
"""Prices of one model: the one in effect and those that will be before the answer is forgotten, the newest first."""


class Amounts(TypedDict, total=False):
    """Money as decimal text, for a million tokens and for a request; None is as usual.

    `vision_in` is usually `text_in`, `cached_in` the lower of both, `reasoning` is `out` and `per_request` nothing.
    """

    text_in: Required[str]
    vision_in: str | None
    cached_in: str | None
    out: Required[str]
    reasoning: str | None
    per_request: str | None


class Prices:
    """All prices of one database. Calls are short and synchronous, and may come from any thread.

    `at` answers from memory for up to CACHE_S seconds; the others read and write the database each time.
    """

    def __init__(
        self, engine: Engine, clock: Callable[[], float] = time.time, *, ticks: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` gives seconds since 1970; `ticks` gives seconds that are never set back, for the age of answers."""
        self._engine, self._writer, self._clock, self._ticks = engine, writing(engine), clock, ticks
        self._recent: Recent[Near] = Recent(keep_s=CACHE_S)

    def at(self, model: str, now_ms: int) -> Price | None:
        """The price in effect for a model at that time, or for all without their own; None where there is neither."""
        return self._at(model, now_ms) or self._at(ANY, now_ms)

    def remembers(self, model: str) -> bool:
        """Whether `at` answers from memory."""
        ticks = self._ticks()
        seen, near = self._recent.get(model, ticks)
        return seen and (near is not None or self._recent.get(ANY, ticks)[0])

    def set(
        self, model: str, effective_from: int | None = None, *, actor: str = COMMAND_LINE, **amounts: Unpack[Amounts]
    ) -> Price:
        """Add a price that holds from a time on (milliseconds since 1970), None for now. Raises Unfit.

        It must not lie before the current second: what was charged until now was charged by other rows.
        """
        check_model("model", model)
        found = _settled(amounts)
        if effective_from is not None:
            check_time("effective_from", effective_from)
        with self._writer.begin() as connection:
            now = int(self._clock() * 1000)
            if effective_from is not None and effective_from // 1000 < now // 1000:
                raise Unfit("effective_from", "must not lie in the past")
            start = max(effective_from or 0, now)
            new = insert(prices).values(model=model, effective_from=start, created_at=now, **found)
            [number] = connection.execute(new).inserted_primary_key or (0,)
            price = Price(id=number, model=model, effective_from=start, created_at=now, **found)
            append(connection, Note(at=now, actor=actor, action="price.set", object=model, details=_details(price)))
        self._recent.forget(model)
        return price

    def list(self, *, after: int | None = None, limit: int | None = None) -> builtins.list[Price]:
        """The last set first; `after` is the id of the last one seen."""
        query = select(prices).order_by(prices.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(prices.c.id < after)
        with self._engine.connect() as connection:
            return [_price(row) for row in connection.execute(query).mappings()]

    def _at(self, model: str, now_ms: int) -> Price | None:
        ticks = self._ticks()
        seen, near = self._recent.get(model, ticks)
        if not seen:
            near = self._read(model, now_ms) or None
            self._recent.put(model, near, ticks)
        price = _newest(near or (), now_ms)
        if price is None and near:  # the clock was set back to before all that is remembered
            price = _newest(self._read(model, now_ms), now_ms)
        return price

    def _read(self, model: str, now_ms: int) -> Near:
        with self._engine.connect() as connection:
            return _near(connection, model, now_ms)


def _near(connection: Connection, model: str, now_ms: int) -> Near:
    of = prices.c.model == model
    current = select(func.max(prices.c.effective_from)).where(of, prices.c.effective_from <= now_ms).scalar_subquery()
    query = (
        select(prices)
        .where(of, prices.c.effective_from >= func.coalesce(current, 0))
        .where(prices.c.effective_from <= now_ms + int(CACHE_S * 1000))
        .order_by(prices.c.effective_from.desc(), prices.c.id.desc())
    )
    return tuple(_price(row) for row in connection.execute(query).mappings())


def _newest(near: Iterable[Price], now_ms: int) -> Price | None:
    return next((price for price in near if price.effective_from <= now_ms), None)


def _price(row: RowMapping) -> Price:
    return Price(**{name: row[name] for name in Price.__struct_fields__})


def _settled(amounts: Amounts) -> dict[str, int]:
    """Nano-units of everything that has a price; raises Unfit."""
    given = {name: _parsed(name, text) for name, text in amounts.items() if isinstance(text, str)}
    text_in = given["text_in"]
    vision_in = given.get("vision_in", text_in)
    usual = {
        "vision_in": text_in,
        "cached_in": min(text_in, vision_in),
        "reasoning": given["out"],
        "per_request": 0,
    }
    return usual | given


def _parsed(name: str, text: str) -> int:
    try:
        return parse_amount(text)
    except ValueError as error:
        raise Unfit(name, str(error)) from None


def _details(price: Price) -> dict[str, object]:
    amounts = {name: format_amount(getattr(price, name)) for name in PRICES}
    return {"id": price.id, "effective_from": price.effective_from // 1000, **amounts}
