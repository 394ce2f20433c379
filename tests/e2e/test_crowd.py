"""Thirty-two clients at once on both wires, many of which hang up: nothing of them is left behind."""

import asyncio
import base64
import re
from random import Random
from typing import Any

import httpx

from qwen3vl_compat.demo import SAMPLE
from tests.serving import Served

CLIENTS, EACH = 32, 4


def openai(rng: Random, picture: str, *, stream: bool) -> tuple[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "Read the text."}]
    body = {"model": "qwen3-vl", "stream": stream, "n": 1 if stream else rng.choice((1, 3)), "temperature": 0,
            "messages": [{"role": "user", "content": content}]}  # fmt: skip
    return "/v1/chat/completions", body


def google(rng: Random, picture: str, *, stream: bool) -> tuple[str, Any]:
    data = {"inlineData": {"mimeType": "image/png", "data": picture.partition(",")[2]}}
    body = {"contents": [{"role": "user", "parts": [data, {"text": "Read the text."}]}],
            "generationConfig": {"temperature": 0, "candidateCount": 1 if stream else rng.choice((1, 2))}}  # fmt: skip
    return f"/v1beta/models/qwen3-vl:{'streamGenerateContent?alt=sse' if stream else 'generateContent'}", body


async def one(client: httpx.AsyncClient, rng: Random, picture: str) -> str:
    """One request; it may be left after some pieces, or after some time."""
    stream = rng.random() < 0.7
    path, body = rng.choice((openai, google))(rng, picture, stream=stream)
    leave = rng.choice((None, None, 1, 2, 4))
    if not stream:
        patience = httpx.Timeout(60, read=60 if leave is None else 0.01 * leave)
        try:
            answer = await client.post(path, json=body, timeout=patience)
        except httpx.ReadTimeout:
            return "left"
        assert answer.status_code == 200, answer.text
        return answer.text
    text = ""
    async with client.stream("POST", path, json=body, timeout=60) as answer:
        assert answer.status_code == 200
        pieces = 0
        async for piece in answer.aiter_text():
            text, pieces = text + piece, pieces + 1
            if pieces == leave:
                return "left"
    return text


def told(served: Served) -> dict[str, float]:
    text = httpx.get(served.url + "/metrics", headers={"authorization": f"Bearer {served.admin_key}"}).text
    return {name: float(value) for name, value in re.findall(r"^(qwen3vl_\w+) ([\d.e+-]+)$", text, re.MULTILINE)}


async def test_a_crowd_that_hangs_up_leaves_nothing_behind(demo: Served) -> None:
    picture = "data:image/png;base64," + base64.b64encode(SAMPLE.read_bytes()).decode()
    rng = Random(11)

    async def client() -> list[str]:
        async with httpx.AsyncClient(base_url=demo.url, headers={"authorization": f"Bearer {demo.key}"}) as own:
            return [await one(own, rng, picture) for _ in range(EACH)]

    answers = [answer for each in await asyncio.gather(*(client() for _ in range(CLIENTS))) for answer in each]
    whole = [answer for answer in answers if answer != "left"]
    assert 20 < len(whole) < CLIENTS * EACH - 20
    # Streamed pieces divide the words in any way: what is said is read from the letters of all the text fields.
    said = ["".join(re.findall(r'"(?:content|text)": ?"((?:[^"\\]|\\.)*)"', answer)) for answer in whole]
    assert all("HELLO42" in each for each in said)
    for _ in range(200):
        if not told(demo)["qwen3vl_running"]:
            break
        await asyncio.sleep(0.1)
    # The engine checks its rows, blocks and pictures whenever it comes to rest, and ends the process if one is left.
    now = told(demo)
    assert (now["qwen3vl_running"], now["qwen3vl_waiting"], now["qwen3vl_kv_used_ratio"]) == (0, 0, 0)
    assert now["qwen3vl_vision_hits_total"] + now["qwen3vl_prefix_hits_total"] > 0
    assert demo.process.poll() is None
    assert (await asyncio.to_thread(lambda: httpx.get(demo.url + "/readyz"))).status_code == 200
