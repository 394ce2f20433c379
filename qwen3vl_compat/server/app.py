"""The application: routes, errors in each wire's own form, the door around them."""

import math
from collections.abc import Callable
from typing import Any

from litestar import Litestar, Response
from litestar import Request as HttpRequest
from litestar.di import Provide
from litestar.exceptions import HTTPException, MethodNotAllowedException
from litestar.types import ASGIApp
from sqlalchemy.exc import SQLAlchemyError

from qwen3vl_compat import __version__
from qwen3vl_compat.accounts.books import Accounts
from qwen3vl_compat.accounts.database import is_lost
from qwen3vl_compat.accounts.installation import secret_of
from qwen3vl_compat.engines import Engine
from qwen3vl_compat.errors import ApiError, EngineFailed, InvalidRequest, NotFound
from qwen3vl_compat.media.fetch import Fetcher
from qwen3vl_compat.media.room import Room
from qwen3vl_compat.media.sandbox import Sandbox, SandboxLimits
from qwen3vl_compat.policies import chain
from qwen3vl_compat.policies.bookkeeping import Bookkeeping
from qwen3vl_compat.policies.cache import Cache, Ways
from qwen3vl_compat.policies.caching import Shelf, make_store
from qwen3vl_compat.policies.media import MediaPolicy
from qwen3vl_compat.policies.metering import Metering
from qwen3vl_compat.policies.moderation.policy import Moderators, Terms
from qwen3vl_compat.policies.sources import Fetch, Sources
from qwen3vl_compat.server import (
    admin_routes,
    anthropic_routes,
    file_routes,
    google_routes,
    health,
    model_routes,
    moderation_routes,
    openai_routes,
    response_routes,
    schema_routes,
    upload_routes,
    usage_routes,
)
from qwen3vl_compat.server.answer import Service, encode_whole
from qwen3vl_compat.server.body import Disconnected
from qwen3vl_compat.server.cors import with_origins
from qwen3vl_compat.server.door import OPEN_PATHS, Door, failures, no_database
from qwen3vl_compat.server.exchange import exchange_of
from qwen3vl_compat.server.files import Files
from qwen3vl_compat.server.guard import METRICS, Guard
from qwen3vl_compat.server.moderators import make_moderators
from qwen3vl_compat.server.paths import nothing_at
from qwen3vl_compat.settings import Settings


def make_shelf(settings: Settings, accounts: Accounts) -> Shelf | None:
    """Where answers are kept, if they are; raises SettingsError."""
    store = make_store(settings.cache)
    return None if store is None else Shelf(store, secret_of(accounts.database), settings.cache)


class NoFiles:
    """Where no file can be uploaded."""

    def owns(self, url: str, /) -> bool:
        """None is."""
        return False

    def open(self, tenant: str, reference: str, /) -> Any:
        """There is none."""
        raise NotFound("there is no such file")


Http = HttpRequest[Any, Any, Any]


def build_service(
    settings: Settings,
    engine: Engine,
    accounts: Accounts,
    *,
    fetch: Fetch | None = None,
    files: Files | None = None,
) -> Service:
    """The engine behind the chain of policies; `fetch` replaces what fetches media from URLs. Raises SettingsError."""
    media = settings.media
    service = Service(settings, engine, accounts, files)
    service.sandbox = Sandbox(
        SandboxLimits(
            children=media.children,
            memory=int(media.child_memory * 2**30),
            seconds=media.child_seconds,
            cpu_seconds=math.ceil(media.child_seconds),
            jobs=media.child_jobs,
        )
    )
    fetcher = fetch or Fetcher(media.allow_networks, frozenset(media.ports), media.fetch_seconds)
    sources = Sources(fetcher, files or NoFiles())
    context = max(model.context for model in engine.models())
    room = Room(int(media.memory * 2**30))
    policy = MediaPolicy(engine.vision, context, service.sandbox, room, accounts.media_limits, sources)
    service.prepared = policy.prepared
    service.books = books = Bookkeeping(
        service.ledger, service.limiter, accounts.terms, accounts.price, settings.ledger.currency
    )
    service.moderation = moderation = Moderators(
        settings.moderation,
        make_moderators(settings.moderation, service.note),
        Terms(accounts.moderation, accounts.remembered_moderation),
        books,
        engine.vision,
    )
    metering = Metering(books, engine.count, engine.room, engine.check)
    models = {model.id: model for model in engine.models()}

    def model_of(name: str) -> str:
        return " ".join((__version__, models[name].revision, models[name].digest))

    def greedy(name: str) -> bool:
        return models[name].greedy

    ways = Ways(policy.gathered, moderation, service.room.check, metering, books, model_of, greedy, encode_whole)
    together = bool(settings.cache.redis) and settings.cache.redis == settings.limits.redis
    service.cache = Cache(ways, make_shelf(settings, accounts), together=together)
    service.generate = chain(
        service.room.arrived(engine.generate),
        cache=service.cache,
        moderation=moderation,
        metering=service.room.around(metering),
        bounds=service.lifecycle.bounded,
        idempotency=service.idempotency.once,
    )
    return service


