"""Uploaded files: rows and bytes kept in step, whatever ends in between.

A row always comes before its bytes and goes after them, so nothing lies anywhere that no row tells of, save for what
a killed process leaves in the two spools; `sweep` finds that by its being used by nobody.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct
from sqlalchemy import Engine

from qwen3vl_compat.accounts.files import (
    Contents,
    FileRows,
    NewUpload,
    NoSuchUpload,
    Order,
    Quota,
    QuotaExceeded,
    UploadRow,
    hash_of,
)
from qwen3vl_compat.errors import ApiError, InvalidRequest, NotFound, Overloaded
from qwen3vl_compat.media import spool
from qwen3vl_compat.media.sniff import NAMES, kind_of
from qwen3vl_compat.media.spool import Busy, Spool, make_folder
from qwen3vl_compat.media.store import Gone, Store, StoreFailed, make_store
from qwen3vl_compat.messages import FileInfo
from qwen3vl_compat.settings import FileSettings, Settings
from qwen3vl_compat.wire.files import file_id, is_uri

log = logging.getLogger("qwen3vl_compat.files")

MIME_TYPES = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
    "webm": "video/webm",
    "pdf": "application/pdf",
}
ONCE_MS = 60_000
"""An upload in one request is sought after this long; it is in use, and so left alone, until the request ends."""
HEAD = 4096

T = TypeVar("T")


class OpenedFile(Struct, frozen=True):
    """An uploaded file while it is open: where its bytes lie, how many, what they are, their SHA-256 in hexadecimal."""

    path: Path
    size: int
    kind: str
    sha256: str


class Files:
    """All uploaded files of a server."""

    def __init__(self, settings: FileSettings, rows: FileRows, folder: Path) -> None:
        """`folder` takes what comes in, what is read, and the files themselves unless a bucket is set.

        Raises StoreUnusable.
        """
        self.settings, self.rows = settings, rows
        make_folder(folder)
        self.incoming, self._reading = Spool(folder / "incoming"), Spool(folder / "reading")
        self._store: Store = make_store(
            folder, self._reading, settings.store, endpoint=settings.s3_endpoint, region=settings.s3_region
        )
        self._sweeping: asyncio.Task[None] | None = None

    # --------------------------------------------------------------------------------------------------------- uploads

    async def begin(self, new: NewUpload, *, once: bool = False) -> str:
        """Make room for an upload; returns its token. `once`: it all comes in the request that begins it."""
        if new.size > self.settings.max_bytes:
            fault = f"The file is larger than the {self.settings.max_bytes} bytes allowed."
            raise InvalidRequest(fault, status=413, code="request_too_large")
        quota = Quota(self.settings.tenant_bytes, self.settings.tenant_files)
        life = ONCE_MS if once else self.settings.upload_life * 1000

        def make() -> str:
            token = self.rows.begin(new, quota, life)
            try:
                with self.incoming.writing(hash_of(token), new=True):
                    return token
            except OSError:
                self.rows.give_up(hash_of(token))
                raise

        try:
            return await _done(make)
        except QuotaExceeded as error:
            raise InvalidRequest(str(error), code="quota_exceeded") from None

    async def upload(self, token: str) -> UploadRow:
        """The upload under way at an address; NotFound if there is none."""
        try:
            return await asyncio.to_thread(self.rows.upload, token)
        except NoSuchUpload:
            raise _no_upload() from None

    @asynccontextmanager
    async def receiving(self, token: str, *, once: bool = False) -> "AsyncGenerator[Intake]":
        """An upload while some of it comes in. What goes wrong takes that part back, or the whole upload if `once`."""
        row = await self.upload(token)
        manager = self.incoming.writing(row.token_hash)
        try:
            descriptor = await asyncio.to_thread(manager.__enter__)
        except FileNotFoundError:
            raise _no_upload() from None
        except Busy:
            raise ApiError("Another part of this upload is just coming in.", status=409, code="upload_busy") from None
        intake = Intake(self, row, descriptor)
        try:
            # The row may have changed before the file was ours.
            if not once and (await self.upload(token)).received != row.received:
                raise ApiError("Another part of this upload has come in.", status=409, code="upload_busy")
            yield intake
        except OSError as error:
            log.error("an upload could not be written: %s", error)
            raise Overloaded("There is no room for files now.", retry_after=30) from None
        finally:
            # Short, and in this thread: a cancelled request waits for nothing.
            try:
                if not intake.kept and (once or intake.hopeless):
                    self._remove(row.token_hash)
                elif not intake.kept:
                    os.ftruncate(descriptor, row.received)
            finally:
                manager.__exit__(None, None, None)

    async def give_up(self, row: UploadRow) -> None:
        """End an upload, whatever has come of it."""
        await asyncio.to_thread(self._remove, row.token_hash)

    def _remove(self, token_hash: str) -> None:
        self.incoming.remove(token_hash)
        self.rows.give_up(token_hash)

    async def keep(self, upload: UploadRow, contents: Contents) -> FileInfo:
        """Make a file of an upload that has come in whole."""
        try:
            file = await asyncio.to_thread(self.rows.complete, upload, contents)
        except NoSuchUpload:
            raise _no_upload() from None
        try:
            await self._store.put(self.incoming.path(upload.token_hash), _place(upload.tenant, file.id))
        except (StoreFailed, OSError) as error:
            log.error("file %s could not be stored: %s", file.id, error.__cause__ or error)
            await asyncio.to_thread(self.rows.drop, file.id)
            self.incoming.remove(upload.token_hash)
            raise Overloaded("The file could not be stored.", retry_after=30) from None
        if not await asyncio.to_thread(self.rows.show, file.id):
            raise _no_upload()
        return file

    def kind(self, head: bytes) -> str:
        """What a file's first bytes say it is; refuses what is not accepted."""
        kind = kind_of(head)
        if kind is None or kind not in self.settings.types:
            what = NAMES[kind] if kind else "of no known kind" if head else "empty"
            accepted = ", ".join(self.settings.types)
            raise InvalidRequest(f"file: is {what}; accepted are {accepted}", param="file", code="invalid_file")
        return kind

    # ----------------------------------------------------------------------------------------------------------- files

    async def get(self, tenant: str, reference: str) -> FileInfo:
        """A tenant's file by its id or name; NotFound if there is none."""
        found = file_id(reference)
        file = await asyncio.to_thread(self.rows.get, tenant, found) if found else None
        if file is None:
            raise NotFound("there is no such file", param="file", code="file_not_found")
        return file

    async def list(
        self, tenant: str, *, after: str | None, limit: int, order: Order, purpose: str
    ) -> tuple[tuple[FileInfo, ...], bool]:
        """A page of a tenant's files, and whether there are more."""

        def read() -> tuple[tuple[FileInfo, ...], bool]:
            return self.rows.list(tenant, after=after, limit=limit, order=order, purpose=purpose)

        return await asyncio.to_thread(read)

    async def delete(self, tenant: str, reference: str) -> str:
        """Remove a tenant's file; returns its id. NotFound if there is none."""
        file = await self.get(tenant, reference)
        if not await asyncio.to_thread(self.rows.delete, tenant, file.id):
            raise NotFound("there is no such file", param="file", code="file_not_found")
        await self._drop(tenant, file.id)
        return file.id

    def owns(self, url: str) -> bool:
        """Whether a URL is that of an uploaded file, and not to be fetched."""
        return is_uri(url)

    @asynccontextmanager
    async def open(self, tenant: str, reference: str) -> AsyncGenerator[OpenedFile]:
        """A tenant's file by id, name or URI, readable until the end even if it is deleted meanwhile.

        Raises NotFound, or Overloaded where the store does not answer.
        """
        file = await self.get(tenant, reference)
        kind = next(kind for kind, mime_type in MIME_TYPES.items() if mime_type == file.mime_type)
        async with contextlib.AsyncExitStack() as stack:
            try:
                opened = self._store.open_local(_place(tenant, file.id), file.bytes)
                path = await stack.enter_async_context(opened)
            except Gone:
                raise NotFound("there is no such file", code="file_not_found") from None
            except (StoreFailed, OSError) as error:
                log.error("file %s could not be read: %s", file.id, error.__cause__ or error)
                raise Overloaded("The file cannot be read now.", retry_after=30) from None
            yield OpenedFile(path, file.bytes, kind, file.sha256)

    # -------------------------------------------------------------------------------------------------------- sweeping

    async def start(self) -> None:
        """Sweep now and from time to time."""
        self._sweeping = asyncio.create_task(self._sweep_on())

    async def close(self) -> None:
        """Sweep no more."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait({self._sweeping})

    async def _sweep_on(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception:
                log.exception("expired files could not be removed")
            await asyncio.sleep(self.settings.sweep)

    async def sweep(self) -> None:
        """Remove what has expired, and what killed processes have left behind."""
        for row in await asyncio.to_thread(self.rows.expired):
            await self._drop(row.tenant, row.id)
        await asyncio.to_thread(self._sweep_spools)

    def _sweep_spools(self) -> None:
        for token_hash in self.rows.expired_uploads():
            if self.incoming.remove_unused(token_hash):
                self.rows.give_up(token_hash)
        lying = self.incoming.names()
        known = self.rows.known_uploads()  # read later: a row is there before its file
        for name in lying:
            if name not in known:
                self.incoming.remove_unused(name)
        for name in self._reading.names(age=60):
            self._reading.remove_unused(name)

    async def _drop(self, tenant: str, file: str) -> None:
        """Remove the bytes, then the row; where the store fails the next sweep tries again."""
        try:
            await self._store.delete(_place(tenant, file))
        except (Gone, FileNotFoundError):
            pass
        except (StoreFailed, OSError) as error:
            log.error("file %s could not be removed: %s", file, error.__cause__ or error)
            return
        await asyncio.to_thread(self.rows.forget, file)


class Intake:
    """One upload while its bytes come in: gathered, written off the event loop, counted and looked at."""

    def __init__(self, files: Files, row: UploadRow, descriptor: int) -> None:
        self.row = row
        self.kept = self.hopeless = False
        self._files, self._descriptor = files, descriptor
        self._size, self._gathered = row.received, bytearray()
        self._seen = row.received > 0

    async def write(self, data: bytes) -> None:
        """Take some bytes; refuses too many, or a file that is not accepted, and the upload with it."""
        self._gathered += data
        if self.received > self.row.size:
            self.hopeless = True
            fault = f"The file is larger than the {self.row.size} bytes allowed or announced."
            raise InvalidRequest(fault, status=413, code="request_too_large")
        if not self._seen and len(self._gathered) >= HEAD:
            self._look(bytes(self._gathered[:HEAD]))
        if len(self._gathered) >= self._files.settings.part_bytes:
            await self._flush()

    def _look(self, head: bytes) -> str:
        try:
            kind = self._files.kind(head)
        except InvalidRequest:
            self.hopeless = True
            raise
        self._seen = True
        return kind

    async def _flush(self) -> None:
        data = bytes(self._gathered)
        self._gathered.clear()
        self._size += len(data)

        def write() -> None:
            os.lseek(self._descriptor, 0, os.SEEK_END)
            spool.append(self._descriptor, data)

        await asyncio.to_thread(write)

    @property
    def received(self) -> int:
        """Bytes that have come so far, earlier parts included."""
        return self._size + len(self._gathered)

    async def pause(self) -> None:
        """Keep what has come; more will."""
        await self._flush()
        life = self._files.settings.upload_life * 1000
        try:
            await asyncio.to_thread(self._files.rows.receive, self.row, self._size, life)
        except NoSuchUpload:
            raise _no_upload() from None
        self.kept = True

    async def complete(self, purpose: str, life: int, *, exactly: int | None = None) -> FileInfo:
        """All has come: make a file of it, kept for `life` seconds; `exactly` is how many bytes were announced."""
        await self._flush()
        if exactly is not None and self._size != exactly:
            fault = f"{self._size} bytes have come; {exactly} were announced."
            raise InvalidRequest(fault, code="invalid_value")
        kind = self._look(await asyncio.to_thread(os.pread, self._descriptor, HEAD, 0))
        contents = Contents(
            mime_type=MIME_TYPES[kind],
            bytes=self._size,
            sha256=await asyncio.to_thread(spool.digest, self._descriptor),
            purpose=purpose,
            life_ms=life * 1000,
        )
        self.kept = True  # by `keep`, come what may
        return await self._files.keep(self.row, contents)


def make_files(settings: Settings, database: Engine) -> Files | None:
    """The server's files, None if they are turned off. Raises StoreUnusable."""
    folder = Path(settings.server.state_dir).expanduser().absolute() / "files"
    return Files(settings.files, FileRows(database), folder) if settings.files.enabled else None


def _place(tenant: str, file: str) -> str:
    """A file's name in the store; a tenant's id never becomes part of a path."""
    return f"{hashlib.sha256(tenant.encode()).hexdigest()[:32]}/{file}"


def _no_upload() -> NotFound:
    return NotFound("There is no such upload; it may be complete, given up or expired.", code="upload_not_found")


async def _done(make: Callable[[], T], *arguments: Any) -> T:
    """`make` in a thread; a full disk is no fault of the client's."""
    try:
        return await asyncio.to_thread(make, *arguments)
    except OSError as error:
        log.error("a file cannot be written: %s", error)
        raise Overloaded("There is no room for files now.", retry_after=30) from None
