"""A tenant's own limits: what differs is kept, the rest follows the operator's settings."""

import pytest
from sqlalchemy import Engine

from qwen3vl_compat.accounts.keys import Keys, UnknownTenant
from qwen3vl_compat.accounts.limits import TenantLimits
from qwen3vl_compat.settings import MediaSettings, SettingsError


@pytest.fixture
def limits(engine: Engine) -> TenantLimits:
    Keys(engine).add_tenant("acme")
    return TenantLimits(engine, MediaSettings(max_images=7))


def test_a_tenant_differs_where_it_is_said(limits: TenantLimits) -> None:
    assert limits.of("acme").max_images == 7
    assert limits.change("acme", {"max_videos": "2", "types": "png, gif"}) == {"max_videos": 2, "types": ["png", "gif"]}
    assert (limits.of("acme").max_images, limits.of("acme").max_videos) == (7, 2)
    assert limits.of("acme").types == ("png", "gif")
    assert limits.of("other").max_videos == 10
    assert limits.change("acme", {"max_videos": "", "pdf_text": "true"}) == {"types": ["png", "gif"], "pdf_text": True}
    assert limits.of("acme").max_videos == 10
    assert limits.change("acme", {"types": "", "pdf_text": ""}) == {}


def test_it_is_kept_in_the_database(limits: TenantLimits, engine: Engine) -> None:
    limits.change("acme", {"max_pixels": "1000000"})
    again = TenantLimits(engine, MediaSettings())
    assert again.of("acme").max_pixels == 1_000_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_imagez", "1"),
        ("max_images", "-1"),
        ("max_images", "many"),
        ("types", "bmp"),
        ("children", "9"),
        ("fps", "0"),
    ],
)
def test_what_no_limit_is_is_refused(limits: TenantLimits, name: str, value: str) -> None:
    with pytest.raises(SettingsError):
        limits.change("acme", {name: value})
    assert limits.changes("acme") == {}


@pytest.mark.parametrize("tenant", ["nobody", "", "acme\0", "\ud800"])
def test_there_must_be_such_a_tenant(limits: TenantLimits, tenant: str) -> None:
    with pytest.raises(UnknownTenant, match="There is no tenant"):
        limits.change(tenant, {"max_images": "1"})
