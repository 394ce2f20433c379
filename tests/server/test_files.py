"""Files as the server's other parts use them, on the engine and disk a test has to itself."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.files import FileRows, NewUpload, hash_of
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.errors import ApiError, NotFound, Overloaded
from qwen3vl_compat.media.store import StoreFailed
from qwen3vl_compat.messages import FileInfo
from qwen3vl_compat.server.files import Files
from qwen3vl_compat.settings import FileSettings

PICTURE = SAMPLE.read_bytes()


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def files(tmp_path: Path, clock: Clock) -> AsyncIterator[Files]:
    database = open_database(tmp_path / "state")
    keys = Keys(database)
    for tenant in ("acme", "other"):
        keys.add_tenant(tenant)
    made = Files(FileSettings(), FileRows(database, clock), tmp_path / "state" / "files")
    yield made
    await made.close()
    database.dispose()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
async def test_files_lie_in_a_bucket_where_one_is_set(
    bucket: str, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    database = open_database(tmp_path / "state")
    Keys(database).add_tenant("acme")
    settings = FileSettings(store="s3://bucket/files", s3_endpoint=bucket, s3_region="us-east-1")
    files = Files(settings, FileRows(database, clock), tmp_path / "state" / "files")
    file, other = await put(files), await put(files, life=10**6)
    assert lying(files) == []
    async with files.open("acme", file.id) as opened:
        assert opened.path.read_bytes() == PICTURE
    clock.now += 60
    await files.sweep()
    await files.delete("acme", other.id)
    async with httpx.AsyncClient() as client:
        left = (await client.get(f"{bucket}/bucket?list-type=2&prefix=files/")).text
    assert "<Key>" not in left
    assert files.rows.expired() == ()
    database.dispose()


def new(size: int = len(PICTURE)) -> NewUpload:
    return NewUpload(tenant="acme", key="", filename="a.png", declared_type="", size=size)


async def put(files: Files, life: int = 60) -> FileInfo:
    token = await files.begin(new(), once=True)
    async with files.receiving(token, once=True) as intake:
        await intake.write(PICTURE)
        return await intake.complete("vision", life)


def lying(files: Files) -> list[Path]:
    return [path for path in files.incoming.folder.parent.rglob("*") if path.is_file()]


async def test_a_file_is_opened_by_any_of_its_names(files: Files) -> None:
    file = await put(files)
    digits = file.id.removeprefix("file-")
    for reference in (
        file.id, digits, f"files/{digits}", f"files/{file.id}", f"https://any.host:8443/v1beta/files/{digits}",
        f"http://127.0.0.1/v1/files/{file.id}", f" HTTPS://any.host/v1/files/{digits}",
    ):  # fmt: skip
        async with files.open("acme", reference) as opened:
            assert opened.path.read_bytes() == PICTURE
            assert (opened.size, opened.kind, opened.sha256) == (len(PICTURE), "png", file.sha256)
        assert files.owns(reference) == (":" in reference)


@pytest.mark.parametrize(
    "reference", ["", "x", "file-" + "0" * 24, "file-" + "0" * 25, "../a", "https://h/v2/files/" + "0" * 24]
)
async def test_what_is_no_file_is_not_found(files: Files, reference: str) -> None:
    with pytest.raises(NotFound, match="no such file"):
        async with files.open("acme", reference):
            pass


@pytest.mark.parametrize(
    "url",
    [
        "https://h/v1/files/" + "0" * 23,
        "https://h/v1/files/" + "0" * 24 + "/x",
        "https://h/v1/files/" + "0" * 24 + "?x",
        "https://h/x/v1/files/" + "0" * 24,
        "https://h/?/v1/files/" + "0" * 24,
        "ftp://h/v1/files/" + "0" * 24,
    ],
)
def test_other_urls_are_not_ours(url: str) -> None:
    assert not Files.owns(None, url)  # type: ignore[arg-type]


async def test_another_tenant_finds_nothing(files: Files) -> None:
    file = await put(files)
    with pytest.raises(NotFound):
        async with files.open("other", file.id):
            pass


async def test_an_open_file_outlives_its_deletion(files: Files) -> None:
    file = await put(files)
    async with files.open("acme", file.id) as opened:
        await files.delete("acme", file.id)
        assert opened.path.read_bytes() == PICTURE
    assert lying(files) == []
    with pytest.raises(NotFound):
        async with files.open("acme", file.id):
            pass


async def test_a_file_whose_bytes_are_lost_is_not_found(files: Files) -> None:
    file = await put(files)
    lying(files)[0].unlink()
    with pytest.raises(NotFound):
        async with files.open("acme", file.id):
            pass


async def test_a_sweep_takes_what_is_over_and_leaves_what_is_in_use(files: Files, clock: Clock) -> None:
    over, kept = await put(files, life=60), await put(files, life=10**6)
    abandoned = await files.begin(new())
    used = await files.begin(new(), once=True)
    (files.incoming.folder / "leftover").touch()
    async with files.receiving(used, once=True) as intake:
        await intake.write(PICTURE)
        clock.now += 3600
        await files.sweep()
        assert not files.incoming.path(hash_of(abandoned)).exists()
        assert [path.name for path in files.incoming.folder.iterdir()] == [hash_of(used)]
        file = await intake.complete("vision", 60)
    assert {path.name for path in lying(files)} == {kept.id, file.id}
    assert files.rows.get("acme", over.id) is None
    assert files.rows.used("acme") == (2 * len(PICTURE), 2)


async def test_a_part_that_fails_is_taken_back(files: Files) -> None:
    token = await files.begin(new(size=2 * len(PICTURE)))
    async with files.receiving(token) as intake:
        await intake.write(PICTURE)
        await intake.pause()
    with pytest.raises(RuntimeError):  # noqa: PT012
        async with files.receiving(token) as intake:
            await intake.write(PICTURE[:7])
            await intake._flush()
            raise RuntimeError
    assert files.incoming.path(hash_of(token)).stat().st_size == len(PICTURE)
    assert (await files.upload(token)).received == len(PICTURE)


async def test_a_full_disk_is_said_and_leaves_nothing(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    token = await files.begin(new(), once=True)
    monkeypatch.setattr("qwen3vl_compat.media.spool.append", full)
    with pytest.raises(Overloaded):  # noqa: PT012
        async with files.receiving(token, once=True) as intake:
            await intake.write(PICTURE)
            await intake.complete("vision", 60)
    assert (lying(files), files.rows.used("acme")) == ([], (0, 0))


async def test_a_store_that_fails_is_tried_again(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise StoreFailed

    file = await put(files)
    with monkeypatch.context() as patch:
        patch.setattr(files._store, "put", fail)
        with pytest.raises(Overloaded):
            await put(files)
        patch.setattr(files._store, "delete", fail)
        await files.delete("acme", file.id)
        await files.sweep()
    assert files.rows.used("acme") == (0, 0)
    assert [path.name for path in lying(files)] == [file.id]
    await files.sweep()
    assert lying(files) == []
    assert files.rows.expired() == ()


async def test_too_large_an_upload_is_refused_as_it_comes(files: Files) -> None:
    token = await files.begin(new(size=10), once=True)
    with pytest.raises(ApiError) as refused:
        async with files.receiving(token, once=True) as intake:
            await intake.write(os.urandom(11))
    assert (refused.value.status, lying(files)) == (413, [])
    with pytest.raises(ApiError) as refused:
        await files.begin(new(size=2**31 + 1))
    assert refused.value.status == 413
