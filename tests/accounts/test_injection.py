"""Reliability row A3: 200 strings that mean something to some database or shell mean nothing as a key or a name."""

import time

import pytest
from sqlalchemy import Engine, event

from qwen3vl_compat.accounts.keys import Keys, UnknownKey, UnknownTenant

PAYLOADS = (
    "' OR '1'='1",
    "' OR 1=1 --",
    "' OR 1=1 #",
    '" OR ""="',
    "') OR ('1'='1",
    "admin'--",
    "'; DROP TABLE keys; --",
    "'; DELETE FROM tenants WHERE 'a'='a",
    "1; UPDATE keys SET status='active'",
    "' UNION SELECT NULL,NULL,NULL --",
    "' UNION SELECT public,hash,tenant FROM keys --",
    "' AND SLEEP(8) --",
    "'; SELECT pg_sleep(8); --",
    "'; WAITFOR DELAY '0:0:8' --",
    "' AND 1=randomblob(800000000) --",
    "' AND (SELECT COUNT(*) FROM sqlite_master)>0 --",
    "'||(SELECT hash FROM keys LIMIT 1)||'",
    "'; ATTACH DATABASE '/tmp/x.db' AS x; --",
    "' AND load_extension('/tmp/x.so') --",
    "'; COPY keys TO PROGRAM 'id'; --",
    "%",
    "_' OR label LIKE '_",
    "%' ESCAPE '\\",
    "\\' OR 1=1 --",
    "%27%20OR%201%3D1",
    "\u02bc OR 1=1 --",
    "\uff07 OR \uff07\uff11\uff07=\uff07\uff11",
    "\x00' OR 1=1 --",
    "/**/OR/**/1=1",
    ":public",
    "?",
    "%(public)s",
    "$1",
    '{"$gt": ""}',
    '{"$ne": null}',
    '{"$where": "sleep(8000)"}',
    "true, $where: '1 == 1'",
    "*)(uid=*))(|(uid=*",
    "*\r\nFLUSHALL\r\n",
    "$(sleep 8); `sleep 8`",
)
PLAIN_KEY = "sk-abcdefABCDEF-" + "x" * 43
WRAPPINGS = ("{}", "sk-{}", "sk-{}-" + "x" * 43, "sk-abcdefABCDEF-{}", PLAIN_KEY + "{}")
STRINGS = tuple(wrapping.replace("{}", payload) for wrapping in WRAPPINGS for payload in PAYLOADS)


def test_none_of_200_injections_is_a_key_and_none_reaches_the_database(keys: Keys, engine: Engine) -> None:
    assert len(set(STRINGS)) == 200
    real = keys.create("acme")
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    started = time.perf_counter()
    assert [keys.find(text) for text in STRINGS] == [None] * 200
    assert [keys.find(text.ljust(59, "x")) for text in STRINGS] == [None] * 200
    assert time.perf_counter() - started < 1.0
    assert [text for text in statements if text.startswith("SELECT")] == []
    assert keys.find(real.secret_text) == real.key


def test_as_a_tenant_or_public_part_they_name_nothing(keys: Keys) -> None:
    real = keys.create("acme")
    for text in STRINGS:
        assert keys.list(text) == ()
        with pytest.raises(UnknownTenant):
            keys.create(text)
        with pytest.raises(UnknownKey):
            keys.revoke(text)
        with pytest.raises(ValueError, match="tenant's id"):
            keys.add_tenant(text)
    assert keys.list() == (real.key,)


def test_as_a_label_they_are_only_letters(keys: Keys) -> None:
    labels = [text for text in PAYLOADS if text.isprintable()]
    assert len(labels) >= 35
    for label in labels:
        assert keys.create("acme", label=label).key.label == label
    assert sorted(key.label for key in keys.list()) == sorted(labels)
