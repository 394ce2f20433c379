"""One racing process: for each folder named on standard input it migrates a blank file, opens the database and asks for
the first keys.

It prints `ready` once everything is imported, then one JSON line a folder: the public parts it got, or null.
"""

import json
import sys
from pathlib import Path

import alembic.command  # imported beforehand, so that the race is about the database and not about the disk

from qwen3vl_compat.accounts.database import _upgrade, open_database
from qwen3vl_compat.accounts.keys import Keys

assert alembic.command
print("ready", flush=True)
for line in sys.stdin:
    folder = Path(line.strip())
    _upgrade(folder / "blank.db")  # without the folder's lock that a first start holds
    engine = open_database(folder / "state")
    first = Keys(engine).ensure_first()
    engine.dispose()
    print(json.dumps(first and [first.model.key.public, first.admin.key.public]), flush=True)
