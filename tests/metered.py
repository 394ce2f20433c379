"""Asking with a metered key through the families' own clients, and looking up in the books what that came to."""

import base64
import io
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing, redirect_stdout
from fractions import Fraction
from typing import Any

import httpx
from google.genai import types
from msgspec import Struct

from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.cli import main
from tests import sdks
from tests.serving import Served

PRICES = {"text_in": "0.310000333", "vision_in": "0.73", "cached_in": "0.11", "out": "1.9000007", "reasoning": "2.3",
          "per_request": "0.000777"}  # fmt: skip
"""All different, and none of them whole when it is divided by a million."""


class Seen(Struct, frozen=True, kw_only=True):
    """What a client has seen of one answer."""

    id: str
    prompt: int
    text: int
    vision: int
    cached: int
    out: int
    reasoning: int
    pictures: int
    cost: str | None


Part = str | tuple[str, bytes]
"""Words, or a medium: its MIME type and bytes."""


def command(served: Served, *words: str) -> str:
    """The command line on a server's accounts."""
    told = io.StringIO()
    with redirect_stdout(told):
        main([*words, "--state-dir", str(served.state)])
    return told.getvalue().strip()


def new_key(served: Served, *words: str) -> str:
    return command(served, "keys", "create", *words)


def priced(served: Served) -> Served:
    command(served, "prices", "set", "*", *(f"--{name.replace('_', '-')}={amount}" for name, amount in PRICES.items()))
    return served


def public(key: str) -> str:
    return key.split("-")[1]


def chat(*parts: Part) -> Any:
    content = [_openai_part(part) for part in parts]
    return [{"role": "user", "content": content}]


