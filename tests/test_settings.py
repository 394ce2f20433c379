"""Flag before variable before file before default; a name that does not exist ends the start."""

from pathlib import Path

import pytest

from qwen3vl_compat.settings import Settings, SettingsError, load_settings


def test_the_defaults() -> None:
    assert load_settings(environment={}) == Settings()


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


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path / "none.toml", environment={})


def test_a_list_in_a_variable_is_divided_by_commas() -> None:
    environment = {"QWEN3VL_MEDIA__ALLOW_NETWORKS": "10.0.0.0/8, 127.0.0.1/32", "QWEN3VL_MEDIA__PORTS": "80,8000"}
    media = load_settings(environment=environment).media
    assert (media.allow_networks, media.ports) == (("10.0.0.0/8", "127.0.0.1/32"), (80, 8000))
    assert load_settings(environment={"QWEN3VL_MEDIA__ALLOW_NETWORKS": ""}).media.allow_networks == ()
