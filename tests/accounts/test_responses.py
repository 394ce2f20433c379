"""Responses that are kept: whose they are, conversations of them, their media once, how many, and how long."""

import hashlib
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Engine, func, select

from qwen3vl_compat.accounts import responses as module
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.responses import ConversationTooLarge, NewResponse, NoSuchResponse, Responses
from qwen3vl_compat.accounts.tables import response_media, response_uses
from qwen3vl_compat.accounts.tables import responses as table
from qwen3vl_compat.settings import ResponseSettings
from tests.accounts.conftest import Clock

SETTINGS = ResponseSettings(life=100, tenant_responses=5, tenant_bytes=10_000)
MOST = 10_000
numbers = count()


def new(previous: str | None = None, *media: bytes, tenant: str = "acme", body: bytes = b"{}") -> NewResponse:
    held = {hashlib.sha256(content).hexdigest(): content for content in media}
    name = f"resp_{next(numbers):024x}"
    whole = 2 + len(body) + sum(map(len, media))
    return NewResponse(id=name, tenant=tenant, previous=previous, input=b"[]", body=body, whole=whole, media=held)


@pytest.fixture
def make(engine: Engine, keys: Keys, clock: Clock) -> Callable[..., Responses]:
    keys.add_tenant("other")
    return lambda **settings: Responses(engine, replace(SETTINGS, **settings), clock)


@pytest.fixture
def stored(make: Callable[..., Responses]) -> Responses:
    return make()


def kept(stored: Responses, *arguments: Any, **others: Any) -> str:
    response = new(*arguments, **others)
    stored.keep(response)
    return response.id


def is_there(stored: Responses, name: str, tenant: str = "acme") -> bool:
    try:
        return stored.get(tenant, name).id == name
    except NoSuchResponse:
        return False


def rows(engine: Engine, of: Any) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(of)).scalar_one()


def test_what_is_kept_is_found_by_its_tenant_alone(stored: Responses) -> None:
    name = kept(stored, body=b'{"a": 1}')
    found = stored.get("acme", name)
    assert (found.id, found.previous, found.input, found.body) == (name, None, b"[]", b'{"a": 1}')
    assert not is_there(stored, name, "other")
    with pytest.raises(NoSuchResponse):
        stored.conversation("other", name, MOST)
    with pytest.raises(NoSuchResponse):
        stored.delete("other", name)
    assert is_there(stored, name)


def test_what_is_kept_twice_stays_as_it_was(stored: Responses) -> None:
    first = new(None, b"medium", body=b"first")
    stored.keep(first)
    stored.keep(replace(first, body=b"second"))
    assert stored.get("acme", first.id).body == b"first"


def test_a_conversation_is_told_from_its_beginning(stored: Responses) -> None:
    first = kept(stored)
    second, aside = kept(stored, first), kept(stored, first)
    third = kept(stored, second)
    assert [each.id for each in stored.conversation("acme", third, MOST)] == [first, second, third]
    assert [each.id for each in stored.conversation("acme", aside, MOST)] == [first, aside]


def test_a_conversation_without_one_of_its_turns_is_none(stored: Responses) -> None:
    first = kept(stored)
    second = kept(stored, first)
    third = kept(stored, second)
    stored.delete("acme", second)
    assert not is_there(stored, second)
    assert is_there(stored, third)
    with pytest.raises(NoSuchResponse):
        stored.conversation("acme", third, MOST)


def test_nobody_goes_on_from_another_tenants(stored: Responses) -> None:
    theirs = kept(stored, tenant="other")
    mine = kept(stored, theirs)
    with pytest.raises(NoSuchResponse):
        stored.conversation("acme", mine, MOST)


