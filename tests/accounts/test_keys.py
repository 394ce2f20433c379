"""Keys: their form, what is stored of them, when they are good, and that nothing else is."""

import hashlib
import hmac
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, update

from qwen3vl_compat.accounts import tables
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.endpoints import ENDPOINTS, endpoint_of
from qwen3vl_compat.accounts.keys import KeyOver, Keys, UnknownKey, UnknownTenant
from qwen3vl_compat.accounts.terms import Unfit
from qwen3vl_compat.settings import LedgerSettings, Quotas

from .conftest import Clock

FORM = re.compile(r"sk-[0-9A-Za-z]{12}-[0-9A-Za-z_-]{43}")


def altered(secret_text: str) -> str:
    """The same public part with another secret."""
    return secret_text[:-5] + ("AAAAA" if secret_text[-5:] != "AAAAA" else "BBBBB")


def set_tenant_status(engine: Engine, tenant: str, status: str) -> None:
    with engine.begin() as connection:
        connection.execute(update(tables.tenants).where(tables.tenants.c.id == tenant).values(status=status))


class TestForm:
    def test_a_new_key_has_the_final_form_and_is_found(self, keys: Keys) -> None:
        new = keys.create("acme", label="laptop")
        assert FORM.fullmatch(new.secret_text)
        assert new.secret_text[3:15] == new.key.public
        assert keys.find(new.secret_text) == new.key
        assert (new.key.tenant, new.key.label, new.key.usable, new.key.may_call("qwen3-vl")) == (
            "acme",
            "laptop",
            True,
            True,
        )

    def test_an_admin_key_calls_no_model(self, keys: Keys) -> None:
        key = keys.find(keys.create("acme", admin=True).secret_text)
        assert key is not None
        assert key.admin
        assert key.usable
        assert not key.may_call("qwen3-vl")

    def test_keys_equal_in_their_first_20_characters_are_distinct(self, keys: Keys) -> None:
        one = keys.create("acme").secret_text
        assert keys.find(one)
        for other in (altered(one), one[:20] + "x" * 39, one[:20], one[:-1], one + "A"):
            assert other[:20] == one[:20]
            assert keys.find(other) is None
        assert keys.find(one)

    @pytest.mark.parametrize("wrap", ["{}\n", " {}", "{} ", "Bearer {}", "{}\x00", "\ufeff{}", "{},{}", ""])
    def test_a_key_with_anything_around_it_is_none(self, keys: Keys, wrap: str) -> None:
        assert keys.find(wrap.replace("{}", keys.create("acme").secret_text)) is None

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.one_of(st.text(st.characters()), st.from_regex(FORM, fullmatch=True)))
    def test_no_text_that_was_not_handed_out_is_a_key(self, keys: Keys, presented: str) -> None:
        assert keys.find(presented) is None


