"""The routes of usage and administration as OpenAPI tells them."""

from typing import Any, Literal

from msgspec import Struct

from qwen3vl_compat.accounts.usage import GROUPS
from qwen3vl_compat.server import admin_routes, usage_routes
from qwen3vl_compat.server.admin_bodies import KeyBody, NewKeyBody, NewTenantBody, PriceBody, RotationBody, TenantBody
from qwen3vl_compat.server.openapi.forms import TEXT, closed_forms, one_of, ref, schemas_of
from qwen3vl_compat.server.openapi.operation import FOUND, JSON, Operation, query
from qwen3vl_compat.wire.body import Json


class Shown(Struct, kw_only=True, forbid_unknown_fields=True):
    """An answer that has no field but these."""


class Tenant(Shown):
    """A tenant; `limits`, `media` and `moderation` are where it differs from the settings."""

    object: Literal["tenant"]
    id: str
    name: str
    status: Literal["active", "suspended"]
    created_at: int
    limits: dict[str, Any]
    media: dict[str, Any]
    moderation: dict[str, Any]
    currency: str


class Key(Shown):
    """A key by its public part; `problem` is why it may not be used now."""

    object: Literal["key"]
    id: str
    tenant: str
    label: str
    admin: bool
    status: str
    problem: str | None
    models: list[str] | None
    endpoints: list[str] | None
    limits: dict[str, Any]
    currency: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    replaced_by: str | None
    retires_at: int | None


class NewKey(Key):
    """A key that was made just now; the whole of it is told this once."""

    key: str


class Price(Shown):
    """A price, for a million tokens and for a request, as decimal text."""

    object: Literal["price"]
    id: int
    model: str
    effective_from: int
    text_in: str
    vision_in: str
    cached_in: str
    out: str
    reasoning: str
    per_request: str
    currency: str
    created_at: int


class AuditEntry(Shown):
    """A change; `subject` is what was changed."""

    object: Literal["audit.entry"]
    id: int
    created_at: int
    actor: str
    action: str
    subject: str
    details: dict[str, Any]


class UsageResult(Shown):
    """Sums of one group of a bucket."""

    object: Literal["usage.result"]
    requests: int
    input_tokens: int
    input_text_tokens: int
    input_vision_tokens: int
    input_cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    pictures: int
    cost: str
    currency: str
    tenant: str | None
    key: str | None
    model: str | None
    cache: str | None


class Bucket(Shown):
    """An hour or a day."""

    object: Literal["bucket"]
    start_time: int
    end_time: int
    results: list[UsageResult]


class UsagePage(Shown):
    """Some buckets in a row, and what is under way."""

    object: Literal["page"]
    data: list[Bucket]
    has_more: bool
    next_page: str | None
    open_requests: int
    open_reserved: str
    currency: str


class Standing(Shown):
    """Where a budget stands."""

    period: str
    limit: str | None
    spent: str
    reserved: str
    left: str | None


class Bounds(Shown):
    """What may be used in a time; null is no limit."""

    requests: str | None
    tokens: int | None
    tokens_in: int | None
    tokens_out: int | None
    pictures: int | None
    concurrent: int | None
    budget: dict[Literal["day", "month"], Standing]


class Limits(Shown):
    """Every limit of a key and of its tenant."""

    object: Literal["limits"]
    currency: str
    key: Bounds
    tenant: Bounds


COMPONENTS: dict[str, Json] = {
    **closed_forms(schemas_of(TenantBody, NewTenantBody, KeyBody, NewKeyBody, RotationBody, PriceBody)),
    **schemas_of(Tenant, Key, NewKey, Price, AuditEntry, UsagePage, Limits),
}


def _list(name: str) -> dict[str, Json]:
    """A page of components of that name."""
    kind = COMPONENTS[name]["properties"]["id"]["type"]
    names: dict[str, Json] = {
        "object": one_of("list"),
        "data": {"type": "array", "items": ref(name)},
        "has_more": {"type": "boolean"},
        "first_id": {"type": [kind, "null"]},
        "last_id": {"type": [kind, "null"]},
    }
    return {JSON: {"type": "object", "properties": names, "required": list(names), "additionalProperties": False}}


_MOMENT: Json = {"type": "integer", "minimum": 0}
_PAGE = (query("limit", {"type": "integer", "minimum": 1, "maximum": 1000}), query("after", TEXT))
_SELECTION = (
    query("start_time", _MOMENT, "Seconds since 1970, inside."),
    query("end_time", _MOMENT, "Seconds since 1970, outside."),
    query("key", TEXT),
    query("model", TEXT),
)
_SUMS = (
    *_SELECTION,
    query("bucket_width", one_of("1h", "1d")),
    query("group_by", TEXT, f"One or more of {', '.join(GROUPS)}, with commas."),
    query("limit", {"type": "integer", "minimum": 1, "maximum": 168}),
    query("page", TEXT, "The next_page of the answer before."),
)
_ROWS = (*_SELECTION, query("format", one_of(*usage_routes.TYPES)))
_TENANT = query("tenant", TEXT)
_EXPORTED = {each.partition(";")[0]: TEXT for each in usage_routes.TYPES.values()}
_USAGE, _ADMIN = "Usage", "Administration"
_ROUTES = admin_routes


def _admin(handler: Any, answer: str | dict[str, Json], body: str = "", **more: Any) -> Operation:
    told = {JSON: ref(answer)} if isinstance(answer, str) else answer
    read = {JSON: ref(body)} if body else {}
    return Operation(handler=handler, tag=_ADMIN, answer=told, body=read, **more)


OPERATIONS = (
    Operation(handler=usage_routes.get_usage, tag=_USAGE, parameters=_SUMS, answer={JSON: ref("UsagePage")}),
    Operation(handler=usage_routes.export_usage, tag=_USAGE, parameters=_ROWS, answer=_EXPORTED, more=frozenset({504})),
    Operation(handler=usage_routes.get_limits, tag=_USAGE, answer={JSON: ref("Limits")}),
    _admin(usage_routes.get_all_usage, "UsagePage", parameters=(*_SUMS, _TENANT), more=FOUND),
    _admin(usage_routes.export_all_usage, _EXPORTED, parameters=(*_ROWS, _TENANT), more=FOUND | {504}),
    _admin(_ROUTES.list_tenants, _list("Tenant"), parameters=_PAGE),
    _admin(_ROUTES.create_tenant, "Tenant", "NewTenantBody", more=frozenset({409})),
    _admin(_ROUTES.get_tenant, "Tenant", more=FOUND),
    _admin(_ROUTES.change_tenant, "Tenant", "TenantBody", more=FOUND),
    _admin(_ROUTES.list_keys, _list("Key"), parameters=(*_PAGE, _TENANT), more=FOUND),
    _admin(_ROUTES.create_key, "NewKey", "NewKeyBody", more=FOUND),
    _admin(_ROUTES.get_key, "Key", more=FOUND),
    _admin(_ROUTES.change_key, "Key", "KeyBody", more=FOUND | {409}),
    _admin(_ROUTES.rotate_key, "NewKey", "RotationBody", more=FOUND | {409}),
    _admin(_ROUTES.revoke_key, "Key", more=FOUND),
    _admin(_ROUTES.list_prices, _list("Price"), parameters=_PAGE),
    _admin(_ROUTES.set_price, "Price", "PriceBody"),
    _admin(_ROUTES.list_audit, _list("AuditEntry"), parameters=_PAGE),
)
