"""What is remembered: how long, how much, and whose place is taken when it is full."""

from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_compat.accounts.recent import Recent


def test_an_answer_is_kept_for_its_time_and_no_longer() -> None:
    recent = Recent[str](keep_s=5)
    recent.put("a", "A", 100.0)
    recent.put("b", None, 100.0)
    assert recent.get("a", 104.9) == (True, "A")
    assert recent.get("b", 104.9) == (True, None)
    assert recent.get("a", 105.0) == (False, None)
    assert recent.get("b", 105.0) == (False, None)


def test_using_an_answer_does_not_make_it_younger() -> None:
    recent = Recent[str](keep_s=5)
    recent.put("a", "A", 100.0)
    assert all(recent.get("a", 100.0 + second)[0] for second in range(5))
    assert recent.get("a", 105.0) == (False, None)


def test_a_flood_of_unknown_names_evicts_no_known_one() -> None:
    recent = Recent[str](keep_s=5, known=3, unknown=4)
    recent.put("a", "A", 0.0)
    for number in range(1000):
        recent.put(f"invented{number}", None, 0.0)
    assert recent.get("a", 1.0) == (True, "A")
    assert len(recent) == 5


def test_a_full_shelf_drops_the_least_recently_used() -> None:
    recent = Recent[str](keep_s=5, known=2)
    recent.put("a", "A", 0.0)
    recent.put("b", "B", 0.0)
    assert recent.get("a", 0.0) == (True, "A")
    recent.put("c", "C", 0.0)
    assert recent.get("b", 0.0) == (False, None)
    assert recent.get("a", 0.0) == (True, "A")


def test_a_name_that_comes_to_exist_is_known_at_once_when_forgotten() -> None:
    recent = Recent[str](keep_s=5)
    recent.put("a", None, 0.0)
    recent.forget("a")
    assert recent.get("a", 0.0) == (False, None)
    recent.put("a", "A", 0.0)
    assert recent.get("a", 0.0) == (True, "A")


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans(), st.integers(0, 3)), max_size=60))
def test_it_never_holds_more_than_its_limits_nor_a_stale_or_wrong_answer(
    steps: list[tuple[str, bool, int]],
) -> None:
    recent = Recent[str](keep_s=5, known=3, unknown=2)
    last: dict[str, tuple[int, str | None]] = {}
    now = 0
    for name, exists, waited in steps:
        now += waited
        seen, value = recent.get(name, now)
        if seen:
            assert last[name][1] == value
            assert now - last[name][0] < 5
        last[name] = (now, name.upper() if exists else None)
        recent.put(name, last[name][1], now)
        assert len(recent) <= 5
