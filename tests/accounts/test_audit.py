"""Every change leaves exactly one row, in its own transaction; what is refused leaves none; no row holds a secret."""

from collections.abc import Callable

import msgspec
import pytest
from sqlalchemy import Engine, delete, event, update
from sqlalchemy.exc import DBAPIError

from qwen3vl_compat.accounts import tables
from qwen3vl_compat.accounts.audit import Audit
from qwen3vl_compat.accounts.keys import KeyOver, Keys, UnknownKey, UnknownTenant
from qwen3vl_compat.accounts.prices import Prices
from qwen3vl_compat.accounts.tenants import TenantExists, Tenants
from qwen3vl_compat.accounts.terms import Unfit
from qwen3vl_compat.settings import Quotas

from .conftest import Clock


class Desk:
    """Everything that can be changed, and the row that the last change left."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine, self.clock = engine, clock
        self.keys = Keys(engine, clock, ticks=clock)
        self.tenants, self.prices, self.audit = Tenants(engine, clock), Prices(engine, clock), Audit(engine)
        self.tenants.create("acme")
        self.public = self.keys.create("acme").key.public
        self.seen = self.audit.list()[0].id

    def left(self) -> list[tuple[str, str, str, dict[str, object]]]:
        """Who did what to what since last asked, the first first."""
        rows = [entry for entry in self.audit.list() if entry.id > self.seen]
        assert {row.at for row in rows} <= {self.clock.ms}
        self.seen = max([self.seen, *(row.id for row in rows)])
        return [(row.actor, row.action, row.object, row.details) for row in reversed(rows)]


@pytest.fixture
def desk(engine: Engine, clock: Clock) -> Desk:
    return Desk(engine, clock)


ACTOR = "AdminAdminAd"


def test_keys(desk: Desk) -> None:
    end = desk.clock.ms + 60_000
    new = desk.keys.create(
        "acme",
        actor=ACTOR,
        label="laptop",
        expires_at=end,
        models=["m"],
        endpoints=["files"],
        limits=Quotas(tokens=5, budget="1.00/day"),
    )
    public = new.key.public
    details = {
        "tenant": "acme",
        "admin": False,
        "label": "laptop",
        "expires_at": end // 1000,
        "models": ["m"],
        "endpoints": ["files"],
        "limits": {"tokens": 5, "budget": "1.00/day"},
    }
    assert desk.left() == [(ACTOR, "key.create", public, details)]
    desk.keys.change(public, label="tower", models=["m"], limits=Quotas(tokens=6))
    assert desk.left() == [("command line", "key.change", public, {"label": "tower", "limits": {"tokens": 6}})]
    successor = desk.keys.rotate(public, 60, actor=ACTOR).key.public
    told = {"replaced_by": successor, "retires_at": desk.clock.ms // 1000 + 60}
    assert desk.left() == [(ACTOR, "key.rotate", public, told)]
    desk.keys.revoke(successor)
    assert desk.left() == [("command line", "key.revoke", successor, {})]


def test_tenants_and_prices(desk: Desk) -> None:
    desk.tenants.create("new", name="New", limits={"tokens": 1}, actor=ACTOR)
    assert desk.left() == [(ACTOR, "tenant.create", "new", {"name": "New", "limits": {"tokens": 1}})]
    desk.tenants.create("late", status="suspended", actor=ACTOR)
    assert desk.left() == [(ACTOR, "tenant.create", "late", {"name": "late", "status": "suspended"})]
    desk.tenants.change("new", status="suspended", media={"max_images": 2}, actor=ACTOR)
    told = {"status": "suspended", "media": {"max_images": 2}}
    assert desk.left() == [(ACTOR, "tenant.change", "new", told)]
    desk.tenants.reword("new", {"limits.tokens": "", "media.max_images": "3"})
    told = {"limits": {}, "media": {"max_images": 3}}
    assert desk.left() == [("command line", "tenant.change", "new", told)]
    price = desk.prices.set("m", text_in="0.15", out="0.60", actor=ACTOR)
    [(actor, action, subject, details)] = desk.left()
    assert (actor, action, subject) == (ACTOR, "price.set", "m")
    assert details["id"] == price.id
    assert (details["text_in"], details["cached_in"], details["per_request"]) == ("0.15", "0.15", "0.00")


def test_a_first_start_says_what_it_made(engine: Engine) -> None:
    first = Keys(engine).ensure_first()
    assert first is not None
    rows = [(entry.action, entry.object) for entry in reversed(Audit(engine).list())]
    made = [("key.create", first.model.key.public), ("key.create", first.admin.key.public)]
    assert rows == [("tenant.create", "default"), *made]


@pytest.mark.parametrize(
    "same",
    [
        lambda desk: desk.keys.change(desk.public, label="", models=None, limits=Quotas()),
        lambda desk: desk.keys.change(desk.public),
        lambda desk: desk.tenants.change("acme", status="active", limits={}),
        lambda desk: desk.tenants.reword("acme", {"limits.tokens": ""}),
        lambda desk: desk.keys.add_tenant("acme"),
    ],
)
def test_what_changes_nothing_leaves_none(desk: Desk, same: Callable[[Desk], object]) -> None:
    same(desk)
    assert desk.left() == []


def test_to_revoke_again_leaves_none(desk: Desk) -> None:
    desk.keys.revoke(desk.public)
    desk.keys.revoke(desk.public)
    assert [action for _, action, _, _ in desk.left()] == ["key.revoke"]


@pytest.mark.parametrize(
    ("refusal", "wrong"),
    [
        (Unfit, lambda desk: desk.keys.create("acme", models=[""])),
        (Unfit, lambda desk: desk.keys.create("acme", expires_at=desk.clock.ms)),
        (UnknownTenant, lambda desk: desk.keys.create("nobody")),
        (Unfit, lambda desk: desk.keys.change(desk.public, endpoints=["chat"])),
        (UnknownKey, lambda desk: desk.keys.change("A" * 12, label="x")),
        (Unfit, lambda desk: desk.keys.rotate(desk.public, -1)),
        (UnknownKey, lambda desk: desk.keys.revoke("A" * 12)),
        (TenantExists, lambda desk: desk.tenants.create("acme")),
        (Unfit, lambda desk: desk.tenants.create("Acme")),
        (Unfit, lambda desk: desk.tenants.change("acme", limits={"tokens": "x"})),
        (Unfit, lambda desk: desk.prices.set("m", text_in="x", out="1")),
        (Unfit, lambda desk: desk.prices.set("m", desk.clock.ms - 1000, text_in="1", out="1")),
    ],
)
def test_what_is_refused_leaves_none(desk: Desk, refusal: type[Exception], wrong: Callable[[Desk], object]) -> None:
    with pytest.raises(refusal):
        wrong(desk)
    assert desk.left() == []


def test_a_key_that_is_over_leaves_none(desk: Desk) -> None:
    desk.keys.revoke(desk.public)
    desk.left()
    with pytest.raises(KeyOver):
        desk.keys.rotate(desk.public, 0)
    with pytest.raises(KeyOver):
        desk.keys.change(desk.public, label="x")
    assert desk.left() == []


def test_a_change_whose_row_cannot_be_written_is_not_made(desk: Desk) -> None:
    """Each statement of each change fails in turn: afterwards there is all of it or nothing."""

    def state() -> object:
        return desk.keys.list(), desk.tenants.list(), desk.prices.list(), desk.audit.list()

    changes: list[Callable[[], object]] = [
        lambda: desk.keys.create("acme"),
        lambda: desk.keys.change(desk.public, label="x"),
        lambda: desk.keys.rotate(desk.public, 60),
        lambda: desk.keys.revoke(desk.public),
        lambda: desk.tenants.create("new"),
        lambda: desk.tenants.change("acme", status="suspended"),
        lambda: desk.prices.set("m", text_in="1", out="1"),
    ]
    for change in changes:
        before = state()

        def fail(*arguments: object) -> None:
            if str(arguments[2]).startswith("INSERT INTO audit"):
                raise OSError("no room")

        event.listen(desk.engine, "before_cursor_execute", fail)
        with pytest.raises(OSError, match="no room"):
            change()
        event.remove(desk.engine, "before_cursor_execute", fail)
        assert state() == before
        change()
        assert len(desk.left()) == 1


def test_no_row_holds_a_secret(desk: Desk) -> None:
    new = [desk.keys.create("acme"), desk.keys.create("acme", admin=True)]
    new.append(desk.keys.rotate(new[0].key.public, 60))
    rows = msgspec.json.encode(desk.audit.list()).decode()
    for key in new:
        assert key.key.public in rows
        assert key.secret_text[16:] not in rows


def test_rows_are_newest_first_and_paged(desk: Desk) -> None:
    for number in range(5):
        desk.keys.change(desk.public, label=str(number))
    newest = [entry.details for entry in desk.audit.list(limit=3)]
    assert newest == [{"label": "4"}, {"label": "3"}, {"label": "2"}]
    last = desk.audit.list(limit=3)[-1].id
    desk.keys.change(desk.public, label="5")
    assert [entry.details for entry in desk.audit.list(after=last, limit=2)] == [{"label": "1"}, {"label": "0"}]
    assert desk.audit.list(after=0) == []


def test_rows_are_only_ever_added(desk: Desk) -> None:
    for wrong in (update(tables.audit).values(actor="x"), delete(tables.audit)):
        with pytest.raises(DBAPIError, match="row of the audit is ever"), desk.engine.begin() as connection:
            connection.execute(wrong)
