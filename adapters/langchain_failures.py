"""The client's errors as LangChain knows them: each is both, so that code that waits for either goes on working.

InvalidInput stays the ValueError it is.
"""

from collections.abc import Generator
from contextlib import contextmanager

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)

from qwen3vl_compat.adapters.calling.failures import (
    BadRequest,
    ClientError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    NotFound,
    OutOfCredit,
    Overloaded,
    RateLimited,
    Refused,
    ServerFailed,
    TimedOut,
    TimeIsUp,
    Unauthorized,
    Unreadable,
)


class QwenUnauthorized(Unauthorized, ModelAuthenticationError):
    """No key came along, or one the server does not know."""


class QwenForbidden(Forbidden, ModelPermissionDeniedError):
    """The key may not do this."""


class QwenNotFound(NotFound, ModelNotFoundError):
    """No such model or file."""


class QwenConflict(Conflict, ModelInvalidRequestError):
    """The first request under this idempotency key is under way still, or its answer was too large to be kept."""


class QwenOutOfCredit(OutOfCredit, ModelRateLimitError):
    """A budget does not allow it; trying again does not help."""

    is_retryable = False


class QwenRateLimited(RateLimited, ModelRateLimitError):
    """A limit is reached; `retry_after` says when to come back."""


class QwenTimeIsUp(TimeIsUp, ModelTimeoutError):
    """The time the server allows the request is over."""


class QwenOverloaded(Overloaded, ModelAPIError):
    """There is no room now."""


class QwenServerFailed(ServerFailed, ModelAPIError):
    """The server's own fault."""


class QwenContextOverflow(BadRequest, ContextOverflowError):
    """The prompt leaves no room for an answer."""


class QwenBadRequest(BadRequest, ModelInvalidRequestError):
    """The request itself is at fault; `param` names the field."""


class QwenTimedOut(TimedOut, ModelTimeoutError):
    """The time given for the call is over."""


class QwenConnectionFailed(ConnectionFailed, ModelConnectionError):
    """The server cannot be reached, or the connection broke."""


class QwenUnreadable(Unreadable, ModelError):
    """What came is no answer of this server."""


_KINDS: tuple[type[ClientError], ...] = (
    QwenUnauthorized, QwenForbidden, QwenNotFound, QwenConflict, QwenOutOfCredit, QwenRateLimited, QwenTimeIsUp,
    QwenOverloaded, QwenServerFailed, QwenBadRequest, QwenTimedOut, QwenConnectionFailed, QwenUnreadable,
)  # fmt: skip
"""The first whose own error, its first base, is the one that came."""


@contextmanager
def known_to_langchain() -> Generator[None]:
    """Raise what the client raises as what LangChain knows too."""
    try:
        yield
    except ClientError as error:
        kind = _kind(error)
        if kind is None:
            raise
        raise kind(
            error.message,
            status=error.status,
            code=error.code,
            param=error.param,
            request_id=error.request_id,
            retry_after=error.retry_after,
        ) from error


def _kind(error: ClientError) -> type[ClientError] | None:
    if isinstance(error, Refused) and error.code == "context_length_exceeded":
        return QwenContextOverflow
    return next((kind for kind in _KINDS if isinstance(error, kind.__bases__[0])), None)
