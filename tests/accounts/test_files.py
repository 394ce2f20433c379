"""Rows of files and uploads: whose they are, in which order, for how long, and how many there may be."""

import threading

import pytest
from sqlalchemy import Engine, exc

from qwen3vl_compat.accounts.files import (
    STORING_MS,
    UPLOAD_MS,
    Contents,
    FileRows,
    NewUpload,
    NoSuchUpload,
    Quota,
    QuotaExceeded,
    hash_of,
)
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.tables import metadata
from qwen3vl_compat.messages import FileInfo
from tests.accounts.conftest import Clock

PLENTY = Quota(10**9, 1000)


@pytest.fixture
def rows(engine: Engine, keys: Keys, clock: Clock) -> FileRows:
    keys.add_tenant("other")
    return FileRows(engine, clock)


def new(tenant: str = "acme", size: int = 100, key: str = "K" * 12) -> NewUpload:
    return NewUpload(tenant=tenant, key=key, filename="a.png", declared_type="image/png", size=size)


def contents(size: int = 80, life_ms: int = 10_000, purpose: str = "vision") -> Contents:
    return Contents(mime_type="image/png", bytes=size, sha256="0" * 64, purpose=purpose, life_ms=life_ms)


def made(rows: FileRows, tenant: str = "acme", **given: object) -> FileInfo:
    token = rows.begin(new(tenant), PLENTY, 1000)
    file = rows.complete(rows.upload(token), contents(**given))  # type: ignore[arg-type]
    assert rows.show(file.id)
    return file


def test_an_upload_becomes_a_file(rows: FileRows, clock: Clock) -> None:
    token = rows.begin(new(), PLENTY, 1000)
    assert rows.used("acme") == (100, 1)
    upload = rows.upload(token)
    rows.receive(upload, 50, 1000)
    assert rows.upload(token).received == 50
    file = rows.complete(rows.upload(token), contents())
    assert rows.used("acme") == (80, 1)
    assert rows.get("acme", file.id) is None
    assert rows.show(file.id)
    assert not rows.show(file.id)
    assert rows.get("acme", file.id) == file
    assert (file.filename, file.bytes, file.created_at, file.expires_at) == ("a.png", 80, clock.ms, clock.ms + 10_000)
    for again in (lambda: rows.upload(token), lambda: rows.receive(upload, 60, 1000)):
        with pytest.raises(NoSuchUpload):
            again()


def test_an_upload_ends_however_often_some_of_it_comes(rows: FileRows, clock: Clock) -> None:
    token = rows.begin(new(), PLENTY, 1000)
    end = clock.ms + UPLOAD_MS
    while clock.ms < end - 1000:
        rows.receive(rows.upload(token), 1, 3_600_000)
        clock.now += 3500
    with pytest.raises(NoSuchUpload):
        rows.upload(token)


def test_no_token_is_stored(rows: FileRows, engine: Engine) -> None:
    token = rows.begin(new(), PLENTY, 1000)
    with engine.connect() as connection:
        stored = str(connection.execute(metadata.tables["uploads"].select()).all())
    assert token not in stored
    assert hash_of(token) in stored


def test_an_upload_is_over_in_time_or_with_its_key_or_tenant(
    rows: FileRows, keys: Keys, clock: Clock, engine: Engine
) -> None:
    token = rows.begin(new(), PLENTY, 1000)
    clock.now += 1
    with pytest.raises(NoSuchUpload):
        rows.upload(token)
    assert rows.expired_uploads() == [hash_of(token)]
    rows.give_up(hash_of(token))
    assert rows.expired_uploads() == []
    key = keys.create("acme")
    token = rows.begin(new(key=key.key.public), PLENTY, 1000)
    assert rows.upload(token).tenant == "acme"
    keys.revoke(key.key.public)
    with pytest.raises(NoSuchUpload):
        rows.upload(token)
    token = rows.begin(new(), PLENTY, 1000)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE tenants SET status = 'suspended' WHERE id = 'acme'")
    with pytest.raises(NoSuchUpload):
        rows.upload(token)


def test_a_tenant_sees_its_own(rows: FileRows) -> None:
    mine, theirs = made(rows), made(rows, "other")
    assert rows.get("acme", theirs.id) is None
    assert not rows.delete("acme", theirs.id)
    assert rows.list("acme") == ((mine,), False)
    assert rows.list("other") == ((theirs,), False)
    assert rows.used("other") == (80, 1)


