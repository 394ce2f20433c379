"""What the admin routes read and write: JSON with times in seconds since 1970 and money as decimal text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

import msgspec
from msgspec import UNSET, Struct, UnsetType

from qwen3vl_compat.accounts import differences
from qwen3vl_compat.accounts.audit import Entry
from qwen3vl_compat.accounts.key import Key
from qwen3vl_compat.accounts.money import Price, format_amount
from qwen3vl_compat.accounts.tables import PRICES
from qwen3vl_compat.accounts.tenants import Tenant, TenantTerms
from qwen3vl_compat.accounts.terms import Terms
from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.settings import Quotas
from qwen3vl_compat.wire.body import Json, convert, decode_object, shown
from qwen3vl_compat.wire.files import whole_number

T = TypeVar("T", bound=Struct)
Item = TypeVar("Item")

# -------------------------------------------------------------------------------------------------------------- asked


class TenantBody(Struct, frozen=True, kw_only=True):
    """What is to be set of a tenant; what is absent stays. `limits`, `media` and `moderation` are set as a whole."""

    name: str | UnsetType = UNSET
    status: Literal["active", "suspended"] | UnsetType = UNSET
    limits: Json | UnsetType = UNSET
    media: Json | UnsetType = UNSET
    moderation: Json | UnsetType = UNSET

    @property
    def terms(self) -> TenantTerms:
        """The same as accounts take it."""
        return cast("TenantTerms", _given(self, TenantTerms.__annotations__))


class NewTenantBody(TenantBody, frozen=True, kw_only=True):
    """A tenant that is to be made."""

    id: str


class KeyBody(Struct, frozen=True, kw_only=True):
    """What is to be set of a key; what is absent stays. `expires_at` is in seconds since 1970."""

    label: str | UnsetType = UNSET
    expires_at: int | UnsetType | None = UNSET
    models: list[str] | UnsetType | None = UNSET
    endpoints: list[str] | UnsetType | None = UNSET
    limits: Json | UnsetType = UNSET

    @property
    def terms(self) -> Terms:
        """The same as accounts take it; raises Unfit."""
        terms = _given(self, Terms.__annotations__)
        if terms.get("expires_at") is not None:
            terms["expires_at"] *= 1000
        if "limits" in terms:
            terms["limits"] = Quotas(**differences.checked("limits", Quotas, terms["limits"]))
        return cast("Terms", terms)


class NewKeyBody(KeyBody, frozen=True, kw_only=True):
    """A key that is to be made."""

    tenant: str
    admin: bool = False


class RotationBody(Struct, frozen=True, kw_only=True):
    """How long a key still works beside its successor."""

    grace_seconds: int


class PriceBody(Struct, frozen=True, kw_only=True):
    """A price that is to hold from a time on, in seconds since 1970; None is now."""

    model: str
    text_in: str
    out: str
    vision_in: str | None = None
    cached_in: str | None = None
    reasoning: str | None = None
    per_request: str | None = None
    effective_from: int | None = None


class Page(Struct, frozen=True):
    """Which part of a list is asked for."""

    limit: int
    after: str | None


def decode(body: bytes, form: type[T]) -> T:
    """Read a body strictly: InvalidRequest for a field that there is not, is missing or has another type."""
    value = decode_object(body)
    fields = {field.encode_name: field for field in msgspec.structs.fields(form)}
    for name in value:
        if name not in fields:
            known = ", ".join(fields)
            raise InvalidRequest(f"{shown(name)}: there is no such field; there are {known}", param=name[:60])
    for name, field in fields.items():
        if field.required and name not in value:
            raise InvalidRequest(f"{name}: must be given", param=name, code="missing_required_parameter")
    return convert(value, form, "")


def decode_page(query: Mapping[str, Sequence[str]]) -> Page:
    """`limit`, 1 to 1000 and 100 if it is not given, and `after`."""
    for name in ("limit", "after"):
        if len(query.get(name, ())) > 1:
            raise InvalidRequest(f"{name}: must be given once", param=name)
    limit, after = (query.get(name, (None,))[0] for name in ("limit", "after"))
    return Page(100 if limit is None else whole_number(limit, "limit", 1, 1000), after)


def _given(body: Struct, names: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(body, name)) is not UNSET}


# ----------------------------------------------------------------------------------------------------------- answered


def encode_list(found: Sequence[Item], limit: int, encode: Callable[[Item], Json]) -> Json:
    """A page of `limit` items, of which one more was looked for."""
    listed = [encode(item) for item in found[:limit]]
    return {
        "object": "list",
        "data": listed,
        "has_more": len(found) > limit,
        "first_id": listed[0]["id"] if listed else None,
        "last_id": listed[-1]["id"] if listed else None,
    }


def encode_tenant(tenant: Tenant, currency: str) -> Json:
    """A tenant; `limits`, `media` and `moderation` are where it differs from the settings."""
    return {
        "object": "tenant",
        "id": tenant.id,
        "name": tenant.name,
        "status": tenant.status,
        "created_at": tenant.created_at // 1000,
        "limits": tenant.limits,
        "media": tenant.media,
        "moderation": tenant.moderation,
        "currency": currency,
    }


def encode_key(key: Key, currency: str) -> Json:
    """A key by its public part; `problem` is why it may not be used now."""
    return {
        "object": "key",
        "id": key.public,
        "tenant": key.tenant,
        "label": key.label,
        "admin": key.admin,
        "status": key.status,
        "problem": key.problem,
        "models": key.models,
        "endpoints": key.endpoints,
        "limits": msgspec.to_builtins(key.limits),
        "currency": currency,
        "created_at": key.created_at // 1000,
        "expires_at": _seconds(key.expires_at),
        "revoked_at": _seconds(key.revoked_at),
        "replaced_by": key.replaced_by,
        "retires_at": _seconds(key.retires_at),
    }


def encode_price(price: Price, currency: str) -> Json:
    """A price, for a million tokens and for a request."""
    return {
        "object": "price",
        "id": price.id,
        "model": price.model,
        "effective_from": price.effective_from // 1000,
        **{name: format_amount(getattr(price, name)) for name in PRICES},
        "currency": currency,
        "created_at": price.created_at // 1000,
    }


def encode_entry(entry: Entry) -> Json:
    """A row of the audit; `subject` is what was changed."""
    return {
        "object": "audit.entry",
        "id": entry.id,
        "created_at": entry.at // 1000,
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.object,
        "details": entry.details,
    }


def _seconds(milliseconds: int | None) -> int | None:
    return None if milliseconds is None else milliseconds // 1000
