"""Where a tenant differs from the operator's settings: by the settings' names, as JSON text in its row."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from qwen3vl_compat.accounts.terms import Unfit
from qwen3vl_compat.settings import expected_of

T = TypeVar("T", bound=Struct)
Differences = dict[str, Any]


def decode(text: str | None) -> Differences:
    """A column as a value."""
    return msgspec.json.decode(text, type=Differences) if text else {}


def encode(own: Differences) -> str | None:
    """A value as a column."""
    return msgspec.json.encode(own).decode() if own else None


def over(usual: Struct, form: type[T], own: Differences) -> T:
    """`usual`, which has all fields of `form`, and what is different in it."""
    return msgspec.convert({name: getattr(usual, name) for name in form.__struct_fields__} | own, form, strict=False)


def checked(path: str, form: type[Struct], own: Mapping[str, Any], *, strict: bool = True) -> Differences:
    """The differences as JSON holds them; Unfit for a name or value that no field of `form` has."""
    found: Differences = {}
    for name, value in own.items():
        if name not in form.__struct_fields__:
            known = ", ".join(form.__struct_fields__)
            raise Unfit(f"{path}.{_shown(name)}", f"there is no such setting; there are {known}")
        try:
            found[name] = getattr(msgspec.convert({name: value}, form, strict=strict), name)
        except msgspec.ValidationError as error:
            _, own_words, why = str(error).partition(f"{name}: ")
            expected = expected_of(form, name)
            said = f"cannot be {_shown(value)}" + (f"; it must be {expected}" if expected else "")
            raise Unfit(f"{path}.{name}", why if own_words else said) from None
    return msgspec.json.decode(msgspec.json.encode(found))


def reworded(path: str, form: type[Struct], own: Differences, wishes: Mapping[str, str]) -> Differences:
    """The differences after what the command line says: an empty text takes one back, `none` lifts a limit.

    Of a list that is usually empty `none` is none of its names.
    """
    changed = dict(own)
    for name, text in wishes.items():
        usual = getattr(form(), name, None)
        changed.pop(name, None)
        if text == "none":
            changed[name] = usual if usual in ("", ()) else None
        elif text:
            changed[name] = [part.strip() for part in text.split(",")] if isinstance(usual, tuple) else text
    return checked(path, form, changed, strict=False)


def _shown(value: object) -> str:
    """A caller's own value, short and harmless enough to be said back."""
    return value if isinstance(value, str) and value.isidentifier() and len(value) < 60 else ascii(value)[:60]
