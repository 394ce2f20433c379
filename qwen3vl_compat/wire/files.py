"""Uploaded files on both wires: one object that holds the fields of OpenAI's and of Google's, and what is asked of it.

OpenAI's id is `file-<digits>`, Google's name `files/<digits>` with the same 24 digits: its clients cut an id at a dash.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import FileInfo
from qwen3vl_compat.wire.body import HARMLESS, HONOURED, Json, Rules, convert, decode_object, refused, sort_fields
from qwen3vl_compat.wire.google_request import camel_case

PURPOSES = ("vision", "user_data")
"""What OpenAI's clients may upload a file for; a file that Google's upload is of the second."""
LONGEST_NAME = 512
"""Characters of a file's name."""

_ID = re.compile(r"(?:files/)?(?:file-)?([0-9a-f]{24})")
_URI = re.compile(r"(?i:https?)://[^/?#\s]+/v1(?:beta)?/files/(?:file-)?([0-9a-f]{24})")
Query = Mapping[str, Sequence[str]]


def file_id(reference: str) -> str | None:
    """The id that a file's id, name or URI stands for; None for anything else."""
    found = _ID.fullmatch(reference) or _URI.fullmatch(reference.strip())
    return f"file-{found[1]}" if found else None


def is_uri(url: str) -> bool:
    """Whether a URL is that of an uploaded file, by its path: the host's name may be any of ours."""
    return _URI.fullmatch(url.strip()) is not None


# ---------------------------------------------------------------------------------------------------------- the objects


def encode_file(file: FileInfo, base: str) -> Json:
    """A file with the fields of both; `base` is the server's scheme and host."""
    digits = file.id.removeprefix("file-")
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at // 1000,
        "expires_at": file.expires_at // 1000,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "name": f"files/{digits}",
        "displayName": file.filename,
        "mimeType": file.mime_type,
        "sizeBytes": str(file.bytes),
        "createTime": _time(file.created_at),
        "updateTime": _time(file.created_at),
        "expirationTime": _time(file.expires_at),
        # Google's own service encodes the hexadecimal digits, not the 32 bytes.
        "sha256Hash": base64.b64encode(file.sha256.encode()).decode(),
        "uri": f"{base}/v1beta/files/{digits}",
        "state": "ACTIVE",
        "source": "UPLOADED",
    }


def encode_list(files: Sequence[FileInfo], more: bool, base: str) -> Json:
    """A page of files with the fields of both."""
    listed = [encode_file(file, base) for file in files]
    return {
        "object": "list",
        "data": listed,
        "has_more": more,
        "first_id": files[0].id if files else None,
        "last_id": files[-1].id if files else None,
        "files": listed,
    } | ({"nextPageToken": files[-1].id} if more else {})


def encode_deleted(file_id: str) -> Json:
    """What a deletion answers; Google's own answer is an empty object."""
    return {"id": file_id, "object": "file", "deleted": True}


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ------------------------------------------------------------------------------------------------------- what is asked


class Page(Struct, frozen=True, kw_only=True):
    """Which files of a tenant's a list is to hold."""

    limit: int
    after: str | None
    order: Literal["asc", "desc"]
    purpose: str


def decode_page(query: Query, *, google: bool) -> Page:
    """OpenAI's `limit`, `after`, `order` and `purpose`, or Google's `pageSize` and `pageToken`."""
    after = _cursor(query, "pageToken" if google else "after")
    if google:
        size = _number(query, "pageSize", 0, 2**31 - 1) or 10
        return Page(limit=min(size, 100), after=after, order="desc", purpose="")
    limit, order = _number(query, "limit", 1, 10_000), single_value(query, "order") or "desc"
    if order not in ("asc", "desc"):
        raise InvalidRequest("order: must be asc or desc", param="order")
    purpose = single_value(query, "purpose") or ""
    if purpose and purpose not in PURPOSES:
        raise InvalidRequest(f"purpose: must be {' or '.join(PURPOSES)}", param="purpose")
    return Page(limit=limit or 10_000, after=after, order=order, purpose=purpose)


def single_value(query: Query, name: str) -> str | None:
    """What a query gives a name, which must not stand in it twice; None if it does not stand there."""
    values = query.get(name, ())
    if len(values) > 1:
        raise InvalidRequest(f"{name}: must be given once", param=name)
    return values[0] if values else None


def _cursor(query: Query, name: str) -> str | None:
    given = single_value(query, name)
    found = file_id(given) if given else None
    if given and found is None:
        raise InvalidRequest(f"{name}: is not the id of a file", param=name)
    return found


def _number(query: Query, name: str, low: int, high: int) -> int | None:
    given = single_value(query, name)
    return None if given is None else whole_number(given, name, low, high)


def whole_number(text: str, name: str, low: int, high: int) -> int:
    """A number written in a query, a form or a header."""
    if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= high:
        raise InvalidRequest(f"{name}: must be a whole number between {low} and {high}", param=name)
    return int(text)


START: Rules = {
    "displayName": HONOURED,
    "sizeBytes": HONOURED,
    "mimeType": HONOURED,
    "name": refused("the server names files", ""),
    **dict.fromkeys(("source", "state", "createTime", "updateTime", "expirationTime", "sha256Hash", "uri"), HARMLESS),
}


class Start(Struct, frozen=True, kw_only=True, rename="camel"):
    """What the first request of an upload in parts says of the file."""

    display_name: str = ""
    mime_type: str = ""
    size_bytes: int | None = None


def decode_start(body: bytes) -> Start:
    """The body of that request, `{"file": {...}}`; both spellings are read, and an empty body says nothing."""
    value = camel_case(decode_object(body), START) if body.strip() else {}
    given = convert(value.pop("file", None) or {}, Json, "file")
    value.pop("config", None)
    if value:
        raise InvalidRequest(f"{min(value)}: there is no such field", param=min(value))
    fields, unknown = sort_fields(given, START, "file", [])
    if unknown:
        raise InvalidRequest(f"file.{unknown[0]}: there is no such field", param=f"file.{unknown[0]}")
    if isinstance(fields.get("sizeBytes"), str):
        fields["sizeBytes"] = whole_number(fields["sizeBytes"], "file.sizeBytes", 0, 2**53)
    start = convert(fields, Start, "file")
    if start.size_bytes is not None and not 0 <= start.size_bytes <= 2**53:
        raise InvalidRequest(f"file.sizeBytes: must be between 0 and {2**53}", param="file.sizeBytes")
    return start


def file_name(given: str, param: str) -> str:
    """The last part of a client's own name of a file, fit to be shown; it never becomes part of a path."""
    name = re.split(r"[/\\]", given)[-1].strip()
    if len(name) > LONGEST_NAME or not name.isprintable():
        fault = f"{param}: must be at most {LONGEST_NAME} printable characters"
        raise InvalidRequest(fault, param=param)
    return name