def _openai_part(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    mime, data = part
    url = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    if mime == "application/pdf":
        return {"type": "file", "file": {"file_data": url, "filename": "a.pdf"}}
    kind = "video_url" if mime.startswith("video") else "image_url"
    return {"type": kind, kind: {"url": url}}


def contents(*parts: Part) -> Any:
    return [part if isinstance(part, str) else types.Part.from_bytes(data=part[1], mime_type=part[0]) for part in parts]


def ask(served: Served, key: str, wire: str, *parts: Part, stream: bool = False, n: int = 1, most: int = 50) -> Seen:
    """Ask through the family's own client; returns what it was told."""
    told = _told_openai if wire == "openai" else _told_google
    return told(served, key, parts, stream=stream, n=n, most=most)


def _told_openai(served: Served, key: str, parts: Sequence[Part], *, stream: bool, n: int, most: int) -> Seen:
    asked: Any = {"model": "qwen3-vl", "messages": chat(*parts), "n": n, "max_tokens": most}
    with sdks.openai_client(served, key) as client:
        create = client.chat.completions.with_raw_response.create
        if stream:
            raw = create(**asked, stream=True, stream_options={"include_usage": True})
            chunks = list(raw.parse())
            assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
            last: Any = chunks[-1]
        else:
            raw = create(**asked)
            last = raw.parse()
    assert last.id == f"chatcmpl-{raw.headers['x-request-id']}"
    details = last.usage.prompt_tokens_details.to_dict()
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    return Seen(
        id=raw.headers["x-request-id"],
        prompt=last.usage.prompt_tokens,
        text=details["text_tokens"],
        vision=details["image_tokens"] + details["video_tokens"],
        cached=details["cached_tokens"],
        out=last.usage.completion_tokens,
        reasoning=last.usage.completion_tokens_details.reasoning_tokens,
        pictures=sum(isinstance(part, tuple) for part in parts),
        cost=raw.headers.get("x-cost-total"),
    )


def _told_google(served: Served, key: str, parts: Sequence[Part], *, stream: bool, n: int, most: int) -> Seen:
    config = types.GenerateContentConfig(candidate_count=n, max_output_tokens=most)
    asked: Any = {"model": "qwen3-vl", "contents": contents(*parts), "config": config}
    with sdks.google_client(served, key=key) as client:
        if stream:
            chunks = list(client.models.generate_content_stream(**asked))
            assert [chunk.usage_metadata is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
            last: Any = chunks[-1]
        else:
            last = client.models.generate_content(**asked)
    usage, headers = last.usage_metadata, last.sdk_http_response.headers
    assert last.response_id == headers["x-request-id"]
    assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count + (
        usage.thoughts_token_count or 0
    )
    split = {detail.modality.name: detail.token_count for detail in usage.prompt_tokens_details}
    return Seen(
        id=headers["x-request-id"],
        prompt=usage.prompt_token_count,
        text=split.pop("TEXT"),
        vision=sum(split.values()),
        cached=usage.cached_content_token_count or 0,
        out=usage.candidates_token_count + (usage.thoughts_token_count or 0),
        reasoning=usage.thoughts_token_count or 0,
        pictures=sum(isinstance(part, tuple) for part in parts),
        cost=headers.get("x-cost-total"),
    )


def rows(served: Served, key: str) -> list[dict[str, Any]]:
    """The ledger's rows of a key, in the order in which they were admitted."""
    with closing(sqlite3.connect(f"file:{served.state / FILE}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT * FROM ledger WHERE key = ? ORDER BY created_at, rowid", [public(key)])
        return [dict(row) for row in found]


def closed_row(served: Served, key: str) -> dict[str, Any]:
    """The only row of a key, once it is closed."""
    wait_until(lambda: [row["state"] for row in rows(served, key)] not in ([], ["open"]))
    (row,) = rows(served, key)
    return row


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def nothing_runs(served: Served) -> bool:
    return httpx.get(served.url + "/health").json()["running"] == 0


def cost_of(row: dict[str, Any]) -> int:
    """By the book: nano-units, rounded half up once. Of an answer that was given before, all are cached tokens."""
    prices = PRICES | dict.fromkeys(("text_in", "vision_in", "out", "reasoning"), PRICES["cached_in"])
    prices = prices if row["cache"] == "hit" else PRICES
    counts = {name: row[name] for name in ("text_in", "vision_in", "cached_in", "reasoning")}
    counts["out"] = row["out"] - row["reasoning"]
    tokens = sum((number * Fraction(prices[name]) for name, number in counts.items()), Fraction())
    return int((tokens / 10**6 + Fraction(PRICES["per_request"])) * 10**9 + Fraction(1, 2))


def nano(amount: str) -> int:
    return int(Fraction(amount) * 10**9)


def get(served: Served, key: str, path: str) -> httpx.Response:
    answer = httpx.get(served.url + path, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return answer


def check_books(served: Served, key: str, wire: str, stream: bool, seen: Sequence[Seen]) -> None:
    """What was seen, the rows, the export, the sums and the budget's standing agree to the last unit."""
    booked = rows(served, key)
    assert [row["id"] for row in booked] == [each.id for each in seen]
    for row, each in zip(booked, seen, strict=True):
        assert (row["state"], row["wire"], row["stream"]) == ("final", wire, stream)
        assert row["text_in"] + row["vision_in"] + row["cached_in"] == each.prompt == each.text + each.vision
        assert (row["cached_in"], row["out"], row["reasoning"]) == (each.cached, each.out, each.reasoning)
        assert (row["text_in"] <= each.text, row["vision_in"] <= each.vision) == (True, True)
        assert row["pictures"] == each.pictures
        assert row["cost"] == cost_of(row)
        assert row["reserved"] >= row["cost"] or row["cache"] == "hit"
        assert stream or nano(each.cost or "0") == row["cost"]
    lines = get(served, key, f"/v1/usage/export?format=jsonl&key={public(key)}").text.splitlines()
    exported = [json.loads(line) for line in lines]
    names = ("id", "state", "text_in", "vision_in", "cached_in", "out", "reasoning", "pictures", "wire", "stream")
    assert [[each[name] for name in names] for each in exported] == [[row[name] for name in names] for row in booked]
    assert [nano(each["cost"]) for each in exported] == [row["cost"] for row in booked]
    check_sums(served, key, booked)


def check_sums(served: Served, key: str, booked: Sequence[dict[str, Any]]) -> None:
    for asked in ("", "&bucket_width=1h&start_time=" + str(int(time.time()) - 86_400)):
        buckets = get(served, key, f"/v1/usage?key={public(key)}&group_by=key,model{asked}").json()["data"]
        results = [result for bucket in buckets for result in bucket["results"]]
        names = {
            "input_text_tokens": "text_in", "input_vision_tokens": "vision_in", "input_cached_tokens": "cached_in",
            "output_tokens": "out", "reasoning_tokens": "reasoning", "pictures": "pictures",
        }  # fmt: skip
        for told, name in names.items():
            assert sum(result[told] for result in results) == sum(row[name] for row in booked)
        assert sum(result["requests"] for result in results) == len(booked)
        assert sum(nano(result["cost"]) for result in results) == sum(row["cost"] for row in booked)
    budget = get(served, key, "/v1/limits").json()["key"]["budget"]
    assert nano(budget["month"]["spent"]) == sum(row["cost"] for row in booked)
    assert budget["month"]["reserved"] == "0.00"


def headers_of(served: Served, key: str, wire: str, *parts: Part) -> Any:
    """Of a good answer."""
    if wire == "openai":
        with sdks.openai_client(served, key) as client:
            create = client.chat.completions.with_raw_response.create
            return create(model="qwen3-vl", messages=chat(*parts), max_tokens=3).headers
    with sdks.google_client(served, key=key) as client:
        config = types.GenerateContentConfig(max_output_tokens=3)
        answer = client.models.generate_content(model="qwen3-vl", contents=contents(*parts), config=config)
        assert answer.sdk_http_response is not None
        return answer.sdk_http_response.headers