class TestSecrecy:
    def test_only_the_hash_is_in_the_files(self, sqlite: LedgerSettings, state_dir: Path) -> None:
        engine = open_database(state_dir, sqlite)
        keys = Keys(engine)
        keys.add_tenant("acme")
        first = keys.ensure_first()
        assert first is not None
        made = [first.model, first.admin, *(keys.create("acme") for _ in range(5))]

        def raw() -> bytes:
            return b"".join(path.read_bytes() for path in state_dir.iterdir())

        for content in (raw(), (engine.dispose(), raw())[1]):  # in the log, then in the file itself
            for new in made:
                text = new.secret_text.encode()
                assert hashlib.sha256(text).digest() in content
                assert new.key.public.encode() in content
                assert text not in content
                assert text[16:] not in content
                assert text[16:36] not in content

    def test_only_the_hash_is_in_the_tables(self, keys: Keys, engine: Engine) -> None:
        new = keys.create("acme", label="laptop")
        with engine.connect() as connection:
            held = repr([connection.execute(table.select()).all() for table in tables.metadata.sorted_tables])
        assert repr(hashlib.sha256(new.secret_text.encode()).digest()) in held
        assert new.key.public in held
        assert new.secret_text[16:36] not in held

    def test_no_representation_shows_a_secret(self, keys: Keys) -> None:
        first = keys.ensure_first()
        assert first is not None
        new = first.model
        secret = new.secret_text[16:]
        shown = [repr(first), str(new), f"{new!r}", repr(keys.find(new.secret_text)), repr(list(new.__rich_repr__()))]
        shown.append(repr(keys.list()))
        assert not any(secret in text or secret[:8] in text for text in shown)
        assert all(new.key.public in text for text in shown)

    def test_the_whole_hash_is_compared_in_constant_time_also_for_unknown_keys(
        self, keys: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = keys.create("acme").secret_text
        unknown = "sk-" + "A" * 12 + "-" + "B" * 43
        compared: list[tuple[bytes, bytes]] = []
        real = hmac.compare_digest

        def watched(one: bytes, other: bytes) -> bool:
            compared.append((one, other))
            return real(one, other)

        monkeypatch.setattr(hmac, "compare_digest", watched)
        found = [keys.find(text) is not None for text in (known, altered(known), unknown, unknown)]
        assert found == [True, False, False, False]
        assert len(compared) == 4
        assert all(len(one) == len(other) == 32 for one, other in compared)


class TestProblems:
    def test_a_revoked_key_is_dead_here_at_once_and_elsewhere_within_5_s(
        self, keys: Keys, engine: Engine, clock: Clock
    ) -> None:
        other = Keys(engine, clock, ticks=clock)
        new = keys.create("acme")
        assert other.find(new.secret_text) == keys.find(new.secret_text) == new.key
        clock.now += 2
        revoked = keys.revoke(new.key.public)
        assert (revoked.status, revoked.problem, revoked.revoked_at) == ("revoked", "revoked", clock.ms)
        assert keys.find(new.secret_text) == revoked
        clock.now += 5
        assert other.find(new.secret_text) == revoked
        clock.now += 1
        assert keys.revoke(new.key.public).revoked_at == revoked.revoked_at

    def test_a_key_in_steady_use_is_not_remembered_past_5_s(self, keys: Keys, engine: Engine, clock: Clock) -> None:
        other = Keys(engine, clock, ticks=clock)
        new = keys.create("acme")
        other.find(new.secret_text)
        keys.revoke(new.key.public)
        answers: list[bool] = []
        for _ in range(20):
            clock.now += 0.25
            key = other.find(new.secret_text)
            answers.append(key is not None and key.usable)
        assert answers == sorted(answers, reverse=True)
        assert not answers[-1]

    def test_a_key_made_elsewhere_is_seen_within_5_s_of_being_unknown(
        self, keys: Keys, engine: Engine, clock: Clock
    ) -> None:
        new = keys.create("acme")
        with engine.begin() as connection:
            row = connection.execute(tables.keys.select()).mappings().one()
            connection.execute(tables.keys.delete())
        other = Keys(engine, clock, ticks=clock)
        assert other.find(new.secret_text) is None
        with engine.begin() as connection:
            connection.execute(tables.keys.insert().values(**row))
        clock.now += 5
        assert other.find(new.secret_text) == new.key

    def test_a_remembered_key_still_expires_to_the_millisecond(self, keys: Keys, clock: Clock) -> None:
        new = keys.create("acme", expires_at=clock.ms + 2000)
        clock.now += 1.999
        assert (found := keys.find(new.secret_text)) is not None
        assert found.usable
        clock.now += 0.001
        assert (found := keys.find(new.secret_text)) is not None
        assert (found.problem, found.usable) == ("expired", False)

    def test_a_suspended_tenant_stops_its_keys_and_nobody_elses(self, keys: Keys, engine: Engine, clock: Clock) -> None:
        keys.add_tenant("other")
        mine, theirs = keys.create("acme"), keys.create("other")
        assert keys.find(mine.secret_text) == mine.key
        set_tenant_status(engine, "acme", "suspended")
        clock.now += 5
        assert (found := keys.find(mine.secret_text)) is not None
        assert (found.problem, found.status, found.tenant_status) == ("suspended", "active", "suspended")
        assert keys.find(theirs.secret_text) == theirs.key
        set_tenant_status(engine, "acme", "active")
        clock.now += 5
        assert keys.find(mine.secret_text) == mine.key

    def test_a_replaced_key_works_until_it_retires(self, keys: Keys, engine: Engine, clock: Clock) -> None:
        old, new = keys.create("acme"), keys.create("acme")
        with engine.begin() as connection:
            row = tables.keys.c.public == old.key.public
            values = {"replaced_by": new.key.public, "retires_at": clock.ms + 60_000}
            connection.execute(update(tables.keys).where(row).values(values))
        assert (found := keys.find(old.secret_text)) is not None
        assert (found.problem, found.replaced_by) == (None, new.key.public)
        clock.now += 60
        assert (found := keys.find(old.secret_text)) is not None
        assert found.problem == "replaced"

    def test_the_secret_is_asked_for_before_a_problem_is_told(self, keys: Keys) -> None:
        new = keys.create("acme")
        keys.revoke(new.key.public)
        assert keys.find(altered(new.secret_text)) is None


class TestMemory:
    def test_a_remembered_key_costs_no_database_read(self, keys: Keys, engine: Engine, clock: Clock) -> None:
        new = keys.create("acme")
        statements: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
        for _ in range(50):
            clock.now += 0.05
            assert keys.find(new.secret_text)
        assert len([text for text in statements if text.startswith("SELECT")]) == 1

    def test_invented_keys_cost_bounded_memory_and_evict_nothing(self, keys: Keys, engine: Engine) -> None:
        new = keys.create("acme")
        keys.find(new.secret_text)
        for number in range(1500):
            assert keys.find(f"sk-{number:012}-{'x' * 43}") is None
        statements: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
        assert keys.find(new.secret_text) == new.key
        assert not statements

    def test_many_threads_find_create_and_revoke_at_once(self, keys: Keys) -> None:
        standing = [keys.create("acme") for _ in range(4)]

        def work(number: int) -> bool:
            new = keys.create("acme", label=str(number))
            seen = [keys.find(one.secret_text) == one.key for one in standing] * 5
            keys.revoke(new.key.public)
            last = keys.find(new.secret_text)
            return all(seen) and last is not None and last.problem == "revoked"

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(24)))
        assert len(keys.list()) == 28


