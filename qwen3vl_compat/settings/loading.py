"""All settings together, and how they are put together: from flags, variables, a file and defaults, in that order."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from qwen3vl_compat.settings.faults import fault_of
from qwen3vl_compat.settings.media import FileSettings, MediaSettings
from qwen3vl_compat.settings.model import ModelSettings
from qwen3vl_compat.settings.moderation import ModerationSettings
from qwen3vl_compat.settings.quotas import LimitSettings
from qwen3vl_compat.settings.server import LogSettings, ServerSettings
from qwen3vl_compat.settings.storage import CacheSettings, LedgerSettings, ResponseSettings

PREFIX = "QWEN3VL_"
OTHERS = ("QWEN3VL_CONFIG", "QWEN3VL_BASE_URL", "QWEN3VL_API_KEY")
"""Variables that are no settings: where these are, and what clients on the same machine go by."""


class SettingsError(Exception):
    """The settings cannot be used; the text is one sentence for the operator."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set."""

    server: ServerSettings = ServerSettings()
    model: ModelSettings = ModelSettings()
    media: MediaSettings = MediaSettings()
    files: FileSettings = FileSettings()
    limits: LimitSettings = LimitSettings()
    ledger: LedgerSettings = LedgerSettings()
    responses: ResponseSettings = ResponseSettings()
    cache: CacheSettings = CacheSettings()
    moderation: ModerationSettings = ModerationSettings()
    log: LogSettings = LogSettings()


def load_settings(
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings. `flags` maps "table.name" to a value; None stands for a flag that was not given."""
    environment = os.environ if environment is None else environment
    named = config or (Path(environment["QWEN3VL_CONFIG"]) if environment.get("QWEN3VL_CONFIG") else None)
    tables = _read_file(named or Path("qwen3vl.toml"), must_exist=named is not None)
    for name, value in environment.items():
        if name.startswith(PREFIX) and name not in OTHERS:
            table, _, field = name.removeprefix(PREFIX).lower().partition("__")
            if table not in Settings.__struct_fields__ or not field:
                raise SettingsError(f"The variable {name} names no setting.")
            _set(tables, table, field, _parted(name, table, field, value))
    for name, value in (flags or {}).items():
        table, _, field = name.partition(".")
        if value is not None:
            _set(tables, table, field, value)
    try:
        return msgspec.convert(tables, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"The settings cannot be used: {fault_of(error, Settings, tables).rstrip('.')}.") from None


def _parted(variable: str, table: str, field: str, value: str) -> Any:
    """What a variable gives a list or a table: JSON, or its parts between commas, `name=value` in a table."""
    usual = getattr(getattr(Settings(), table), field, None)
    if isinstance(usual, Mapping | tuple) and value.lstrip().startswith(("[", "{")):
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError:
            raise SettingsError(f"The variable {variable} begins as JSON does and is none.") from None
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(usual, Mapping) and all("=" in part for part in parts):
        pairs = [part.partition("=") for part in parts]
        return {name.strip(): given.strip() for name, _, given in pairs}
    return parts if isinstance(usual, tuple) else value


def _set(tables: dict[str, Any], table: str, field: str, value: Any) -> None:
    values = tables.setdefault(table, {})
    if not isinstance(values, dict):
        raise SettingsError(f"The settings file gives '{table}' a value; it must be a table.")
    values[field] = value


def _read_file(path: Path, must_exist: bool) -> dict[str, Any]:
    if not must_exist and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise SettingsError(f"The settings file {path} cannot be read.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings file {path} is not TOML: {error}.") from None
