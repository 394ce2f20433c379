"""The parts of the API that a key can be held to, by name."""

from typing import Literal, get_args

Endpoint = Literal["generate", "files", "models", "moderations", "usage"]
ENDPOINTS: tuple[str, ...] = get_args(Endpoint)

_CALLS = ("generateContent", "streamGenerateContent", "countTokens")
_PLACES: tuple[tuple[str, Endpoint], ...] = (
    ("/v1/chat/completions", "generate"),
    ("/v1/completions", "generate"),
    ("/v1/messages", "generate"),
    ("/v1/responses", "generate"),
    ("/v1/moderations", "moderations"),
    ("/v1/models", "models"),
    ("/v1beta/models", "models"),
    ("/v1/files", "files"),
    ("/v1beta/files", "files"),
    ("/upload", "files"),
    ("/v1/usage", "usage"),
    ("/v1/limits", "usage"),
    ("/v1/organization/usage", "usage"),
)


def endpoint_of(path: str) -> Endpoint | None:
    """Which of them a path belongs to, as the router reads it: without empty parts and a slash at the end.

    None for a path that is none of them: what takes an admin key, what takes no key, and what is not there.
    """
    for place, endpoint in _PLACES:
        if path == place or path.startswith(f"{place}/"):
            calls = endpoint == "models" and path.rpartition(":")[2] in _CALLS
            return "generate" if calls else endpoint
    return None