class TestBook:
    def test_list_is_oldest_first_and_by_tenant(self, keys: Keys, clock: Clock) -> None:
        keys.add_tenant("other")
        made: list[str] = []
        for tenant in ("acme", "other", "acme"):
            clock.now += 1
            made.append(keys.create(tenant).key.public)
        assert [key.public for key in keys.list()] == made
        assert [key.public for key in keys.list("acme")] == [made[0], made[2]]
        assert keys.list("nobody") == ()

    def test_unknown_names_are_refused_in_a_sentence(self, keys: Keys) -> None:
        with pytest.raises(UnknownTenant, match="There is no tenant 'acmee'"):
            keys.create("acmee")
        with pytest.raises(UnknownKey, match="There is no key"):
            keys.revoke("A" * 12)
        with pytest.raises(UnknownKey, match="not the public part"):
            keys.revoke("A")
        assert keys.list() == ()

    @pytest.mark.parametrize("text", ["a\x00b", "a\nb", "\ud800", "x" * 201])
    def test_a_label_no_database_could_hold_is_refused(self, keys: Keys, text: str) -> None:
        with pytest.raises(ValueError, match="printable"):
            keys.create("acme", label=text)
        with pytest.raises(ValueError, match="printable"):
            keys.add_tenant("new", name=text)

    def test_a_tenant_is_added_once(self, keys: Keys) -> None:
        assert keys.add_tenant("new", "New & Co.")
        assert not keys.add_tenant("new", "Other")
        for unfit in ("", "Acme", "a b", "-a", "a" * 65, "a/b", "a\x00", "é"):
            with pytest.raises(ValueError, match="tenant's id"):
                keys.add_tenant(unfit)

    def test_the_first_start_makes_one_pair_and_no_later_one_does(self, keys: Keys) -> None:
        first = keys.ensure_first()
        assert first is not None
        assert keys.find(first.model.secret_text) == first.model.key
        assert keys.find(first.admin.secret_text) == first.admin.key
        assert (first.model.key.tenant, first.admin.key.tenant) == ("default", "default")
        assert (first.model.key.admin, first.model.key.may_call("qwen3-vl")) == (False, True)
        assert (first.admin.key.admin, first.admin.key.may_call("qwen3-vl")) == (True, False)
        for key in keys.list():
            keys.revoke(key.public)
        assert keys.ensure_first() is None
        assert len(keys.list()) == 2

    def test_a_database_that_already_has_a_key_gets_no_pair(self, keys: Keys) -> None:
        keys.create("default")
        assert keys.ensure_first() is None
        assert len(keys.list()) == 1


