"""A tenant's own limits: what differs is kept, the rest follows the operator's settings."""

import pytest
from sqlalchemy import Engine

from qwen3vl_compat.accounts.books import open_accounts
from qwen3vl_compat.accounts.keys import Keys, UnknownTenant
from qwen3vl_compat.accounts.limits import TenantLimits
from qwen3vl_compat.accounts.tenants import Tenants
from qwen3vl_compat.accounts.terms import Unfit
from qwen3vl_compat.settings import (
    LimitSettings,
    MediaSettings,
    ModerationSettings,
    ModeratorSettings,
    Quotas,
    Settings,
)

from .conftest import Clock

USUAL = LimitSettings(requests="100/minute", tokens=1000, budget="1.00/day", ip="5/second")


@pytest.fixture
def tenants(engine: Engine) -> Tenants:
    tenants = Tenants(engine)
    tenants.create("acme")
    return tenants


def media(engine: Engine) -> TenantLimits:
    """As another process sees them, which remembers nothing."""
    return TenantLimits(engine, MediaSettings(max_images=7))


def quotas(engine: Engine) -> Quotas:
    """What the door is told of the tenant acme."""
    keys = Keys(engine, usual=USUAL)
    found = keys.find(keys.create("acme").secret_text)
    assert found is not None
    return found.tenant_limits


def test_a_tenant_differs_where_it_is_said(tenants: Tenants, engine: Engine) -> None:
    assert media(engine).of("acme").max_images == 7
    changed = tenants.reword("acme", {"media.max_videos": "2", "media.types": "png, gif"})
    assert changed.media == {"max_videos": 2, "types": ["png", "gif"]}
    seen = media(engine)
    assert (seen.of("acme").max_images, seen.of("acme").max_videos, seen.of("acme").types) == (7, 2, ("png", "gif"))
    assert seen.of("other").max_videos == 10
    changed = tenants.reword("acme", {"media.max_videos": "", "media.pdf_text": "true"})
    assert changed.media == {"types": ["png", "gif"], "pdf_text": True}
    assert media(engine).of("acme").max_videos == 10
    assert tenants.reword("acme", {"media.types": "", "media.pdf_text": ""}).media == {}
    assert tenants.get("acme").media == {}


def test_quotas_differ_field_by_field_and_can_be_lifted(tenants: Tenants, engine: Engine) -> None:
    assert quotas(engine) == Quotas(requests="100/minute", tokens=1000, budget="1.00/day")
    tenants.reword("acme", {"limits.tokens": "5", "limits.budget": "none", "limits.concurrent": "2"})
    assert quotas(engine) == Quotas(requests="100/minute", tokens=5, concurrent=2)
    tenants.reword("acme", {"limits.tokens": "none", "limits.requests": "none", "limits.budget": ""})
    assert quotas(engine) == Quotas(budget="1.00/day", concurrent=2)
    assert tenants.get("acme").limits == {"tokens": None, "requests": "", "concurrent": 2}
    tenants.change("acme", limits={"tokens": 9})
    assert quotas(engine) == Quotas(requests="100/minute", tokens=9, budget="1.00/day")


def test_one_lookup_holds_the_keys_limits_and_its_tenants(tenants: Tenants, engine: Engine, clock: Clock) -> None:
    keys = Keys(engine, clock, ticks=clock, usual=USUAL)
    new = keys.create("acme", limits=Quotas(tokens=7, budget="0.10/day"))
    found = keys.find(new.secret_text)
    assert found is not None
    assert (found.limits, found.tenant_limits.tokens) == (Quotas(tokens=7, budget="0.10/day"), 1000)
    tenants.reword("acme", {"limits.tokens": "8"})
    keys.change(new.key.public, limits=Quotas())
    clock.now += 5
    found = keys.find(new.secret_text)
    assert found is not None
    assert (found.limits, found.tenant_limits.tokens) == (Quotas(), 8)


