"""What is told of stored responses: pages of the items that came with one, and that one is deleted."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.files import Query, whole_number
from qwen3vl_compat.wire.openai_items import together
from qwen3vl_compat.wire.openai_responses_request import IMAGES, check_include

MOST, USUAL = 100, 20
"""Items on a page."""


class Page(Struct, frozen=True):
    """Which of the items are wanted."""

    limit: int
    after: str | None
    order: Literal["asc", "desc"]
    images: bool
    """With pictures that came inside of the request."""


def decode_page(query: Query) -> Page:
    """What a query asks for; InvalidRequest names the field."""
    given = {name: values[0] for name, values in query.items()}
    limit = whole_number(given.get("limit", str(USUAL)), "limit", 1, MOST)
    order = given.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order: must be asc or desc", param="order")
    include = [*query.get("include", ()), *query.get("include[]", ())]
    check_include(include)
    return Page(limit, given.get("after"), order, IMAGES in include)


def encode_items(items: Sequence[Json], page: Page, media: Mapping[str, bytes]) -> bytes:
    """A page of items; media that are not among these are left out."""
    ordered = list(items) if page.order == "asc" else list(items)[::-1]
    if page.after is not None:
        place = next((place for place, item in enumerate(ordered) if item["id"] == page.after), None)
        if place is None:
            raise InvalidRequest("after: there is no such item", param="after")
        ordered = ordered[place + 1 :]
    shown = together(ordered[: page.limit], media)
    body = {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else "",
        "last_id": shown[-1]["id"] if shown else "",
        "has_more": len(ordered) > page.limit,
    }
    return msgspec.json.encode(body)


def encode_deleted(name: str) -> bytes:
    """That a response is gone."""
    return msgspec.json.encode({"id": name, "object": "response", "deleted": True})
