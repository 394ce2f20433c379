"""Is it there, does it know its keys, what may ours do."""

from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import quote

from msgspec import Struct

from qwen3vl_compat.doctor.finding import Failed, NotAvailable
from qwen3vl_compat.doctor.refusals import SCOPE, granted, words_of
from qwen3vl_compat.doctor.visit import ORIGIN, Ask, Reply, Visit
from qwen3vl_compat.doctor.wires import bearer

WRONG = "sk-doctor"
"""No server knows it."""
_CHANGED = "Does a proxy between answer for the server, or change its errors?"


class _Alive(Struct):
    status: Literal["ok"]


class _Status(Struct):
    status: str
    models: list[str] = []
    version: str | None = None


async def check_alive(visit: Visit) -> str:
    """It answers, and as this server does."""
    reply = await visit.send(Ask("GET", "/livez"))
    if reply.status != 200:
        raise Failed('200 and {"status": "ok"} from /livez', f"{reply.status}: {words_of(reply)}", ORIGIN)
    reply.read(_Alive, '{"status": "ok"} from /livez')
    return f"in {reply.last_s:.2f} s"


async def check_ready(visit: Visit) -> str:
    """It takes requests."""
    reply = await visit.send(Ask("GET", "/readyz"))
    found = reply.read(_Status, "its state from /readyz")
    if reply.status != 200:
        hint = "A model that is being loaded takes its time; the server's log tells what goes wrong."
        raise Failed("ok from /readyz", f"{reply.status}: {found.status}", hint)
    return f"{found.status}, with {', '.join(found.models)}"


async def check_version(visit: Visit) -> str:
    """Which release it is."""
    version = (await granted(visit, Ask("GET", "/readyz"))).read(_Status, "its state from /readyz").version
    if version is None:
        raise NotAvailable("this server does not tell its version")
    return version


# --------------------------------------------------------------------------------------------------------------- keys


class _OpenaiError(Struct):
    code: Literal["invalid_api_key"]
    message: str
    type: str


class _OpenaiRefusal(Struct):
    error: _OpenaiError


class _Reason(Struct):
    reason: Literal["API_KEY_INVALID"]


class _GoogleError(Struct):
    code: Literal[400]
    status: Literal["INVALID_ARGUMENT"]
    message: str
    details: list[_Reason]


class _GoogleRefusal(Struct):
    error: _GoogleError


class _AnthropicError(Struct):
    type: Literal["authentication_error"]
    message: str


class _AnthropicRefusal(Struct):
    type: Literal["error"]
    error: _AnthropicError


class _KeylessError(Struct):
    code: Literal[403]
    status: Literal["PERMISSION_DENIED"]
    message: str


class _KeylessRefusal(Struct):
    error: _KeylessError


def _refused(reply: Reply, status: int, shape: type[Any]) -> str:
    """What a refusal says, where it has this status and form."""
    said = words_of(reply)
    if reply.status == 429:
        raise NotAvailable(said)
    if reply.status != status:
        raise Failed(f"a refusal with {status}", f"{reply.status}: {said}", _CHANGED)
    reply.read(shape, f"a refusal in the form that this wire's clients know, with {status}")
    return f"{status}: {said}"


async def check_wrong_openai(visit: Visit) -> str:
    """OpenAI's clients are told that their key is wrong."""
    return _refused(await visit.send(Ask("GET", "/v1/models", bearer(WRONG))), 401, _OpenaiRefusal)


async def check_wrong_google(visit: Visit) -> str:
    """Google's clients, too."""
    ask = Ask("GET", "/v1beta/models", {"x-goog-api-key": WRONG})
    return _refused(await visit.send(ask), 400, _GoogleRefusal)


async def check_wrong_anthropic(visit: Visit) -> str:
    """Anthropic's, too."""
    ask = Ask("GET", "/v1/models", {"x-api-key": WRONG, "anthropic-version": "2023-06-01"})
    return _refused(await visit.send(ask), 401, _AnthropicRefusal)


async def check_no_key(visit: Visit) -> str:
    """Who sends none is refused, unless the operator serves them."""
    reply = await visit.send(Ask("GET", "/v1beta/models"))
    if reply.status == 200:
        return "requests without a key are served here (server.anonymous_tenant)"
    return _refused(reply, 403, _KeylessRefusal)


async def check_key(visit: Visit) -> str:
    """Ours is known, and no admin key."""
    try:
        await granted(visit, Ask("GET", "/v1/models", bearer(visit.key)))
    except NotAvailable as error:
        if SCOPE not in str(error):
            raise
        return f"known: {error}"
    return "known" if visit.key else "none is needed"


# ------------------------------------------------------------------------------------------------- what the key may do


class _Model(Struct):
    id: str
    object: str
    created: int


class _GoogleModel(Struct, rename="camel"):
    name: str
    supported_generation_methods: list[str]
    input_token_limit: int


class _Models(Struct):
    object: str
    data: list[_Model]
    models: list[_GoogleModel]


async def check_models(visit: Visit) -> str:
    """One body lists the models for OpenAI's and Google's clients; the one that is asked afterwards is there."""
    what = "a list with OpenAI's `data` and Google's `models`"
    listed = (await granted(visit, Ask("GET", "/v1/models", bearer(visit.key)))).read(_Models, what)
    names = [model.id for model in listed.data]
    if [f"models/{name}" for name in names] != [model.name for model in listed.models]:
        raise Failed(what + " of the same models", f"{names} and {[model.name for model in listed.models]}")
    if not names and not visit.named:
        raise Failed("a model that the key may call", "none", "`keys set --models all` lets it call all there are.")
    visit.model = visit.named or names[0]
    await granted(visit, Ask("GET", f"/v1/models/{quote(visit.model)}", bearer(visit.key)))
    return f"{', '.join(names)}; '{visit.model}' is asked"


class _Period(Struct):
    limit: str | None
    left: str | None


class _Budget(Struct):
    day: _Period
    month: _Period


class _Limits(Struct):
    requests: str | None
    tokens: int | None
    tokens_in: int | None
    tokens_out: int | None
    pictures: int | None
    concurrent: int | None
    budget: _Budget

    def told(self, whose: str, currency: str) -> Iterator[str]:
        """Those that there are."""
        units = {"tokens": "/minute", "tokens_in": "/minute", "tokens_out": "/minute", "pictures": "/day"}
        for name in ("requests", "tokens", "tokens_in", "tokens_out", "pictures", "concurrent"):
            if getattr(self, name) is not None:
                yield f"{whose} {name} {getattr(self, name)}{units.get(name, '')}"
        for name, period in (("day", self.budget.day), ("month", self.budget.month)):
            if period.limit is not None:
                yield f"{whose} {period.left} of {period.limit} {currency} left this {name}"


class _AllLimits(Struct):
    currency: str
    key: _Limits
    tenant: _Limits


async def check_limits(visit: Visit) -> str:
    """Limits are told, those of requests in the headers of each answer too."""
    reply = await granted(visit, Ask("GET", "/v1/limits", bearer(visit.key)))
    limits = reply.read(_AllLimits, "the limits of the key and its tenant")
    header = reply.headers.get("x-ratelimit-remaining-requests")
    if (limits.key.requests or limits.tenant.requests) and header is None:
        hint = "A proxy between has to let x-ratelimit-* pass."
        raise Failed("x-ratelimit-remaining-requests in the answer's headers", "none", hint)
    told = [*limits.key.told("key:", limits.currency), *limits.tenant.told("tenant:", limits.currency)]
    return "; ".join(told) + (f"; {header} requests left now" if header else "") if told else "none are set"
