"""Who looks at what is asked and answered."""

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from qwen3vl_compat.settings.types import Web

OnFailure = Literal["closed", "open", "flag"]
Stage = Literal["before", "during", "after"]
"""When a moderator looks: at what is asked, at an answer while it is made, at the whole of it."""
STAGES: tuple[Stage, ...] = get_args(Stage)


class ModerationTerms(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How moderators are gone by; a tenant may have terms of its own."""

    on_failure: OnFailure = "closed"
    """When one cannot be asked: refuse, let pass and say so in the ledger, or let pass and mark the row as flagged."""
    off: tuple[str, ...] = ()
    """Names of moderators that do not look."""


class ModeratorSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One moderator: a list of words, or a service that speaks OpenAI's `/v1/moderations`."""

    kind: Literal["words", "service"]
    name: Annotated[
        str,
        Meta(
            pattern=r"^([a-z0-9][a-z0-9_-]{0,39})?$",
            description="1 to 40 of a-z, 0-9, - and _, beginning with a letter or digit",
        ),
    ] = ""
    """What the ledger calls it; empty is its kind."""
    stages: Annotated[
        tuple[Stage, ...], Meta(min_length=1, description=f"a list of one or more of {', '.join(STAGES)}")
    ] = ("before", "during")
    words: dict[str, tuple[str, ...]] = {}
    """Words and phrases by category; `bomb*` is every word that begins so."""
    file: str = ""
    """More of them, one a line, each below its `[category]`."""
    url: Web = ""
    """Of a service, as https://api.openai.com/v1/moderations."""
    key: str = ""
    """Its key, or in `key_variable` the name of the variable of the environment that holds it."""
    key_variable: str = ""
    model: str = "omni-moderation-latest"
    timeout: Annotated[float, Meta(gt=0, le=60)] = 5.0
    """Seconds that one question may take."""
    pictures: Annotated[int, Meta(ge=0, le=100)] = 0
    """Pictures in one question; 0: it is not shown any."""

    def __post_init__(self) -> None:
        given = msgspec.to_builtins(self)  # defaults are left out
        for kind, own in _OWN.items():
            for name in own:
                if kind != self.kind and name in given:
                    raise ValueError(f"{name}: means nothing to a moderator of kind {self.kind}")
        if self.key and self.key_variable:
            raise ValueError("key: means nothing beside key_variable")
        if self.pictures and "before" not in self.stages:
            raise ValueError("pictures: are shown only to a moderator that looks before")

    @property
    def called(self) -> str:
        """Its name, or its kind where it has none."""
        return self.name or self.kind

    def __repr__(self) -> str:
        return f"ModeratorSettings({self.called})"  # its key is nobody's business


_OWN = {
    "words": ("words", "file"),
    "service": ("url", "key", "key_variable", "model", "timeout", "pictures"),
}
"""What only moderators of a kind have."""


class ModerationSettings(ModerationTerms, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who looks at what is asked and answered, one after the other; the first that objects ends it."""

    moderators: tuple[ModeratorSettings, ...] = ()
    window: Annotated[int, Meta(ge=0, le=100_000)] = 512
    """Characters before the new ones that a service is shown of an answer in the making."""
    chunk: Annotated[int, Meta(ge=1, le=100_000)] = 200
    """New characters for which it is asked; as many are held back behind those it has passed."""
    frames: Annotated[int, Meta(ge=1, le=1000)] = 8
    """Frames that it is shown of a video, evenly spread."""

    def __post_init__(self) -> None:
        for name in self.off:
            if name not in self.names:
                raise ValueError(f"off: {no_moderator(name, self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """What its moderators are called."""
        return tuple(each.called for each in self.moderators)


def no_moderator(name: str, names: Sequence[str]) -> str:
    """That nobody is called so, and who there is."""
    return f"there is no moderator {name[:40]!r}; there are {', '.join(names) or 'none'}"
