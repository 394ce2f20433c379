"""Silent streams: a comment or event now and then, which the families' clients pass over or never get."""

import asyncio
from pathlib import Path
from typing import Any

import httpx

from qwen3vl_compat.server.keepalive import PING, kept_alive
from tests import sdks
from tests.serving import serving


async def test_a_silent_stream_says_a_comment_and_a_busy_one_does_not() -> None:
    said: list[bytes] = []

    async def send(message: Any) -> None:
        said.append(message["body"])

    async with kept_alive(send, 0.05) as tell:
        for _ in range(10):
            await tell({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        assert PING not in said
        async with asyncio.timeout(10):
            while said.count(PING) < 3:  # noqa: ASYNC110 -- it has no event for that
                await asyncio.sleep(0.01)
    told = len(said)
    await asyncio.sleep(0.12)
    assert len(said) == told
    async with kept_alive(send, 0):
        await asyncio.sleep(0.1)
    assert len(said) == told


def test_all_families_read_a_stream_that_is_kept_alive(tmp_path: Path) -> None:
    environment = {
        "QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_MODEL__PAUSE": "0.3", "QWEN3VL_SERVER__KEEP_ALIVE": "0.1",
    }  # fmt: skip
    asked: Any = {"model": "qwen3-vl", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    with serving(tmp_path, environment=environment) as served:
        raw = httpx.post(
            served.url + "/v1/chat/completions",
            json=asked,
            headers={"authorization": f"Bearer {served.key}"},
            timeout=60,
        )
        assert raw.text.count(": ping\n") >= 3
        with sdks.openai_client(served) as client:
            chunks = list(client.chat.completions.create(**asked))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: hello"
        with sdks.google_client(served) as google:
            told = list(google.models.generate_content_stream(model="qwen3-vl", contents="hello"))
        assert "".join(each.text or "" for each in told) == "You said: hello"
        said = httpx.post(
            served.url + "/v1/messages", json=asked | {"max_tokens": 50}, headers={"x-api-key": served.key}, timeout=60
        )
        assert said.text.count('event: ping\ndata: {"type":"ping"}\n\n') >= 3
        with sdks.anthropic_client(served) as other:
            events: Any = list(other.messages.create(**asked, max_tokens=50))
        assert "".join(each.delta.text for each in events if each.type == "content_block_delta") == "You said: hello"