def test_a_name_can_be_set_beside_limits(tenants: Tenants) -> None:
    changed = tenants.reword("acme", {"name": "Acme & Co.", "limits.pictures": "3"})
    assert (changed.name, changed.limits) == ("Acme & Co.", {"pictures": 3})
    assert tenants.get("acme") == changed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("media.max_imagez", "1"),
        ("media.max_images", "-1"),
        ("media.max_images", "many"),
        ("media.max_images", "none"),
        ("media.types", "bmp"),
        ("media.children", "9"),
        ("media.fps", "0"),
        ("limits.requests", "60"),
        ("limits.requests", "0/minute"),
        ("limits.requests", "60/minute;30/minute"),
        ("limits.requests", "1/minute;" * 30 + "1/day"),
        ("limits.tokens", "1.5"),
        ("limits.tokens", "-1"),
        ("limits.tokens", "9" * 30),
        ("limits.budget", "5"),
        ("limits.budget", "5.00/week"),
        ("limits.budget", "\u0665.00/day"),
        ("limits.ip", "1/minute"),
        ("limits", "1"),
        ("tokens", "1"),
        ("status", "suspended"),
    ],
)
def test_what_no_limit_is_is_refused_by_its_name(tenants: Tenants, name: str, value: str) -> None:
    with pytest.raises(Unfit) as refused:
        tenants.reword("acme", {"limits.pictures": "1", name: value})
    assert str(refused.value).startswith(f"{name}: ")
    assert tenants.get("acme").limits == {}


def test_there_must_be_such_a_tenant(tenants: Tenants) -> None:
    with pytest.raises(UnknownTenant):
        tenants.reword("nobody", {"media.max_images": "1"})
    with pytest.raises(UnknownTenant):
        tenants.change("nobody", status="suspended")
    with pytest.raises(UnknownTenant):
        tenants.get("no body")


TWO = tuple(ModeratorSettings(kind="words", name=name) for name in ("one", "two"))


async def test_a_tenants_terms_of_moderation_differ_and_are_remembered(engine: Engine) -> None:
    accounts = open_accounts(engine, Settings(moderation=ModerationSettings(on_failure="open", moderators=TWO)))
    accounts.tenants.create("acme")
    accounts.tenants.reword("acme", {"moderation.on_failure": "flag", "moderation.off": "one, two"})
    assert accounts.remembered_moderation("acme") is None
    terms = await accounts.moderation("acme")
    assert (terms.on_failure, terms.off) == ("flag", ("one", "two"))
    assert accounts.remembered_moderation("acme") == terms
    assert (await accounts.moderation("nobody")).on_failure == "open"
    for name, value, said in (
        ("on_failure", "maybe", "cannot be maybe; it must be one of closed, flag, open"),
        ("on_failure", "none", "cannot be None; it must be one of closed, flag, open"),
        ("unknown", "x", "a tenant has no such setting of its own"),
    ):
        with pytest.raises(Unfit, match=f"moderation.{name}: {said}"):
            accounts.tenants.reword("acme", {f"moderation.{name}": value})
    assert accounts.tenants.reword("acme", {"moderation.off": "none"}).moderation == {"on_failure": "flag", "off": []}
    assert accounts.tenants.reword("acme", {"moderation.on_failure": "", "moderation.off": ""}).moderation == {}


def test_only_moderators_that_there_are_can_be_off(engine: Engine) -> None:
    settings = Settings(moderation=ModerationSettings(moderators=TWO))
    tenants = open_accounts(engine, settings).tenants
    refused = "moderation.off: there is no moderator 'three'; there are one, two"
    with pytest.raises(Unfit, match=refused):
        tenants.create("acme", moderation={"off": ["three"]})
    tenants.create("acme", moderation={"off": ["one"]})
    with pytest.raises(Unfit, match=refused):
        tenants.change("acme", moderation={"off": ["one", "three"]})
    with pytest.raises(Unfit, match=refused):
        tenants.reword("acme", {"moderation.off": "three"})
    nobody = open_accounts(engine, Settings()).tenants
    with pytest.raises(Unfit, match="there is no moderator 'two'; there are none"):
        nobody.change("acme", moderation={"off": ["two"]})
    nobody.change("acme", moderation={"off": ["one"], "on_failure": "open"})  # the settings were other ones then
    unsure = open_accounts(engine, Settings(), served=False).tenants
    assert unsure.reword("acme", {"moderation.off": "three"}).moderation["off"] == ["three"]
    with pytest.raises(Unfit, match="there is no moderator 'four'"):
        open_accounts(engine, settings, served=False).tenants.reword("acme", {"moderation.off": "four"})
