"""The header Idempotency-Key, and what tells the request that it came with from any other."""

import hashlib
import re

import msgspec

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Idempotency
from qwen3vl_compat.policies.idempotency import NAME
from qwen3vl_compat.server.exchange import Exchange

_KEY = re.compile(r"[\x20-\x7e]{1,255}")


def idempotency_of(exchange: Exchange, body: bytes) -> Idempotency | None:
    """The request's key, if it came with one, and its fingerprint: method, path, query without the API key, and body.

    It takes a while for a large body. Raises InvalidRequest.
    """
    key = exchange.headers.get(NAME.lower())
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise InvalidRequest(f"{NAME}: must be 1 to 255 printable ASCII characters", param=NAME)
    query = sorted((name, values) for name, values in exchange.query.items() if name != "key")
    fingerprint = hashlib.sha256(msgspec.json.encode([exchange.method, exchange.path, query]))
    fingerprint.update(body)
    return Idempotency(hashlib.sha256(key.encode()).hexdigest(), fingerprint.hexdigest())
