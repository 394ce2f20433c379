"""What is believed of what is found in a store, and what one in memory holds: what was kept, and nothing else."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from qwen3vl_compat.events import Finish, Started, TextDelta, Usage
from qwen3vl_compat.messages import Request, Sampling
from qwen3vl_compat.policies.caching import SEAL, Answer, Shelf
from qwen3vl_compat.policies.caching.memory import OVERHEAD, MemoryStore
from qwen3vl_compat.policies.caching.naming import deterministic
from qwen3vl_compat.settings import CacheSettings

SECRET = b"of the installation"
ANSWER = Answer(
    made_at=1_000_000,
    usage=Usage(prompt_text=3, completion=2),
    pictures=0,
    finish="stop",
    text="hello",
    events=Raw(
        msgspec.msgpack.encode(
            [Started(Usage(prompt_text=3)), TextDelta(0, "hello", 2), Finish(0, "stop", Usage(prompt_text=3))]
        )
    ),
    id="0" * 24,
    created=1000,
    bodies={"openai": b'{"id":"chatcmpl-000000000000000000000000","created":1000,"choices":[]}'},
)


def shelf(secret: bytes = SECRET, now: float = 1001.0, life: float = 60) -> Shelf:
    return Shelf(MemoryStore(2**20), secret, CacheSettings(life=life), lambda: now)


def test_what_was_sealed_is_opened_again() -> None:
    kept = shelf()
    assert kept.open("n" * 64, kept.seal("n" * 64, ANSWER)) == ANSWER
    assert [type(event) for event in ANSWER.replay()] == [Started, TextDelta, Finish]


@pytest.mark.parametrize(("form", "told"), [("openai", 7), ("google without thoughts", 1000), ("anthropic", 1000)])
def test_only_openais_body_tells_a_time_of_ours(form: str, told: int) -> None:
    """In the others it is what a function was called with."""
    answer = replace(ANSWER, bodies={form: ANSWER.bodies["openai"]})
    assert answer.body(form, "f" * 24, 7) == b'{"id":"chatcmpl-%s","created":%d,"choices":[]}' % (b"f" * 24, told)


@given(st.data())
def test_a_value_that_was_changed_anywhere_is_none_of_ours(data: st.DataObject) -> None:
    value = shelf().seal("n" * 64, ANSWER)
    at, bit = data.draw(st.integers(0, len(value) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(value)
    flipped[at] ^= 1 << bit
    assert shelf().open("n" * 64, bytes(flipped)) is None


@given(st.binary(min_size=1, max_size=200))
def test_nothing_that_others_write_is_ours(value: bytes) -> None:
    sealed = shelf().seal("n" * 64, ANSWER)
    for found in (value, sealed[:SEAL] + value, value + sealed, sealed + b"\0", sealed[: len(value)]):
        assert shelf().open("n" * 64, found) is None


def test_a_value_is_opened_under_its_own_name_and_by_its_own_installation_only() -> None:
    value = shelf().seal("n" * 64, ANSWER)
    assert shelf().open("m" * 64, value) is None
    assert shelf(secret=b"of another").open("n" * 64, value) is None
    assert shelf(secret=b"of another").name(b"material") != shelf().name(b"material")


def test_what_another_version_has_sealed_is_nothing() -> None:
    kept = shelf()
    for content in (
        ["an", "older", "form"],
        {"a": "map"},
        None,
        msgspec.msgpack.decode(msgspec.msgpack.encode(ANSWER))[:-1],
    ):
        value = msgspec.msgpack.encode(content)
        assert kept.open("n", kept._mark("n", value) + value) is None
    assert kept.open("n", kept._mark("n", b"\xc1") + b"\xc1") is None


@pytest.mark.parametrize(
    ("age", "max_age", "opened"),
    [
        (0, None, True), (59, None, True), (61, None, False), (5, 5, True), (6, 5, False), (61, 100, False),
        (-9, 1, True),
    ],
)  # fmt: skip
def test_an_answer_is_given_again_while_it_is_young_enough(age: float, max_age: float | None, opened: bool) -> None:
    """The life of answers holds whatever a caller would take; a clock that went back makes none older."""
    value = shelf().seal("n", ANSWER)
    found = shelf(now=1000 + age).open("n", value, max_age)
    assert (found is not None) is opened


@pytest.mark.parametrize(("age", "left"), [(0, 60), (41, 19), (60, None), (-5, 60)])
async def test_an_answer_is_kept_for_the_rest_of_its_life(age: float, left: float | None) -> None:
    """However often it is put there."""
    store = MemoryStore(2**20, Clock())
    kept = Shelf(store, SECRET, CacheSettings(life=60), lambda: 1000 + age)
    for _ in range(2):
        await kept.keep("n", ANSWER)
        assert [until for _, until in store._values.values()] == ([] if left is None else [left])


async def test_an_answer_that_is_too_large_is_not_kept() -> None:
    small = Shelf(MemoryStore(2**20), SECRET, CacheSettings(max_bytes=300), lambda: 1001)
    await small.keep("n", ANSWER)
    assert await small.find("n") == ANSWER
    await small.keep("m", replace(ANSWER, text="x" * 300))
    assert await small.find("m") is None


def test_a_body_is_told_again_with_the_next_ones_id_and_time() -> None:
    assert ANSWER.body("openai", "1" * 24, 2000) == (
        b'{"id":"chatcmpl-111111111111111111111111","created":2000,"choices":[]}'
    )


def test_a_time_that_the_answer_itself_holds_stays() -> None:
    """Google's bodies have no such field, but a call's arguments are a part of them as they are."""
    body = b'{"candidates":[{"args":{"created":1000,"a":1}}],"responseId":"000000000000000000000000"}'
    google = replace(ANSWER, bodies={"google": body, "google without thoughts": body})
    for form in google.bodies:
        assert google.body(form, "1" * 24, 2000) == body.replace(b"0" * 24, b"1" * 24)


# ------------------------------------------------------------------------------------------------------------- memory


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 400), st.booleans(), st.integers(0, 20))))
def test_memory_holds_no_more_than_it_may_and_nothing_that_is_over(did: Sequence[tuple[str, int, bool, int]]) -> None:
    clock, most = Clock(), 3 * (100 + OVERHEAD)
    store, put = MemoryStore(most, clock), dict[str, tuple[bytes, float]]()

    async def tried() -> None:
        for key, size, reads, later in did:
            clock.now += later
            if reads:
                found = await store.get(key)
                assert found is None or (found, put[key][1] > clock.now) == (put[key][0], True)
            else:
                await store.put(key, bytes(size), 10)
                put[key] = bytes(size), clock.now + 10
            assert store.size == sum(len(value) + OVERHEAD for value, _ in store._values.values()) <= most

    asyncio.run(tried())


async def test_the_longest_unused_is_given_up_first() -> None:
    store = MemoryStore(3 * (10 + OVERHEAD))
    for key in "abc":
        await store.put(key, bytes(10), 60)
    assert await store.get("a")
    await store.put("d", bytes(10), 60)
    assert [key for key in "abcd" if await store.get(key)] == ["a", "c", "d"]


async def test_what_does_not_fit_at_all_costs_nothing_else_its_place() -> None:
    store = MemoryStore(3 * (10 + OVERHEAD))
    await store.put("a", bytes(10), 60)
    await store.put("b", bytes(5000), 60)
    assert await store.get("a")
    assert await store.get("b") is None
    await store.put("a", bytes(5000), 60)
    assert await store.get("a") is None, "what was there before is not the answer any more"


@pytest.mark.parametrize(
    ("asked", "model", "same"),
    [
        (Sampling(), "greedy", True), (Sampling(), "drawing", False), (Sampling(temperature=0.7), "greedy", False),
        (Sampling(temperature=0.0), "drawing", True), (Sampling(top_k=1), "drawing", True),
        (Sampling(temperature=0.7, seed=3), "drawing", True), (Sampling(top_p=0.1), "greedy", True),
    ],
)  # fmt: skip
def test_what_draws_nothing_is_the_same_again(asked: Sampling, model: str, same: bool) -> None:
    """A request that names no temperature draws as its checkpoint says."""
    request = Request(id="r", created=0, model="m", messages=(), sampling=asked)
    assert deterministic(request, greedy=model == "greedy") is same
