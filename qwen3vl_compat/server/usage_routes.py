"""What was used and spent, and what may be: for a tenant with its own key, for all tenants with an admin key."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from litestar import Request as HttpRequest
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.types import Receive, Scope, Send

from qwen3vl_compat.accounts.export import Form, export, fields
from qwen3vl_compat.accounts.money import format_amount
from qwen3vl_compat.accounts.usage import (
    GROUPS,
    Bucket,
    Open,
    Period,
    Result,
    Selection,
    Spending,
    TooManyResults,
    Usage,
    Whose,
)
from qwen3vl_compat.errors import ApiError, InvalidRequest, NotFound
from qwen3vl_compat.server.answer import Raw, Service, unless_gone
from qwen3vl_compat.server.body import Disconnected
from qwen3vl_compat.server.exchange import Exchange, exchange_of
from qwen3vl_compat.server.usage_query import Page, decode_export, decode_page, refuse_all
from qwen3vl_compat.settings import Quotas, budgets_of

log = logging.getLogger("qwen3vl_compat.usage")

Http = HttpRequest[Any, Any, Any]
MOST_RESULTS = 10_000
FRESH = {"cache-control": "no-store"}
TYPES: Mapping[Form, str] = {"csv": "text/csv; charset=utf-8; header=present", "jsonl": "application/jsonl"}
PERIODS: tuple[Period, ...] = ("day", "month")


@get("/v1/usage")
async def get_usage(request: Http, service: NamedDependency[Service]) -> Response[dict[str, Any]]:
    """Sums of the caller's tenant, by the hour or day."""
    return await _sums(service, exchange_of(request.scope), exchange_of(request.scope).caller.tenant)


@get("/admin/usage")
async def get_all_usage(request: Http, service: NamedDependency[Service]) -> Response[dict[str, Any]]:
    """The same of all tenants, or of one."""
    return await _sums(service, exchange_of(request.scope), None)


@get("/v1/usage/export")
async def export_usage(request: Http, service: NamedDependency[Service]) -> Response[Any]:
    """The ledger's rows of the caller's tenant as a file."""
    return await _export(service, request, exchange_of(request.scope).caller.tenant)


@get("/admin/usage/export")
async def export_all_usage(request: Http, service: NamedDependency[Service]) -> Response[Any]:
    """The same of all tenants, or of one."""
    return await _export(service, request, None)


@get("/v1/limits")
async def get_limits(request: Http, service: NamedDependency[Service]) -> Response[dict[str, Any]]:
    """What the caller's key and tenant may use, and how their budgets stand."""
    exchange = exchange_of(request.scope)
    refuse_all(exchange.query)
    standing = await asyncio.to_thread(service.accounts.usage.standing, exchange.caller.tenant, exchange.caller.key)
    of_key, of_tenant = await service.accounts.terms(exchange.caller)
    return Response(limits_body(of_key, of_tenant, standing, service.settings.ledger.currency), headers=FRESH)


# ---------------------------------------------------------------------------------------------------------------- sums


async def _sums(service: Service, exchange: Exchange, tenant: str | None) -> Response[dict[str, Any]]:
    usage = service.accounts.usage
    page = decode_page(exchange.query, tenant, time.time())

    def read() -> tuple[tuple[Bucket, ...], Open]:
        _check_tenant(usage, page.whole)
        return usage.buckets(page.part, MOST_RESULTS), usage.open(page.whole)

    try:
        buckets, under_way = await asyncio.to_thread(read)
    except TooManyResults:
        fault = f"limit: these buckets have more than {MOST_RESULTS} results; ask for fewer buckets or groups"
        raise InvalidRequest(fault, param="limit") from None
    return Response(_page_body(page, buckets, under_way, service.settings.ledger.currency), headers=FRESH)


def _check_tenant(usage: Usage, selection: Selection) -> None:
    if selection.tenant is not None and not usage.knows(selection.tenant):
        raise NotFound(f"There is no tenant '{selection.tenant}'.", param="tenant")


