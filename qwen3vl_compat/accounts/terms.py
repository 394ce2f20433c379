"""What can be set of a key or tenant, and what of it is unfit."""

from collections.abc import Sequence
from typing import Any, TypedDict, cast

import msgspec

from qwen3vl_compat.accounts.endpoints import ENDPOINTS
from qwen3vl_compat.settings import Quotas

LATEST_MS = 253_402_300_799_000
"""The last second of the year 9999: no time is taken that no calendar shows."""
_LABEL_LIMIT = 200
_MOST_NAMES = 100


class Unfit(ValueError):
    """A value that a field cannot have; the message is a plain sentence that begins with the field."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field


class Terms(TypedDict, total=False):
    """What can be set of a key; what is not named is as usual, or stays as it is.

    `expires_at` is in milliseconds since 1970, None for never; `models` and `endpoints` are None for no restriction.
    """

    label: str
    expires_at: int | None
    models: Sequence[str] | None
    endpoints: Sequence[str] | None
    limits: Quotas


def checked(terms: Terms, *, admin: bool) -> dict[str, Any]:
    """The terms as values of a Key; raises Unfit. `admin`: they are an admin key's, which calls no models."""
    if "label" in terms:
        check_line("label", terms["label"])
    expires_at = terms.get("expires_at")
    if expires_at is not None:
        check_time("expires_at", expires_at)
    for field in ("models", "endpoints"):
        if admin and terms.get(field):
            raise Unfit(field, "an admin key calls no models and is held to no endpoints")
    found = dict(terms)
    if "models" in terms:
        found["models"] = () if admin else _names("models", terms["models"])
    if "endpoints" in terms:
        found["endpoints"] = None if admin else _names("endpoints", terms["endpoints"], ENDPOINTS)
    return found


def columns(terms: dict[str, Any]) -> dict[str, Any]:
    """Checked terms as the table keeps them."""
    kept = dict(terms)
    for field in ("models", "endpoints"):
        if kept.get(field) is not None:
            kept[field] = msgspec.json.encode(kept[field]).decode()
    if "limits" in kept:
        kept["limits"] = None if kept["limits"] == Quotas() else msgspec.json.encode(kept["limits"]).decode()
    return kept


def details(terms: dict[str, Any]) -> dict[str, Any]:
    """Checked terms as the audit tells of them."""
    told = cast("dict[str, Any]", msgspec.to_builtins(terms))
    if told.get("expires_at") is not None:
        told["expires_at"] //= 1000
    return told


def check_line(field: str, text: str) -> None:
    """Refuse what is no short line of text; not every database could hold it, nor every terminal show it."""
    if len(text) > _LABEL_LIMIT or not text.isprintable():
        raise Unfit(field, f"must be at most {_LABEL_LIMIT} printable characters on one line")


def check_model(field: str, name: str) -> None:
    """Refuse what can be no model's name."""
    if not 1 <= len(name) <= _LABEL_LIMIT or not name.isprintable():
        raise Unfit(field, f"the name of a model is 1 to {_LABEL_LIMIT} printable characters")


def check_time(field: str, milliseconds: int) -> None:
    """Refuse a time that is no moment between 1970 and 9999."""
    if not 0 <= milliseconds <= LATEST_MS:
        raise Unfit(field, "must be between the years 1970 and 9999")


def _names(field: str, names: Sequence[str] | None, known: Sequence[str] | None = None) -> tuple[str, ...] | None:
    """A scope without what it says twice."""
    if names is None:
        return None
    if len(names) > _MOST_NAMES:
        raise Unfit(field, f"must be at most {_MOST_NAMES} names")
    for number, name in enumerate(names):
        if known is None:
            check_model(f"{field}[{number}]", name)
        elif name not in known:
            raise Unfit(f"{field}[{number}]", f"must be one of {', '.join(known)}")
    return tuple(dict.fromkeys(names))
