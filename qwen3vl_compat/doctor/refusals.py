"""What a status other than 200 means for a check, and what may be done about it."""

from msgspec import Struct

from qwen3vl_compat.doctor.finding import Failed, NotAvailable
from qwen3vl_compat.doctor.visit import ORIGIN, Ask, Reply, Visit, decoded

SCOPE = "is not for the endpoint"
"""The words by which the server tells a key's scope from its other reasons for 403."""
_HINTS = {
    401: "Give the whole key, as it was shown when it was made: --key, or the variable QWEN3VL_API_KEY.",
    402: "A budget of the key or its tenant is used up: `keys set` and `tenants set` change it.",
    403: "Give a tenant's key that may call models: `keys list`, where the server runs, tells of each.",
    404: "Is --url the server's address, without a path, and --model the name of a model it serves?",
    503: "It is starting, stopping, or has no room: /readyz says which.",
}


class _Error(Struct):
    message: str


class _Refusal(Struct):
    error: _Error


def words_of(reply: Reply) -> str:
    """What a refusal says, whichever wire it is of."""
    try:
        return decoded(reply.body, _Refusal, "").error.message
    except Failed:
        return reply.body[:120].decode("utf-8", "replace") or "nothing"


async def granted(visit: Visit, ask: Ask) -> Reply:
    """The answer, where it is 200; raises Failed or NotAvailable for anything else."""
    reply = await visit.send(ask)
    if reply.status == 200:
        return reply
    said, status, soon = words_of(reply), reply.status, reply.headers.get("retry-after")
    if status == 403 and SCOPE in said:
        raise NotAvailable(said)
    if status == 429 and soon is not None:  # none comes with a used-up budget: waiting does not help
        raise NotAvailable(f"{said} (in {soon} s again)")
    if 300 <= status < 400:
        said = f"a redirection to {reply.headers.get('location', 'nowhere')}"
    hint = _HINTS.get(402 if status == 429 else status, ORIGIN if status < 500 else "The server's log says why.")
    raise Failed(f"200 from {ask.path.partition('?')[0]}", f"{status}: {said}", hint)
