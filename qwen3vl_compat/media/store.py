"""Where uploaded files lie once they are complete: a folder of this machine, or a bucket that speaks S3.

A name is `<folder>/<id>`, both ours. obstore, which speaks S3, is loaded only when a bucket is set.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from qwen3vl_compat.media.spool import Spool, make_folder

PART = 8 * 2**20
"""Bytes of a part when a large file is sent to a bucket or fetched from it."""


RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}


class StoreUnusable(ValueError):
    """The store cannot be used as it is set; the message is one sentence for the operator."""


class StoreFailed(Exception):
    """The store does not answer as it should; the cause is for the log."""


class Gone(LookupError):
    """There is nothing of that name."""


class Store(Protocol):
    """Keeps files by name."""

    async def put(self, path: Path, name: str, /) -> None:
        """Take the file at `path`, which is gone then; the same name again replaces it. Raises StoreFailed."""
        ...

    def open_local(self, name: str, most: int, /) -> AbstractAsyncContextManager[Path]:
        """The file as one of this machine, of at most `most` bytes, while it is read. Raises Gone or StoreFailed."""
        ...

    async def delete(self, name: str, /) -> None:
        """Remove it; again is no error. Raises StoreFailed."""
        ...


class LocalStore:
    """A folder of this machine, on the same file system as where uploads come in."""

    def __init__(self, folder: Path, reading: Spool) -> None:
        """`reading` takes the second names of files while they are read: deleting one harms no reader."""
        self._folder, self._reading = make_folder(folder), reading

    async def put(self, path: Path, name: str) -> None:
        """Move it here."""

        def move() -> None:
            make_folder((self._folder / name).parent)
            path.rename(self._folder / name)

        await asyncio.to_thread(move)

    @asynccontextmanager
    async def open_local(self, name: str, most: int) -> AsyncGenerator[Path]:
        """Another name of the file itself."""
        try:
            async with _in_thread(lambda: self._reading.reading(self._folder / name)) as path:
                if path.stat().st_size > most:
                    raise Gone(name)
                yield path
        except FileNotFoundError:
            raise Gone(name) from None

    async def delete(self, name: str) -> None:
        """Unlink it; a folder is left for the next file."""
        await asyncio.to_thread((self._folder / name).unlink, missing_ok=True)


class S3Store:
    """A bucket; credentials come from the usual AWS_* variables or the machine's own role."""

    def __init__(self, url: str, reading: Spool, *, endpoint: str = "", region: str = "") -> None:
        """`url` is s3://bucket/prefix. Raises StoreUnusable if obstore is missing or refuses the settings."""
        try:
            from obstore.exceptions import BaseError
            from obstore.store import S3Store as Bucket
        except ImportError:
            raise StoreUnusable("files.store needs obstore: install qwen3vl-compat[s3].") from None
        self._reading = reading
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        given: dict[str, Any] = {"prefix": prefix.strip("/") or None, "retry_config": RETRIES}
        if endpoint:
            given |= {"endpoint": endpoint, "client_options": {"allow_http": endpoint.startswith("http://")}}
        if region:
            given["region"] = region
        try:
            self._bucket = Bucket(bucket, **given)
        except (BaseError, ValueError):
            raise StoreUnusable(f"The bucket {url} cannot be used with these settings.") from None

    async def put(self, path: Path, name: str) -> None:
        """Send it, a large one in parts; a part that fails leaves nothing."""
        from obstore import put_async

        with _told():
            await put_async(self._bucket, name, path, chunk_size=PART, max_concurrency=2)
        await asyncio.to_thread(path.unlink, missing_ok=True)

    @asynccontextmanager
    async def open_local(self, name: str, most: int) -> AsyncGenerator[Path]:
        """A copy, fetched now and removed at the end."""
        from obstore import get_async

        async with _in_thread(self._reading.reading) as path:
            with _told(), path.open("wb") as copy:
                found = await get_async(self._bucket, name)
                if found.meta["size"] > most:
                    raise Gone(name)
                async for piece in found.stream(min_chunk_size=PART):
                    await asyncio.to_thread(copy.write, piece)
            yield path

    async def delete(self, name: str) -> None:
        """Remove the object; S3 itself says nothing of one that is not there."""
        from obstore import delete_async

        with _told():
            await delete_async(self._bucket, name)


@contextmanager
def _told() -> Generator[None]:
    """obstore's failures in our own words."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        raise Gone from error
    except BaseError as error:
        raise StoreFailed from error


@asynccontextmanager
async def _in_thread(make: Callable[[], Any]) -> AsyncGenerator[Path]:
    """A context manager of paths, entered and left in a thread."""
    manager = await asyncio.to_thread(make)
    path = await asyncio.to_thread(manager.__enter__)
    try:
        yield path
    finally:
        # In this thread: a cancelled task waits for nothing, and an unlink is short.
        manager.__exit__(None, None, None)


def make_store(folder: Path, reading: Spool, url: str = "", *, endpoint: str = "", region: str = "") -> Store:
    """The bucket that is set, else the folder; `reading` takes what is being read."""
    return S3Store(url, reading, endpoint=endpoint, region=region) if url else LocalStore(folder, reading)
