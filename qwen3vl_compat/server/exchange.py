"""What is known of one request while it is served."""

import secrets
import time
from collections import defaultdict
from collections.abc import Iterable
from urllib.parse import parse_qs

from litestar.types import HTTPScope, Scope
from litestar.utils import normalize_path

from qwen3vl_compat.accounts.endpoints import endpoint_of
from qwen3vl_compat.accounts.key import Key
from qwen3vl_compat.errors import ApiError
from qwen3vl_compat.events import First
from qwen3vl_compat.messages import Caller
from qwen3vl_compat.wire import anthropic_messages, generate_content, openai_chat, openai_responses

_UNREAD = frozenset({401, 403, 408, 413, 415, 431})


class Exchange:
    """What is known of one request, for its log line and its headers."""

    def __init__(self, scope: HTTPScope) -> None:
        # ids in the order of time lie side by side in the ledger's index
        self.id = f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"
        self.began = time.monotonic()
        # as Litestar reads it: to judge `//metrics` by other letters than it is routed by would let anybody in
        self.path, self.method = normalize_path(scope["path"]), scope["method"]
        self.headers = _headers_of(scope["headers"])
        query = scope["query_string"].decode("latin-1")
        self.query = parse_qs(query, keep_blank_values=True) if query else dict[str, list[str]]()
        self.anthropic = self._speaks_anthropic()
        self.google = not self.anthropic and self._speaks_google()
        self.caller = Caller("", "")
        self.key: Key | None = None
        """The key it came with; None for one that came without, as the anonymous tenant's."""
        self.status = 0
        self.unread = False
        """Whether a body may still be coming that nobody will read."""
        self.model = self.tokens = "-"
        self.ignored = ""
        """Fields without effect, as the answer's head names them."""
        self.replays: First | None = None
        """The request whose answer is sent again."""
        self.asked = b""
        """A digest of all of the request, where it is one that may come again."""
        self.terms: object = None
        """What held for its tenant when it came, where that can be told."""
        self.known: bytes | None = None
        """The whole answer, where it needs nobody to be asked."""
        self.kept = ""
        """The name under which its answer is found again."""
        self.answer_headers: dict[str, str] = {"request-id": self.id} if self.anthropic else {}
        """What every answer to it says, an error too."""

    @property
    def wire(self) -> str:
        """The API it came by."""
        return "anthropic" if self.anthropic else "google" if self.google else "openai"

    def _speaks_anthropic(self) -> bool:
        if self.path == "/v1/messages" or self.path.startswith("/v1/messages/"):
            return True
        if "anthropic-version" not in self.headers:
            return False
        return self._lost() or (self.path.startswith("/v1/models") and self.method == "GET")

    def _speaks_google(self) -> bool:
        if self.path.startswith(("/v1beta", "/upload/")):
            return True
        named = "x-goog-api-key" in self.headers or "key" in self.query
        if self._lost():
            return named
        if self.path.startswith("/v1/files"):
            return named or any(header.startswith("x-goog-upload-") for header in self.headers)
        return self.path.startswith("/v1/models") and (self.method == "POST" or named)

    def _lost(self) -> bool:
        """Whether its path is nobody's: then only what else it says tells in which form its client reads an error."""
        return not endpoint_of(self.path) and not self.path.startswith(("/admin", "/metrics"))

    @property
    def presented(self) -> str | None:
        """The key as it was presented, in any of the ways that the families of clients have."""
        scheme, _, bearer = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and bearer.strip():
            return bearer.strip()
        if header := self.headers.get("x-goog-api-key") or self.headers.get("x-api-key"):
            return header
        return self.query["key"][0] if self.google and self.query.get("key") else None

    def encode(self, error: ApiError) -> tuple[int, dict[str, str], bytes]:
        """The error as this request's wire says it: status, headers, body."""
        headers = {"content-type": "application/json", **self.answer_headers, **dict(error.headers)}
        if error.retry_after is not None:
            headers |= {"retry-after": str(error.retry_after), "retry-after-ms": str(error.retry_after * 1000)}
        if self.unread or error.status in _UNREAD:  # what still comes of the body must not be waited for
            headers["connection"] = "close"
        match self.wire:
            case "anthropic":
                body = anthropic_messages.encode_error(error, self.id)
                return anthropic_messages.status_of(error), headers, body
            case "google":
                return generate_content.status_of(error), headers, generate_content.encode_error(error)
            case _:
                wire = openai_responses if self.path.startswith("/v1/responses") else openai_chat
                return error.status, headers, wire.encode_error(error)


def _headers_of(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """By name in small letters; what stands in several lines is one list (RFC 9110, 5.3)."""
    lines = list(raw)
    found = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in lines}
    if len(found) < len(lines):
        several = defaultdict[str, list[str]](list)
        for name, value in lines:
            several[name.lower().decode("latin-1")].append(value.decode("latin-1"))
        found = {name: ", ".join(values) for name, values in several.items()}
    return found


def exchange_of(scope: Scope) -> Exchange:
    """The exchange the door opened for this request."""
    return scope["state"]["exchange"]
