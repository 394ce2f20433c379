"""Every way a request can be refused or fail.

ApiError                     status, code, message, param, retry_after, headers
├── InvalidRequest           400  the request itself is at fault; `param` names the field
├── ContentRefused           400  a moderator objects; Google's wire answers it with 200 and no candidates
├── Unauthorized             401  no key, or one that is not ours
├── Forbidden                403  the key may not do this
├── NotFound                 404  no such model or route
├── TooSlow                  408  the client does not take its answer
├── RateLimited              429  a limit is reached; `retry_after` says when to come back
├── OutOfCredit              429  a budget does not allow it; trying again does not help
├── Overloaded               503  no room now; `retry_after` says when to come back
├── ModerationUnavailable    503  a moderator cannot be asked, and the tenant's terms let nothing pass without it
├── DeadlineExceeded         504  the time allowed for the request is over
└── EngineFailed             500  our own fault, never the client's

Raised anywhere, encoded once, by the wire the request came in on. A message is written for the client: it names the
field and the limit and never holds a path, a class name or the text of a foreign exception.
"""

Headers = tuple[tuple[str, str], ...]

OVERLOADED = "The model is overloaded. Please try again later."
"""What everybody says who finds no room for an answer to be made."""


class ApiError(Exception):
    """A refusal or failure with everything a wire needs to say so."""

    status = 500
    code = "engine_error"
    quota = ""
    """The limit that was reached, for a wire that names it apart."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after: int | None = None,
        headers: Headers = (),
    ) -> None:
        """`param` is the field's path in the body; `retry_after` is in whole seconds, 1 to 60; `headers` are others."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code
        self.status = status or type(self).status
        self.retry_after = retry_after
        self.headers = headers


class InvalidRequest(ApiError):
    """The client's request cannot be served as it stands (400 unless a closer status is given)."""

    status = 400
    code = "invalid_value"


class ContentRefused(ApiError):
    """A moderator objects to what is asked. Nothing was done for it, and trying again does not help."""

    status = 400
    code = "content_policy_violation"

    def __init__(self) -> None:
        message = "The request was refused: it goes against this server's content policy."
        super().__init__(message, headers=(("x-should-retry", "false"),))


class Unauthorized(ApiError):
    """No key came along, or one this server does not know; `code` tells which."""

    status = 401
    code = "invalid_api_key"


class Forbidden(ApiError):
    """The key is known and may not do this."""

    status = 403
    code = "permission_denied"


class NotFound(ApiError):
    """No such model, route or object, or it is another tenant's."""

    status = 404
    code = "not_found"


class TooSlow(ApiError):
    """The client has not taken its answer for too long; what was made is paid for."""

    status = 408
    code = "answer_not_read"


class RateLimited(ApiError):
    """A limit does not allow it now; without `retry_after`, not at any time."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, quota: str, retry_after: int | None, headers: Headers) -> None:
        super().__init__(message, retry_after=retry_after, headers=headers)
        self.quota = quota


class OutOfCredit(ApiError):
    """It could cost more than is left of a budget."""

    status = 429
    code = "insufficient_quota"

    def __init__(self, message: str, *, quota: str, headers: Headers) -> None:
        super().__init__(message, headers=(*headers, ("x-should-retry", "false")))
        self.quota = quota


class Overloaded(ApiError):
    """There is no room now, or the server is stopping."""

    status = 503
    code = "server_is_overloaded"


class ModerationUnavailable(ApiError):
    """A moderator cannot be asked; `moderation` says which, as the ledger writes it."""

    status = 503
    code = "moderation_unavailable"

    def __init__(self, moderation: str) -> None:
        super().__init__("The request cannot be moderated now. Please try again later.", retry_after=5)
        self.moderation = moderation


class DeadlineExceeded(ApiError):
    """The time the server or the client allows a request has passed."""

    status = 504
    code = "timeout"


class EngineFailed(ApiError):
    """The engine broke while serving this request."""
