"""Files to upload, and those that the server keeps."""

import secrets
from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec import Struct

from qwen3vl_compat.adapters.calling.failures import InvalidInput, decoded
from qwen3vl_compat.adapters.calling.sending import Sending, carried_out
from qwen3vl_compat.adapters.calling.steps import Body, Call, Steps, work

FILES = "/v1/files"
AT_ONCE = 256 * 2**10
"""Bytes of a file that is read before its request begins."""


class RemoteFile(Struct, frozen=True, kw_only=True):
    """A file that the server keeps; times in seconds since 1970."""

    id: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int
    mime_type: str = msgspec.field(name="mimeType", default="")


class _Listed(Struct):
    data: list[RemoteFile]
    has_more: bool = False


class NewFile(Struct, frozen=True):
    """A file of the caller's."""

    source: Path | bytes
    name: str
    size: int
    param: str
    """The argument it came in."""

    @classmethod
    def of(cls, source: Path | bytes, param: str) -> "NewFile":
        """What lies at a path, or these bytes; raises InvalidInput where there is none."""
        if isinstance(source, bytes):
            file = cls(source, "", len(source), param)
        else:
            try:
                if not source.is_file():
                    raise InvalidInput(f"{param}: there is no file {source}", param=param)
                file = cls(source, source.name, source.stat().st_size, param)
            except OSError as error:
                raise _unreadable(param, error) from error
        if not file.size:
            raise InvalidInput(f"{param}: is empty", param=param)
        return file

    def read(self) -> bytes:
        """All of it; raises InvalidInput."""
        return self._read(-1)

    def head(self, size: int) -> bytes:
        """Its first bytes; raises InvalidInput."""
        return self._read(size)

    def _read(self, size: int) -> bytes:
        if isinstance(self.source, bytes):
            return self.source if size < 0 else self.source[:size]
        try:
            with self.source.open("rb") as file:
                return file.read(size)
        except OSError as error:
            raise _unreadable(self.param, error) from error


def _unreadable(param: str, error: OSError) -> InvalidInput:
    return InvalidInput(f"{param}: cannot be read ({error.strerror})", param=param)


def uploaded(file: NewFile, life: int | None, sending: Sending) -> Steps[RemoteFile]:
    """Upload a file, to be kept for `life` seconds, or as long as the server usually does.

    Sent twice it is there twice, and forgotten when its time is over: that does no harm.
    """
    boundary = secrets.token_hex(16)
    fields = {"purpose": "user_data"}
    if life is not None:
        fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(life)}
    head = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields
    ]
    name = "".join(each if each.isprintable() and each not in '"\\' else "_" for each in file.name) or "file"
    head.append(f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n')
    before, after = "".join(head).encode(), f"\r\n--{boundary}--\r\n".encode()
    body: Body = (before, file.source, after)
    if file.size <= AT_ONCE:  # in one piece: a refusal that overtakes the rest of a body is lost with the connection
        body = (before + (yield from work(file.read)) + after,)
    size = len(before) + file.size + len(after)
    call = Call(
        method="POST",
        path=FILES,
        headers={"content-type": f"multipart/form-data; boundary={boundary}"},
        body=body,
        size=size,
        sent=sending.counter("upload", size),
    )
    return decoded((yield from carried_out(call, sending)), RemoteFile)


def listed(sending: Sending) -> Steps[list[RemoteFile]]:
    """All files of the key's tenant, the newest first."""
    files: list[RemoteFile] = []
    while True:
        page = f"?after={files[-1].id}" if files else ""
        found = decoded((yield from carried_out(Call(method="GET", path=FILES + page), sending)), _Listed)
        files += found.data
        if not found.has_more:
            return files


def deleted(file: RemoteFile | str, sending: Sending) -> Steps[None]:
    """Remove a file."""
    number = file if isinstance(file, str) else file.id
    yield from carried_out(Call(method="DELETE", path=f"{FILES}/{quote(number, safe='')}"), sending)
