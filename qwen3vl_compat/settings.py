"""What an operator can set: one frozen value, from flags, QWEN3VL_* variables, a TOML file and defaults, in that order.

A variable is QWEN3VL_<TABLE>__<NAME>, as QWEN3VL_SERVER__PORT. A name that does not exist ends the start.
"""

import ipaddress
import os
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import limits
import msgspec
from msgspec import Meta, Struct

from qwen3vl_compat.accounts.money import parse_amount
from qwen3vl_compat.settings_errors import fault_of

PREFIX = "QWEN3VL_"


Limit = Annotated[int, Meta(ge=0, le=2**53)]
Words = Annotated[str, Meta(max_length=200)]
Seconds = Annotated[float, Meta(gt=0, le=7 * 86_400)]
Positive = Annotated[int, Meta(ge=1)]
Web = Annotated[str, Meta(pattern=r"^(https?://\S+)?$", description="an address as https://host.example.org/path")]
Redis = Annotated[str, Meta(pattern=r"^((rediss?|unix)://\S+)?$", description="an address as redis://host:6379/0")]


class SettingsError(Exception):
    """The settings cannot be used; the text is one sentence for the operator."""


def _check_networks(name: str, networks: Sequence[str]) -> None:
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise ValueError(f"{name}: {network[:80]} is no network as 10.0.0.0/8") from None


class ServerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the server listens and how long things may take, in seconds and bytes."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8080
    state_dir: str = "~/.local/state/qwen3vl-compat"
    workers: Annotated[int, Meta(ge=0, le=64)] = 0
    """Front processes that take requests for the one with the model; 0 is one process for all."""
    deadline: Seconds = 600
    """A request may take this long; `X-Server-Timeout` can only lower it."""
    grace: Seconds = 30
    """Running answers may go on this long after a signal to stop."""
    open_metrics: bool = False
    """Serve /metrics without a key; otherwise it takes an admin key."""
    metrics_by_tenant: bool = False
    """Name tenants in the metrics' labels."""
    anonymous_tenant: str = ""
    """Requests without a key are served as this tenant's; only on a loopback address unless `anonymous_anywhere`."""
    anonymous_anywhere: bool = False
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose X-Forwarded-For tells where a request comes from."""
    cors_origins: tuple[
        Annotated[
            str,
            Meta(pattern=r"^(\*|https?://[^/\s]+)$", description="an origin as https://app.example.org, or *"),
        ],
        ...,
    ] = ()
    """Origins (`https://app.example.org`) whose pages may call this server from a browser; `*` is all."""
    max_body: Positive = 90 * 2**20
    """Bytes of a request; base64 makes 86 MB of the largest video it may hold."""
    body_idle: Seconds = 10
    body_total: Seconds = 60
    keep_alive: Annotated[float, Meta(ge=0)] = 15
    """A stream in which nothing was said for so long says a comment; 0: never. Not to Google's clients."""
    read_idle: Seconds = 60
    """A client that takes nothing of its stream for this long is given up."""

    def __post_init__(self) -> None:
        _check_networks("trusted_proxies", self.trusted_proxies)


class ModelSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Which model is served, under which name, by which engine and where."""

    path: str = ""
    """A checkpoint folder or hub name; empty is the bundled demonstration model."""
    name: Annotated[str, Meta(min_length=1, max_length=200)] = "qwen3-vl"
    aliases: dict[Annotated[str, Meta(min_length=1, max_length=200)], str] = msgspec.field(
        default_factory=dict[str, str]
    )
    """Other names that clients may use for it, by name; `gpt-*` is all that begin so."""
    revision: str = ""
    engine: str = "local"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto is the checkpoint's own on a GPU and float32 on a CPU."""
    compile: bool = True
    """Compile the decode step on a CPU, behind the running server; the result is kept in the state folder."""
    default_max_tokens: Annotated[int, Meta(ge=0)] = 0
    """Room for an answer when the request names none, tokens; 0 is 4,096, or 32,768 for a thinking model."""
    max_model_len: Annotated[int, Meta(ge=0)] = 0
    """Tokens of prompt and answer together; 0 is all the checkpoint reads, as far as the memory goes."""
    yarn: Annotated[float, Meta(ge=1, le=16)] = 1.0
    """Factor by which YaRN stretches the checkpoint's native length: 4 makes a million of 262,144."""
    max_waiting: Positive = 256
    """Requests that may wait for the engine, tenants in turn; beyond that 503, first for the tenant that has most."""
    max_wait: Seconds = 120
    """A request that has waited this long is refused with 503."""
    max_rows: Annotated[int, Meta(ge=4, le=1024)] = 32
    """Answers that can be in the making at once."""
    kv_memory: Annotated[float, Meta(gt=0)] = 2.0
    """GiB for keys and values on a CPU."""
    kv_share: Annotated[float, Meta(gt=0, lt=1)] = 0.85
    """Share of a GPU's memory left free by the weights that keys, values and pictures may take."""
    kv_block: Annotated[int, Meta(ge=1, le=1024)] = 32
    """Tokens in a block of keys and values: what later prompts share is whole blocks."""
    vision_memory: Annotated[float, Meta(gt=0)] = 0.5
    """GiB for the embeddings of pictures that may be asked about again."""
    piece_tokens: Annotated[int, Meta(ge=16)] = 2048
    """Most prompt tokens computed in one step."""
    piece_seconds: Seconds = 0.1
    """A step's share of prompts is cut so that answers under way wait no longer than about this for its tokens, and as
    long again for its pictures; one picture is never cut."""
    stalled: Seconds = 60
    """The server is not ready when a step takes longer than this."""
    take_idle: Seconds = 30
    """A reader that takes none of its events for this long is given up."""
    close_early: bool = True
    """Bring an answer bound to JSON to its end shortly before max_tokens cuts it, and say so in its details."""
    rambling: Annotated[int, Meta(ge=0)] = 0
    """End an answer whose last so many tokens are one stretch of at most a quarter of that, over and over; 0: never."""
    pause: Annotated[float, Meta(ge=0, le=60)] = 0
    """Seconds the scripted engine takes for a token."""


class MediaLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may come as a picture, video or document; a tenant may have limits of its own."""

    types: tuple[Literal["jpeg", "png", "webp", "gif", "mp4", "webm", "pdf"], ...] = (
        "jpeg",
        "png",
        "webp",
        "mp4",
        "webm",
        "pdf",
    )
    """Kinds of files, told by their first bytes; gif is another, of which the first frame is shown."""
    max_images: Annotated[int, Meta(ge=0)] = 100
    """Pictures in one request, as `max_videos`, and `max_pages` of documents."""
    max_videos: Annotated[int, Meta(ge=0)] = 10
    max_pages: Annotated[int, Meta(ge=0)] = 100
    max_image_bytes: Positive = 10 * 2**20
    max_pdf_bytes: Positive = 50 * 2**20
    max_pdf_pages: Positive = 500
    """Pages a document may have, whether they are asked for or not."""
    max_inline_video_bytes: Positive = 64 * 2**20
    """Of a video in the request or behind a URL; `max_video_bytes` of one that was uploaded."""
    max_video_bytes: Positive = 2 * 2**30
    max_fetched_bytes: Positive = 128 * 2**20
    """Of all that one request has fetched from URLs."""
    max_pixels: Positive = 50_000_000
    """Of one picture, or one frame, before it is made smaller; `max_total_pixels` of all pictures in a request."""
    max_total_pixels: Positive = 400_000_000
    min_side: Positive = 4
    max_side: Positive = 30_000
    max_aspect: Annotated[int, Meta(ge=1, le=200)] = 200
    """How many times longer one side may be than the other."""
    longest_side: Annotated[int, Meta(ge=32, le=8192)] = 2048
    """Pixels that a picture's longer side keeps."""
    fps: Annotated[float, Meta(gt=0, le=60)] = 2.0
    """Frames looked at for each second of a video, when the request does not say."""
    max_frames: Annotated[int, Meta(ge=2, le=4096)] = 768
    pdf_text: bool = False
    """Give the model a document's own text too, beside its pages' pictures."""


