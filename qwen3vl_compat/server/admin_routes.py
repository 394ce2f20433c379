"""Administration: tenants, keys, prices and the audit, for admin keys only (the door sees to that)."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from litestar import Request as HttpRequest
from litestar import get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from qwen3vl_compat.accounts.keys import KeyOver, UnknownKey, UnknownTenant
from qwen3vl_compat.accounts.prices import Amounts
from qwen3vl_compat.accounts.tenants import TenantExists, is_id
from qwen3vl_compat.accounts.terms import Unfit
from qwen3vl_compat.errors import InvalidRequest, NotFound
from qwen3vl_compat.server import admin_bodies as bodies
from qwen3vl_compat.server.answer import Service
from qwen3vl_compat.server.body import read_json_body
from qwen3vl_compat.server.exchange import exchange_of
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.files import whole_number

T = TypeVar("T")
B = TypeVar("B", bound=msgspec.Struct)
Http = HttpRequest[Any, Any, Any]


async def done(work: Callable[[], T]) -> T:
    """Do a short piece of work on the database; what accounts refuse becomes what a client is told."""
    try:
        return await asyncio.to_thread(work)
    except Unfit as error:
        raise InvalidRequest(str(error), param=error.field) from None
    except (UnknownKey, UnknownTenant) as error:
        raise NotFound(str(error)) from None
    except TenantExists as error:
        raise InvalidRequest(str(error), status=409, code="already_exists", param="id") from None
    except KeyOver as error:
        raise InvalidRequest(str(error), status=409, code="key_is_over") from None


async def _body(request: Http, service: Service, form: type[B]) -> B:
    body = await read_json_body(exchange_of(request.scope), request.receive, service.settings.server)
    return await asyncio.to_thread(bodies.decode, body, form)


def _actor(request: Http) -> str:
    return exchange_of(request.scope).caller.key


def _page(request: Http) -> bodies.Page:
    return bodies.decode_page(exchange_of(request.scope).query)


def _number(page: bodies.Page) -> int | None:
    """A page's `after` where ids are numbers (INTEGER columns, of 32 bits in PostgreSQL)."""
    return None if page.after is None else whole_number(page.after, "after", 0, 2**31 - 1)


# ------------------------------------------------------------------------------------------------------------ tenants


@get("/admin/tenants")
async def list_tenants(request: Http, service: NamedDependency[Service]) -> Json:
    """A page of the tenants, by their ids."""
    page, tenants = _page(request), service.accounts.tenants
    if page.after is not None and not is_id(page.after):
        raise InvalidRequest("after: is not the id of a tenant", param="after")
    found = await done(lambda: tenants.list(after=page.after or "", limit=page.limit + 1))
    return bodies.encode_list(found, page.limit, lambda tenant: bodies.encode_tenant(tenant, _currency(service)))


@post("/admin/tenants", status_code=200)
async def create_tenant(request: Http, service: NamedDependency[Service]) -> Json:
    """Make a tenant; its keys are made by themselves."""
    asked, tenants = await _body(request, service, bodies.NewTenantBody), service.accounts.tenants
    made = await done(lambda: tenants.create(asked.id, actor=_actor(request), **asked.terms))
    return bodies.encode_tenant(made, _currency(service))


@get("/admin/tenants/{tenant:str}")
async def get_tenant(tenant: FromPath[str], service: NamedDependency[Service]) -> Json:
    """One tenant."""
    tenants = service.accounts.tenants
    return bodies.encode_tenant(await done(lambda: tenants.get(tenant)), _currency(service))


@patch("/admin/tenants/{tenant:str}")
async def change_tenant(request: Http, tenant: FromPath[str], service: NamedDependency[Service]) -> Json:
    """Rename, suspend or activate a tenant, or set its limits."""
    asked, tenants = await _body(request, service, bodies.TenantBody), service.accounts.tenants
    changed = await done(lambda: tenants.change(tenant, actor=_actor(request), **asked.terms))
    return bodies.encode_tenant(changed, _currency(service))


# --------------------------------------------------------------------------------------------------------------- keys


