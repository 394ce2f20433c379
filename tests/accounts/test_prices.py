"""Prices: rows are only added, the newest in effect holds, and the answer costs no database read."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, event

from qwen3vl_compat.accounts import tables
from qwen3vl_compat.accounts.money import NANO, Price
from qwen3vl_compat.accounts.prices import Prices
from qwen3vl_compat.accounts.terms import Unfit

from .conftest import Clock


@pytest.fixture
def prices(engine: Engine, clock: Clock) -> Prices:
    return Prices(engine, clock, ticks=clock)


def amounts(price: Price) -> tuple[int, ...]:
    return tuple(getattr(price, name) for name in tables.PRICES)


@pytest.mark.parametrize(
    ("given_amounts", "nano"),
    [
        ({"text_in": "0.15", "out": "0.60"}, (150, 150, 150, 600, 600, 0)),
        ({"text_in": "0.15", "out": "0.60", "vision_in": "0.05"}, (150, 50, 50, 600, 600, 0)),
        ({"text_in": "0.15", "out": "0.60", "vision_in": "0.30"}, (150, 300, 150, 600, 600, 0)),
        ({"text_in": "0.15", "out": "0.60", "vision_in": None, "cached_in": "0.01"}, (150, 150, 10, 600, 600, 0)),
        ({"text_in": "0", "out": "0", "reasoning": "0.7", "per_request": "0.001"}, (0, 0, 0, 0, 700, 1)),
    ],
)
def test_what_is_not_named_is_as_usual(prices: Prices, given_amounts: Any, nano: tuple[int, ...]) -> None:
    price = prices.set("m", **given_amounts)
    assert amounts(price) == tuple(each * NANO // 1000 for each in nano)
    assert prices.list() == [price]


def test_the_newest_in_effect_holds_and_its_own_before_the_general_one(prices: Prices, clock: Clock) -> None:
    assert prices.at("m", clock.ms) is None
    general = prices.set("*", text_in="1", out="1")
    clock.now += 5
    assert prices.at("m", clock.ms) == general
    first = prices.set("m", text_in="2", out="2")
    assert prices.at("m", clock.ms) == first
    second = prices.set("m", text_in="3", out="3")
    assert (second.effective_from, prices.at("m", clock.ms)) == (first.effective_from, second)
    later = prices.set("m", clock.ms + 3000, text_in="4", out="4")
    third = prices.set("m", text_in="5", out="5")
    assert prices.at("m", clock.ms) == third
    assert prices.at("m", clock.ms + 2999) == third
    assert prices.at("m", clock.ms + 3000) == later
    assert prices.at("other", clock.ms) == general


def test_a_coming_price_holds_to_the_millisecond(prices: Prices, clock: Clock) -> None:
    now = prices.set("m", text_in="1", out="1")
    coming = prices.set("m", clock.ms + 2000, text_in="2", out="2")
    begin = clock.now
    for milliseconds in range(0, 2000, 50):
        clock.now = begin + milliseconds / 1000
        assert prices.at("m", clock.ms) == now
    clock.now = begin + 2
    assert prices.at("m", clock.ms) == coming


def test_a_clock_set_back_does_not_make_it_free(prices: Prices, clock: Clock) -> None:
    old = prices.set("m", text_in="1", out="1")
    clock.now += 100
    new = prices.set("m", text_in="2", out="2")
    assert prices.at("m", clock.ms) == new
    assert prices.at("m", clock.ms - 50_000) == old
    assert prices.at("m", old.effective_from - 1) is None


def test_another_process_sees_it_within_5_s(prices: Prices, engine: Engine, clock: Clock) -> None:
    other = Prices(engine, clock, ticks=clock)
    assert other.at("m", clock.ms) is None
    price = prices.set("m", text_in="1", out="1")
    assert prices.at("m", clock.ms) == price
    clock.now += 5
    assert other.at("m", clock.ms) == price


def test_it_is_answered_from_memory_which_is_bounded(prices: Prices, engine: Engine, clock: Clock) -> None:
    price = prices.set("*", text_in="1", out="1")
    assert prices.at("m", clock.ms) == price
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    for _ in range(70):
        clock.now += 0.05
        assert prices.at("m", clock.ms) == price
    assert statements == []
    for number in range(1500):
        prices.at(f"invented-{number}", clock.ms)
    assert len(prices._recent) < 1100


def test_history_is_not_written_anew(prices: Prices, clock: Clock) -> None:
    clock.now += 0.5
    for past in (clock.ms - 1000, clock.ms - 501, 0):
        with pytest.raises(Unfit, match="effective_from: must not lie in the past"):
            prices.set("m", past, text_in="1", out="1")
    assert prices.list() == []
    assert prices.set("m", clock.ms - 500, text_in="1", out="1").effective_from == clock.ms
    assert prices.set("m", clock.ms + 10**10, text_in="1", out="1").effective_from == clock.ms + 10**10


@pytest.mark.parametrize(
    ("model", "start", "wrong", "field"),
    [
        ("", None, {}, "model"),
        ("x" * 201, None, {}, "model"),
        ("a\x00b", None, {}, "model"),
        ("\ud800", None, {}, "model"),
        ("m", 10**30, {}, "effective_from"),
        ("m", -1, {}, "effective_from"),
        ("m", None, {"text_in": "-1"}, "text_in"),
        ("m", None, {"text_in": "1e3"}, "text_in"),
        ("m", None, {"text_in": "1000000"}, "text_in"),
        ("m", None, {"out": "0.0000000001"}, "out"),
        ("m", None, {"cached_in": ""}, "cached_in"),
        ("m", None, {"reasoning": "NaN"}, "reasoning"),
        ("m", None, {"per_request": "\u0665"}, "per_request"),
        ("m", None, {"vision_in": "1,5"}, "vision_in"),
    ],
)
def test_what_no_price_is_is_refused_by_its_field(
    prices: Prices, model: str, start: int | None, wrong: Any, field: str
) -> None:
    with pytest.raises(Unfit) as refused:
        prices.set(model, start, **({"text_in": "1", "out": "1"} | wrong))
    assert refused.value.field == field
    assert prices.list() == []


def test_the_list_is_newest_first_and_paged(prices: Prices) -> None:
    made = [prices.set("m", text_in=str(number), out="1") for number in range(5)]
    assert prices.list() == made[::-1]
    assert prices.list(limit=2) == [made[4], made[3]]
    assert prices.list(after=made[3].id, limit=2) == [made[2], made[1]]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.sampled_from(["m", "*"]), st.integers(0, 12_000)), max_size=8),
    asked=st.lists(st.integers(0, 15_000), min_size=1, max_size=8),
)
def test_it_agrees_with_the_rule_read_out_of_the_rows(
    engine: Engine, rows: list[tuple[str, int]], asked: list[int]
) -> None:
    """Whatever was set for when, and in whichever order the moments are asked for."""
    with engine.begin() as connection:
        connection.execute(delete(tables.prices))
    clock = Clock()
    prices = Prices(engine, clock, ticks=clock)
    begin = clock.ms
    made = [prices.set(model, begin + start, text_in="1", out="1") for model, start in rows]
    for offset in sorted(asked):
        clock.now = (begin + offset) / 1000
        in_effect = [price for price in made if price.effective_from <= begin + offset]
        best = max(in_effect, key=lambda price: (price.model == "m", price.effective_from, price.id), default=None)
        assert prices.at("m", begin + offset) == best
