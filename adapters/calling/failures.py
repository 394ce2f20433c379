"""Every way a call can fail, and which one a reply tells of.

ClientError              status, code, param, request_id, retry_after: what is known of them
├── InvalidInput         what was given cannot be sent; nothing was
├── ConnectionFailed     the server cannot be reached, or the connection broke
│   └── TimedOut         the time given for the call is over
├── Unreadable           what came is no answer of this server, or not in the form that was asked for
└── Refused              the server says why not
    ├── Unauthorized     401  no key, or one it does not know
    ├── Forbidden        403  the key may not do this
    ├── NotFound         404  no such model or file
    ├── Conflict         409  the idempotency key's first request is under way, or its answer was too large to be kept
    ├── RateLimited      429  a limit is reached; `retry_after` says when to come back
    │   └── OutOfCredit  429  a budget does not allow it; trying again does not help
    ├── ServerFailed     5xx  the server's own fault
    │   ├── Overloaded   503  there is no room now
    │   └── TimeIsUp     504  the server's time for the request is over
    └── BadRequest            any other: the request itself is at fault, `param` names the field
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec
from msgspec import Struct

from qwen3vl_compat.adapters.calling.steps import Lost, Reply, T


class ClientError(Exception):
    """Whatever goes wrong between a call and its answer."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """`status` is 0 where no reply came; `retry_after` is in seconds."""
        super().__init__(message)
        self.message, self.status, self.code, self.param = message, status, code, param
        self.request_id, self.retry_after = request_id, retry_after


class InvalidInput(ClientError, ValueError):
    """What was given cannot be sent; `param` names the argument."""


class ConnectionFailed(ClientError):
    """The server cannot be reached, or the connection broke."""


class TimedOut(ConnectionFailed):
    """The time given for the call is over."""


class Unreadable(ClientError):
    """What came is no answer of this server, or not in the form that was asked for."""


class Refused(ClientError):
    """The server says why not."""


class BadRequest(Refused):
    """The request itself is at fault; `param` names the field."""


class Unauthorized(Refused):
    """No key came along, or one the server does not know."""


class Forbidden(Refused):
    """The key may not do this."""


class NotFound(Refused):
    """No such model or file."""


class Conflict(Refused):
    """The first request under this idempotency key is under way still, or its answer was too large to be kept."""


class RateLimited(Refused):
    """A limit is reached; `retry_after` says when to come back."""


class OutOfCredit(RateLimited):
    """A budget does not allow it; trying again does not help."""


class ServerFailed(Refused):
    """The server's own fault."""


class Overloaded(ServerFailed):
    """There is no room now."""


class TimeIsUp(ServerFailed):
    """The time the server allows the request is over."""


_BY_STATUS: Mapping[int, type[Refused]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: RateLimited,
    503: Overloaded,
    504: TimeIsUp,
}
_HALF_WAY: Mapping[str, int] = {
    "timeout": 504,
    "server_is_overloaded": 503,
    "moderation_unavailable": 503,
    "answer_not_read": 408,
}
"""The status that a failure half-way through a stream would have had, by its code; 500 else."""


class _Error(Struct):
    message: str | None = None
    code: str | int | None = None
    param: str | None = None


class _Body(Struct):
    error: _Error


def failure_of(outcome: Reply | Lost) -> ClientError:
    """What to raise for a call that came to this."""
    if isinstance(outcome, Lost):
        return TimedOut(outcome.why) if outcome.late else ConnectionFailed(outcome.why)
    known: dict[str, Any] = {"status": outcome.status, "request_id": outcome.headers.get("x-request-id")}
    known["retry_after"] = named_pause(outcome.headers)
    try:
        error = msgspec.json.decode(outcome.body, type=_Body).error
    except (msgspec.DecodeError, UnicodeDecodeError):  # a proxy's page
        return _kind(outcome.status, "")(f"The server answered with status {outcome.status}.", **known)
    code = str(error.code or "")
    message = error.message or f"The server answered with status {outcome.status}."
    return _kind(outcome.status, code)(message, code=code, param=error.param, **known)


def failure_half_way(message: str, code: str, request_id: str | None) -> Refused:
    """What to raise for a stream that ends by saying so."""
    status = _HALF_WAY.get(code, 500)
    return _kind(status, code)(message, status=status, code=code, request_id=request_id)


def _kind(status: int, code: str) -> type[Refused]:
    if code == "insufficient_quota":
        return OutOfCredit
    return _BY_STATUS.get(status, ServerFailed if status >= 500 else BadRequest)


def named_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


def decoded(reply: Reply, kind: type[T]) -> T:
    """What a good reply says; raises Unreadable."""
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable(reply) from error


def unreadable(reply: Reply) -> Unreadable:
    """The refusal of a reply that another server seems to have sent."""
    said = "What came is no answer of this server."
    return Unreadable(said, status=reply.status, request_id=reply.headers.get("x-request-id"))