class TestTerms:
    def test_what_is_set_is_kept_and_found(self, keys: Keys, clock: Clock) -> None:
        quotas = Quotas(requests="60/minute;1000/day", tokens_in=5, concurrent=0, budget="0.50/day")
        new = keys.create("acme", models=["b", "a", "b"], endpoints=["files", "models"], limits=quotas, label="x")
        assert keys.find(new.secret_text) == keys.get(new.key.public) == new.key
        assert (new.key.models, new.key.endpoints, new.key.limits) == (("b", "a"), ("files", "models"), quotas)
        assert (new.key.may_call("a"), new.key.may_call("c")) == (True, False)
        assert [new.key.may_use(name) for name in ("files", "generate", None)] == [True, False, False]
        assert keys.create("acme", models=[], endpoints=[]).key.models == ()
        assert keys.create("acme").key.may_use(None)

    def test_a_change_is_seen_here_at_once_and_elsewhere_within_5_s(
        self, keys: Keys, engine: Engine, clock: Clock
    ) -> None:
        other = Keys(engine, clock, ticks=clock)
        new = keys.create("acme", label="old", models=["a"])
        assert other.find(new.secret_text) == keys.find(new.secret_text) == new.key
        changed = keys.change(new.key.public, models=None, endpoints=["generate"], expires_at=clock.ms + 9000)
        assert (changed.label, changed.models, changed.endpoints) == ("old", None, ("generate",))
        assert keys.find(new.secret_text) == changed
        clock.now += 5
        assert other.find(new.secret_text) == changed
        assert keys.change(new.key.public, expires_at=clock.ms).problem == "expired"
        assert keys.change(new.key.public, expires_at=None).usable

    def test_an_admin_key_stays_without_models(self, keys: Keys) -> None:
        for scope in ("models", "endpoints"):
            with pytest.raises(Unfit, match="an admin key calls no models"):
                keys.create("acme", admin=True, **{scope: ["generate"]})
        admin = keys.create("acme", admin=True, models=None).key
        assert admin.models == ()
        assert keys.change(admin.public, models=None, label="x").models == ()
        with pytest.raises(Unfit):
            keys.change(admin.public, models=["qwen3-vl"])
        successor = keys.rotate(admin.public, 60).key
        assert (successor.admin, successor.models, successor.may_call("qwen3-vl")) == (True, (), False)

    @pytest.mark.parametrize(
        ("field", "terms"),
        [
            ("label", {"label": "a\x00b"}),
            ("models[1]", {"models": ["a", ""]}),
            ("models[0]", {"models": ["\ud800"]}),
            ("models[0]", {"models": ["x" * 201]}),
            ("models", {"models": ["a"] * 101}),
            ("endpoints[0]", {"endpoints": ["chat"]}),
            ("endpoints[1]", {"endpoints": ["files", "Files"]}),
            ("expires_at", {"expires_at": 10**30}),
            ("expires_at", {"expires_at": -1}),
        ],
    )
    def test_what_is_unfit_is_refused_by_its_field(self, keys: Keys, field: str, terms: Any) -> None:
        key = keys.create("acme").key
        for wrong in (lambda: keys.create("acme", **terms), lambda: keys.change(key.public, **terms)):
            with pytest.raises(Unfit) as refused:
                wrong()
            assert refused.value.field == field
        assert keys.list() == (key,)

    def test_a_key_is_not_made_to_be_over(self, keys: Keys, clock: Clock) -> None:
        with pytest.raises(Unfit, match="expires_at: must lie in the future"):
            keys.create("acme", expires_at=clock.ms)

    def test_the_list_is_paged_and_stable(self, keys: Keys, clock: Clock) -> None:
        made = [keys.create("acme").key.public for _ in range(3)]
        clock.now += 1
        made = sorted(made) + sorted(keys.create("acme").key.public for _ in range(3))
        pages: list[str] = []
        while page := keys.list("acme", after=pages[-1] if pages else None, limit=2):
            pages += [key.public for key in page]
            keys.add_tenant("other")
            keys.create("other")
        assert pages == made
        for unknown in ("A" * 12, "x", "\x00"):
            with pytest.raises(UnknownKey):
                keys.list(after=unknown)


