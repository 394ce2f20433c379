"""Uploaded files over a real socket: both families' clients, every wrong request, quotas, expiry, and what stays."""

import contextlib
import hashlib
import io
import os
import re
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from google import genai
from google.genai import errors, types

from qwen3vl_compat import cli
from qwen3vl_compat.demo import SAMPLE
from tests.sdks import google_client, openai_client
from tests.serving import Served, serving

PICTURE = SAMPLE.read_bytes()
LARGE = b"%PDF-1.7\n" + b"0123456789abcdef" * (10 * 2**16 + 1)
"""More than one of Google's parts of 8 MiB."""
SETTINGS = {
    "QWEN3VL_MODEL__ENGINE": "scripted",
    "QWEN3VL_FILES__MAX_BYTES": str(12 * 2**20),
    "QWEN3VL_FILES__TENANT_BYTES": str(40 * 2**20),
    "QWEN3VL_FILES__TENANT_FILES": "12",
    "QWEN3VL_FILES__SWEEP": "0.2",
    "QWEN3VL_FILES__TYPES": '["jpeg","png","webp","mp4","webm","pdf"]',
    "QWEN3VL_SERVER__BODY_IDLE": "1",
}
LEAKS = re.compile(r"Errno|Traceback|/[a-z]+/[a-z]+\.py|Exception|python_multipart|sqlalchemy", re.IGNORECASE)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("files")
    config = folder / "q.toml"
    config.write_text(f"[files]\ntypes = {SETTINGS['QWEN3VL_FILES__TYPES']}\n")
    environment = {name: value for name, value in SETTINGS.items() if not name.endswith("__TYPES")}
    with serving(folder, "--config", str(config), environment=environment) as server:
        yield server


@pytest.fixture(scope="module")
def other_key(served: Served) -> str:
    """A key of another tenant."""
    from qwen3vl_compat.accounts.database import open_database
    from qwen3vl_compat.accounts.keys import Keys

    database = open_database(served.state)
    keys = Keys(database)
    keys.add_tenant("other")
    made = keys.create("other").secret_text
    database.dispose()
    return made


@pytest.fixture(autouse=True)
def empty_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test leaves is deleted, and nothing lies on the disk then."""
    if "served" not in request.fixturenames:
        yield
        return
    server: Served = request.getfixturevalue("served")
    yield
    headers = bearer(server)
    for file in httpx.get(server.url + "/v1/files", headers=headers).json()["data"]:
        assert httpx.delete(f"{server.url}/v1/files/{file['id']}", headers=headers).status_code == 200
    with closing(sqlite3.connect(server.state / "qwen3vl.db")) as database:
        for (token_hash,) in database.execute("SELECT token_hash FROM uploads").fetchall():
            database.execute("UPDATE uploads SET expires_at = 0 WHERE token_hash = ?", (token_hash,))
        database.commit()
    assert gone(lambda: lying(server) == [])
    assert "Traceback" not in server.log()


def gone(check: Any, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.05)
    return bool(check())


def lying(server: Served) -> list[str]:
    folder = server.state / "files"
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def bearer(server: Served, key: str | None = None) -> dict[str, str]:
    return {"authorization": f"Bearer {key or server.key}"}


def form(*parts: tuple[str, str | None, bytes], boundary: str = "BoUnDaRy") -> bytes:
    """A form's bytes: (name, filename or None, content)."""
    text = b""
    for name, filename, content in parts:
        text += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        if filename is not None:
            text += f'; filename="{filename}"\r\nContent-Type: image/png'.encode()
        text += b"\r\n\r\n" + content + b"\r\n"
    return text + f"--{boundary}--\r\n".encode()


FORM = {"content-type": "multipart/form-data; boundary=BoUnDaRy"}


def upload(server: Served, content: bytes = PICTURE, key: str | None = None, **fields: str) -> httpx.Response:
    data = {"purpose": "vision"} | fields
    return httpx.post(
        server.url + "/v1/files", headers=bearer(server, key), data=data, files={"file": ("a.png", content)}, timeout=30
    )


