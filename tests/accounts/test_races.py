"""What reads and then writes, from many threads at once: the same outcome on both kinds as one after another."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from sqlalchemy import Engine

from qwen3vl_compat.accounts.database import writing
from qwen3vl_compat.accounts.files import Contents, FileRows, NewUpload, NoSuchUpload, Quota, QuotaExceeded
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.tenants import Tenants

RACERS = 8
T = TypeVar("T")


def at_once(act: Callable[[int], T], racers: int = RACERS) -> list[T]:
    """What the racers got, each in a thread, all let go together."""
    line = Barrier(racers)

    def run(number: int) -> T:
        line.wait(60)
        return act(number)

    with ThreadPoolExecutor(racers) as pool:
        return list(pool.map(run, range(racers)))


def upload(size: int) -> NewUpload:
    return NewUpload(tenant="acme", key="K" * 12, filename="a.png", declared_type="", size=size)


def contents(size: int) -> Contents:
    return Contents(mime_type="image/png", bytes=size, sha256="0" * 64, purpose="vision", life_ms=10**6)


def test_a_sum_read_and_written_back_loses_nothing(engine: Engine, keys: Keys) -> None:
    """The promise of `writing` itself."""

    def add(_: int) -> None:
        for _ in range(10):
            with writing(engine).begin() as connection:
                read = connection.exec_driver_sql("SELECT created_at FROM tenants WHERE id = 'acme'").scalar_one()
                connection.exec_driver_sql(f"UPDATE tenants SET created_at = {read + 1} WHERE id = 'acme'")

    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE tenants SET created_at = 0 WHERE id = 'acme'")
    at_once(add)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT created_at FROM tenants").scalar() == 10 * RACERS


def test_rows_taken_in_opposite_order_do_not_lock_up(engine: Engine, keys: Keys) -> None:
    keys.add_tenant("other")

    def touch(number: int) -> None:
        for tenant in ("acme", "other") * 10 if number % 2 else ("other", "acme") * 10:
            with writing(engine).begin() as connection:
                for each in (tenant, "acme", "other"):
                    connection.exec_driver_sql(f"UPDATE tenants SET created_at = created_at + 1 WHERE id = '{each}'")

    at_once(touch)


def test_one_racer_gets_the_first_keys(engine: Engine) -> None:
    got = at_once(lambda _: Keys(engine).ensure_first())
    (pair,) = [each for each in got if each]
    assert {key.public for key in Keys(engine).list()} == {pair.model.key.public, pair.admin.key.public}


def test_one_racer_makes_a_tenant(engine: Engine) -> None:
    assert sorted(at_once(lambda _: Keys(engine).add_tenant("new"))) == [False] * (RACERS - 1) + [True]


def test_the_default_tenant_is_made_by_whoever_needs_it_first(engine: Engine) -> None:
    made = at_once(lambda _: Keys(engine).create("default"))
    assert {key.public for key in Keys(engine).list()} == {new.key.public for new in made}


def test_a_key_is_revoked_once(engine: Engine, keys: Keys) -> None:
    new = keys.create("acme")
    moments = {revoked.revoked_at for revoked in at_once(lambda _: Keys(engine).revoke(new.key.public))}
    assert len(moments) == 1


def test_changes_of_a_tenants_limits_are_all_kept(engine: Engine, keys: Keys) -> None:
    names = (
        "max_images",
        "max_videos",
        "max_pages",
        "max_image_bytes",
        "max_pdf_bytes",
        "max_pixels",
        "fps",
        "max_side",
    )

    def change(number: int) -> None:
        Tenants(engine).reword("acme", {f"media.{names[number]}": str(number + 40)})

    at_once(change, len(names))
    assert Tenants(engine).get("acme").media == {name: number + 40 for number, name in enumerate(names)}


def test_an_upload_becomes_one_file(engine: Engine, keys: Keys) -> None:
    rows = FileRows(engine)
    row = rows.upload(rows.begin(upload(10), Quota(100, 10), 10**6))

    def complete(_: int) -> bool:
        try:
            rows.complete(row, contents(10))
        except NoSuchUpload:
            return False
        return True

    assert sum(at_once(complete)) == 1
    assert rows.used("acme") == (10, 1)


def test_a_quota_holds_while_uploads_become_files(engine: Engine, keys: Keys) -> None:
    """Half of the racers begin uploads, the others turn those into files: no upload goes uncounted on its way."""
    rows, quota = FileRows(engine), Quota(10**9, 12)
    tokens = [rows.begin(upload(1), quota, 10**6) for _ in range(8)]

    def act(number: int) -> int:
        if number % 2:
            for token in tokens[number // 2 :: RACERS // 2]:
                rows.complete(rows.upload(token), contents(1))
            return 0
        begun = 0
        for _ in range(4):
            try:
                rows.begin(upload(1), quota, 10**6)
                begun += 1
            except QuotaExceeded:
                pass
        return begun

    seen: list[tuple[int, int]] = []

    def look(number: int) -> int:
        if number < RACERS:
            return act(number)
        seen.extend(rows.used("acme") for _ in range(20))
        return 0

    assert sum(at_once(look, RACERS + 1)) == 4
    assert rows.used("acme") == (12, 12)
    assert seen == sorted(seen)
    assert {size for size, _ in seen} <= set(range(8, 13))


def test_a_file_is_removed_by_whoever_comes_first(engine: Engine, keys: Keys) -> None:
    rows = FileRows(engine)
    file = rows.complete(rows.upload(rows.begin(upload(1), Quota(100, 10), 10**6)), contents(1))
    assert rows.show(file.id)
    assert sum(at_once(lambda _: rows.delete("acme", file.id))) == 1
    assert {len(gone) for gone in at_once(lambda _: rows.expired())} == {1}
