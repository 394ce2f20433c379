"""A database file that is not whole ends the start with one plain sentence, and stays as it is."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from qwen3vl_compat.accounts.database import DatabaseUnusable, open_database
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.sqlite import FILE


def run_sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement).fetchall()


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def overwrite(path: Path, start: int, end: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * (end - start))


def drop_keys(path: Path) -> None:
    run_sql(path, "DROP TABLE keys")


def from_the_future(path: Path) -> None:
    run_sql(path, "UPDATE alembic_version SET version_num = '9999'")


def of_another_program(path: Path) -> None:
    path.unlink()
    run_sql(path, "CREATE TABLE notes (text TEXT)")


def log_without_file(path: Path) -> None:
    path.rename(path.with_name(f"{FILE}-wal"))


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("elsewhere"))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: cut(path, 0), "is empty"),
    "one byte": (lambda path: os.truncate(path, 1), "is not an SQLite database"),
    "header only": (lambda path: os.truncate(path, 100), "is cut off"),
    "header cut": (lambda path: os.truncate(path, 20), "is cut off"),
    "half": (lambda path: cut(path, 0.5), "is cut off"),
    "last byte": (lambda path: os.truncate(path, path.stat().st_size - 1), "is cut off"),
    "text": (lambda path: path.write_text("hello\n" * 500), "is not an SQLite database"),
    "zeros": (lambda path: path.write_bytes(bytes(8192)), "is not an SQLite database"),
    "first page": (lambda path: overwrite(path, 100, 4096), "is damaged"),
    "all but the first page": (lambda path: overwrite(path, 4096, path.stat().st_size), "is damaged"),
    "keys table": (drop_keys, "table keys is missing"),
    "no version": (lambda path: run_sql(path, "DELETE FROM alembic_version"), "is damaged"),
    "newer": (from_the_future, "written by a newer version"),
    "other program": (of_another_program, "of another program"),
    "log only": (log_without_file, "is gone but its log"),
    "folder": (folder_in_its_place, "cannot be used"),
    "dangling link": (dangling_link, "cannot be used"),
}


class TestRefusing:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_what_is_not_whole_is_refused_and_left_as_it_is(self, state_dir: Path, filled: Path, damage: str) -> None:
        do_damage, said = DAMAGES[damage]
        do_damage(filled)
        before = {item.name: item.read_bytes() for item in state_dir.iterdir() if item.is_file()}
        with pytest.raises(DatabaseUnusable) as refused:
            open_database(state_dir)
        sentence = str(refused.value)
        assert said in sentence
        assert str(state_dir) in sentence
        assert sentence.endswith(".")
        assert "\n" not in sentence
        assert "sqlite3." not in sentence
        assert {name: (state_dir / name).read_bytes() for name in before} == before

    def test_each_page_that_turns_to_rubbish_is_noticed_or_harmless(
        self, state_dir: Path, filled: Path, tmp_path: Path
    ) -> None:
        whole = filled.read_bytes()
        refused = 0
        for start in range(0, len(whole), 4096):
            damaged = tmp_path / f"damaged{start}"
            damaged.mkdir()
            (damaged / FILE).write_bytes(whole[:start] + b"\xa5" * 4096 + whole[start + 4096 :])
            try:
                engine = open_database(damaged)
            except DatabaseUnusable:
                refused += 1
            else:
                assert len(Keys(engine).list()) == 102
                engine.dispose()
        # Tables that only grow later are not read at the start; each of theirs is one empty page by now, but for the
        # audit, which has told of every key.
        with closing(sqlite3.connect(filled)) as connection:
            query = "SELECT count(*) FROM sqlite_master WHERE rootpage AND tbl_name NOT IN ('tenants', 'keys')"
            unread: int = connection.execute(query).fetchone()[0]
        unread += sum(b"key.create" in whole[start : start + 4096] for start in range(0, len(whole), 4096))
        assert refused >= len(whole) // 4096 - 2 - unread

    def test_a_file_cut_off_beside_a_log_is_refused(self, state_dir: Path, filled: Path, tmp_path: Path) -> None:
        """With pages waiting in the log the file's length proves nothing: the tables are read through instead."""
        server = open_database(state_dir)
        Keys(server).create("default")
        copy = Path(shutil.copytree(state_dir, tmp_path / "copy"))
        server.dispose()
        (copy / f"{FILE}-shm").unlink()
        cut(copy / FILE, 0.5)
        with pytest.raises(DatabaseUnusable, match="is damaged"):
            open_database(copy)

    def test_a_state_folder_that_is_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DatabaseUnusable, match="cannot be used"):
            open_database(tmp_path / "file")

    def test_a_database_held_by_another_program_is_refused_with_the_reason(
        self, state_dir: Path, filled: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("qwen3vl_compat.accounts.sqlite._WAIT_S", 0.05)
        with closing(sqlite3.connect(filled, isolation_level=None)) as holder:
            holder.execute("PRAGMA locking_mode=EXCLUSIVE")
            holder.execute("BEGIN EXCLUSIVE")
            with pytest.raises(DatabaseUnusable, match="database is locked"):
                open_database(state_dir)