def begin(server: Served, size: int = len(PICTURE), key: str | None = None, **headers: str) -> httpx.Response:
    sent = {
        "x-goog-api-key": key or server.key,
        "x-goog-upload-protocol": "resumable",
        "x-goog-upload-command": "start",
        "x-goog-upload-header-content-length": str(size),
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(server.url + "/upload/v1beta/files", headers=sent, json={"file": {"displayName": "Ein Bild"}})


def send(url: str, content: bytes, offset: int | None = 0, command: str = "upload, finalize") -> httpx.Response:
    headers = {"x-goog-upload-command": command} | ({} if offset is None else {"x-goog-upload-offset": str(offset)})
    return httpx.post(url, headers=headers, content=content, timeout=30)


# ------------------------------------------------------------------------------------------------------- the clients


@pytest.mark.filterwarnings("default")
def test_openais_client(served: Served) -> None:
    with openai_client(served) as client:
        _try_openais(client)


def _try_openais(client: openai.OpenAI) -> None:
    began = int(time.time())
    made = [
        client.files.create(file=("Bild ä.png", PICTURE, "image/png"), purpose="vision"),
        client.files.create(file=SAMPLE, purpose="user_data", expires_after={"anchor": "created_at", "seconds": 7200}),
        client.files.create(file=io.BytesIO(LARGE), purpose="user_data"),
    ]
    assert [file.bytes for file in made] == [len(PICTURE), len(PICTURE), len(LARGE)]
    assert (made[0].filename, made[0].purpose, made[0].status, made[0].object) == (
        "Bild ä.png", "vision", "processed", "file",
    )  # fmt: skip
    assert began <= made[0].created_at <= time.time()
    assert [(file.expires_at or 0) - file.created_at for file in made] == [172_800, 7200, 172_800]
    assert client.files.retrieve(made[1].id) == made[1]
    assert [file.id for file in client.files.list()] == [file.id for file in made[::-1]]
    assert [file.id for file in client.files.list(order="asc", limit=2)] == [file.id for file in made]
    assert [file.id for file in client.files.list(purpose="vision")] == [made[0].id]
    assert client.files.list(limit=1, after=made[2].id).data[0].id == made[1].id
    for file in client.files.list(limit=1):
        assert client.files.delete(file.id).deleted
    assert client.files.list().data == []
    with pytest.raises(openai.NotFoundError, match="no such file"):
        client.files.retrieve(made[0].id)
    with pytest.raises(openai.BadRequestError, match="a GIF picture"):
        client.files.create(file=("a.png", b"GIF89a" + bytes(100)), purpose="vision")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_googles_client(served: Served, version: str, tmp_path: Path) -> None:
    with google_client(served, version) as client:
        _try_googles(client, served, tmp_path)


def _try_googles(client: genai.Client, served: Served, tmp_path: Path) -> None:
    path = tmp_path / "Handbuch.pdf"
    path.write_bytes(LARGE)
    large = client.files.upload(file=path)
    small = client.files.upload(
        file=io.BytesIO(PICTURE), config={"mime_type": "image/jpeg", "display_name": "Ein Bild ä"}
    )
    assert (large.mime_type, large.size_bytes, large.display_name) == ("application/pdf", len(LARGE), "Handbuch.pdf")
    assert (small.mime_type, small.size_bytes, small.display_name) == ("image/png", len(PICTURE), "Ein Bild ä")
    assert large.state == types.FileState.ACTIVE
    assert large.expiration_time is not None
    assert large.create_time is not None
    assert (large.expiration_time - large.create_time).total_seconds() == 172_800
    assert large.name is not None
    assert small.name is not None
    assert re.fullmatch(r"files/[0-9a-f]{24}", large.name)
    assert large.uri == f"{served.url}/v1beta/{large.name}"
    assert client.files.get(name=large.name) == large
    assert [file.name for file in client.files.list(config={"page_size": 1})] == [small.name, large.name]
    (kept,) = [name for name in lying(served) if large.name.removeprefix("files/") in name]
    assert (served.state / "files" / kept).read_bytes() == LARGE
    for file in (large, small):
        client.files.delete(name=file.name or "")
    with pytest.raises(errors.ClientError, match="no such file"):
        client.files.get(name=small.name)
    with pytest.raises(errors.ClientError, match="an HTML page"):
        client.files.upload(file=io.BytesIO(b"<html>"), config={"mime_type": "image/png"})
    with pytest.raises(errors.ClientError, match="larger"):
        client.files.upload(file=io.BytesIO(bytes(13 * 2**20)), config={"mime_type": "image/png"})
    with pytest.raises(errors.ClientError, match="names files"):
        client.files.upload(file=io.BytesIO(PICTURE), config={"mime_type": "image/png", "name": "mine"})


def test_both_families_see_one_object(served: Served) -> None:
    file = upload(served).json()
    for path in (f"/v1/files/{file['id']}", f"/v1beta/{file['name']}", f"/v1/{file['name']}"):
        assert httpx.get(served.url + path, headers={"x-goog-api-key": served.key}).json() == file
    digest = hashlib.sha256(PICTURE).hexdigest()
    assert httpx.get(served.url + f"/v1beta/{file['name']}?key={served.key}").json()["sha256Hash"]
    listed = httpx.get(served.url + "/v1/files", headers=bearer(served)).json()
    assert listed["data"] == listed["files"] == [file]
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (file["id"], file["id"], False)
    with closing(sqlite3.connect(served.state / "qwen3vl.db")) as database:
        row = database.execute("SELECT tenant, key, mime_type, sha256, status FROM files").fetchall()
    assert row == [("default", served.key.split("-")[1], "image/png", digest, "ready")]


# --------------------------------------------------------------------------------------------------- wrong requests


@dataclass
class Row:
    """A wrong request and what must come back."""

    name: str
    body: bytes = b""
    status: int = 400
    code: str = "invalid_value"
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    path: str = "/v1/files"
    method: str = "POST"


GOOD = ("file", "a.png", PICTURE)
VISION = ("purpose", None, b"vision")
START = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start",
         "x-goog-upload-header-content-length": "10", "content-type": "application/json"}  # fmt: skip