def test_a_conversation_is_bounded(stored: Responses, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kept(stored, None, b"x" * 100)
    second = kept(stored, first, b"x" * 100)
    size = 2 * (4 + 100)
    assert len(stored.conversation("acme", second, size)) == 2
    with pytest.raises(ConversationTooLarge, match=f"{size} bytes; at most {size - 1}"):
        stored.conversation("acme", second, size - 1)
    monkeypatch.setattr(module, "MOST_TURNS", 1)
    with pytest.raises(ConversationTooLarge, match="more than 1 turns"):
        stored.conversation("acme", second, size)


def test_time_ends_what_is_not_gone_on_with(stored: Responses, engine: Engine, clock: Clock) -> None:
    first, other = kept(stored), kept(stored, None, b"medium")
    clock.now += 99
    second = kept(stored, first)
    clock.now += 1
    assert not is_there(stored, other)
    with pytest.raises(NoSuchResponse):
        stored.delete("acme", other)
    assert [each.id for each in stored.conversation("acme", second, MOST)] == [first, second]
    assert stored.sweep() == 1
    assert stored.sweep() == 0
    assert (rows(engine, table), rows(engine, response_media), rows(engine, response_uses)) == (2, 0, 0)


def test_a_medium_lies_there_once_and_goes_with_the_last_that_has_it(stored: Responses, engine: Engine) -> None:
    content, digest = b"picture", hashlib.sha256(b"picture").hexdigest()
    first = kept(stored, None, content)
    second = kept(stored, first, content, b"another")
    kept(stored, None, content, tenant="other")
    assert rows(engine, response_media) == 3
    stored.delete("acme", first)
    assert stored.media("acme", [digest, "0" * 64]) == {digest: content}
    stored.delete("acme", second)
    assert stored.media("acme", [digest]) == {}
    assert stored.media("other", [digest]) == {digest: content}
    assert rows(engine, response_media) == rows(engine, response_uses) == 1


def test_a_tenant_keeps_so_many_responses(stored: Responses, clock: Clock) -> None:
    theirs, names = kept(stored, tenant="other"), list[str]()
    for _ in range(5):
        names.append(kept(stored))
        clock.now += 1
    goes_on = kept(stored, names[0])
    assert [is_there(stored, name) for name in [*names, goes_on]] == [True, False, True, True, True, True]
    assert is_there(stored, theirs, "other")


def test_a_tenant_keeps_so_many_bytes(
    make: Callable[..., Responses], engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_LOOK", 5)
    monkeypatch.setattr(module, "LOOKED_AT", 20)
    stored, names = make(tenant_bytes=1000, tenant_responses=1000), list[str]()
    for _ in range(100):  # more than are looked at together
        names.append(kept(stored, body=b"12345678"))
        clock.now += 0.001
    assert rows(engine, table) == 100
    large = kept(stored, None, b"x" * 900)
    left = [is_there(stored, name) for name in names]
    assert left == [False] * 91 + [True] * 9
    assert is_there(stored, large)
    alone = kept(stored, None, b"y" * 2000)
    assert rows(engine, table) == rows(engine, response_media) == 1
    assert is_there(stored, alone)


@pytest.mark.parametrize("first_look", [1, 16])
def test_no_more_goes_than_makes_room(
    make: Callable[..., Responses], clock: Clock, monkeypatch: pytest.MonkeyPatch, first_look: int
) -> None:
    """Media count with the last response that has them."""
    monkeypatch.setattr(module, "FIRST_LOOK", first_look)
    stored, names = make(tenant_bytes=1000, tenant_responses=1000), list[str]()
    shared = b"s" * 100
    for media in ([b"a" * 200, shared], [b"b" * 200, shared], [b"c" * 200, shared], [b"d" * 200]):
        names.append(kept(stored, None, *media))
        clock.now += 1
    assert all(is_there(stored, name) for name in names)
    for media, left in (([b"e" * 200], [1, 2, 3, 4]), ([b"f" * 350], [3, 4, 5])):
        names.append(kept(stored, None, *media))
        clock.now += 1
        assert [place for place, name in enumerate(names) if is_there(stored, name)] == left
