"""Where files lie: the same rules for a folder and for a bucket."""

import os
import sys
from pathlib import Path

import pytest

from qwen3vl_compat.media.spool import Busy, Spool, append, digest
from qwen3vl_compat.media.store import PART, Gone, Store, StoreFailed, StoreUnusable, make_store


@pytest.fixture
def reading(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "reading")


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path, reading: Spool, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return make_store(tmp_path / "kept", reading)
    address = request.getfixturevalue("bucket")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return make_store(tmp_path, reading, f"s3://bucket/{tmp_path.name}/x", endpoint=address, region="us-east-1")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("size", [1, PART - 1, 2 * PART + 5])
async def test_what_was_put_is_read(store: Store, reading: Spool, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    source = tmp_path / "source"
    source.write_bytes(content)
    await store.put(source, "tenant/file")
    assert not source.exists()
    async with store.open_local("tenant/file", size) as path:
        assert path.read_bytes() == content
        assert path.parent == reading.folder
        await store.delete("tenant/file")
        assert path.read_bytes() == content
    assert reading.names() == []
    with pytest.raises(Gone):
        async with store.open_local("tenant/file", size):
            pass
    assert reading.names() == []


@pytest.mark.filterwarnings("default")
async def test_the_same_name_is_replaced_and_deleted_twice(store: Store, tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        (tmp_path / "source").write_bytes(content)
        await store.put(tmp_path / "source", "a/b")
    async with store.open_local("a/b", 3) as path:
        assert path.read_bytes() == b"two"
    await store.delete("a/b")
    await store.delete("a/b")


@pytest.mark.filterwarnings("default")
async def test_no_more_is_fetched_than_was_asked_for(store: Store, reading: Spool, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"long")
    await store.put(tmp_path / "source", "a/b")
    with pytest.raises(Gone):
        async with store.open_local("a/b", 3):
            pass
    assert reading.names() == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
async def test_a_bucket_that_is_not_there_is_a_failure(
    bucket: str, reading: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    store = make_store(tmp_path, reading, "s3://nowhere", endpoint=bucket, region="us-east-1")
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises((StoreFailed, Gone)):
        await store.put(tmp_path / "source", "a/b")
    assert (tmp_path / "source").exists()


def test_a_bucket_needs_its_library(reading: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreUnusable, match=r"qwen3vl-compat\[s3\]"):
        make_store(tmp_path, reading, "s3://bucket")


class TestSpool:
    def test_a_file_is_one_users_and_private(self, tmp_path: Path) -> None:
        spool = Spool(tmp_path / "spool")
        with spool.writing("a", new=True) as descriptor:
            append(descriptor, b"hello")
            assert os.fstat(descriptor).st_mode & 0o777 == 0o600
            assert digest(descriptor).startswith("2cf24dba")
            with pytest.raises(Busy), spool.writing("a"):
                pass
            assert not spool.remove_unused("a")
        with pytest.raises(FileExistsError), spool.writing("a", new=True):
            pass
        assert spool.remove_unused("a")
        assert spool.remove_unused("a")
        with pytest.raises(FileNotFoundError), spool.writing("a"):
            pass

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        spool = Spool(tmp_path / "spool")
        (tmp_path / "victim").touch()
        spool.path("a").symlink_to(tmp_path / "victim")
        for new in (False, True):
            with pytest.raises(OSError, match=r"symbolic links|exists"), spool.writing("a", new=new):
                pass

    def test_what_is_read_is_in_use(self, tmp_path: Path) -> None:
        spool = Spool(tmp_path / "spool")
        with spool.reading() as path:
            assert spool.names() == [path.name]
            assert spool.names(age=60) == []
            assert not spool.remove_unused(path.name)
        assert spool.names() == []
