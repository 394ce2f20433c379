"""What several tables have fields of."""

import ipaddress
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

Limit = Annotated[int, Meta(ge=0, le=2**53)]
Words = Annotated[str, Meta(max_length=200)]
Seconds = Annotated[float, Meta(gt=0, le=7 * 86_400)]
Positive = Annotated[int, Meta(ge=1)]
Web = Annotated[str, Meta(pattern=r"^(https?://\S+)?$", description="an address as https://host.example.org/path")]
Redis = Annotated[str, Meta(pattern=r"^((rediss?|unix)://\S+)?$", description="an address as redis://host:6379/0")]


def check_networks(name: str, networks: Sequence[str]) -> None:
    """Raise ValueError, by the setting's name, for what is no network."""
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise ValueError(f"{name}: {network[:80]} is no network as 10.0.0.0/8") from None
