"""The process: where it listens, how long things may take, what it logs."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from qwen3vl_compat.settings.types import Positive, Seconds, check_networks


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
        check_networks("trusted_proxies", self.trusted_proxies)


class LogSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
