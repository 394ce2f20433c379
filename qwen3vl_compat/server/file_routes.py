"""Uploaded files: OpenAI's way to send one, and the paths under which both families list, show and delete theirs."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

from litestar import Request as HttpRequest
from litestar import Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from qwen3vl_compat.accounts.files import NewUpload
from qwen3vl_compat.errors import ApiError, InvalidRequest, NotFound
from qwen3vl_compat.messages import FileInfo
from qwen3vl_compat.server.answer import Service
from qwen3vl_compat.server.body import Bounds, Disconnected, announced_size, body_chunks
from qwen3vl_compat.server.exchange import Exchange, exchange_of
from qwen3vl_compat.server.files import Files, Intake
from qwen3vl_compat.server.form import OVERHEAD, Form
from qwen3vl_compat.settings import Settings
from qwen3vl_compat.wire import files as wire

Http = HttpRequest[Any, Any, Any]
REST_BYTES, REST_SECONDS = 16 * 2**20, 5.0
"""What is still taken of a body that was refused, so that a client that sends first and reads then sees why."""
EXPIRY = ("expires_after[anchor]", "expires_after[seconds]")


def files_of(service: Service) -> Files:
    """The server's files; NotFound where they are turned off."""
    if service.files is None:
        raise NotFound("Files are turned off on this server.")
    return service.files


def base_of(request: Http, settings: Settings) -> str:
    """Scheme and host by which clients reach this server."""
    host = exchange_of(request.scope).headers["host"]
    return settings.files.public_url.rstrip("/") or f"{request.scope['scheme']}://{host}"


def bounds_of(settings: Settings, most: int) -> Bounds:
    """How a body with a file in it may come."""
    return Bounds(most, settings.server.body_idle, settings.server.body_total, settings.files.slowest)


async def let_pass(chunks: AsyncGenerator[bytes]) -> None:
    """Take the rest of a refused body, within bounds."""
    size = 0
    with contextlib.suppress(TimeoutError, ApiError, Disconnected):
        async with asyncio.timeout(REST_SECONDS):
            async for chunk in chunks:
                size += len(chunk)
                if size > REST_BYTES:
                    return


@get(["/v1/files", "/v1beta/files"])
async def list_files(request: Http, service: NamedDependency[Service]) -> dict[str, Any]:
    """A page of the caller's files."""
    exchange = exchange_of(request.scope)
    page = wire.decode_page(exchange.query, google=exchange.google)
    listed, more = await files_of(service).list(
        exchange.caller.tenant, after=page.after, limit=page.limit, order=page.order, purpose=page.purpose
    )
    return wire.encode_list(listed, more, base_of(request, service.settings))


@get(["/v1/files/{reference:str}", "/v1beta/files/{reference:str}"])
async def get_file(request: Http, reference: FromPath[str], service: NamedDependency[Service]) -> dict[str, Any]:
    """One file with the fields of both families."""
    if reference.endswith(":download"):
        raise _kept_back()
    file = await files_of(service).get(exchange_of(request.scope).caller.tenant, reference)
    return wire.encode_file(file, base_of(request, service.settings))


@get("/v1/files/{reference:str}/content")
async def get_content(request: Http, reference: FromPath[str], service: NamedDependency[Service]) -> dict[str, Any]:
    """Nobody's."""
    files_of(service)
    raise _kept_back()


def _kept_back() -> InvalidRequest:
    return InvalidRequest("The contents of files are not given out again; use the file in a request.")


@delete(["/v1/files/{reference:str}", "/v1beta/files/{reference:str}"], status_code=200)
async def delete_file(request: Http, reference: FromPath[str], service: NamedDependency[Service]) -> dict[str, Any]:
    """Remove a file."""
    return wire.encode_deleted(await files_of(service).delete(exchange_of(request.scope).caller.tenant, reference))


@post("/v1/files", status_code=200)
async def create_file(request: Http, service: NamedDependency[Service]) -> Response[dict[str, Any]]:
    """Take a file out of a multipart form."""
    exchange, files = exchange_of(request.scope), files_of(service)
    form = Form(exchange.headers.get("content-type", ""))
    with service.lifecycle.work():
        most = service.settings.files.max_bytes + OVERHEAD
        async with aclosing(body_chunks(exchange, request.receive, bounds_of(service.settings, most))) as chunks:
            try:
                file = await _received(files, exchange, form, chunks)
            except InvalidRequest:
                await let_pass(chunks)
                raise
    known = {"purpose", *EXPIRY}
    ignored = [name for name in form.fields if name not in known and name.isascii() and name.isprintable()]
    headers = {"x-ignored-fields": ", ".join(name[:80] for name in ignored)} if ignored else {}
    return Response(wire.encode_file(file, base_of(request, service.settings)), headers=headers)


async def _received(files: Files, exchange: Exchange, form: Form, chunks: AsyncGenerator[bytes]) -> FileInfo:
    """Spool the form's file; whatever goes wrong, nothing of it stays."""
    intake: Intake | None = None
    async with AsyncExitStack() as stack:
        async for data in chunks:
            piece = form.feed(data)
            if form.filename is not None and intake is None:
                _check(form.fields, files)
                token = await files.begin(_announced(files, exchange, form), once=True)
                intake = await stack.enter_async_context(files.receiving(token, once=True))
            if intake is not None:
                await intake.write(piece)
        form.finish()
        assert intake is not None
        life = _check(form.fields, files)
        if "purpose" not in form.fields:
            raise InvalidRequest("purpose: must be given", param="purpose", code="missing_required_parameter")
        return await intake.complete(form.fields["purpose"], life)


def _announced(files: Files, exchange: Exchange, form: Form) -> NewUpload:
    body, most = announced_size(exchange), files.settings.max_bytes
    return NewUpload(
        tenant=exchange.caller.tenant,
        key=exchange.caller.key,
        filename=wire.file_name(form.filename or "", "file"),
        declared_type=form.declared_type,
        size=most if body is None else min(body, most),
    )


def _check(fields: Mapping[str, str], files: Files) -> int:
    """Refuse wrong fields, those still to come aside; returns how many seconds the file is kept."""
    purpose = fields.get("purpose", wire.PURPOSES[0])
    if purpose not in wire.PURPOSES:
        raise InvalidRequest(f"purpose: must be {' or '.join(wire.PURPOSES)}", param="purpose")
    anchor, seconds = (fields.get(name) for name in EXPIRY)
    if anchor not in (None, "created_at"):
        raise InvalidRequest(f"{EXPIRY[0]}: must be created_at", param=EXPIRY[0])
    if seconds is None:
        return files.settings.life
    return wire.whole_number(seconds, EXPIRY[1], 1, files.settings.max_life)
