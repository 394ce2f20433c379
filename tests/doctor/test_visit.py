"""Addresses and keys as people give them."""

import pytest

from qwen3vl_compat.doctor.visit import checked_key, origin_of


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        (" http://127.0.0.1:8080/ ", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080"),
        ("https://api.example.org/v1beta/", "https://api.example.org"),
        ("https://example.org/models/qwen/v1", "https://example.org/models/qwen"),
        ("http://[::1]:8080/v1", "http://[::1]:8080"),
    ],
)
def test_the_base_urls_of_clients_are_addresses_too(given: str, origin: str) -> None:
    assert origin_of(given) == origin


@pytest.mark.parametrize(
    "given",
    [
        "",
        "localhost:8080",
        "127.0.0.1:8080",
        "ftp://x",
        "http://",
        "http://me:pw@x",
        "http://x/?key=sk-1",
        "http://x:y",
    ],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="--url is the server's address") as refused:
        origin_of(given)
    assert "pw" not in str(refused.value)


def test_a_key_can_stand_in_a_header() -> None:
    assert checked_key("sk-a-b") == "sk-a-b"
    assert checked_key("") == ""
    for bad in ("sk a", "sk-\n", "schlüssel"):
        with pytest.raises(ValueError, match="no API key") as refused:
            checked_key(bad)
        assert bad not in str(refused.value)
