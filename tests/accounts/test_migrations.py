"""The migrations make what `tables.py` says, to the letter, on SQLite and on PostgreSQL."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, exc, insert, inspect

from qwen3vl_compat.accounts import migrations
from qwen3vl_compat.accounts.database import open_database, writing
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.accounts.tables import metadata
from qwen3vl_compat.settings import LedgerSettings
from tests.postgres import Server


def config_for(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return config


def differences(engine: Engine) -> list[Any]:
    """What Alembic would change to come to the metadata's tables."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, metadata))


def shape(engine: Engine) -> set[tuple[str, str, str]]:
    """(Table, name, definition) of all constraints, indexes and triggers, as the database itself writes them down."""
    if engine.dialect.name == "sqlite":
        query = "SELECT tbl_name, name, sql FROM sqlite_master WHERE type <> 'table' AND sql <> ''"
    else:
        query = """
            SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid <> 0
              AND connamespace = 'public'::regnamespace
            UNION SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
            UNION SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
        """
    with engine.connect() as connection:
        return {(table, name, sql) for table, name, sql in connection.exec_driver_sql(query)}


class TestMigrations:
    def test_they_make_exactly_the_tables_of_the_metadata(self, engine: Engine) -> None:
        assert differences(engine) == []

    def test_they_can_be_taken_back_and_made_again(self, engine: Engine) -> None:
        before = shape(engine)
        for revision in ("0005", "0004", "0003", "0002", "0001", "base"):
            with writing(engine).begin() as connection:
                command.downgrade(config_for(connection), revision)
        with writing(engine).begin() as connection:
            assert inspect(connection).get_table_names() == ["alembic_version"]
            migrations.upgrade(connection)
        assert differences(engine) == []
        assert shape(engine) == before

    def test_checks_and_names_too_are_the_same_in_a_file(self, state_dir: Path) -> None:
        """Alembic compares no CHECK constraints, so the stored CREATE statements are compared, clause by clause."""
        query = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'alembic%' AND sql <> '' AND type <> 'trigger'"
        fresh = create_engine("sqlite://")
        metadata.create_all(fresh)
        engine = open_database(state_dir)

        def clauses(sql: str) -> set[str]:
            # A column that was added stands in the last line, behind the constraints.
            head, _, inside = " ".join(sql.split()).partition("(")
            parts = re.split(r",(?![^(]*\))", re.sub(r"\)$", "", inside))
            return {head.strip(), *(" ".join(part.split()) for part in parts)}

        with fresh.connect() as wanted, engine.connect() as made:
            one = {name: clauses(sql) for name, sql in wanted.exec_driver_sql(query)}
            other = {name: clauses(sql) for name, sql in made.exec_driver_sql(query)}
        assert one == other
        assert len(one) == 15 + 15
        engine.dispose()
        fresh.dispose()

    def test_checks_and_names_too_are_the_same_on_a_server(
        self, server: Engine, postgres: Server, empty_postgres: LedgerSettings
    ) -> None:
        fresh = create_engine(empty_postgres.url.replace("postgresql:", "postgresql+psycopg:"))
        metadata.create_all(fresh)
        triggers = ("ledger_kept", "ledger_closed", "audit_kept", "audit_written")
        triggers += ("ledger_kept_whole", "audit_kept_whole")
        made = {row for row in shape(server) if row[0] != "alembic_version" and row[1] not in triggers}
        assert made == shape(fresh)
        assert ("keys", "ck_keys_hash", "CHECK ((length(hash) = 32))") in made
        fresh.dispose()

    def test_a_database_of_the_first_revision_is_brought_up_to_date_with_its_rows(self, state_dir: Path) -> None:
        state_dir.mkdir()
        old = create_engine(f"sqlite:///{state_dir / FILE}")
        with old.begin() as connection:
            command.upgrade(config_for(connection), "0001")
            connection.exec_driver_sql("INSERT INTO tenants (id, name, created_at) VALUES ('acme', 'Acme', 5)")
        old.dispose()
        engine = open_database(state_dir)
        key = Keys(engine).create("acme")
        assert Keys(engine).find(key.secret_text) == key.key
        engine.dispose()
        with closing(sqlite3.connect(state_dir / FILE)) as connection:
            assert connection.execute("SELECT * FROM tenants").fetchall() == [
                ("acme", "Acme", "active", 5, None, None, None)
            ]
            assert connection.execute("SELECT count(*) FROM files, uploads").fetchall() == [(0,)]
            assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0006",)]

    def test_the_known_revisions_are_the_files(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        scripts = ScriptDirectory.from_config(config)
        assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == migrations.REVISIONS

    @pytest.mark.parametrize(
        "row",
        [
            {"hash": b"short"},
            {"public": "short"},
            {"status": "dead"},
            {"status": "revoked"},
            {"revoked_at": 5},
            {"tenant": "nobody"},
            {"replaced_by": "A" * 12},
            {"replaced_by": "C" * 12, "retires_at": 5},
        ],
    )
    def test_a_row_that_makes_no_sense_is_refused(self, engine: Engine, keys: Keys, row: dict[str, object]) -> None:
        good = {"public": "A" * 12, "hash": b"h" * 32, "tenant": "acme", "admin": False, "created_at": 1}
        with pytest.raises(exc.IntegrityError), engine.begin() as connection:
            connection.execute(metadata.tables["keys"].insert().values({**good, **row}))
        with engine.begin() as connection:
            connection.execute(metadata.tables["keys"].insert().values(good))


class TestRules:
    """What the triggers hold, whoever writes."""

    @pytest.fixture(autouse=True)
    def written(self, engine: Engine, keys: Keys) -> None:
        """An open row of the ledger, a closed one, and a row of the audit."""
        row = {
            "tenant": "acme", "key": "k", "model": "m", "wire": "openai", "stream": False, "owner": "o",
            "created_at": 1, "reserved_out": 5, "reserved": 7,
        }  # fmt: skip
        ledger, audit = metadata.tables["ledger"], metadata.tables["audit"]
        with engine.begin() as connection:
            connection.execute(insert(ledger).values(row | {"id": "open", "state": "open"}))
            connection.execute(insert(ledger).values(row | {"id": "final", "state": "final", "ended_at": 2}))
            connection.execute(insert(audit).values(at=1, actor="command line", action="a", object="o"))

    @pytest.mark.parametrize(
        ("statement", "said"),
        [
            ("DELETE FROM ledger WHERE id = 'open'", "no row of the ledger is ever deleted"),
            ("DELETE FROM ledger", "no row of the ledger is ever deleted"),
            ("UPDATE ledger SET cost = 1 WHERE id = 'final'", "a row of the ledger leaves open once"),
            ("UPDATE ledger SET state = 'open', ended_at = NULL", "a row of the ledger leaves open once"),
            ("UPDATE audit SET actor = 'nobody'", "no row of the audit is ever changed"),
            ("DELETE FROM audit", "no row of the audit is ever deleted"),
            ("REPLACE INTO audit SELECT id, 5, actor, action, object, details FROM audit", "of the audit is ever"),
            ("TRUNCATE ledger", "no row of the ledger is ever deleted"),
            ("TRUNCATE audit", "no row of the audit is ever deleted"),
        ],
    )
    def test_what_was_written_stays(self, engine: Engine, statement: str, said: str) -> None:
        if statement.partition(" ")[0] == ("TRUNCATE" if engine.dialect.name == "sqlite" else "REPLACE"):
            said = "syntax error"  # they are each other's database's own
        with pytest.raises(exc.DBAPIError, match=said), engine.begin() as connection:
            connection.exec_driver_sql(statement)
        with engine.connect() as connection:
            for query in (
                "SELECT count(*) FROM ledger WHERE cost = 0",
                "SELECT count(*) + 1 FROM audit WHERE object = 'o'",
            ):
                assert connection.exec_driver_sql(query).scalar() == 2

    def test_an_open_row_is_counted_on_and_closed_once(self, engine: Engine) -> None:
        closing_it = "UPDATE ledger SET state = 'aborted', ended_at = 3 WHERE id = 'open' AND state = 'open'"
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE ledger SET out = 3 WHERE id = 'open'")
            assert [connection.exec_driver_sql(closing_it).rowcount for _ in range(2)] == [1, 0]

    @pytest.mark.parametrize(
        "change",
        [
            "out = -1",
            "reasoning = 1",
            "state = 'gone'",
            "ended_at = 5",
            "reserved = -1",
            "price = 9",
            "tenant = 'nobody'",
        ],
    )
    def test_an_open_row_makes_sense(self, engine: Engine, change: str) -> None:
        with pytest.raises(exc.IntegrityError), engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE ledger SET {change} WHERE id = 'open'")

    def test_numbers_of_rows_go_up(self, engine: Engine) -> None:
        audit, made = metadata.tables["audit"], []
        for _ in range(3):
            with engine.begin() as connection:
                row = insert(audit).values(at=1, actor="command line", action="a", object="o").returning(audit.c.id)
                made.append(connection.execute(row).scalar_one())
        assert made == [made[0], made[0] + 1, made[0] + 2]
