"""The routes of uploaded files as OpenAPI tells them: both families' ways to send one, and one object for both."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from qwen3vl_compat.server import file_routes, upload_routes
from qwen3vl_compat.server.openapi.forms import OBJECT, TEXT, Kind, forms_of, one_of, ref, schemas_of
from qwen3vl_compat.server.openapi.operation import (
    BYTES,
    FORM,
    FOUND,
    JSON,
    Operation,
    header,
    query,
)
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.files import PURPOSES, START, Start


class Listed(Struct, kw_only=True, forbid_unknown_fields=True):
    """An answer that has no field but these."""


class File(Listed):
    """A file with the fields of both families."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"]
    name: str
    display_name: str = field(name="displayName")
    mime_type: str = field(name="mimeType")
    size_bytes: str = field(name="sizeBytes")
    create_time: str = field(name="createTime")
    update_time: str = field(name="updateTime")
    expiration_time: str = field(name="expirationTime")
    sha256_hash: str = field(name="sha256Hash")
    uri: str
    state: Literal["ACTIVE"]
    source: Literal["UPLOADED"]


class FileList(Listed):
    """A page of files."""

    object: Literal["list"]
    data: list[File]
    files: list[File]
    has_more: bool
    first_id: str | None
    last_id: str | None
    next_page_token: str | UnsetType = field(name="nextPageToken", default=UNSET)


class DeletedFile(Listed):
    """That a file is gone."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class UploadedFile(Listed):
    """A file that has come whole."""

    file: File


COMPONENTS: dict[str, Json] = {
    **schemas_of(FileList, DeletedFile, UploadedFile),
    **forms_of("Upload", {"file": START}, {"file": Kind(Start)}, closed=True),
}

_COUNT: Json = {"type": "integer", "minimum": 1, "maximum": 10_000}
_FORM: Json = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "contentMediaType": BYTES},
        "purpose": one_of(*PURPOSES),
        file_routes.EXPIRY[0]: one_of("created_at"),
        file_routes.EXPIRY[1]: {"type": "integer", "minimum": 1},
    },
    "required": ["file", "purpose"],
}
_PAGE = (
    query("limit", _COUNT, "OpenAI's."),
    query("after", TEXT, "OpenAI's."),
    query("order", one_of("asc", "desc"), "OpenAI's."),
    query("purpose", one_of(*PURPOSES), "OpenAI's."),
    query("pageSize", {"type": "integer", "minimum": 0}, "Google's, as under /v1beta."),
    query("pageToken", TEXT, "Google's, as under /v1beta."),
)
_START = (
    header("X-Goog-Upload-Protocol", one_of("resumable"), required=True),
    header("X-Goog-Upload-Command", one_of("start"), required=True),
    header("X-Goog-Upload-Header-Content-Length", {"type": "integer", "minimum": 1}, "If the body does not say it."),
    header("X-Goog-Upload-Header-Content-Type", TEXT),
    header("X-Goog-Upload-File-Name", TEXT),
)
_CONTINUE = (
    header("X-Goog-Upload-Command", one_of("upload", "finalize", "upload, finalize", "query", "cancel"), required=True),
    header("X-Goog-Upload-Offset", {"type": "integer", "minimum": 0}, "Where the last part ended."),
)
_ANNOUNCED: Json = {"type": "object", "properties": {"file": ref("Upload.file")}, "additionalProperties": False}
_TAG = "Files"

OPERATIONS = (
    Operation(
        handler=file_routes.create_file, tag=_TAG, body={FORM: _FORM}, answer={JSON: ref("File")}, more=FOUND
    ),
    Operation(handler=file_routes.list_files, tag=_TAG, parameters=_PAGE, answer={JSON: ref("FileList")}, more=FOUND),
    Operation(handler=file_routes.get_file, tag=_TAG, answer={JSON: ref("File")}, more=FOUND),
    Operation(handler=file_routes.get_content, tag=_TAG, answer={}, more=FOUND),
    Operation(handler=file_routes.delete_file, tag=_TAG, answer={JSON: ref("DeletedFile")}, more=FOUND),
    Operation(
        handler=upload_routes.start_upload, tag=_TAG, parameters=_START, optional=True, more=FOUND,
        body={JSON: _ANNOUNCED}, answer={JSON: OBJECT},
    ),
    Operation(
        handler=upload_routes.continue_upload, tag=_TAG, parameters=_CONTINUE, optional=True, more=FOUND | {409},
        body={BYTES: {}}, answer={JSON: {"anyOf": [ref("UploadedFile"), {"type": "object", "maxProperties": 0}]}},
    ),
)  # fmt: skip