class TestRotation:
    def test_the_successor_is_like_it_and_the_old_one_works_until_it_retires(self, keys: Keys, clock: Clock) -> None:
        terms: Any = {"label": "laptop", "expires_at": clock.ms + 10**6, "models": ("a",), "endpoints": ("files",)}
        old = keys.create("acme", **terms, limits=Quotas(tokens=5))
        assert keys.find(old.secret_text) == old.key
        new = keys.rotate(old.key.public, 60)
        assert new.secret_text != old.secret_text
        for name in ("tenant", "admin", "limits", *terms):
            assert getattr(new.key, name) == getattr(old.key, name)
        found = keys.find(old.secret_text)
        assert found is not None
        assert (found.problem, found.replaced_by, found.retires_at) == (None, new.key.public, clock.ms + 60_000)
        clock.now += 60
        assert (found := keys.find(old.secret_text)) is not None
        assert found.problem == "replaced"
        assert (found := keys.find(new.secret_text)) is not None
        assert found.usable
        assert keys.rotate(new.key.public, 0).key.label == "laptop"
        assert (found := keys.find(new.secret_text)) is not None
        assert found.problem == "replaced"

    @pytest.mark.parametrize("end", ["revoked", "expired", "replaced", "retired"])
    def test_a_key_that_is_over_has_no_successor(self, keys: Keys, clock: Clock, end: str) -> None:
        key = keys.create("acme", expires_at=clock.ms + 100_000).key
        if end == "revoked":
            keys.revoke(key.public)
        elif end == "expired":
            clock.now += 100
        else:
            keys.rotate(key.public, 60)
            clock.now += 60 if end == "retired" else 0
        count = len(keys.list())
        with pytest.raises(KeyOver, match=end.replace("retired", "replaced")):
            keys.rotate(key.public, 60)
        assert len(keys.list()) == count

    def test_grace_has_bounds(self, keys: Keys) -> None:
        key = keys.create("acme").key
        for grace in (-1, 30 * 86_400 + 1, 10**30):
            with pytest.raises(Unfit, match="grace_seconds: must be between 0 and 2592000"):
                keys.rotate(key.public, grace)
        assert keys.list() == (key,)

    def test_of_many_who_ask_at_once_one_gets_it(self, keys: Keys, engine: Engine, clock: Clock) -> None:
        for _ in range(5):
            old = keys.create("acme").key.public
            desks = [Keys(engine, clock, ticks=clock) for _ in range(8)]

            def ask(desk: Keys, old: str = old) -> str | None:
                try:
                    return desk.rotate(old, 60).key.public
                except KeyOver:
                    return None

            before = {key.public for key in keys.list()}
            with ThreadPoolExecutor(8) as pool:
                got = list(filter(None, pool.map(ask, desks)))
            assert [keys.get(old).replaced_by] == got
            assert {key.public for key in keys.list()} - before == set(got)


class TestEndpoints:
    @pytest.mark.parametrize(
        ("path", "endpoint"),
        [
            ("/v1/chat/completions", "generate"),
            ("/v1/moderations", "moderations"),
            ("/v1/models", "models"),
            ("/v1beta/models/qwen3-vl", "models"),
            ("/v1beta/models/a:b", "models"),
            ("/v1/models/qwen3-vl:generateContent", "generate"),
            ("/v1beta/models/models/a:b:streamGenerateContent", "generate"),
            ("/v1beta/models/qwen3-vl:countTokens", "generate"),
            ("/v1/files", "files"),
            ("/v1beta/files/0123:generateContent", "files"),
            ("/upload/v1beta/files", "files"),
            ("/v1/usage", "usage"),
            ("/v1/limits", "usage"),
            ("/v1/modelsx", None),
            ("/v1", None),
            ("/admin/keys", None),
            ("/metrics", None),
        ],
    )
    def test_a_path_belongs_to_one_or_none(self, path: str, endpoint: str | None) -> None:
        assert endpoint_of(path) == endpoint
        assert endpoint is None or endpoint in ENDPOINTS
