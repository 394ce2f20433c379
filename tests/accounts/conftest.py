"""A database of its own for each test, of either kind, and a clock that only moves when told to."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.settings import LedgerSettings


class Clock:
    """Seconds since 1970 as the test says; serves as `clock` and as `ticks`."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    @property
    def ms(self) -> int:
        return int(self.now * 1000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def new_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as a first start leaves it, made once: each test takes a copy."""
    folder = tmp_path_factory.mktemp("new") / "state"
    open_database(folder).dispose()
    return folder / FILE


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def sqlite(state_dir: Path, new_file: Path) -> LedgerSettings:
    """The settings of a new file in the state folder."""
    state_dir.mkdir()
    shutil.copy(new_file, state_dir)
    return LedgerSettings()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest) -> LedgerSettings:
    """The settings of a new database, of each kind in turn."""
    settings: LedgerSettings = request.getfixturevalue("sqlite" if request.param == "sqlite" else "new_postgres")
    return settings


@pytest.fixture
def engine(state_dir: Path, ledger: LedgerSettings) -> Iterator[Engine]:
    """A new database, of each kind in turn."""
    engine = open_database(state_dir, ledger)
    yield engine
    engine.dispose()


@pytest.fixture
def server(state_dir: Path, new_postgres: LedgerSettings) -> Iterator[Engine]:
    """A new database on the server, opened."""
    engine = open_database(state_dir, new_postgres)
    yield engine
    engine.dispose()


@pytest.fixture
def keys(engine: Engine, clock: Clock) -> Keys:
    keys = Keys(engine, clock, ticks=clock)
    keys.add_tenant("acme")
    return keys


@pytest.fixture(scope="session")
def filled_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed database with 102 keys in it, made once."""
    folder = tmp_path_factory.mktemp("filled") / "state"
    engine = open_database(folder)
    keys = Keys(engine)
    keys.ensure_first()
    for _ in range(100):
        keys.create("default", label="x" * 100)
    engine.dispose()
    return folder / FILE


@pytest.fixture
def filled(state_dir: Path, filled_file: Path) -> Path:
    """A copy of it that is the test's own."""
    state_dir.mkdir()
    return Path(shutil.copy(filled_file, state_dir))
