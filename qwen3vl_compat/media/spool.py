"""Files of our own that live for a while: uploads as they come in, and stored ones while somebody reads them.

Each is locked as long as it is used, so that what a killed process has left behind can be told from what is in use.
All calls are short and synchronous, for a thread; names are ours, never a client's.
"""

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

READ = 2**20


class Busy(Exception):
    """Somebody else is using the file."""


def make_folder(folder: Path) -> Path:
    """The folder, made for its owner only if it is not there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


class Spool:
    """A folder of such files."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(folder)

    def path(self, name: str) -> Path:
        """Where a file of that name lies."""
        return self.folder / name

    @contextmanager
    def writing(self, name: str, *, new: bool = False) -> Generator[int]:
        """The file's descriptor, its own until the end; a new one must not be there before.

        Raises FileNotFoundError, FileExistsError or Busy.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if new else 0)
        descriptor = os.open(self.path(name), flags, 0o600)
        try:
            _lock(descriptor, fcntl.LOCK_EX)
            # Removed or moved away between the two calls, it is another's.
            if not os.path.samestat(os.fstat(descriptor), self.path(name).stat()):
                raise FileNotFoundError(name)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def reading(self, source: Path | None = None) -> Generator[Path]:
        """A file to be read, gone at the end: another name of `source`, or an empty one to be filled."""
        path = self.path(secrets.token_hex(16))
        if source is None:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        else:
            os.link(source, path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield path
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file; again is no error."""
        self.path(name).unlink(missing_ok=True)

    def names(self, *, age: float = 0) -> list[str]:
        """The files that have been there for `age` seconds."""
        since = time.time() - age
        return [path.name for path in self.folder.iterdir() if _made(path) <= since]

    def remove_unused(self, name: str) -> bool:
        """Remove a file unless somebody is using it; whether it is gone."""
        try:
            with self.writing(name):
                self.remove(name)
        except FileNotFoundError:
            return True
        except Busy:
            return False
        return True


def _made(path: Path) -> float:
    """When it got its present name, in seconds since 1970; never, if it is gone."""
    try:
        return path.stat().st_ctime
    except FileNotFoundError:
        return float("inf")


def _lock(descriptor: int, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy from None


def append(descriptor: int, data: bytes) -> None:
    """Write all of it at the end."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def digest(descriptor: int) -> str:
    """SHA-256 of the whole file, in hexadecimal digits; what was written is safe on the disk then."""
    os.fsync(descriptor)
    os.lseek(descriptor, 0, os.SEEK_SET)
    found = hashlib.sha256()
    while data := os.read(descriptor, READ):
        found.update(data)
    return found.hexdigest()