def build_routes(service: Service) -> Litestar:
    """The Litestar application without the door."""

    async def the_service() -> Service:
        return service

    return Litestar(
        route_handlers=[
            openai_routes.chat_completions,
            openai_routes.completions,
            *response_routes.ROUTES,
            google_routes.call_model,
            anthropic_routes.create_message,
            anthropic_routes.count_tokens,
            moderation_routes.moderate,
            model_routes.list_models,
            model_routes.get_model,
            file_routes.create_file,
            file_routes.list_files,
            file_routes.get_file,
            file_routes.get_content,
            file_routes.delete_file,
            upload_routes.start_upload,
            upload_routes.continue_upload,
            *admin_routes.ROUTES,
            usage_routes.get_usage,
            usage_routes.get_all_usage,
            usage_routes.export_usage,
            usage_routes.export_all_usage,
            usage_routes.get_limits,
            health.livez,
            health.readyz,
            health.metrics,
            schema_routes.get_schema,
        ],
        dependencies={"service": Provide(the_service)},
        exception_handlers={
            ApiError: _refuse,
            HTTPException: _refuse_http,
            Disconnected: _gone,
            SQLAlchemyError: _without_database,
            Exception: _fail,
        },
        request_max_body_size=None,
        openapi_config=None,
        logging_config=None,
    )


def build_app(service: Service) -> ASGIApp:
    """The whole application, as a server runs it; raises SettingsError."""
    open_paths = OPEN_PATHS | ({METRICS} if service.settings.server.open_metrics else set[str]())
    guard = Guard(service.settings, service.accounts, service.limiter)
    door = Door(build_routes(service), guard, service.repeats, open_paths)
    return with_origins(door, service.settings.server.cors_origins)


def _encoded(request: Http, error: ApiError, extra: dict[str, str] | None = None) -> Response[bytes]:
    status, headers, body = exchange_of(request.scope).encode(error)
    media_type = headers.pop("content-type")
    return Response(body, status_code=status, headers=headers | (extra or {}), media_type=media_type)


def _refuse(request: Http, error: ApiError) -> Response[bytes]:
    return _encoded(request, error)


def _refuse_http(request: Http, error: HTTPException) -> Response[bytes]:
    """Litestar's own refusals: no such route, no such method, a request it cannot read."""
    kinds: dict[int, Callable[[], ApiError]] = {
        404: lambda: NotFound(nothing_at(exchange_of(request.scope).path, (each.path for each in request.app.routes))),
        405: lambda: InvalidRequest("This path does not take that method.", status=405, code="method_not_allowed"),
    }
    fallback = InvalidRequest("The request cannot be read.", status=error.status_code, code="bad_request")
    if error.status_code >= 500:
        return _fail(request, error)
    allow = {}
    if isinstance(error, MethodNotAllowedException) and error.headers:
        allow = {name: value for name, value in error.headers.items() if name.lower() == "allow"}
    return _encoded(request, kinds.get(error.status_code, lambda: fallback)(), allow)


def _without_database(request: Http, error: SQLAlchemyError) -> Response[bytes]:
    return _encoded(request, no_database()) if is_lost(error) else _fail(request, error)


def _gone(request: Http, error: Disconnected) -> Response[bytes]:
    return Response(b"", status_code=499, media_type="text/plain")


def _fail(request: Http, error: Exception) -> Response[bytes]:
    failures.error("request %s failed", exchange_of(request.scope).id, exc_info=error)
    return _encoded(request, EngineFailed("The server failed on this request."))
