"""A PostgreSQL server that is wrong, gone, back again, slow or silent: one plain sentence or error, and no waiting."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import Engine, exc

from qwen3vl_compat.accounts import postgres as module
from qwen3vl_compat.accounts.database import DatabaseUnusable, open_database, writing
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.settings import LedgerSettings
from tests.postgres import PASSWORD, WRITTEN, Server

SECRETS = (PASSWORD, WRITTEN, "ss/w", "ss%2Fw", "0123456789")


def refusal(state_dir: Path, url: str) -> str:
    """The sentence that a start ends with."""
    with pytest.raises(DatabaseUnusable) as refused:
        open_database(state_dir, LedgerSettings(url=url))
    sentence = str(refused.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "psycopg." not in sentence
    assert not any(secret in sentence for secret in SECRETS)
    return sentence


@contextmanager
def relay(port: int) -> Iterator[tuple[int, threading.Event]]:
    """A port that leads to another; while the event is set, nothing passes any more in either direction."""
    silent = threading.Event()
    ends: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not silent.is_set():
                    sink.sendall(data)

    def take() -> None:
        with suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
                ends.extend((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        taking = threading.Thread(target=take, daemon=True)
        taking.start()
        try:
            yield listener.getsockname()[1], silent
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            taking.join()
            for end in ends:
                end.close()


def until_its_turn(write: Callable[[], bool]) -> bool:
    """Write once the server has noticed that the writer before is gone."""
    end = time.monotonic() + 60
    while True:
        try:
            return write()
        except exc.OperationalError:
            assert time.monotonic() < end


class TestRefusing:
    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("postgresql://accounts:{w}@127.0.0.1:1/postgres", "Connection refused"),
            ("postgresql://accounts:x{w}@127.0.0.1:{port}/postgres", "password authentication failed"),
            ("postgresql://nobody:{w}@127.0.0.1:{port}/postgres", "password authentication failed"),
            ("postgresql://accounts:{w}@127.0.0.1:{port}/nothing", 'database "nothing" does not exist'),
            ("postgresql://accounts:{w}@no-such-host.invalid/postgres", "no-such-host.invalid"),
            ("postgresql://accounts:{w}@/postgres?host=/nowhere", "No such file"),
            ("postgresql://accounts:{p}@127.0.0.1:{port}/postgres", "ledger.url cannot be read"),
            ("postgresql://accounts:{w}@127.0.0.1:port/postgres", "ledger.url cannot be read"),
            ("postgresql://accounts:{w}@127.0.0.1:99999/postgres", "cannot be used"),
            ("postgresql://accounts:{w}@127.0.0.1:{port}/postgres?sslmode=maybe", "cannot be used"),
            ("postgresql://accounts:{w}@127.0.0.1:{port}/postgres?sslmode=require", "SSL"),
            ("postgresql://accounts:{w}@127.0.0.1:{port}/postgres?nonsense=1", "cannot be used"),
            ("postgresql://accounts:{w}@127.0.0.1:{port}/postgres?options=-c%20a=b", "cannot be used"),
        ],
    )
    def test_an_address_that_leads_nowhere(self, state_dir: Path, postgres: Server, url: str, said: str) -> None:
        address = url.format(w=WRITTEN, p=PASSWORD, port=postgres.port)
        assert said in refusal(state_dir, address)
        assert not list(state_dir.glob("*"))

    @pytest.mark.parametrize(
        ("statement", "said"),
        [
            ("DROP TABLE keys CASCADE", "is damaged: table keys is missing"),
            ("DELETE FROM alembic_version", "is damaged: it does not say which version it is"),
            ("UPDATE alembic_version SET version_num = '9999'", "was written by a newer version"),
            ("DROP TABLE alembic_version", "is a database of another program"),
            ("ALTER TABLE installation RENAME TO former", "is damaged: table installation is missing"),
        ],
    )
    def test_a_database_that_is_not_wholly_ours(
        self, state_dir: Path, postgres: Server, new_postgres: LedgerSettings, statement: str, said: str
    ) -> None:
        database = new_postgres.url.rpartition("/")[2]
        postgres.run(statement, database)
        tables = "SELECT relname, relpages FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
        before = postgres.run(tables, database)
        assert said in refusal(state_dir, new_postgres.url)
        assert postgres.run(tables, database) == before

    def test_a_database_of_another_program_gets_no_table_of_ours(
        self, state_dir: Path, postgres: Server, empty_postgres: LedgerSettings
    ) -> None:
        database = empty_postgres.url.rpartition("/")[2]
        postgres.run("CREATE TABLE notes (text TEXT)", database)
        assert "is a database of another program" in refusal(state_dir, empty_postgres.url)
        found = postgres.run("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database)
        assert found == [("notes",)]

    def test_a_database_that_cannot_hold_every_text(self, state_dir: Path, postgres: Server) -> None:
        with postgres.database("ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0") as name:
            assert "keeps its text in SQL_ASCII" in refusal(state_dir, postgres.url(name))

    def test_a_database_that_takes_no_writes(
        self, state_dir: Path, postgres: Server, new_postgres: LedgerSettings
    ) -> None:
        database = new_postgres.url.rpartition("/")[2]
        postgres.run(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        assert "read-only" in refusal(state_dir, new_postgres.url)

    def test_a_user_who_may_make_no_tables(self, state_dir: Path, postgres: Server) -> None:
        with postgres.database() as name:
            postgres.run(f"CREATE USER guest_{name} PASSWORD '{PASSWORD}'")
            url = postgres.url(name).replace("//accounts", f"//guest_{name}")
            assert "permission denied for schema public" in refusal(state_dir, url)
            postgres.run(f"DROP USER guest_{name}")

    def test_a_server_without_its_package(self, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "qwen3vl_compat.accounts.postgres")
        monkeypatch.setitem(sys.modules, "psycopg", None)
        assert "install qwen3vl-compat[postgres]" in refusal(state_dir, "postgresql://host/name")

    def test_a_server_that_says_nothing(self, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_CONNECT_S", 2)
        with closing(socket.create_server(("127.0.0.1", 0))) as mute:
            port = mute.getsockname()[1]
            assert "timeout expired" in refusal(state_dir, f"postgresql://accounts:{WRITTEN}@127.0.0.1:{port}/x")


class TestCommandLine:
    def run(self, url: str, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QWEN3VL_")}
        environment |= {"QWEN3VL_LEDGER__URL": url, "QWEN3VL_SERVER__STATE_DIR": str(folder)}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        words = [sys.executable, "-m", "qwen3vl_compat", *command]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, cwd=folder.parent)

    def test_it_goes_the_same_way(self, state_dir: Path, empty_postgres: LedgerSettings) -> None:
        refused = self.run(empty_postgres.url, state_dir, "keys", "create")
        assert refused.returncode == 1
        assert "There are no accounts here: The PostgreSQL database" in refused.stderr
        assert "is empty. Name the server's own" in refused.stderr
        assert not state_dir.exists()
        engine = open_database(state_dir, empty_postgres)
        made = self.run(empty_postgres.url, state_dir, "keys", "create")
        assert made.returncode == 0, made.stderr
        assert Keys(engine).find(made.stdout.strip())
        engine.dispose()

    def test_it_ends_in_one_sentence_without_the_password(self, state_dir: Path, postgres: Server) -> None:
        for url in (postgres.url("nothing"), postgres.url("postgres").replace(str(postgres.port), "1")):
            ran = self.run(url, state_dir, "keys", "list")
            assert ran.returncode == 1
            assert ran.stderr.startswith("qwen3vl-compat: The PostgreSQL database")
            assert ran.stderr.count("\n") == 1
            assert not any(secret in ran.stderr for secret in SECRETS)


class TestConnections:
    def test_every_wait_has_an_end(self, server: Engine) -> None:
        with server.connect() as one, writing(server).connect() as other:
            for connection in (one, other):
                values = {
                    name: connection.exec_driver_sql(f"SHOW {name}").scalar()
                    for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
                }
                assert values == {
                    "lock_timeout": "5s",
                    "statement_timeout": "10s",
                    "idle_in_transaction_session_timeout": "10s",
                }
                assert connection.exec_driver_sql("SHOW application_name").scalar() == "qwen3vl-compat"

    def test_a_reader_sees_one_moment_and_a_writer_what_the_last_one_wrote(self, server: Engine) -> None:
        count = "SELECT count(*) FROM tenants"
        with server.connect() as reader:
            assert reader.exec_driver_sql(count).scalar() == 0
            Keys(server).add_tenant("acme")
            assert reader.exec_driver_sql(count).scalar() == 0
        with writing(server).begin() as writer:
            assert writer.exec_driver_sql(count).scalar() == 1
            assert writer.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"
        with server.connect() as reader:
            assert reader.exec_driver_sql("SHOW transaction_isolation").scalar() == "repeatable read"

    def test_the_call_after_a_lost_connection_works(self, server: Engine, postgres: Server) -> None:
        keys = Keys(server)
        keys.add_tenant("acme")
        name = server.url.database
        ended = postgres.run(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}'")
        assert ended[0][0]
        assert keys.list() == ()
        ended = postgres.run(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}'")
        assert ended[0][0]
        assert not keys.add_tenant("acme")

    def test_a_restart_costs_the_calls_meanwhile_and_no_other(self, server: Engine, postgres: Server) -> None:
        keys = Keys(server)
        new = keys.create("default")
        postgres.stop()
        try:
            with pytest.raises(exc.OperationalError):
                keys.list()
            with pytest.raises(exc.OperationalError):
                keys.create("default")
        finally:
            postgres.start()
        assert keys.list() == (new.key,)
        keys.create("default")
        assert len(keys.list()) == 2

    def test_a_cut_in_the_middle_of_a_transaction_undoes_it(self, server: Engine, postgres: Server) -> None:
        with writing(server).connect() as connection:
            connection.exec_driver_sql("INSERT INTO tenants (id, name, created_at) VALUES ('acme', 'Acme', 1)")
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
            postgres.run(f"SELECT pg_terminate_backend({pid}, 5000)")
            with pytest.raises(exc.OperationalError):
                connection.commit()
        assert Keys(server).add_tenant("acme")


class TestWaiting:
    def test_a_writer_waits_for_its_turn_and_not_for_ever(
        self, state_dir: Path, new_postgres: LedgerSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_TURN_S", 0.2)
        engine = open_database(state_dir, new_postgres)
        with writing(engine).begin():
            with pytest.raises(exc.OperationalError, match="lock timeout"):
                Keys(engine).add_tenant("acme")
            assert Keys(engine).list() == ()
        assert Keys(engine).add_tenant("acme")
        engine.dispose()

    def test_a_writer_that_stopped_loses_its_turn(
        self, state_dir: Path, new_postgres: LedgerSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_IDLE_S", 0.2)
        engine = open_database(state_dir, new_postgres)
        with writing(engine).connect() as stopped:
            stopped.exec_driver_sql("INSERT INTO tenants (id, name, created_at) VALUES ('acme', 'Acme', 1)")
            assert Keys(engine).add_tenant("acme")
            with pytest.raises(exc.DBAPIError):
                stopped.commit()
        engine.dispose()

    def test_a_statement_takes_no_longer_than_it_may(
        self, state_dir: Path, new_postgres: LedgerSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_STATEMENT_S", 0.2)
        engine = open_database(state_dir, new_postgres)
        with pytest.raises(exc.OperationalError, match="statement timeout"), engine.connect() as connection:
            connection.exec_driver_sql("SELECT pg_sleep(60)")
        engine.dispose()

    def test_a_server_that_falls_silent_is_given_up(
        self, state_dir: Path, postgres: Server, new_postgres: LedgerSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_STATEMENT_S", 0.5)
        monkeypatch.setattr(module, "_SILENCE_S", 0.2)
        monkeypatch.setattr(module, "_IDLE_S", 2)
        monkeypatch.setattr(module, "_CONNECT_S", 2)
        with relay(postgres.port) as (port, silent):
            url = new_postgres.url.replace(str(postgres.port), str(port))
            engine = open_database(state_dir, LedgerSettings(url=url))
            keys = Keys(engine)
            started = time.monotonic()
            with writing(engine).connect() as writer:
                writer.exec_driver_sql("SELECT 1")
                silent.set()
                with pytest.raises(exc.OperationalError, match="does not answer"):
                    writer.exec_driver_sql("SELECT 1")
            with pytest.raises(exc.OperationalError):
                keys.list()
            assert time.monotonic() - started < 30
            silent.clear()
            assert keys.list() == ()
            assert until_its_turn(lambda: keys.add_tenant("acme"))
            engine.dispose()
