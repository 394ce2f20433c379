"""Rows of uploaded files and of uploads under way. A tenant sees its own; another's is simply not there.

A file's id begins with the moment it was made, so ids sort by age, and a list can go on after one that is gone.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import (
    Connection,
    Delete,
    Engine,
    RowMapping,
    Select,
    Update,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from qwen3vl_compat.accounts.database import writing
from qwen3vl_compat.accounts.tables import files, keys, tenants, uploads
from qwen3vl_compat.messages import FileInfo

STORING_MS = 6 * 3600 * 1000
"""After this long a file still being stored belongs to a process that has died."""
UPLOAD_MS = 24 * 3600 * 1000
"""An upload in parts takes no longer than this, however often some of it comes: its announced size is set apart."""


class QuotaExceeded(Exception):
    """The tenant has no room for one more file of that size; the message is a plain sentence."""


class NoSuchUpload(LookupError):
    """No upload under that token: never begun, over, expired, or its key or tenant may no longer be used."""


class Quota(Struct, frozen=True):
    """What a tenant may keep, uploads under way counted with their announced sizes."""

    bytes: int
    files: int


class NewUpload(Struct, frozen=True, kw_only=True):
    """What is known of an upload when it begins; `size` is the most bytes that may come."""

    tenant: str
    key: str
    filename: str
    declared_type: str
    size: int


class UploadRow(NewUpload, frozen=True, kw_only=True):
    """An upload under way, of which `received` bytes are here."""

    token_hash: str
    received: int
    created_at: int
    expires_at: int


class StoredRow(Struct, frozen=True):
    """A file that is to be removed."""

    id: str
    tenant: str


class Contents(Struct, frozen=True, kw_only=True):
    """What has come of an upload, and how long it is kept (milliseconds)."""

    mime_type: str
    bytes: int
    sha256: str
    purpose: str
    life_ms: int


Order = Literal["asc", "desc"]


class FileRows:
    """The files and uploads of all tenants. Calls are short and synchronous, and may come from any thread."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._engine, self._writer, self._clock = engine, writing(engine), clock

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(self._clock() * 1000)

    # --------------------------------------------------------------------------------------------------------- uploads

    def begin(self, upload: NewUpload, quota: Quota, life_ms: int) -> str:
        """Note an upload and set its size apart; returns the token that is its address. Raises QuotaExceeded."""
        token, now = secrets.token_urlsafe(32), self.now_ms()
        with self._writer.begin() as connection:
            _refuse_beyond(quota, *self._used(connection, upload.tenant, now), upload.size)
            row = {"token_hash": hash_of(token), "created_at": now, "expires_at": now + life_ms}
            values = {name: getattr(upload, name) for name in NewUpload.__struct_fields__}
            connection.execute(insert(uploads).values(**values, **row))
        return token

    def upload(self, token: str) -> UploadRow:
        """The upload under way at that address; raises NoSuchUpload."""
        query = (
            select(uploads)
            .join(tenants, uploads.c.tenant == tenants.c.id)
            .join(keys, uploads.c.key == keys.c.public, isouter=True)
            .where(uploads.c.token_hash == hash_of(token), uploads.c.expires_at > self.now_ms())
            .where(tenants.c.status == "active", or_(keys.c.public.is_(None), keys.c.status == "active"))
            .where(*(or_(end.is_(None), end > self.now_ms()) for end in (keys.c.expires_at, keys.c.retires_at)))
        )
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise NoSuchUpload
        return _upload(row)

    def receive(self, upload: UploadRow, received: int, life_ms: int) -> None:
        """Note how much has come, and wait `life_ms` for more, but not beyond UPLOAD_MS. Raises NoSuchUpload."""
        end = min(self.now_ms() + life_ms, max(upload.expires_at, upload.created_at + UPLOAD_MS))
        values = {"received": received, "expires_at": end}
        if not self._changed(update(uploads).where(uploads.c.token_hash == upload.token_hash).values(**values)):
            raise NoSuchUpload

    def give_up(self, token_hash: str) -> None:
        """Forget an upload; again is no error."""
        self._changed(delete(uploads).where(uploads.c.token_hash == token_hash))

    def complete(self, upload: UploadRow, contents: Contents) -> FileInfo:
        """Turn an upload into a file that is being stored. Raises NoSuchUpload."""
        now = self.now_ms()
        file = FileInfo(
            id=f"file-{now:012x}{secrets.token_hex(6)}",
            filename=upload.filename,
            mime_type=contents.mime_type,
            bytes=contents.bytes,
            sha256=contents.sha256,
            purpose=contents.purpose,
            created_at=now,
            expires_at=now + contents.life_ms,
        )
        values = {name: getattr(file, name) for name in FileInfo.__struct_fields__}
        values |= {"tenant": upload.tenant, "key": upload.key, "declared_type": upload.declared_type}
        with self._writer.begin() as connection:
            gone = connection.execute(delete(uploads).where(uploads.c.token_hash == upload.token_hash))
            if not gone.rowcount:
                raise NoSuchUpload
            connection.execute(insert(files).values(**values, status="storing"))
        return file

    def expired_uploads(self) -> list[str]:
        """Hashes of the tokens of uploads that are over."""
        with self._engine.connect() as connection:
            query = select(uploads.c.token_hash).where(uploads.c.expires_at <= self.now_ms())
            return list(connection.execute(query).scalars())

    def known_uploads(self) -> set[str]:
        """Hashes of the tokens of all uploads under way."""
        with self._engine.connect() as connection:
            return set(connection.execute(select(uploads.c.token_hash)).scalars())

    # ----------------------------------------------------------------------------------------------------------- files

    def show(self, file_id: str) -> bool:
        """The bytes of a file lie in the store now; False if it has been deleted meanwhile."""
        being = (files.c.id == file_id) & (files.c.status == "storing")
        return self._changed(update(files).where(being).values(status="ready"))

    def drop(self, file_id: str) -> None:
        """A file could not be stored: what may lie there of it is to be removed."""
        self._changed(update(files).where(files.c.id == file_id).values(status="deleting"))

    def get(self, tenant: str, file_id: str) -> FileInfo | None:
        """A tenant's file, None if there is none of that id (any more)."""
        with self._engine.connect() as connection:
            row = connection.execute(self._shown(tenant).where(files.c.id == file_id)).mappings().first()
        return None if row is None else _file(row)

    def list(
        self, tenant: str, *, after: str | None = None, limit: int = 100, order: Order = "desc", purpose: str = ""
    ) -> tuple[tuple[FileInfo, ...], bool]:
        """A page of a tenant's files, newest first unless `order` says asc, and whether there are more."""
        query = self._shown(tenant).limit(limit + 1)
        query = query.order_by(files.c.id.desc() if order == "desc" else files.c.id)
        if after is not None:
            query = query.where(files.c.id < after if order == "desc" else files.c.id > after)
        if purpose:
            query = query.where(files.c.purpose == purpose)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return tuple(map(_file, rows[:limit])), len(rows) > limit

    def delete(self, tenant: str, file_id: str) -> bool:
        """Take a tenant's file out of sight; its row stays until `forget`. False if there is none."""
        mine = (files.c.tenant == tenant) & (files.c.id == file_id) & (files.c.status == "ready")
        mine &= files.c.expires_at > self.now_ms()
        return self._changed(update(files).where(mine).values(status="deleting"))

    def expired(self) -> tuple[StoredRow, ...]:
        """Files whose bytes are to be removed, out of sight from now on."""
        now = self.now_ms()
        dead = (files.c.status == "storing") & (files.c.created_at <= now - STORING_MS)
        over = (files.c.status == "ready") & (files.c.expires_at <= now)
        with self._writer.begin() as connection:
            connection.execute(update(files).where(or_(dead, over)).values(status="deleting"))
            query = select(files.c.id, files.c.tenant).where(files.c.status == "deleting").limit(1000)
            return tuple(StoredRow(*row) for row in connection.execute(query))

    def forget(self, file_id: str) -> None:
        """Drop the row of a file whose bytes are gone."""
        self._changed(delete(files).where(files.c.id == file_id))

    def used(self, tenant: str) -> tuple[int, int]:
        """Bytes and files that count against a tenant's quota, uploads under way among them."""
        with self._engine.connect() as connection:
            return self._used(connection, tenant, self.now_ms())

    def _used(self, connection: Connection, tenant: str, now: int) -> tuple[int, int]:
        total: list[int] = [0, 0]
        for query in (
            select(func.coalesce(func.sum(files.c.bytes), 0), func.count()).where(
                files.c.tenant == tenant, files.c.status != "deleting", files.c.expires_at > now
            ),
            select(func.coalesce(func.sum(uploads.c.size), 0), func.count()).where(uploads.c.tenant == tenant),
        ):
            size, count = connection.execute(query).one()
            total = [total[0] + int(size), total[1] + count]
        return total[0], total[1]

    def _shown(self, tenant: str) -> "Select[Any]":
        """A tenant's files that are ready and have not expired."""
        return select(files).where(
            files.c.tenant == tenant, files.c.status == "ready", files.c.expires_at > self.now_ms()
        )

    def _changed(self, statement: Update | Delete) -> bool:
        with self._writer.begin() as connection:
            return bool(connection.execute(statement).rowcount)


def hash_of(token: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def _refuse_beyond(quota: Quota, used_bytes: int, used_files: int, size: int) -> None:
    if used_files + 1 > quota.files:
        raise QuotaExceeded(f"There are {used_files:,} files; at most {quota.files:,} are kept.")
    if used_bytes + size > quota.bytes:
        raise QuotaExceeded(
            f"This upload of up to {size:,} bytes does not fit: {used_bytes:,} of {quota.bytes:,} bytes are in use."
        )


def _upload(row: RowMapping) -> UploadRow:
    return UploadRow(**{name: row[name] for name in UploadRow.__struct_fields__})


def _file(row: RowMapping) -> FileInfo:
    return FileInfo(**{name: row[name] for name in FileInfo.__struct_fields__})
