"""Flag before variable before file before default; a name that does not exist ends the start."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from qwen3vl_compat.settings import Settings, SettingsError, load_settings


def test_the_defaults() -> None:
    assert load_settings(environment={}) == Settings()


def test_what_clients_go_by_is_no_setting() -> None:
    environment = {"QWEN3VL_BASE_URL": "http://there:1", "QWEN3VL_API_KEY": "sk-x"}
    assert load_settings(environment=environment) == Settings()


def test_the_order(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    file.write_text("[server]\nport = 1\nhost = 'a'\ngrace = 5\n")
    environment = {"QWEN3VL_CONFIG": str(file), "QWEN3VL_SERVER__PORT": "2", "QWEN3VL_SERVER__HOST": "b"}
    settings = load_settings(flags={"server.port": 3, "server.host": None}, environment=environment)
    assert (settings.server.port, settings.server.host, settings.server.grace) == (3, "b", 5)


@pytest.mark.parametrize(
    ("environment", "text", "said"),
    [
        ({"QWEN3VL_PORT": "1"}, None, "QWEN3VL_PORT names no setting"),
        ({"QWEN3VL_SERVER__PROT": "1"}, None, "prot"),
        ({"QWEN3VL_SERVER__PORT": "x"}, None, "server.port"),
        ({}, "[server]\nprot = 1\n", "prot"),
        ({}, "[sever]\n", "sever"),
        ({"QWEN3VL_SERVER__PORT": "1"}, "server = 5\n", "must be a table"),
        ({}, "[server", "not TOML"),
        ({"QWEN3VL_SERVER__DEADLINE": "0"}, None, "server.deadline"),
        ({"QWEN3VL_MEDIA__ALLOW_NETWORKS": "10.0.0.0/8,10.0.0.1/8"}, None, "10.0.0.1/8 is no network"),
        ({"QWEN3VL_SERVER__GRACE": "-1"}, None, "server.grace"),
        ({"QWEN3VL_SERVER__BODY_IDLE": "nan"}, None, "server.body_idle"),
        ({"QWEN3VL_SERVER__READ_IDLE": "inf"}, None, "server.read_idle"),
        ({"QWEN3VL_SERVER__PORT": "70000"}, None, "server.port"),
        ({"QWEN3VL_MODEL__MAX_WAITING": "0"}, None, "model.max_waiting"),
        ({"QWEN3VL_LIMITS__IP": "often"}, None, "ip: 'often' is no limit"),
        ({"QWEN3VL_LIMITS__IP": "5/minute;6/minute"}, None, "ip: .* two limits for the same time"),
        ({"QWEN3VL_LIMITS__IP": "0/minute"}, None, "ip: .* too small"),
        ({"QWEN3VL_LIMITS__REQUESTS": "often"}, None, "requests: 'often' is no limit"),
        (
            {"QWEN3VL_SERVER__TRUSTED_PROXIES": "10.0.0.0/8,10.0.0.1/8"},
            None,
            "trusted_proxies: 10.0.0.1/8 is no network",
        ),
        ({}, "[server]\ntrusted_proxies = ['localhost']\n", "trusted_proxies: localhost is no network"),
        ({}, "[server]\ntrusted_proxies = '10.0.0.1'\n", "server.trusted_proxies"),
    ],
)
def test_a_mistake_ends_the_start(tmp_path: Path, environment: dict[str, str], text: str | None, said: str) -> None:
    config = None
    if text is not None:
        config = tmp_path / "q.toml"
        config.write_text(text)
    with pytest.raises(SettingsError, match=said):
        load_settings(config, environment=environment)


KNOWN = "there is no such setting; there are "
LIST = '[[moderation.moderators]]\nkind = "words"\n'
SERVICE = '[[moderation.moderators]]\nkind = "service"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sever]", f"sever: {KNOWN}server, model, media, files, limits, ledger, responses, cache, moderation, log"),
        ("[log]\nlvl = 1", f"log.lvl: {KNOWN}level"),
        ("[server]\nport = 70000", "server.port: expected int <= 65535"),
        ("[server]\ngrace = 'long'", "server.grace: expected float, got str"),
        ("[media]\nports = [80, 'x']", "media.ports (number 2): expected int, got str"),
        ("[media]\nallow_networks = ['x']", "media.allow_networks: x is no network as 10.0.0.0/8"),
        ("[server]\ncors_origins = ['*', 'x']", "server.cors_origins (number 2): must be an origin as https://app"),
        ("[ledger]\nsynchronous = 'fast'", "ledger.synchronous: must be one of FULL, NORMAL, not 'fast'"),
        ("[ledger]\ncurrency = 'usd'", "ledger.currency: must be three capital letters, as USD"),
        ("[ledger]\nurl = 'mysql://me:secret@x'", "ledger.url: must be an address as postgresql://"),
        ("[limits]\nbudget = 'x/day'", "limits.budget: An amount of money is a number as 5.00"),
        ("[limits]\nredis = 'http://me:secret@x'", "limits.redis: must be an address as redis://host:6379/0"),
        ("[files]\nstore = 'x'", "files.store: must be a place as s3://bucket/prefix"),
        ("[files]\npublic_url = 'x'", "files.public_url: must be an address as https://host.example.org/path"),
        ("[moderation]\non_failure = 'shut'", "moderation.on_failure: must be one of closed, flag, open, not 'shut'"),
        ("[moderation]\noff = ['words']", "moderation.off: there is no moderator 'words'; there are none"),
        (
            f"moderation.off = ['svc']\n{LIST}{SERVICE}",
            "moderation.off: there is no moderator 'svc'; there are words, service",
        ),
        ("[[moderation.moderators]]", "moderation.moderators.kind (number 1): must be given: one of service, words"),
        (
            "[[moderation.moderators]]\nkind = 'word'",
            "moderation.moderators.kind (number 1): must be one of service, words, not 'word'",
        ),
        (
            f"{LIST}{LIST}stages = ['befor']",
            "moderation.moderators.stages (number 2): must be one of after, before, during, not 'befor'",
        ),
        (
            f"{LIST}stages = []",
            "moderation.moderators.stages (number 1): must be a list of one or more of before, during, after",
        ),
        (f"{LIST}name = 'X'", "moderation.moderators.name (number 1): must be 1 to 40 of a-z, 0-9, - and _"),
        (f"{LIST}words = {{ a = 'x' }}", "moderation.moderators.words (number 1): expected array, got str"),
    ],
)
def test_a_mistake_is_told_by_the_settings_name_with_what_may_stand_there(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "q.toml"
    config.write_text(text)
    with pytest.raises(SettingsError) as refused:
        load_settings(config, environment={})
    assert str(refused.value).startswith(f"The settings cannot be used: {said}")
    assert "secret" not in str(refused.value)
    assert "$" not in str(refused.value)


@pytest.mark.parametrize(
    ("moderator", "without_effect"),
    [
        *((f"{LIST}{field}", field) for field in (
            "url = 'https://x'", "key = 'k'", "key_variable = 'K'", "model = 'm'", "timeout = 1", "pictures = 1",
        )),
        (f"{SERVICE}words = {{ a = ['x'] }}", "words"),
        (f"{SERVICE}file = 'x'", "file"),
        (f"{SERVICE}key = 'secret'\nkey_variable = 'K'", "key"),
        (f"{SERVICE}stages = ['during']\npictures = 1", "pictures"),
    ],
)  # fmt: skip
def test_a_moderator_takes_nothing_that_has_no_effect(tmp_path: Path, moderator: str, without_effect: str) -> None:
    config = tmp_path / "q.toml"
    config.write_text(moderator)
    name = without_effect.partition(" ")[0]
    with pytest.raises(SettingsError, match=rf"moderation\.moderators\.{name} \(number 1\): ") as refused:
        load_settings(config, environment={})
    assert "secret" not in str(refused.value)


def patterns(node: Any, path: str, described: bool = False) -> Iterator[tuple[str, bool]]:
    """Each setting that has to match a pattern, and whether that is said in words."""
    if isinstance(node, inspect.Metadata):
        yield from patterns(node.type, path, "description" in (node.extra_json_schema or {}))
    elif isinstance(node, inspect.StructType):
        for field in node.fields:
            yield from patterns(field.type, f"{path}.{field.name}")
    elif isinstance(node, inspect.VarTupleType):
        yield from patterns(node.item_type, path)
    elif isinstance(node, inspect.StrType) and node.pattern:
        yield path, described


def test_every_pattern_is_described_in_words() -> None:
    found = dict(patterns(inspect.type_info(Settings), ""))
    assert len(found) >= 9
    assert [path for path, described in found.items() if not described] == []


def test_settings_travel_to_a_front() -> None:
    moderators = [{"kind": "words", "words": {"a": ["x"]}}, {"kind": "service", "url": "https://x", "pictures": 2}]
    settings = msgspec.convert({"moderation": {"moderators": moderators, "off": ["service"]}}, Settings)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(settings), type=Settings) == settings


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path / "none.toml", environment={})


def test_a_table_in_a_variable_is_divided_by_commas_and_equals_signs() -> None:
    environment = {"QWEN3VL_MODEL__ALIASES": "gpt-4o = qwen3-vl,gemini-*=qwen3-vl"}
    assert load_settings(environment=environment).model.aliases == {"gpt-4o": "qwen3-vl", "gemini-*": "qwen3-vl"}
    said = r"model\.aliases: must be a table of names and models, in a variable name=model,\.\.\., not 'gpt-4o'\."
    with pytest.raises(SettingsError, match=said):
        load_settings(environment={"QWEN3VL_MODEL__ALIASES": "gpt-4o"})


def test_a_list_or_a_table_in_a_variable_may_be_json() -> None:
    environment = {
        "QWEN3VL_MODEL__ALIASES": '{"gpt-4o": "qwen3-vl"}',
        "QWEN3VL_SERVER__CORS_ORIGINS": '["https://a", "https://b"]',
        "QWEN3VL_MODERATION__MODERATORS": '[{"kind": "words", "words": {"a": ["x"]}}]',
        "QWEN3VL_MODEL__NAME": "[x]",
    }
    settings = load_settings(environment=environment)
    assert settings.model.aliases == {"gpt-4o": "qwen3-vl"}
    assert settings.server.cors_origins == ("https://a", "https://b")
    assert [each.kind for each in settings.moderation.moderators] == ["words"]
    assert settings.model.name == "[x]"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("['https://a']", "The variable QWEN3VL_SERVER__CORS_ORIGINS begins as JSON does and is none."),
        ("https://a,b", "(number 2): must be an origin as https://app.example.org, or *, not 'b'."),
        ('["x"]', "(number 1): must be an origin as https://app.example.org, or *, not 'x'."),
        ('{"x": 1}', "server.cors_origins: expected array, got object."),
    ],
)
def test_what_is_wrong_in_a_variables_list_is_shown(value: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(environment={"QWEN3VL_SERVER__CORS_ORIGINS": value})
    assert str(refused.value).endswith(said)


def test_a_list_in_a_variable_is_divided_by_commas() -> None:
    environment = {"QWEN3VL_MEDIA__ALLOW_NETWORKS": "10.0.0.0/8, 127.0.0.1/32", "QWEN3VL_MEDIA__PORTS": "80,8000"}
    media = load_settings(environment=environment).media
    assert (media.allow_networks, media.ports) == (("10.0.0.0/8", "127.0.0.1/32"), (80, 8000))
    assert load_settings(environment={"QWEN3VL_MEDIA__ALLOW_NETWORKS": ""}).media.allow_networks == ()