def _page_body(page: Page, buckets: tuple[Bucket, ...], under_way: Open, currency: str) -> dict[str, Any]:
    data = [
        {
            "object": "bucket",
            "start_time": bucket.start,
            "end_time": bucket.end,
            "results": [_result_body(result, currency) for result in bucket.results],
        }
        for bucket in buckets
    ]
    return {
        "object": "page",
        "data": data,
        "has_more": page.next is not None,
        "next_page": page.next,
        "open_requests": under_way.requests,
        "open_reserved": format_amount(under_way.reserved),
        "currency": currency,
    }


def _result_body(result: Result, currency: str) -> dict[str, Any]:
    sums = fields(result.requests, result.counts, result.cost, currency)
    groups = {name: getattr(result, name) for name in GROUPS}
    return {"object": "usage.result", **sums, **groups}


# -------------------------------------------------------------------------------------------------------------- export


async def _export(service: Service, request: Http, tenant: str | None) -> Response[Any]:
    """A file that is read from the ledger as the client takes it."""
    usage, exchange = service.accounts.usage, exchange_of(request.scope)
    selection, form = decode_export(exchange.query, tenant, time.time())
    await asyncio.to_thread(_check_tenant, usage, selection)
    pieces = _pieces(service, export(usage.rows(selection), form, service.settings.ledger.currency))
    # before the status line: what fails now is still told as an error
    first = await unless_gone(_first(pieces), request.receive)
    name = f"usage-{selection.tenant or 'all'}-{selection.start}-{selection.end}.{form}"
    headers = FRESH | {"content-type": TYPES[form], "content-disposition": f'attachment; filename="{name}"'}

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": encoded})

        async def pump() -> None:
            async with aclosing(pieces):
                await send({"type": "http.response.body", "body": first, "more_body": True})
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await unless_gone(pump(), receive)
        except Disconnected:
            exchange.status = 499
        except ApiError as error:  # without its last chunk, the client's library sees that the file is not whole
            log.warning("export %s was cut off: %s", exchange.id, error.message)

    return Raw(respond)


async def _first(pieces: AsyncGenerator[bytes]) -> bytes:
    return await anext(pieces, b"")


async def _pieces(service: Service, made: Iterator[bytes]) -> AsyncGenerator[bytes]:
    """What is made piece by piece in a thread, within the bounds of any request."""
    deadline = asyncio.get_running_loop().time() + service.settings.server.deadline

    async def in_threads() -> AsyncGenerator[bytes]:
        while piece := await asyncio.to_thread(lambda: next(made, b"")):
            yield piece

    with service.lifecycle.work():
        async with aclosing(service.lifecycle.until(in_threads(), deadline)) as pieces:
            async for piece in pieces:
                yield piece


# -------------------------------------------------------------------------------------------------------------- limits


def limits_body(
    of_key: Quotas, of_tenant: Quotas, standing: Mapping[tuple[Whose, Period], Spending], currency: str
) -> dict[str, Any]:
    """Every limit of a key and its tenant, None where there is none, and where their budgets stand."""
    whose: dict[Whose, Quotas] = {"key": of_key, "tenant": of_tenant}
    bodies = {name: _quotas_body(quotas, _budget_body(name, quotas, standing)) for name, quotas in whose.items()}
    return {"object": "limits", "currency": currency, **bodies}


def _quotas_body(quotas: Quotas, budget: Mapping[Period, Any]) -> dict[str, Any]:
    limits = {name: getattr(quotas, name) for name in Quotas.__struct_fields__ if name != "budget"}
    return limits | {"requests": quotas.requests or None, "budget": budget}


def _budget_body(
    whose: Whose, quotas: Quotas, standing: Mapping[tuple[Whose, Period], Spending]
) -> dict[Period, dict[str, Any]]:
    limits = {period: limit for limit, period in budgets_of(quotas.budget)}
    return {period: _period_body(limits.get(period), standing[whose, period]) for period in PERIODS}


def _period_body(limit: int | None, spending: Spending) -> dict[str, Any]:
    left = None if limit is None else max(0, limit - spending.spent - spending.reserved)
    return {
        "period": spending.period,
        "limit": None if limit is None else format_amount(limit),
        "spent": format_amount(spending.spent),
        "reserved": format_amount(spending.reserved),
        "left": None if left is None else format_amount(left),
    }
