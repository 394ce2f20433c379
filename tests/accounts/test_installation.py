"""A lost database is never replaced by an empty one, nor taken for another's, and its currency stays."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine

from qwen3vl_compat.accounts.database import DatabaseUnusable, open_database
from qwen3vl_compat.accounts.installation import MARKER
from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.settings import LedgerSettings
from tests.postgres import Server


def held(engine: Engine) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql("SELECT id, currency FROM installation")]


def refusal(state_dir: Path, ledger: LedgerSettings) -> str:
    """The sentence that the start ends with."""
    before = sorted(path.name for path in state_dir.iterdir())
    with pytest.raises(DatabaseUnusable) as refused:
        open_database(state_dir, ledger)
    assert sorted(path.name for path in state_dir.iterdir()) == before
    sentence = str(refused.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def run_sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def euros(ledger: LedgerSettings) -> LedgerSettings:
    return LedgerSettings(url=ledger.url, currency="EUR")


class TestMarking:
    def test_folder_and_database_hold_the_same_id(self, engine: Engine, state_dir: Path) -> None:
        ((ours, currency),) = held(engine)
        assert (state_dir / MARKER).read_text() == f"{ours}\n"
        assert currency == "USD"

    @pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
    def test_a_first_start_killed_at_any_step_is_no_hindrance_to_the_next(
        self, kind: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        url = request.getfixturevalue("empty_postgres").url if kind == "postgresql" else ""
        ran = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("dying.py")), str(tmp_path / "starts"), url],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert int(ran.stdout) >= 8

    def test_a_server_is_used_from_several_machines(self, tmp_path: Path, new_postgres: LedgerSettings) -> None:
        ids: set[object] = set()
        for name in ("one", "two", "one"):
            engine = open_database(tmp_path / name, new_postgres)
            ids |= set(held(engine))
            engine.dispose()
            ids.add(((tmp_path / name / MARKER).read_text().strip(), "USD"))
        assert len(ids) == 1

    def test_a_backup_from_before_there_were_ids_takes_the_folders(
        self, state_dir: Path, sqlite: LedgerSettings
    ) -> None:
        open_database(state_dir, sqlite).dispose()
        known = (state_dir / MARKER).read_text().strip()
        dropped = ["DROP TRIGGER " + name for name in ("ledger_kept", "ledger_closed", "audit_kept", "audit_written")]
        tables = (
            "response_uses",
            "response_media",
            "responses",
            "replies",
            "audit",
            "spending",
            "daily",
            "ledger",
            "prices",
            "processes",
            "installation",
        )
        dropped += [f"DROP TABLE {name}" for name in tables]
        dropped += [f"ALTER TABLE {name} DROP COLUMN limits" for name in ("keys", "tenants")]
        dropped += ["ALTER TABLE tenants DROP COLUMN moderation"]
        run_sql(state_dir / FILE, *dropped, "UPDATE alembic_version SET version_num = '0002'")
        for _ in range(2):
            engine = open_database(state_dir, LedgerSettings(currency="EUR"))
            assert held(engine) == [(known, "EUR")]
            engine.dispose()

    def test_a_marker_removed_by_hand_is_written_again(self, state_dir: Path, ledger: LedgerSettings) -> None:
        open_database(state_dir, ledger).dispose()
        known = (state_dir / MARKER).read_text()
        (state_dir / MARKER).unlink()
        open_database(state_dir, ledger).dispose()
        assert (state_dir / MARKER).read_text() == known


class TestLosing:
    def test_a_file_deleted_with_its_log_is_not_made_anew(self, state_dir: Path) -> None:
        open_database(state_dir).dispose()
        for path in state_dir.glob(f"{FILE}*"):
            path.unlink()
        sentence = refusal(state_dir, LedgerSettings())
        assert f"{state_dir / FILE} is gone" in sentence
        assert "restore it" in sentence
        assert f"remove {state_dir / MARKER} to begin anew" in sentence
        (state_dir / MARKER).unlink()
        open_database(state_dir).dispose()

    def test_a_database_without_tables_is_not_filled_anew(
        self, state_dir: Path, new_postgres: LedgerSettings, empty_postgres: LedgerSettings
    ) -> None:
        open_database(state_dir, new_postgres).dispose()
        sentence = refusal(state_dir, empty_postgres)
        assert "is empty" in sentence
        assert "restore it" in sentence
        assert f"remove {state_dir / MARKER} to begin anew" in sentence
        (state_dir / MARKER).unlink()
        open_database(state_dir, empty_postgres).dispose()

    def test_moving_to_a_server_takes_the_operators_word(self, state_dir: Path, empty_postgres: LedgerSettings) -> None:
        open_database(state_dir).dispose()
        assert "is empty" in refusal(state_dir, empty_postgres)
        (state_dir / MARKER).unlink()
        open_database(state_dir, empty_postgres).dispose()
        assert "is not the database that" in refusal(state_dir, LedgerSettings())

    def test_another_database_in_its_place_is_refused(self, state_dir: Path, tmp_path: Path) -> None:
        for folder in (state_dir, tmp_path / "other"):
            open_database(folder).dispose()
        shutil.copy(tmp_path / "other" / FILE, state_dir / FILE)
        sentence = refusal(state_dir, LedgerSettings())
        assert "another database was put in its place" in sentence
        assert "another installation's state folder" in sentence
        (state_dir / MARKER).unlink()
        open_database(state_dir).dispose()
        assert (state_dir / MARKER).read_text() == (tmp_path / "other" / MARKER).read_text()

    def test_another_database_on_the_server_is_refused(
        self, state_dir: Path, postgres: Server, empty_postgres: LedgerSettings, tmp_path: Path
    ) -> None:
        open_database(state_dir, empty_postgres).dispose()
        with postgres.database() as name:
            other = LedgerSettings(url=postgres.url(name))
            open_database(tmp_path / "other", other).dispose()
            assert "is not the database that" in refusal(state_dir, other)
        open_database(state_dir, empty_postgres).dispose()

    @pytest.mark.parametrize("content", [b"", b"\n", b"0" * 31, b"G" * 32, b"\xff" * 32, b"0" * 1000])
    def test_a_marker_that_holds_no_id_is_refused(
        self, state_dir: Path, ledger: LedgerSettings, content: bytes
    ) -> None:
        open_database(state_dir, ledger).dispose()
        (state_dir / MARKER).write_bytes(content)
        assert "does not hold the id" in refusal(state_dir, ledger)

    @pytest.mark.parametrize(
        "statement", ["DELETE FROM installation", "INSERT INTO installation VALUES ('{}', 'USD', 1)"]
    )
    def test_a_database_that_does_not_say_which_it_is_is_damaged(
        self, engine: Engine, state_dir: Path, ledger: LedgerSettings, statement: str
    ) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(statement.format("0" * 32))
        engine.dispose()
        assert "is damaged: table installation has" in refusal(state_dir, ledger)


class TestCurrency:
    def test_it_is_fixed_once_the_database_is_made(
        self, state_dir: Path, engine: Engine, ledger: LedgerSettings, euros: LedgerSettings
    ) -> None:
        assert "counts its money in USD and cannot be changed to EUR" in refusal(state_dir, euros)
        assert held(engine)[0][1] == "USD"
        open_database(state_dir, ledger).dispose()

    def test_it_is_the_first_starts(self, state_dir: Path) -> None:
        open_database(state_dir, LedgerSettings(currency="JPY")).dispose()
        engine = open_database(state_dir, LedgerSettings(currency="JPY"))
        assert held(engine)[0][1] == "JPY"
        engine.dispose()
        assert "set ledger.currency to JPY" in refusal(state_dir, LedgerSettings())
