"""First starts that are killed at each step in turn: `dying.py FOLDER URL` prints how many there were.

A step is a commit, or a change to the state folder. After each death the next start must find or make a whole database
that the folder knows; a change made then must still be there at the one after it.
"""

import os
import sys
from itertools import count
from pathlib import Path

import alembic.command  # imported beforehand, so that each child need not
from sqlalchemy import Engine, event

from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.installation import MARKER
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.settings import LedgerSettings

assert alembic.command
WATCHED = ("os.mkdir", "os.chmod", "os.rename", "os.remove", "fcntl.flock", "sqlite3.connect")
KILLED = 9


def die_at(step: int) -> None:
    """Have this process end just before a step."""
    left = step

    def passed(*_: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            os._exit(KILLED)

    def audit(name: str, arguments: tuple[object, ...]) -> None:
        if name in WATCHED or (name == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
            passed()

    event.listen(Engine, "commit", passed)
    sys.addaudithook(audit)


def killed(step: int, folder: Path, ledger: LedgerSettings) -> bool:
    """Start in a child that dies at a step; False if it was done before."""
    child = os.fork()
    if not child:
        die_at(step)
        open_database(folder, ledger).dispose()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED), status
    return status == KILLED


def empty(engine: Engine) -> None:
    """Take the tables away again, so that the next start is a first one."""
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")


def main(parent: Path, ledger: LedgerSettings) -> int:
    """The number of steps there are."""
    for step in count(1):
        folder = parent / str(step)
        died = killed(step, folder, ledger)
        for again in (False, True):
            engine = open_database(folder, ledger)
            with engine.connect() as connection:
                held = connection.exec_driver_sql("SELECT id FROM installation").scalar()
            assert (folder / MARKER).read_text() == f"{held}\n"
            assert not (folder / f"{MARKER}.new").exists()
            assert Keys(engine).add_tenant("acme") is not again
            if again and ledger.url:
                empty(engine)
            engine.dispose()
        if not died:
            return step - 1
    raise AssertionError


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), LedgerSettings(url=sys.argv[2])))