@get("/admin/keys")
async def list_keys(request: Http, service: NamedDependency[Service]) -> Json:
    """A page of all keys, or of one `tenant`'s, oldest first."""
    page, keys = _page(request), service.accounts.keys
    named = exchange_of(request.scope).query.get("tenant", [])
    if len(named) > 1:
        raise InvalidRequest("tenant: must be given once", param="tenant")
    try:
        found = await done(lambda: keys.list(*named, after=page.after, limit=page.limit + 1))
    except NotFound:
        raise InvalidRequest("after: is not the id of a key", param="after") from None
    return bodies.encode_list(found, page.limit, lambda key: bodies.encode_key(key, _currency(service)))


@post("/admin/keys", status_code=200)
async def create_key(request: Http, service: NamedDependency[Service]) -> Json:
    """Make a key; the answer holds the whole of it in `key`, this once."""
    asked, keys = await _body(request, service, bodies.NewKeyBody), service.accounts.keys
    new = await done(lambda: keys.create(asked.tenant, admin=asked.admin, actor=_actor(request), **asked.terms))
    return bodies.encode_key(new.key, _currency(service)) | {"key": new.secret_text}


@get("/admin/keys/{key:str}")
async def get_key(key: FromPath[str], service: NamedDependency[Service]) -> Json:
    """One key, by its public part."""
    keys = service.accounts.keys
    return bodies.encode_key(await done(lambda: keys.get(key)), _currency(service))


@patch("/admin/keys/{key:str}")
async def change_key(request: Http, key: FromPath[str], service: NamedDependency[Service]) -> Json:
    """Set a key's label, expiry, scopes or limits."""
    asked, keys = await _body(request, service, bodies.KeyBody), service.accounts.keys
    changed = await done(lambda: keys.change(key, actor=_actor(request), **asked.terms))
    return bodies.encode_key(changed, _currency(service))


@post("/admin/keys/{key:str}/rotate", status_code=200)
async def rotate_key(request: Http, key: FromPath[str], service: NamedDependency[Service]) -> Json:
    """Make a key's successor; the answer holds the whole of it in `key`, this once."""
    asked, keys = await _body(request, service, bodies.RotationBody), service.accounts.keys
    new = await done(lambda: keys.rotate(key, asked.grace_seconds, actor=_actor(request)))
    return bodies.encode_key(new.key, _currency(service)) | {"key": new.secret_text}


@post("/admin/keys/{key:str}/revoke", status_code=200)
async def revoke_key(request: Http, key: FromPath[str], service: NamedDependency[Service]) -> Json:
    """End a key for good."""
    keys = service.accounts.keys
    revoked = await done(lambda: keys.revoke(key, actor=_actor(request)))
    return bodies.encode_key(revoked, _currency(service))


# -------------------------------------------------------------------------------------------------- prices and audit


@get("/admin/prices")
async def list_prices(request: Http, service: NamedDependency[Service]) -> Json:
    """A page of the prices, the last set first."""
    page, prices = _page(request), service.accounts.prices
    after = _number(page)
    found = await done(lambda: prices.list(after=after, limit=page.limit + 1))
    return bodies.encode_list(found, page.limit, lambda price: bodies.encode_price(price, _currency(service)))


@post("/admin/prices", status_code=200)
async def set_price(request: Http, service: NamedDependency[Service]) -> Json:
    """Add a price."""
    asked, prices = await _body(request, service, bodies.PriceBody), service.accounts.prices
    start = None if asked.effective_from is None else asked.effective_from * 1000
    amounts = Amounts(**{name: getattr(asked, name) for name in Amounts.__annotations__})
    price = await done(lambda: prices.set(asked.model, start, actor=_actor(request), **amounts))
    return bodies.encode_price(price, _currency(service))


@get("/admin/audit")
async def list_audit(request: Http, service: NamedDependency[Service]) -> Json:
    """A page of what was changed, the newest first."""
    page, audit = _page(request), service.accounts.audit
    after = _number(page)
    found = await done(lambda: audit.list(after=after, limit=page.limit + 1))
    return bodies.encode_list(found, page.limit, bodies.encode_entry)


def _currency(service: Service) -> str:
    return service.settings.ledger.currency


ROUTES = (
    list_tenants, create_tenant, get_tenant, change_tenant,
    list_keys, create_key, get_key, change_key, rotate_key, revoke_key,
    list_prices, set_price, list_audit,
)  # fmt: skip