def test_a_list_goes_on_after_a_file_that_is_gone(rows: FileRows, clock: Clock) -> None:
    all_of_them = []
    for number in range(5):
        all_of_them.append(made(rows, purpose="vision" if number % 2 else "user_data"))
        clock.now += 0.01
    assert rows.list("acme", order="asc") == (tuple(all_of_them), False)
    page, more = rows.list("acme", limit=2)
    assert (page, more) == ((all_of_them[4], all_of_them[3]), True)
    for file in page:
        assert rows.delete("acme", file.id)
    page, more = rows.list("acme", limit=3, after=page[-1].id)
    assert (page, more) == ((all_of_them[2], all_of_them[1], all_of_them[0]), False)
    assert rows.list("acme", purpose="vision") == ((all_of_them[1],), False)
    assert rows.list("acme", order="asc", after=all_of_them[1].id) == ((all_of_them[2],), False)


def test_what_is_over_is_out_of_sight_and_counts_no_more(rows: FileRows, clock: Clock) -> None:
    short, long = made(rows, life_ms=1000), made(rows, life_ms=5000)
    half = rows.complete(rows.upload(rows.begin(new(), PLENTY, 1000)), contents(life_ms=10**9))
    clock.now += 1
    assert rows.get("acme", short.id) is None
    assert rows.list("acme") == ((long,), False)
    assert not rows.delete("acme", short.id)
    assert rows.used("acme") == (160, 2)
    assert [row.id for row in rows.expired()] == [short.id]
    assert [row.id for row in rows.expired()] == [short.id]
    rows.forget(short.id)
    assert rows.expired() == ()
    assert rows.delete("acme", long.id)
    assert not rows.delete("acme", long.id)
    assert [(row.id, row.tenant) for row in rows.expired()] == [(long.id, "acme")]
    rows.forget(long.id)
    clock.now += STORING_MS / 1000
    assert [row.id for row in rows.expired()] == [half.id]
    assert not rows.show(half.id)


def test_a_quota_holds_at_its_edge(rows: FileRows) -> None:
    rows.begin(new(size=60), Quota(100, 3), 1000)
    with pytest.raises(QuotaExceeded, match="up to 41 bytes does not fit: 60 of 100"):
        rows.begin(new(size=41), Quota(100, 3), 1000)
    rows.begin(new("other", size=100), Quota(100, 3), 1000)
    rows.begin(new(size=40), Quota(100, 3), 1000)
    rows.begin(new(size=0), Quota(100, 3), 1000)
    with pytest.raises(QuotaExceeded, match="3 files; at most 3"):
        rows.begin(new(size=0), Quota(100, 3), 1000)


def test_a_quota_holds_for_many_at_once(rows: FileRows) -> None:
    results: list[bool] = []

    def begin() -> None:
        try:
            rows.begin(new(size=30), Quota(100, 50), 1000)
            results.append(True)
        except QuotaExceeded:
            results.append(False)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 5 + [True] * 3
    assert rows.used("acme") == (90, 3)


@pytest.mark.parametrize(
    ("table", "wrong"),
    [
        ("files", {"id": "file-1"}),
        ("files", {"bytes": -1}),
        ("files", {"sha256": "0"}),
        ("files", {"expires_at": -1}),
        ("files", {"status": "lost"}),
        ("files", {"tenant": "nobody"}),
        ("uploads", {"token_hash": "x"}),
        ("uploads", {"size": -1}),
        ("uploads", {"received": -1}),
        ("uploads", {"received": 11}),
        ("uploads", {"tenant": "nobody"}),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(
    rows: FileRows, engine: Engine, table: str, wrong: dict[str, object]
) -> None:
    good: dict[str, object] = {"tenant": "acme", "key": "", "filename": "", "created_at": 1, "expires_at": 1}
    if table == "files":
        good |= {"id": "f" * 29, "mime_type": "", "bytes": 0, "sha256": "0" * 64, "purpose": "", "status": "ready"}
    else:
        good |= {"token_hash": "0" * 64, "size": 10}
    with pytest.raises(exc.IntegrityError), engine.begin() as connection:
        connection.execute(metadata.tables[table].insert().values({**good, **wrong}))
    with engine.begin() as connection:
        connection.execute(metadata.tables[table].insert().values(good))
