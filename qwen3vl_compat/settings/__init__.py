"""What an operator can set: one frozen value, from flags, QWEN3VL_* variables, a TOML file and defaults, in that order.

A variable is QWEN3VL_<TABLE>__<NAME>, as QWEN3VL_SERVER__PORT. A name that does not exist ends the start. Each module
has some of the file's tables, with their defaults; `loading` puts them together.
"""

from qwen3vl_compat.settings.faults import expected_of
from qwen3vl_compat.settings.loading import PREFIX, Settings, SettingsError, load_settings
from qwen3vl_compat.settings.media import FileSettings, MediaLimits, MediaSettings
from qwen3vl_compat.settings.model import ModelSettings
from qwen3vl_compat.settings.moderation import (
    STAGES,
    ModerationSettings,
    ModerationTerms,
    ModeratorSettings,
    OnFailure,
    Stage,
    no_moderator,
)
from qwen3vl_compat.settings.quotas import LimitSettings, Quotas, budgets_of, requests_of
from qwen3vl_compat.settings.server import LogSettings, ServerSettings
from qwen3vl_compat.settings.storage import CacheSettings, LedgerSettings, ResponseSettings

__all__ = [
    "PREFIX",
    "STAGES",
    "CacheSettings",
    "FileSettings",
    "LedgerSettings",
    "LimitSettings",
    "LogSettings",
    "MediaLimits",
    "MediaSettings",
    "ModelSettings",
    "ModerationSettings",
    "ModerationTerms",
    "ModeratorSettings",
    "OnFailure",
    "Quotas",
    "ResponseSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "Stage",
    "budgets_of",
    "expected_of",
    "load_settings",
    "no_moderator",
    "requests_of",
]
