"""A tenant's own limits: what differs is kept, the rest follows the operator's settings."""

from pathlib import Path

import pytest

from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.keys import Keys, UnknownTenant
from qwen3vl_compat.accounts.limits import TenantLimits
from qwen3vl_compat.settings import MediaSettings, SettingsError


@pytest.fixture
def limits(tmp_path: Path) -> TenantLimits:
    engine = open_database(tmp_path / "state")
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


def test_it_is_kept_in_the_database(limits: TenantLimits, tmp_path: Path) -> None:
    limits.change("acme", {"max_pixels": "1000000"})
    again = TenantLimits(open_database(tmp_path / "state"), MediaSettings())
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


def test_there_must_be_such_a_tenant(limits: TenantLimits) -> None:
    with pytest.raises(UnknownTenant):
        limits.change("nobody", {"max_images": "1"})
