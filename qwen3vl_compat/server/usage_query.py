"""What may be asked of usage, read from the query of a URL; whatever is wrong is refused by name."""

import math
import re
from collections.abc import Collection

import msgspec
from msgspec import Struct

from qwen3vl_compat.accounts.export import Form
from qwen3vl_compat.accounts.usage import DAY, GROUPS, WIDTHS, Group, Query, Selection, Width
from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.wire.files import Query as Given
from qwen3vl_compat.wire.files import single_value, whole_number

LAST_SECOND = 253_402_300_799
"""Of the year 9999."""
USUAL_DAYS = 30
MOST_DAYS: dict[Width, int] = {"1h": 31, "1d": 731}
PAGE: dict[Width, int] = {"1h": 168, "1d": 31}
"""Most buckets of an answer, and as many as it has if nothing else is asked for: OpenAI's own largest pages."""

_SELECTING = ("start_time", "end_time", "key", "model")
_FORMS: dict[str, tuple[str, str]] = {
    "key": (r"[0-9A-Za-z]{12}", "must be the public part of a key, 12 letters and digits"),
    "tenant": (r"[a-z0-9][a-z0-9_-]{0,63}", "must be a tenant's id"),
}


class Page(Struct, frozen=True):
    """All that was asked for, and as much of it as one answer holds."""

    whole: Query
    part: Query

    @property
    def next(self) -> str | None:
        """What names the next page, None after the last."""
        return str(self.part.end) if self.part.end < self.whole.end else None


def decode_page(given: Given, tenant: str | None, now: float) -> Page:
    """A page of sums of this tenant, or of those an admin asks for if it is None. `now` is in seconds since 1970."""
    _refuse_unknown(given, ("bucket_width", "group_by", "limit", "page"), tenant)
    selection = _selection(given, tenant, now)
    width = single_value(given, "bucket_width")
    if width is None:
        width = "1d"
    if width not in ("1h", "1d"):
        raise InvalidRequest("bucket_width: must be 1h or 1d", param="bucket_width")
    if selection.end - selection.start > MOST_DAYS[width] * DAY:
        fault = f"start_time: lies more than {MOST_DAYS[width]} days before end_time, the most with buckets of {width}"
        raise InvalidRequest(fault, param="start_time")
    whole = Query(**msgspec.structs.asdict(selection), width=width, group_by=_groups(given, tenant))
    return Page(whole, _part(given, whole))


def decode_export(given: Given, tenant: str | None, now: float) -> tuple[Selection, Form]:
    """Which rows are to be exported, and how."""
    _refuse_unknown(given, ("format",), tenant)
    form = single_value(given, "format")
    if form is None:
        form = "csv"
    if form not in ("csv", "jsonl"):
        raise InvalidRequest("format: must be csv or jsonl", param="format")
    return _selection(given, tenant, now), form


def refuse_all(given: Given) -> None:
    """Where nothing can be asked for."""
    _refuse_unknown(given, (), "", selecting=())


def _refuse_unknown(
    given: Given, more: Collection[str], tenant: str | None, selecting: Collection[str] = _SELECTING
) -> None:
    known = {*selecting, *more, *(("tenant",) if tenant is None else ())}
    for name in given:
        if name not in known:
            shown = name[:80] if name.isascii() and name.isprintable() else ascii(name[:80])
            raise InvalidRequest(f"{shown}: there is no such parameter", param=shown, code="unknown_parameter")


def _selection(given: Given, tenant: str | None, now: float) -> Selection:
    # a request of this very second is over already: it is to be in what is told now
    end = _moment(given, "end_time", math.floor(now) + 1)
    start = _moment(given, "start_time", max(0, end - USUAL_DAYS * DAY))
    if start >= end:
        raise InvalidRequest("start_time: must be before end_time, which is now if it is not given", param="start_time")
    model = single_value(given, "model")
    if model is not None and not (0 < len(model) <= 200 and model.isprintable()):
        raise InvalidRequest("model: must be 1 to 200 printable characters", param="model")
    whose = _named(given, "tenant") if tenant is None else tenant
    return Selection(start=start, end=end, tenant=whose, key=_named(given, "key"), model=model)


def _moment(given: Given, name: str, usual: int) -> int:
    text = single_value(given, name)
    return usual if text is None else whole_number(text, name, 0, LAST_SECOND)


def _named(given: Given, name: str) -> str | None:
    form, fault = _FORMS[name]
    text = single_value(given, name)
    if text is not None and not re.fullmatch(form, text):
        raise InvalidRequest(f"{name}: {fault}", param=name)
    return text


def _groups(given: Given, tenant: str | None) -> tuple[Group, ...]:
    text = single_value(given, "group_by")
    known: list[Group] = [group for group in GROUPS if group != "tenant" or tenant is None]
    named = [] if text is None else text.split(",")
    if not set(named) <= set(known):
        raise InvalidRequest(f"group_by: must be one or more of {', '.join(known)}, with commas", param="group_by")
    return tuple(group for group in known if group in named)


def _part(given: Given, whole: Query) -> Query:
    """The page named, or the first."""
    seconds = WIDTHS[whole.width]
    text, size = single_value(given, "limit"), PAGE[whole.width]
    limit = size if text is None else whole_number(text, "limit", 1, size)
    start = _moment(given, "page", whole.start)
    # a start that is not given moves on between two pages: as much as a bucket is granted
    if not whole.start - seconds < start < whole.end or (start != whole.start and start % seconds):
        raise InvalidRequest("page: must be the next_page of an answer to the same query", param="page")
    end = (start // seconds + limit) * seconds
    return msgspec.structs.replace(whole, start=start, end=min(end, whole.end))