UP = "/upload/v1beta/files"

ROWS = [
    Row("json", b"{}", 415, "unsupported_media_type", headers={"content-type": "application/json"}),
    Row("no type", b"{}", 415, "unsupported_media_type", headers={"content-type": ""}),
    Row("no boundary", form(VISION, GOOD), code="invalid_form", headers={"content-type": "multipart/form-data"}),
    Row("long boundary", b"", code="invalid_form",
        headers={"content-type": "multipart/form-data; boundary=" + "a" * 100}),
    Row("another boundary", form(VISION, GOOD, boundary="other"), code="invalid_form"),
    Row("empty", b"", code="invalid_form"),
    Row("no form", os.urandom(1000), code="invalid_form"),
    Row("breaks off", form(VISION, GOOD)[:-30], code="invalid_form"),
    Row("breaks off in the file", form(VISION, GOOD)[:300], code="invalid_form"),
    Row("no file", form(VISION), code="missing_required_parameter", param="file"),
    Row("file without name", form(VISION, ("file", None, PICTURE)), param="file"),
    Row("file in another field", form(VISION, ("picture", "a.png", PICTURE)), param="file"),
    Row("two files", form(VISION, GOOD, GOOD), param="file"),
    Row("no purpose", form(GOOD), code="missing_required_parameter", param="purpose"),
    Row("purpose", form(("purpose", None, b"batch"), GOOD), param="purpose"),
    Row("purpose last", form(GOOD, ("purpose", None, b"assistants")), param="purpose"),
    Row("two purposes", form(VISION, VISION, GOOD), param="purpose"),
    Row("a long purpose", form(("purpose", None, b"v" * 10_000), GOOD), param="purpose"),
    Row("purpose not UTF-8", form(("purpose", None, b"\xff"), GOOD), code="invalid_form"),
    Row("NUL in a purpose", form(("purpose", None, b"vision\0"), GOOD), code="invalid_form"),
    Row("NUL in a type", form(VISION, GOOD).replace(b"image/png", b"image/p\0ng"), code="invalid_form"),
    Row("40 fields", form(*[(f"f{n}", None, b"") for n in range(40)], GOOD), code="invalid_form"),
    Row("a part without name", form(("", None, b"x"), GOOD), code="invalid_form"),
    Row("anchor", form(VISION, ("expires_after[anchor]", None, b"now"), GOOD), param="expires_after[anchor]"),
    Row("seconds", form(VISION, ("expires_after[seconds]", None, b"-1"), GOOD), param="expires_after[seconds]"),
    Row("too many seconds", form(VISION, ("expires_after[seconds]", None, b"9999999"), GOOD),
        param="expires_after[seconds]"),
    Row("a long name", form(VISION, ("file", "a" * 600, PICTURE)), param="file"),
    Row("an empty file", form(VISION, ("file", "a.png", b"")), code="invalid_file", param="file"),
    Row("text", form(VISION, ("file", "a.png", b"hello")), code="invalid_file", param="file"),
    Row("gif", form(VISION, ("file", "a.gif", b"GIF89a" + bytes(9000))), code="invalid_file", param="file"),
    Row("html", form(VISION, ("file", "a.png", b"<!doctype html>" + b" " * 9000)), code="invalid_file", param="file"),
    Row("gzip", form(VISION, GOOD), 415, "unsupported_encoding", headers={"content-encoding": "gzip"}),
    Row("get none", method="GET", status=404, code="file_not_found", path="/v1/files/file-" + "0" * 24),
    Row("get nonsense", method="GET", status=404, code="not_found", path="/v1/files/..%2F..%2Fqwen3vl.db"),
    Row("delete none", method="DELETE", status=404, code="file_not_found", path="/v1/files/file-" + "0" * 24),
    Row("get NUL", method="GET", status=404, code="file_not_found", path="/v1/files/file-%00"),
    Row("after NUL", method="GET", path="/v1/files?after=file-%00", param="after"),
    Row("limit", method="GET", path="/v1/files?limit=0", param="limit"),
    Row("limit two", method="GET", path="/v1/files?limit=5&limit=6", param="limit"),
    Row("after", method="GET", path="/v1/files?after=x", param="after"),
    Row("order", method="GET", path="/v1/files?order=up", param="order"),
    Row("purpose of a list", method="GET", path="/v1/files?purpose=%00", param="purpose"),
    Row("put", method="PUT", status=405, code="method_not_allowed"),
    Row("content", method="GET", path="/v1/files/file-" + "0" * 24 + "/content"),
    Row("google content", method="GET", path="/v1beta/files/" + "0" * 24 + ":download?alt=media"),
    Row("google list", method="GET", path="/v1beta/files?pageSize=x", param="pageSize"),
    Row("google token", method="GET", path="/v1/files?pageToken=x", headers={"x-goog-api-client": "x",
        "x-goog-upload-x": ""}, param="pageToken"),
    Row("google get", method="GET", status=404, path="/v1beta/files/abc"),
    Row("google raw", PICTURE, path=UP, headers=START | {"x-goog-upload-protocol": "raw"}),
    Row("google multipart", PICTURE, path=UP, headers=START | {"x-goog-upload-protocol": "multipart"}),
    Row("google no protocol", b"{}", path=UP, headers={"content-type": "application/json"}),
    Row("google command", b"{}", path=UP, headers=START | {"x-goog-upload-command": "upload"}),
    Row("google length", b"{}", path=UP, headers=START | {"x-goog-upload-header-content-length": "ten"}),
    Row("google no length", b"{}", path=UP, headers={name: START[name] for name in START if "length" not in name}),
    Row("google empty", b"{}", path=UP, headers=START | {"x-goog-upload-header-content-length": "0"}),
    Row("google too large", b"{}", 413, path=UP, headers=START | {"x-goog-upload-header-content-length": "99999999"}),
    Row("google two sizes", b'{"file":{"sizeBytes":"11"}}', path=UP, headers=START, param="file.sizeBytes"),
    Row("google size", b'{"file":{"sizeBytes":"x"}}', path=UP, headers=START, param="file.sizeBytes"),
    Row("google negative size", b'{"file":{"sizeBytes":-1}}', path=UP, param="file.sizeBytes",
        headers={name: START[name] for name in START if "length" not in name}),
    Row("google vast size", b'{"file":{"sizeBytes":99999999999999999999}}', path=UP,
        headers={name: START[name] for name in START if "length" not in name}),
    Row("google NUL", b'{"file":{"mimeType":"a\\u0000b"}}', path=UP, headers=START),
    Row("google NUL in a header", b"", path=UP, param="file.displayName",
        headers=START | {"content-length": "0", "x-goog-upload-file-name": "a%00b"}),
    Row("google name", b'{"file":{"name":"files/x"}}', path=UP, headers=START, param="file.name"),
    Row("google display name", b'{"file":{"display_name":5}}', path=UP, headers=START, param="file.displayName"),
    Row("google lines", b'{"file":{"displayName":"a\\nb"}}', path=UP, headers=START, param="file.displayName"),
    Row("google unknown", b'{"file":{"what":1}}', path=UP, headers=START, param="file.what"),
    Row("google list body", b"[]", path=UP, headers=START),
    Row("google no json", b"{", path=UP, headers=START),
    Row("google text", b"{}", 415, path=UP, headers=START | {"content-type": "text/plain"}),
    Row("google get upload", method="GET", status=405, path=UP),
    Row("unknown token", PICTURE, 404, path="/upload/session/" + "A" * 43,
        headers={"x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0"}),
    Row("token path", PICTURE, 404, path="/upload/session/a/b"),
    Row("no token", PICTURE, 404, path="/upload/session/"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_wrong_request_is_told_what_is_wrong(served: Served, row: Row) -> None:
    headers = bearer(served) | FORM | row.headers
    answer = httpx.request(row.method, served.url + row.path, content=row.body, headers=headers, timeout=10)
    assert answer.status_code == row.status, answer.text
    assert not LEAKS.search(answer.text), answer.text
    error = answer.json()["error"]
    if "/v1/files" in row.path and "x-goog-upload-x" not in row.headers:
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["code"], error["param"]) == (row.code, row.param or error["param"])
    else:
        assert set(error) == {"code", "message", "status", "details"}
        if row.param is not None:
            assert [each["field"] for detail in error["details"] for each in detail["fieldViolations"]] == [row.param]


def test_fields_may_come_in_any_order_and_unknown_ones_are_named(served: Served) -> None:
    body = form(("extra", None, b"x"), ("file", "..\\C:\\tmp/Bild.png", PICTURE), VISION)
    answer = httpx.post(served.url + "/v1/files", headers=bearer(served) | FORM, content=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == "Bild.png"
    assert answer.headers["x-ignored-fields"] == "extra"


def test_a_body_without_length_is_taken(served: Served) -> None:
    def pieces() -> Iterator[bytes]:
        body = form(VISION, GOOD)
        for at in range(0, len(body), 7):
            yield body[at : at + 7]

    answer = httpx.post(served.url + "/v1/files", headers=bearer(served) | FORM, content=pieces())
    assert (answer.status_code, answer.json()["bytes"]) == (200, len(PICTURE))


def test_too_large_a_file_is_refused_at_once(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        head = (
            f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.key}\r\nContent-Length: 99999999\r\n"
        )
        connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x")
        assert b" 413 " in connection.recv(65536).split(b"\r\n")[0]

    def endless() -> Iterator[bytes]:
        yield form(VISION, ("file", "a.pdf", b"%PDF-1.7\n"))[:-20]
        while True:
            yield bytes(2**16)

    with contextlib.suppress(httpx.WriteError):
        answer = httpx.post(served.url + "/v1/files", headers=bearer(served) | FORM, content=endless(), timeout=10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


# ------------------------------------------------------------------------------------------------------- in parts


def test_an_upload_in_parts_can_be_asked_about_and_taken_up_again(served: Served) -> None:
    started = begin(served, len(LARGE))
    url = started.headers["x-goog-upload-url"]
    assert (started.status_code, started.json()) == (200, {})
    assert started.headers["x-goog-upload-status"] == "active"
    assert int(started.headers["x-goog-upload-chunk-granularity"]) == 262_144
    assert re.fullmatch(served.url + r"/upload/session/[\w-]{43}", url)
    half = len(LARGE) // 2
    for refused, offset, command in (
        (LARGE[:half], 5, "upload"),
        (LARGE[:half], None, "upload"),
        (LARGE[:half], 0, "upload, finalize"),
        (b"x", 0, "finalize"),
        (b"", 0, "fly"),
        (b"", 0, ""),
    ):
        answer = send(url, refused, offset, command)
        assert answer.status_code in (400, 413), answer.text
        assert answer.headers["x-goog-upload-status"] == "active"
        assert set(answer.json()["error"]) == {"code", "message", "status", "details"}
    assert send(url, LARGE[:half], 0, "upload").headers["x-goog-upload-size-received"] == str(half)
    again = send(url, LARGE[:half], 0, "upload")
    assert (again.status_code, again.headers["x-goog-upload-size-received"]) == (400, str(half))
    asked = send(url, b"", None, "query")
    assert (asked.status_code, asked.headers["x-goog-upload-size-received"]) == (200, str(half))
    assert send(url, LARGE[half:], half, "upload").headers["x-goog-upload-status"] == "active"
    done = send(url, b"", None, "finalize")
    assert (done.status_code, done.headers["x-goog-upload-status"]) == (200, "final")
    file = done.json()["file"]
    assert (file["sizeBytes"], file["displayName"]) == (str(len(LARGE)), "Ein Bild")
    twice = send(url, b"", None, "finalize")
    assert (twice.status_code, twice.headers["x-goog-upload-status"]) == (404, "final")
    assert url.rpartition("/")[2] not in served.log()


def test_an_upload_that_cannot_become_a_file_is_over(served: Served) -> None:
    for content in (b"hello", b"hello" * 2000, b"GIF89a" + bytes(100)):
        url = begin(served, len(content)).headers["x-goog-upload-url"]
        answer = send(url, content)
        assert (answer.status_code, answer.headers["x-goog-upload-status"]) == (400, "final")
        assert send(url, b"", None, "query").status_code == 404
        assert lying(served) == []


def test_more_than_was_announced_is_refused(served: Served) -> None:
    url = begin(served, len(PICTURE)).headers["x-goog-upload-url"]
    answer = send(url, PICTURE + bytes(1))
    assert (answer.status_code, answer.headers["x-goog-upload-status"]) == (413, "active")
    assert send(url, PICTURE).status_code == 200


def test_a_cancelled_upload_is_over(served: Served) -> None:
    url = begin(served).headers["x-goog-upload-url"]
    assert send(url, PICTURE[:50], 0, "upload").status_code == 200
    assert len(lying(served)) == 1
    assert send(url, b"", None, "cancel").headers["x-goog-upload-status"] == "cancelled"
    assert send(url, b"", None, "query").status_code == 404
    assert lying(served) == []


def test_two_parts_at_once_do_not_mix(served: Served) -> None:
    url = begin(served).headers["x-goog-upload-url"]
    with half_sent(url, PICTURE, "upload, finalize") as connection:
        time.sleep(0.2)
        assert send(url, PICTURE).status_code == 409
        connection.sendall(PICTURE[50:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


# ----------------------------------------------------------------------------------------------- slow and gone clients


@contextlib.contextmanager
def half_sent(url: str, body: bytes, command: str = "", key: str = "", **headers: str) -> Iterator[socket.socket]:
    """A connection on which 50 bytes of the body have been sent."""
    host, _, path = url.removeprefix("http://").partition("/")
    lines = {"Host": host, "Content-Length": str(len(body)), "Connection": "close"} | headers
    lines |= {"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": "0"} if command else {}
    lines |= {"Authorization": f"Bearer {key}"} if key else {}
    head = f"POST /{path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    with socket.create_connection(tuple(host.split(":")), timeout=10) as connection:  # type: ignore[arg-type]
        connection.sendall(head.encode() + b"\r\n" + body[:50])
        yield connection


def test_a_slow_body_is_given_up_and_what_came_of_it_too(served: Served) -> None:
    url = begin(served).headers["x-goog-upload-url"]
    body = form(VISION, GOOD)
    with (
        half_sent(url, PICTURE, "upload, finalize") as google,
        half_sent(served.url + "/v1/files", body, key=served.key, **{"Content-Type": FORM["content-type"]}) as ours,
    ):
        ours.sendall(body[50:300])
        assert gone(lambda: len(lying(served)) == 2)
        for connection in (google, ours):
            assert connection.recv(65536).startswith(b"HTTP/1.1 408")
    (name,) = lying(served)
    assert (served.state / "files" / name).stat().st_size == 0
    assert send(url, PICTURE).status_code == 200


def test_a_client_that_hangs_up_leaves_nothing(served: Served) -> None:
    body = form(VISION, ("file", "a.pdf", LARGE))
    content_type = {"Content-Type": FORM["content-type"]}
    with half_sent(served.url + "/v1/files", body, key=served.key, **content_type) as connection:
        connection.sendall(body[50 : 3 * 2**20])
        assert gone(lambda: len(lying(served)) == 1)
    assert gone(lambda: lying(served) == [])
    url = begin(served).headers["x-goog-upload-url"]
    with half_sent(url, PICTURE, "upload, finalize"):
        time.sleep(0.2)
    assert gone(lambda: send(url, b"", None, "query").headers["x-goog-upload-size-received"] == "0")
    assert gone(lambda: send(url, PICTURE).status_code == 200)


# ------------------------------------------------------------------------------------------- tenants, quotas, expiry


def test_another_tenants_file_is_not_there(served: Served, other_key: str) -> None:
    file = upload(served).json()
    for path in (f"/v1/files/{file['id']}", f"/v1beta/{file['name']}"):
        for method in ("GET", "DELETE"):
            assert httpx.request(method, served.url + path, headers=bearer(served, other_key)).status_code == 404
    assert httpx.get(served.url + "/v1/files", headers=bearer(served, other_key)).json()["data"] == []
    mine = upload(served, key=other_key).json()
    listed = httpx.get(served.url + "/v1/files", headers=bearer(served, other_key)).json()["data"]
    assert [one["id"] for one in listed] == [mine["id"]]
    folders = {name.partition("/")[0] for name in lying(served)}
    assert len(folders) == 2
    deleted = httpx.delete(f"{served.url}/v1/files/{mine['id']}", headers=bearer(served, other_key))
    assert deleted.json() == {"id": mine["id"], "object": "file", "deleted": True}


def test_a_quota_counts_uploads_under_way(served: Served, other_key: str) -> None:
    sessions = [begin(served, 12 * 2**20) for _ in range(4)]
    assert [each.status_code for each in sessions] == [200, 200, 200, 400]
    assert upload(served, LARGE).json()["error"]["code"] == "quota_exceeded"
    assert upload(served, LARGE, key=other_key).status_code == 200
    assert upload(served).status_code == 200
    send(sessions[0].headers["x-goog-upload-url"], b"", None, "cancel")
    assert upload(served, LARGE).status_code == 200
    theirs = httpx.get(served.url + "/v1/files", headers=bearer(served, other_key)).json()["data"]
    for file in theirs:
        httpx.delete(f"{served.url}/v1/files/{file['id']}", headers=bearer(served, other_key))


def test_a_quota_counts_files(served: Served) -> None:
    answers = [upload(served) for _ in range(13)]
    assert [answer.status_code for answer in answers] == [200] * 12 + [400]
    assert answers[-1].json()["error"]["code"] == "quota_exceeded"


def test_what_has_expired_is_not_there_and_is_swept(served: Served) -> None:
    file = upload(served, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}).json()
    assert file["expires_at"] - file["created_at"] == 1
    assert len(lying(served)) == 1
    time.sleep(1.1)
    assert httpx.get(f"{served.url}/v1/files/{file['id']}", headers=bearer(served)).status_code == 404
    assert gone(lambda: lying(served) == [])
    (served.state / "files" / "incoming" / "leftover").write_bytes(b"x")
    assert gone(lambda: lying(served) == [])


def test_an_upload_of_a_revoked_key_is_over(served: Served, other_key: str) -> None:
    from qwen3vl_compat.accounts.database import open_database
    from qwen3vl_compat.accounts.keys import Keys

    database = open_database(served.state)
    key = Keys(database).create("other")
    url = begin(served, key=key.secret_text).headers["x-goog-upload-url"]
    Keys(database).revoke(key.key.public)
    assert send(url, PICTURE).status_code == 404
    database.dispose()


def test_files_lie_where_only_the_owner_reads(served: Served) -> None:
    upload(served)
    folder = served.state / "files"
    paths = list(folder.rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (folder, *paths) if path.is_dir()} == {0o700}


def test_files_can_be_turned_off(tmp_path: Path) -> None:
    off = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_FILES__ENABLED": "false"}
    with serving(tmp_path, environment=off) as server:
        for path in ("/v1/files", "/v1beta/files"):
            answer = httpx.get(server.url + path, headers=bearer(server))
            assert (answer.status_code, "turned off" in answer.text) == (404, True)
        assert not (server.state / "files").exists()


def test_a_bucket_that_is_no_url_ends_the_start(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "q.toml"
    config.write_text("[files]\nstore = 'gs://bucket'\n")
    with pytest.raises(SystemExit):
        cli.main(["serve", "--config", str(config), "--state-dir", str(tmp_path / "state")])
    assert "files.store" in capsys.readouterr().err
