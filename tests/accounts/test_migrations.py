"""The migrations make what `tables.py` says, on SQLite to the letter, on PostgreSQL as far as text can tell."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, exc
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from qwen3vl_compat.accounts import migrations
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.accounts.tables import metadata


class TestMigrations:
    def test_they_make_exactly_the_tables_of_the_metadata(self, state_dir: Path) -> None:
        engine = open_database(state_dir)
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": True}
            )
            assert compare_metadata(context, metadata) == []
        engine.dispose()

    def test_checks_and_names_too_are_the_same(self, state_dir: Path) -> None:
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
        assert len(one) == 12 + 11
        engine.dispose()
        fresh.dispose()

    def test_a_database_of_the_first_revision_is_brought_up_to_date_with_its_rows(self, state_dir: Path) -> None:
        state_dir.mkdir()
        old = create_engine(f"sqlite:///{state_dir / FILE}")
        with old.begin() as connection:
            config = Config(attributes={"connection": connection})
            config.set_main_option("script_location", str(Path(migrations.__file__).parent))
            command.upgrade(config, "0001")
            connection.exec_driver_sql("INSERT INTO tenants (id, name, created_at) VALUES ('acme', 'Acme', 5)")
        old.dispose()
        engine = open_database(state_dir)
        key = Keys(engine).create("acme")
        assert Keys(engine).find(key.secret_text) == key.key
        engine.dispose()
        with closing(sqlite3.connect(state_dir / FILE)) as connection:
            assert connection.execute("SELECT * FROM tenants").fetchall() == [("acme", "Acme", "active", 5, None, None)]
            assert connection.execute("SELECT count(*) FROM files, uploads").fetchall() == [(0,)]
            assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0003",)]

    def test_the_known_revisions_are_the_files(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        scripts = ScriptDirectory.from_config(config)
        assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == migrations.REVISIONS

    def test_the_tables_are_good_postgresql(self) -> None:
        sql = "".join(str(CreateTable(table).compile(dialect=postgresql.dialect())) for table in metadata.sorted_tables)
        assert "hash BYTEA NOT NULL" in sql
        assert "created_at BIGINT NOT NULL" in sql
        assert "admin BOOLEAN NOT NULL" in sql
        assert "admin IN" not in sql

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
    def test_a_row_that_makes_no_sense_is_refused(self, state_dir: Path, row: dict[str, object]) -> None:
        engine = open_database(state_dir)
        good = {"public": "A" * 12, "hash": b"h" * 32, "tenant": "acme", "admin": False, "created_at": 1}
        Keys(engine).add_tenant("acme")
        with pytest.raises(exc.IntegrityError), engine.begin() as connection:
            connection.execute(metadata.tables["keys"].insert().values({**good, **row}))
        with engine.begin() as connection:
            connection.execute(metadata.tables["keys"].insert().values(good))
        engine.dispose()
