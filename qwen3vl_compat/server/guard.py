"""Who may come in: the key, what it is for, and how many requests it, its tenant and its address may make."""

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from qwen3vl_compat.accounts.books import Accounts
from qwen3vl_compat.accounts.endpoints import endpoint_of
from qwen3vl_compat.accounts.key import Key
from qwen3vl_compat.errors import Forbidden, Unauthorized
from qwen3vl_compat.messages import Caller
from qwen3vl_compat.policies.limiting import Claim, Limiter
from qwen3vl_compat.server.claims import claim
from qwen3vl_compat.server.exchange import Exchange
from qwen3vl_compat.settings import Quotas, Settings, SettingsError, requests_of

METRICS = "/metrics"
ADMIN = "/admin/"
"""Below this every path takes an admin key, as METRICS does."""

_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d{1,5})?|([0-9.]+):\d{1,5}")
_WHERE = {"openai": "Authorization: Bearer ...", "google": "x-goog-api-key: ...", "anthropic": "x-api-key: ..."}
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Guard:
    """Decides about every request to a path that is not open, before any of its body is read."""

    def __init__(self, settings: Settings, accounts: Accounts, limiter: Limiter) -> None:
        """Raises SettingsError when requests without a key would be served to the world by mistake."""
        self.settings = server = settings.server
        if server.anonymous_tenant and not server.anonymous_anywhere and not _is_loopback(server.host):
            raise SettingsError(
                f"server.anonymous_tenant serves requests without a key, and {server.host} can be reached from "
                "elsewhere: listen on 127.0.0.1, or set server.anonymous_anywhere."
            )
        self._accounts, self._limiter = accounts, limiter
        self._anonymous = server.anonymous_tenant
        self._at_home = not server.anonymous_anywhere
        """Whether callers without a key must name a loopback host: a web page cannot, by whatever name it found us."""
        self._per_address = requests_of(settings.limits.ip)
        self._proxies = [ipaddress.ip_network(each) for each in server.trusted_proxies]

    async def identify(self, exchange: Exchange, scope: Any) -> list[Claim]:
        """Note in the exchange who is calling; returns what is to be claimed before anything is done for them.

        Raises Unauthorized, Forbidden or RateLimited.
        """
        claims = _claims(f"ip:{self.address_of(scope)}", self._per_address)
        presented = exchange.presented
        if claims and presented is not None and not self._accounts.keys.remembers(presented):
            await self.claim(exchange, claims)  # first, so that who guesses keys does not have them looked up for ever
            claims = []
        refusal: Unauthorized | Forbidden | None = None
        try:
            exchange.key, tenant_limits = await self._identify(exchange)
        except (Unauthorized, Forbidden) as error:
            refusal = error
        else:
            if exchange.key is not None:
                claims += _claims(f"key:{exchange.key.public}", requests_of(exchange.key.limits.requests))
            if exchange.caller.tenant and not (exchange.key and exchange.key.admin):
                claims += _claims(f"tenant:{exchange.caller.tenant}", requests_of(tenant_limits.requests))
        if refusal is not None:
            await self.claim(exchange, claims)
            raise refusal
        return claims

    async def claim(self, exchange: Exchange, claims: Sequence[Claim]) -> None:
        """Claim what `identify` returned; raises RateLimited."""
        await claim(self._limiter, exchange, claims)

    async def _identify(self, exchange: Exchange) -> tuple[Key | None, Quotas]:
        presented = exchange.presented
        if presented is None and self._anonymous and not takes_admin_key(exchange.path):
            return None, await self._enter_without_key(exchange)
        if presented is None:
            raise Unauthorized(_no_key(exchange), code="missing_api_key")
        key = await self._accounts.key(presented)
        if key is None:
            raise Unauthorized("The API key is not valid.")
        if key.problem == "suspended":
            raise Forbidden("The tenant of this API key is suspended.")
        if not key.usable:
            raise Unauthorized("The API key has expired or was revoked.")
        if key.admin != takes_admin_key(exchange.path):
            if key.admin:
                raise Forbidden("This is an admin key; it is for what lies below /admin, and for /metrics.")
            raise Forbidden("This is no admin key; this path takes one.")
        endpoint = endpoint_of(exchange.path)
        if not key.may_use(endpoint):
            raise Forbidden(f"This API key is not for the endpoint '{endpoint or exchange.path[:80]}'.")
        exchange.caller = Caller(key.tenant, key.public)
        return key, key.tenant_limits

    async def _enter_without_key(self, exchange: Exchange) -> Quotas:
        if self._at_home and not _is_loopback(_name_of(exchange.headers.get("host", ""))):
            raise Forbidden("Requests without a key must name this server by a loopback address.")
        tenant = await self._accounts.tenant(self._anonymous)
        if tenant is None or tenant.status != "active":
            raise Forbidden("The tenant that requests without a key belong to does not exist or is suspended.")
        exchange.caller = Caller(tenant.id, "")
        return self._accounts.limits_of(tenant)

    def address_of(self, scope: Any) -> str:
        """Where the request comes from: the peer, or what trusted proxies say; of IPv6, the network of a household."""
        client = scope.get("client")
        address = _peer(client[0] if client else "")
        for said in reversed(_forwarded_for(scope)):
            # Only a proxy's own word is taken: what stands left of what cannot be read may be anybody's.
            if address is None or not any(address in network for network in self._proxies):
                break
            before = _address(said) or _address(_name_of(said))
            if before is None:
                break
            address = before
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((address, 64), strict=False).network_address)
        return str(address or "unknown")


def _no_key(exchange: Exchange) -> str:
    """What is said to who has presented none, or one that cannot be read."""
    if "authorization" in exchange.headers:
        return "The Authorization header must begin with 'Bearer': send it as 'Authorization: Bearer sk-...'."
    return f"No API key was given: send it as '{_WHERE[exchange.wire]}'."


@lru_cache(4096)
def _peer(text: str) -> Address | None:
    return _address(text)


def _claims(scope: str, limits: Sequence[tuple[int, int]]) -> list[Claim]:
    return [Claim(scope=scope, kind="requests", period=period, limit=limit, amount=1) for limit, period in limits]


def takes_admin_key(path: str) -> bool:
    """Whether a path is for admin keys, and for no others."""
    return path == METRICS or path.startswith(ADMIN)


def _forwarded_for(scope: Any) -> list[str]:
    """What X-Forwarded-For says, in one line or several, without the ports that some proxies add."""
    lines = (value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"x-forwarded-for")
    said = (each.strip() for each in ",".join(lines).split(","))
    return [found[1] or found[2] if (found := _WITH_PORT.fullmatch(each)) else each for each in said]


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address


def _name_of(host: str) -> str:
    """A Host header without its port and brackets."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)
