"""Where accounts and answers are kept."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from qwen3vl_compat.settings.types import Positive, Redis, Seconds


class LedgerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The database of accounts, and how firmly it is written."""

    url: Annotated[
        str, Meta(pattern=r"^(postgresql://\S+)?$", description="an address as postgresql://user:password@host/name")
    ] = ""
    """postgresql://user:password@host/name; empty is an SQLite file in the state folder."""
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL"
    """Of SQLite: NORMAL survives the death of the process, FULL also of the machine."""
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}$", description="three capital letters, as USD")] = "USD"
    """ISO 4217 code of all money; fixed once the database is made."""
    lease: Annotated[float, Meta(ge=0.5, le=300)] = 10
    """A process that has not been heard of for this long is dead, and what it had open is settled by others."""
    wait: Seconds = 5
    """A request is refused, or an answer ends with an error, when the database cannot be written for this long."""
    replies: Positive = 24 * 3600
    """Answers to requests with an Idempotency-Key are kept so long."""


class ResponseSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Responses that are kept to be shown and gone on from, media that came inside of requests with them."""

    enabled: bool = True
    life: Positive = 30 * 86_400
    """Seconds since a conversation was last gone on with."""
    tenant_responses: Positive = 10_000
    """Of one tenant; beyond it, or `tenant_bytes`, those that would expire first are removed."""
    tenant_bytes: Positive = 256 * 2**20
    max_bytes: Positive = 16 * 2**20
    """Of what is asked for one response, media in their places; a larger one is answered and not kept."""


class CacheSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Where answers are kept that are given again to the same question."""

    memory: Annotated[float, Meta(ge=0)] = 64
    """MiB in this process; 0 keeps none."""
    redis: Redis = ""
    """Where several processes keep them together; may be the one of `limits`."""
    redis_wait: Annotated[float, Meta(gt=0, le=1)] = 0.05
    """Seconds that a request waits for Redis at most."""
    life: Seconds = 3600
    max_bytes: Positive = 2**20
    """Of one answer; a larger one is not kept."""
