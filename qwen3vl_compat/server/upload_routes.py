"""Google's uploads in parts: one request says what will come and gets an address, others send it there.

The address is the capability: Google's own client sends no key along with the parts. Every answer says in
`x-goog-upload-status` whether the upload goes on; a client that finds none there would try again.
"""

from contextlib import aclosing
from typing import Any
from urllib.parse import unquote

from litestar import HttpMethod, Response, post, route
from litestar import Request as HttpRequest
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec.structs import replace

from qwen3vl_compat.accounts.files import NewUpload
from qwen3vl_compat.errors import ApiError, InvalidRequest
from qwen3vl_compat.server.answer import Service
from qwen3vl_compat.server.body import body_chunks, read_json_body, too_large
from qwen3vl_compat.server.door import UPLOADS
from qwen3vl_compat.server.exchange import Exchange, exchange_of
from qwen3vl_compat.server.file_routes import base_of, bounds_of, files_of, let_pass
from qwen3vl_compat.wire import files as wire

Http = HttpRequest[Any, Any, Any]
STATUS = "x-goog-upload-status"
RECEIVED = "x-goog-upload-size-received"
GRANULARITY = str(256 * 1024)
"""What clients are asked to make parts a multiple of; any other size is taken too."""
START_BYTES = 64 * 1024


@post(["/upload/v1/files", "/upload/v1beta/files"], status_code=200)
async def start_upload(request: Http, service: NamedDependency[Service]) -> Response[Any]:
    """Take note of a file that will come; answers the address it is to be sent to."""
    exchange, files = exchange_of(request.scope), files_of(service)
    headers = exchange.headers
    protocol = headers.get("x-goog-upload-protocol", "").strip().lower()
    if protocol != "resumable":
        raise InvalidRequest("X-Goog-Upload-Protocol: must be resumable", param="X-Goog-Upload-Protocol")
    if _commands(exchange) != {"start"}:
        raise InvalidRequest("X-Goog-Upload-Command: must be start", param="X-Goog-Upload-Command")
    body = b""
    if headers.get("content-length") != "0" and ("content-length" in headers or "transfer-encoding" in headers):
        settings = replace(service.settings.server, max_body=START_BYTES)
        body = await read_json_body(exchange, request.receive, settings)
    new = _announced(exchange, wire.decode_start(body))
    with service.lifecycle.work():
        token = await files.begin(new)
    told = {
        "x-goog-upload-url": f"{base_of(request, service.settings)}{UPLOADS}{token}",
        "x-goog-upload-chunk-granularity": GRANULARITY,
        STATUS: "active",
    }
    return Response({}, headers=told)


def _announced(exchange: Exchange, start: wire.Start) -> NewUpload:
    """What is to come; the size must be told, in the body or in its header."""
    name = "X-Goog-Upload-Header-Content-Length"
    header = exchange.headers.get(name.lower())
    size = start.size_bytes if header is None else wire.whole_number(header, name, 0, 2**53)
    if size is None:
        raise InvalidRequest(f"{name}: must be given", param=name, code="missing_required_parameter")
    if start.size_bytes not in (None, size):
        raise InvalidRequest(f"file.sizeBytes: is not what {name} says", param="file.sizeBytes")
    if size == 0:
        raise InvalidRequest("file: is empty", param="file", code="invalid_file")
    given = start.display_name or unquote(exchange.headers.get("x-goog-upload-file-name", ""), errors="replace")
    declared = start.mime_type or exchange.headers.get("x-goog-upload-header-content-type", "")
    return NewUpload(
        tenant=exchange.caller.tenant,
        key=exchange.caller.key,
        filename=wire.file_name(given, "file.displayName"),
        declared_type=declared[:100],
        size=size,
    )


@route(
    UPLOADS + "{token:str}",
    http_method=[HttpMethod.POST, HttpMethod.PUT],
    status_code=200,
)
async def continue_upload(request: Http, token: FromPath[str], service: NamedDependency[Service]) -> Response[Any]:
    """Take a part, say how much has come, finish or cancel."""
    exchange, files = exchange_of(request.scope), files_of(service)
    exchange.answer_headers[STATUS] = "final"
    row = await files.upload(token)
    exchange.answer_headers |= {STATUS: "active", RECEIVED: str(row.received)}
    commands = _commands(exchange)
    if commands == {"query"}:
        return Response({}, headers=exchange.answer_headers)
    if commands == {"cancel"}:
        await files.give_up(row)
        return Response({}, headers={STATUS: "cancelled"})
    if not commands or not commands <= {"upload", "finalize"}:
        message = "X-Goog-Upload-Command: must be upload, finalize, both, query or cancel"
        raise InvalidRequest(message, param="X-Goog-Upload-Command")
    with service.lifecycle.work():
        return await _received(request, service, token, commands)


async def _received(request: Http, service: Service, token: str, commands: set[str]) -> Response[Any]:
    exchange, files = exchange_of(request.scope), files_of(service)
    async with files.receiving(token) as intake:
        left = intake.row.size - intake.row.received
        async with aclosing(body_chunks(exchange, request.receive, bounds_of(service.settings, left))) as chunks:
            try:
                _check_offset(exchange, intake.row.received, "upload" in commands)
                async for data in chunks:
                    if data and "upload" not in commands:
                        raise too_large(0)
                    await intake.write(data)
                if "finalize" not in commands:
                    await intake.pause()
                    told = {STATUS: "active", RECEIVED: str(intake.received)}
                    return Response({}, headers=told)
                file = await intake.complete("user_data", files.settings.life, exactly=intake.row.size)
            except ApiError:
                if intake.hopeless:
                    exchange.answer_headers = {STATUS: "final"}
                await let_pass(chunks)
                raise
    body = {"file": wire.encode_file(file, base_of(request, service.settings))}
    return Response(body, headers={STATUS: "final"})


def _commands(exchange: Exchange) -> set[str]:
    given = exchange.headers.get("x-goog-upload-command", "")
    return {word.strip().lower() for word in given.split(",") if word.strip()}


def _check_offset(exchange: Exchange, received: int, needed: bool) -> None:
    """Refuse a part that does not begin where the last one ended."""
    name = "X-Goog-Upload-Offset"
    given = exchange.headers.get(name.lower())
    if given is None and not needed:
        return
    if given is None or wire.whole_number(given, name, 0, 2**53) != received:
        raise InvalidRequest(f"{name}: must be {received}, where the last part ended", param=name)
