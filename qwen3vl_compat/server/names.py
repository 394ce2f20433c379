"""What models are called: by their own names, and by those that an operator lets stand for them."""

from collections.abc import Mapping, Sequence

from qwen3vl_compat.messages import ModelInfo
from qwen3vl_compat.settings import SettingsError

LONGEST = 200
"""Characters of a name that is known by its beginning."""


class Names:
    """The served models by every name that a client may use."""

    def __init__(self, models: Sequence[ModelInfo], aliases: Mapping[str, str]) -> None:
        """`aliases` are other names; a last `*` stands for any end. SettingsError for one that leads nowhere."""
        self._models = {model.id: model for model in models}
        for alias, name in aliases.items():
            if name not in self._models:
                raise SettingsError(f"model.aliases: '{alias}' stands for '{name[:100]}', a model that is not served")
            if alias in self._models:
                raise SettingsError(f"model.aliases: '{alias}' is the name of a model that is served")
            if not alias.rstrip("*") or "*" in alias[:-1]:
                raise SettingsError(f"model.aliases: '{alias}' must be a name, or the beginning of one and a '*'")
        self._names = self._models | {alias: self._models[name] for alias, name in aliases.items() if alias[-1] != "*"}
        beginnings = [(alias[:-1], self._models[name]) for alias, name in aliases.items() if alias[-1] == "*"]
        self._beginnings = sorted(beginnings, key=lambda pair: -len(pair[0]))

    def find(self, name: str) -> ModelInfo | None:
        """The model of that name; of beginnings the longest counts."""
        found = self._names.get(name)
        if found or len(name) > LONGEST:  # answers and what is kept of them bear it
            return found
        return next((model for beginning, model in self._beginnings if name.startswith(beginning)), None)

    @property
    def listed(self) -> Mapping[str, ModelInfo]:
        """The model of every whole name, in the order in which they are listed."""
        return self._names
