"""Responses and the conversations made of them, between the wire's items and the rows that hold them."""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

import msgspec
from msgspec.structs import replace
from sqlalchemy.exc import SQLAlchemyError

from qwen3vl_compat.accounts.responses import ConversationTooLarge, NewResponse, NoSuchResponse, Responses
from qwen3vl_compat.errors import InvalidRequest, NotFound
from qwen3vl_compat.messages import Media, Request
from qwen3vl_compat.settings import Settings
from qwen3vl_compat.wire.body import Json, shown
from qwen3vl_compat.wire.openai_items import apart, is_response, media_of, response_of, together
from qwen3vl_compat.wire.openai_responses_request import Asked, completed
from qwen3vl_compat.wire.openai_stored import Page, encode_items

log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_REFERRED = 100
"""Responses whose items one request may refer to."""
SWEEP_S = 3600.0
"""Between two looks for responses whose time is over."""
PAUSE_S = 0.5
"""Between two batches that are removed, so that others come to write."""


class Conversations:
    """The stored responses of a server. Reading and writing is done in threads."""

    def __init__(self, responses: Responses, settings: Settings) -> None:
        self._responses, self._settings = responses, settings.responses
        self._most = settings.server.max_body
        """Bytes that a conversation, or all that items refer to, may have: no more than a request that says it all."""
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Remove what is over, now and from time to time."""
        self._sweeping = asyncio.create_task(self._sweep_on())

    async def close(self) -> None:
        """Remove nothing more."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait({self._sweeping})

    async def complete(self, tenant: str, asked: Asked, *, large: bool) -> Asked:
        """What is asked with all that it refers to; `large` says that it is worth a thread.

        Where it cannot be kept it says so: `store` is false. NotFound and InvalidRequest name the field.
        """
        if large or asked.goes_on:
            return await asyncio.to_thread(self._complete, tenant, asked)
        return self._complete(tenant, asked)

    async def keep(self, tenant: str, asked: Asked, response: Json) -> None:
        """Keep a response, if that is wanted; where it fails, the response says that it is not kept."""
        if not asked.store:
            return
        try:
            await asyncio.to_thread(self._keep, tenant, asked, response)
        except SQLAlchemyError:
            log.exception("%s could not be kept", response["id"])
            response["store"] = False

    async def get(self, tenant: str, name: str) -> bytes:
        """A response as it was answered; raises NotFound."""
        return await _found(name, lambda: self._responses.get(tenant, name).body)

    async def items(self, tenant: str, name: str, page: Page) -> bytes:
        """A page of the items that came with a response's request; raises NotFound, InvalidRequest."""

        def read() -> bytes:
            items = _items_in(self._responses.get(tenant, name).input)
            media = self._responses.media(tenant, media_of(items, pictures=True) if page.images else ())
            return encode_items(items, page, media)

        return await _found(name, read)

    async def delete(self, tenant: str, name: str) -> None:
        """Remove a response; raises NotFound."""
        await _found(name, lambda: self._responses.delete(tenant, name))

    def _complete(self, tenant: str, asked: Asked) -> Asked:
        history = [] if asked.previous is None else self._history(tenant, asked.previous)
        asked = completed(asked, history, self._referenced(tenant, asked.references))
        if not asked.store:
            return replace(asked, items=())
        size = len(msgspec.json.encode(asked.items))
        if not self._settings.enabled or size + len(msgspec.json.encode(asked.echo)) > self._settings.max_bytes:
            ignored = (*asked.request.ignored, "store")
            return replace(asked, store=False, items=(), request=replace(asked.request, ignored=ignored))
        items, media = apart(asked.items)
        return replace(asked, items=tuple(items), media=_shared(media, asked.request), size=size)

    def _history(self, tenant: str, previous: str) -> list[Json]:
        """The items of a conversation; raises NotFound and InvalidRequest."""
        param = "previous_response_id"
        try:
            turns = self._responses.conversation(tenant, previous, self._most)
            items = [item for turn in turns for item in (*_items_in(turn.input), *_output_of(turn.body))]
            return self._with_media(tenant, items)
        except NoSuchResponse:
            message = f"{param}: there is no response {shown(previous)}, or one that it goes on from is gone"
            raise NotFound(message, param=param, code="previous_response_not_found") from None
        except ConversationTooLarge as error:
            raise InvalidRequest(f"{param}: {error}", param=param, code="conversation_too_large") from None

    def _referenced(self, tenant: str, names: tuple[str, ...]) -> Mapping[str, Json]:
        """The items of these ids that are there; raises InvalidRequest where they are too much."""
        responses = {name: response for name in names if (response := response_of(name)) is not None}
        if len(set(responses.values())) > MOST_REFERRED:
            raise InvalidRequest(f"input: refers to items of more than {MOST_REFERRED} responses", param="input")
        found, size, times = dict[str, Json](), 0, Counter(names)
        for response in set(responses.values()):
            try:
                kept = self._responses.get(tenant, response)
                items = [*_items_in(kept.input), *_output_of(kept.body)]
                wanted = [item for item in items if responses.get(item["id"]) == response]
                items = self._with_media(tenant, wanted)
            except NoSuchResponse:
                continue
            found |= {item["id"]: item for item in items}
            size += sum(len(msgspec.json.encode(item)) * times[item["id"]] for item in items)
            if size > self._most:  # before there is more of it
                message = f"input: the items referred to have more than the {self._most:,} bytes that are accepted"
                raise InvalidRequest(message, param="input")
        return found

    def _with_media(self, tenant: str, items: list[Json]) -> list[Json]:
        wanted = media_of(items)
        media = self._responses.media(tenant, wanted)
        if len(media) != len(wanted):
            raise NoSuchResponse  # it was deleted between two looks
        return together(items, media)

    def _keep(self, tenant: str, asked: Asked, response: Json) -> None:
        body, items = msgspec.json.encode(response), list(asked.items)
        own, first = asked.request.id, response["id"].removeprefix("resp_")
        if own != first:  # the answer to another request, sent again under its key: ids tell which response has an item
            items = [item | {"id": item["id"].replace(own, first)} for item in items]
        self._responses.keep(
            NewResponse(
                id=response["id"],
                tenant=tenant,
                previous=asked.previous,
                input=msgspec.json.encode(items),
                body=body,
                whole=asked.size + len(body),
                media=asked.media,
            )
        )

    async def _sweep_on(self) -> None:
        while True:
            removed = 0
            try:
                removed = await asyncio.to_thread(self._responses.sweep)
            except Exception:
                log.exception("expired responses could not be removed")
            await asyncio.sleep(PAUSE_S if removed else SWEEP_S)


async def _found(name: str, read: Callable[[], T]) -> T:
    with suppress(NoSuchResponse):
        if is_response(name):  # any other may hold what no database takes
            return await asyncio.to_thread(read)
    raise NotFound(f"There is no response {shown(name)}.", code="response_not_found")


def _shared(media: Mapping[str, bytes], request: Request) -> Mapping[str, bytes]:
    """The same media, by the very bytes that the request holds: they lie in memory until it is answered."""
    leaves = [part for message in request.messages for part in message.leaves if isinstance(part, Media)]
    held = {hashlib.sha256(part.source).hexdigest(): part.source for part in leaves if isinstance(part.source, bytes)}
    return {digest: held.get(digest, content) for digest, content in media.items()}


def _items_in(data: bytes) -> list[Json]:
    return msgspec.json.decode(data, type=list[Json])


def _output_of(body: bytes) -> list[Json]:
    return msgspec.json.decode(body, type=dict[str, object])["output"]  # pyright: ignore[reportReturnType]
