"""One racing process: for each order on standard input, `{"folder": ..., "url": ...}`, it opens the database from that
state folder and asks for the first keys. Without a URL it migrates a blank file beside the folder first.

It prints `ready` once everything is imported, then one JSON line an order: the public parts it got, or null.
"""

import json
import sys
from pathlib import Path

import alembic.command  # imported beforehand, as psycopg, so that the race is about the database and not about the disk
import psycopg

from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.sqlite import _upgrade
from qwen3vl_compat.settings import LedgerSettings

assert alembic.command
assert psycopg
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    folder = Path(order["folder"])
    if not order["url"]:
        _upgrade(folder.with_name("blank.db"), folder.parent, "USD")  # without the folder's lock of a first start
    engine = open_database(folder, LedgerSettings(url=order["url"]))
    first = Keys(engine).ensure_first()
    engine.dispose()
    print(json.dumps(first and [first.model.key.public, first.admin.key.public]), flush=True)