class MediaSettings(MediaLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may come as media, and what looking at it may cost."""

    allow_networks: tuple[str, ...] = ()
    """Networks, as 10.0.0.0/8, that URLs may lead to although they are not public."""
    ports: tuple[int, ...] = (80, 443)
    """Ports that URLs may lead to."""
    fetch_seconds: Seconds = 10
    memory: Annotated[float, Meta(ge=0.1)] = 4.0
    """GiB that the media of all requests together may take in the server's own process, and one tenant's at most four
    times what it leaves free; beyond it, 503."""
    children: Annotated[int, Meta(ge=1, le=64)] = 2
    """Processes that decode; each job of theirs has `child_memory` GiB and `child_seconds`, and as much CPU time."""
    child_memory: Annotated[float, Meta(ge=0.5)] = 2.0
    child_seconds: Annotated[float, Meta(ge=1, le=600)] = 15
    child_jobs: Positive = 200
    """Jobs after which a process is replaced."""

    def __post_init__(self) -> None:
        _check_networks("allow_networks", self.allow_networks)


class FileSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Uploaded files: where they lie, how much a tenant may keep and for how long, in bytes and seconds."""

    enabled: bool = True
    store: Annotated[str, Meta(pattern=r"^(s3://[^/\s]+(/\S*)?)?$", description="a place as s3://bucket/prefix")] = ""
    """s3://bucket/prefix, with credentials from the usual AWS_* variables; empty is a folder in the state folder."""
    s3_endpoint: Web = ""
    """Another service than Amazon's that speaks S3, as https://storage.example.org."""
    s3_region: str = ""
    public_url: Web = ""
    """How clients reach this server, as https://api.example.org; empty is what their requests' Host says."""
    types: tuple[Literal["jpeg", "png", "webp", "gif", "mp4", "webm", "pdf"], ...] = (
        "jpeg",
        "png",
        "webp",
        "mp4",
        "webm",
        "pdf",
    )
    max_bytes: Positive = 2 * 2**30
    """Of one file; `tenant_bytes` of all that a tenant has or is just uploading, `tenant_files` is their number."""
    tenant_bytes: Positive = 20 * 2**30
    tenant_files: Positive = 10_000
    life: Positive = 48 * 3600
    """A file is removed after this long, or what the request says instead, up to `max_life`."""
    max_life: Positive = 30 * 86_400
    upload_life: Positive = 3600
    """An upload in parts is given up when none has come for this long."""
    part_bytes: Annotated[int, Meta(ge=2**16, le=2**26)] = 2**20
    """Bytes gathered in memory before they are written."""
    slowest: Positive = 100_000
    """Bytes a second that a file must come at, `server.body_total` seconds granted."""
    sweep: Seconds = 60
    """Between two looks for what has expired."""


class Quotas(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a tenant or a key may use; empty and None are no limit. A request has to pass its key's and its tenant's."""

    requests: Words = ""
    """In slowapi's words, as `60/minute;1000/day`; those refused for another reason count too."""
    tokens: Limit | None = None
    """A minute's, prompt and answer together; `tokens_in` and `tokens_out` each alone."""
    tokens_in: Limit | None = None
    tokens_out: Limit | None = None
    pictures: Limit | None = None
    """A UTC day's; a video and a document's page are one each."""
    concurrent: Limit | None = None
    """Requests under way at once."""
    budget: Words = ""
    """Money in a UTC day or month, as `0.50/day;5.00/month`."""

    def __post_init__(self) -> None:
        requests_of(self.requests)
        budgets_of(self.budget)


@lru_cache(1000)
def requests_of(text: str, name: str = "requests") -> tuple[tuple[int, int], ...]:
    """(Requests, seconds) for each part of a limit string; ValueError, by the setting's name, for one that is none."""
    if not text:
        return ()
    try:
        parts = limits.parse_many(text)
    except ValueError:
        raise ValueError(f"{name}: '{text[:80]}' is no limit as 60/minute;1000/day") from None
    if any(not 1 <= part.amount <= 10**9 or not 1 <= part.get_expiry() <= 366 * 86_400 for part in parts):
        raise ValueError(f"{name}: '{text[:80]}' has a limit that is too large or too small")
    if len({part.get_expiry() for part in parts}) != len(parts):
        raise ValueError(f"{name}: '{text[:80]}' has two limits for the same time")
    return tuple((part.amount, part.get_expiry()) for part in parts)


@lru_cache(1000)
def budgets_of(text: str) -> tuple[tuple[int, Literal["day", "month"]], ...]:
    """(Nano-units, period) for each part of a budget; ValueError for one that is none."""
    found: list[tuple[int, Literal["day", "month"]]] = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        amount, _, period = part.partition("/")
        if period not in ("day", "month") or period in [each for _, each in found]:
            raise ValueError(f"budget: '{text[:80]}' is no budget as 0.50/day;5.00/month")
        try:
            found.append((parse_amount(amount.strip()), period))
        except ValueError as error:
            raise ValueError(f"budget: {error}") from None
    return tuple(found)


class LimitSettings(Quotas, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant may use that has nothing else set, and where it is counted."""

    ip: Words = ""
    """Requests from one address to any path that takes a key, as `600/minute`."""
    redis: Redis = ""
    """Where several processes count together, a database of its own; without it each takes its share of every limit."""
    redis_wait: Annotated[float, Meta(gt=0, le=1)] = 0.05
    """Seconds that a request waits for Redis at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        requests_of(self.ip, "ip")


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


class LogSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set."""

    server: ServerSettings = ServerSettings()
    model: ModelSettings = ModelSettings()
    media: MediaSettings = MediaSettings()
    files: FileSettings = FileSettings()
    limits: LimitSettings = LimitSettings()
    ledger: LedgerSettings = LedgerSettings()
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
        if name.startswith(PREFIX) and name != "QWEN3VL_CONFIG":
            table, _, field = name.removeprefix(PREFIX).lower().partition("__")
            if table not in Settings.__struct_fields__ or not field:
                raise SettingsError(f"The variable {name} names no setting.")
            _set(tables, table, field, _listed(table, field, value))
    for name, value in (flags or {}).items():
        table, _, field = name.partition(".")
        if value is not None:
            _set(tables, table, field, value)
    try:
        return msgspec.convert(tables, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"The settings cannot be used: {fault_of(error, Settings).rstrip('.')}.") from None


def _listed(table: str, field: str, value: str) -> str | list[str]:
    """What a variable gives a setting that is a list: its parts between commas."""
    usual = getattr(getattr(Settings(), table), field, None)
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(usual, tuple) else value


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
