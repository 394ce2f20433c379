"""The database: made once, at the newest revision, however many start at once; as a file private to its owner."""

import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from sqlalchemy import Engine, exc

from qwen3vl_compat.accounts import migrations
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.installation import MARKER
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.settings import LedgerSettings
from tests.postgres import Server

ROUNDS = 8


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def run_sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement).fetchall()


@contextmanager
def racer() -> Generator[tuple[IO[str], IO[str]]]:
    """A process running race.py, as (its orders, its answers); it must end well and say nothing on the side."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("race.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    ) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdin, process.stdout
        assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 0


class TestMaking:
    def test_the_folder_and_all_files_are_the_owners_alone(self, state_dir: Path) -> None:
        before = os.umask(0)
        try:
            engine = open_database(state_dir)
            Keys(engine).ensure_first()
        finally:
            os.umask(before)
        assert mode(state_dir) == 0o700
        assert {path.name: mode(path) for path in state_dir.iterdir()} == {
            MARKER: 0o600,
            FILE: 0o600,
            f"{FILE}-wal": 0o600,
            f"{FILE}-shm": 0o600,
        }
        engine.dispose()

    def test_an_empty_folder_becomes_private_and_a_used_one_is_left_alone(self, tmp_path: Path) -> None:
        empty, used = tmp_path / "empty", tmp_path / "used"
        for folder in (empty, used):
            folder.mkdir(mode=0o755)
        (used / "other").touch()
        for folder in (empty, used):
            open_database(folder).dispose()
        assert (mode(empty), mode(used), mode(used / FILE)) == (0o700, 0o755, 0o600)

    @pytest.mark.parametrize(("synchronous", "number"), [("NORMAL", 1), ("FULL", 2)])
    def test_every_connection_is_set_up(self, state_dir: Path, synchronous: Any, number: int) -> None:
        engine = open_database(state_dir, LedgerSettings(synchronous=synchronous))
        with engine.connect() as one, engine.connect() as other:
            for connection in (one, other):
                pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
                values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
                assert values == ["wal", number, 1, 5000]
        engine.dispose()

    def test_a_path_with_odd_characters_works(self, tmp_path: Path) -> None:
        odd = tmp_path / "a b?c#d%20é'&=" / "state"
        open_database(odd).dispose()
        assert (odd / FILE).stat().st_size

    def test_opening_again_keeps_everything_and_is_fast(self, state_dir: Path, filled: Path) -> None:
        took: list[float] = []
        for _ in range(5):
            started = time.perf_counter()
            engine = open_database(state_dir)
            took.append(time.perf_counter() - started)
            assert len(Keys(engine).list()) == 102
            engine.dispose()
        assert min(took) < 0.05

    def test_what_a_killed_first_start_left_behind_is_no_hindrance(self, state_dir: Path) -> None:
        state_dir.mkdir()
        (state_dir / f"{FILE}.new").write_bytes(b"half")
        (state_dir / f"{FILE}.new-journal").write_bytes(b"half")
        open_database(state_dir).dispose()
        assert {path.name for path in state_dir.iterdir()} == {MARKER, FILE}

    def test_a_restored_backup_without_write_ahead_logging_gets_it_back(self, state_dir: Path, filled: Path) -> None:
        run_sql(filled, "PRAGMA journal_mode=DELETE")
        engine = open_database(state_dir)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        engine.dispose()

    def test_a_log_left_by_a_killed_server_is_read(self, state_dir: Path) -> None:
        server = open_database(state_dir)
        first = Keys(server).ensure_first()
        assert first is not None
        killed = state_dir.with_name("killed")
        killed.mkdir()
        for name in (FILE, f"{FILE}-wal"):
            (killed / name).write_bytes((state_dir / name).read_bytes())
        server.dispose()
        engine = open_database(killed)
        assert Keys(engine).find(first.model.secret_text) == first.model.key
        engine.dispose()

    def test_a_database_deleted_under_a_running_server_is_an_error_not_a_new_one(
        self, state_dir: Path, filled: Path
    ) -> None:
        engine = open_database(state_dir)
        for path in state_dir.iterdir():
            path.unlink()
        with pytest.raises(exc.OperationalError):
            Keys(engine).list()
        assert not list(state_dir.iterdir())
        engine.dispose()


def race(orders: Sequence[tuple[str, str]]) -> list[list[list[str] | None]]:
    """What each of two processes got, for each order: the state folders of the two, with {} for a racer, and a URL."""
    outcomes: list[list[list[str] | None]] = []
    with ExitStack() as running:
        racers = [running.enter_context(racer()) for _ in range(2)]
        assert [out.readline() for _, out in racers] == ["ready\n"] * 2
        for folder, url in orders:
            for number, (into, _) in enumerate(racers):
                into.write(json.dumps({"folder": folder.format(number), "url": url}) + "\n")
                into.flush()
            outcomes.append([json.loads(out.readline()) for _, out in racers])
    return outcomes


class TestRacing:
    def test_processes_starting_at_once_all_succeed_and_one_gets_the_first_keys(self, tmp_path: Path) -> None:
        folders = [tmp_path / f"race{number}" for number in range(ROUNDS)]
        for folder in folders:
            folder.mkdir()
            (folder / "blank.db").touch()
        outcomes = race([(str(folder / "state"), "") for folder in folders])
        for folder, outcome in zip(folders, outcomes, strict=True):
            (pair,) = [got for got in outcome if got]
            with closing(sqlite3.connect(folder / "blank.db")) as blank:
                for query in ("SELECT version_num FROM alembic_version", "SELECT count(*) FROM installation"):
                    assert blank.execute(query).fetchall() in ([(migrations.REVISIONS[-1],)], [(1,)])
            engine = open_database(folder / "state")
            assert {key.public for key in Keys(engine).list()} == set(pair)
            engine.dispose()

    @pytest.mark.parametrize("folder", ["state", "state{}"])
    def test_so_they_do_on_a_server_from_one_machine_and_from_two(
        self, tmp_path: Path, postgres: Server, folder: str
    ) -> None:
        with ExitStack() as made:
            urls = [postgres.url(made.enter_context(postgres.database())) for _ in range(ROUNDS)]
            places = [str(tmp_path / f"race{number}" / folder) for number in range(ROUNDS)]
            outcomes = race(list(zip(places, urls, strict=True)))
            for place, url, outcome in zip(places, urls, outcomes, strict=True):
                (pair,) = [got for got in outcome if got]
                engine = open_database(Path(place.format(1)), LedgerSettings(url=url))
                assert {key.public for key in Keys(engine).list()} == set(pair)
                with engine.connect() as connection:
                    assert connection.exec_driver_sql("SELECT count(*) FROM installation").scalar() == 1
                engine.dispose()

    def test_upgrading_again_finds_nothing_to_do(self, engine: Engine) -> None:
        with engine.begin() as connection:
            migrations.upgrade(connection)
