"""The accounts are never read on the event loop's own thread: a database that is slow to answer holds up nobody."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import event

from qwen3vl_compat.accounts.books import open_accounts
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.errors import ApiError
from qwen3vl_compat.messages import Caller, Media, Message, Request
from qwen3vl_compat.server.app import build_service
from qwen3vl_compat.settings import Settings


async def test_the_database_is_never_read_on_the_loops_thread(tmp_path: Path) -> None:

    database = open_database(tmp_path / "state")
    accounts = open_accounts(database, Settings())
    accounts.keys.add_tenant("acme")
    service = build_service(Settings(), ScriptedEngine(), accounts)
    threads: list[threading.Thread] = []
    event.listen(database, "begin", lambda connection: threads.append(threading.current_thread()))
    message = Message("user", (Media(source=b"no picture"),))
    request = Request(id="x", created=0, model="qwen3-vl", messages=(message,), caller=Caller("acme", "k"))
    with pytest.raises(ApiError):
        async with service.prepared(request):
            pass
    database.dispose()
    assert threads
    assert threading.main_thread() not in threads
