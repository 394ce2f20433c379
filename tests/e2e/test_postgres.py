"""The whole server with its accounts on PostgreSQL: as on a file, also after the database was away."""

from pathlib import Path

import httpx
import pytest

from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.settings import LedgerSettings
from tests.postgres import PASSWORD, WRITTEN, Server
from tests.serving import serving


def test_a_server_keeps_its_accounts_there(tmp_path: Path, postgres: Server, empty_postgres: LedgerSettings) -> None:
    environment = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_LEDGER__URL": empty_postgres.url}
    body = {"model": "qwen3-vl", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    with serving(tmp_path, environment=environment) as served:
        assert served.post("/v1/chat/completions", body).status_code == 200
        made = httpx.post(
            f"{served.url}/v1/files",
            headers={"authorization": f"Bearer {served.key}"},
            data={"purpose": "vision"},
            files={"file": ("Bild ä.png", SAMPLE.read_bytes())},
        ).json()
        key, log = served.key, served.log()
    assert not list(served.state.glob("qwen3vl.db*"))
    with serving(tmp_path, environment=environment) as served:
        assert key not in served.log()
        assert served.post("/v1/chat/completions", body, key).status_code == 200
        postgres.stop()
        postgres.start()
        path = f"{served.url}/v1/files/{made['id']}"
        found = httpx.get(path, headers={"authorization": f"Bearer {key}"})
        assert (found.status_code, found.json()["filename"]) == (200, "Bild ä.png")
        log += served.log()
    assert not any(secret in log for secret in (PASSWORD, WRITTEN))


def test_a_start_without_its_database_ends_in_a_sentence(tmp_path: Path, postgres: Server) -> None:
    environment = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_LEDGER__URL": postgres.url("nothing")}
    with pytest.raises(AssertionError, match="the server ended") as ended, serving(tmp_path, environment=environment):
        pass
    assert "qwen3vl-compat: The PostgreSQL database" in str(ended.value)
    assert 'database "nothing" does not exist' in str(ended.value)
    assert "Traceback" not in str(ended.value)
    assert WRITTEN not in str(ended.value)
