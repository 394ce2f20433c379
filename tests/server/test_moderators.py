"""Questions to a service over a socket: what it is sent, and everything that can be wrong with its answer."""

import asyncio
import json
import logging
from typing import Any

import pytest

from qwen3vl_compat.policies.moderation import Unavailable, Verdict
from qwen3vl_compat.server.moderators import CONNECTIONS, MOST_BYTES, Questions, make_moderators
from qwen3vl_compat.settings import ModerationSettings, ModeratorSettings, SettingsError
from tests.media.peers import Behave, answer, serving

SAID = {
    "results": [{"flagged": True, "categories": {"hate": True, "violence": False}, "category_scores": {"hate": 0.8}}]
}
GOOD = answer(json.dumps(SAID).encode())
KEY = "sk-secret-of-mine"


async def asked(url: str, **more: Any) -> Verdict:
    """One question, asked as the settings say."""
    described = ModeratorSettings(kind="service", url=url, key=KEY, **{"timeout": 0.5} | more)
    (moderator,) = make_moderators(ModerationSettings(moderators=(described,)))
    try:
        return await moderator.look(["words"], [])
    finally:
        await moderator.close()


async def test_a_question_and_its_verdict() -> None:
    bodies: list[bytes] = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append(await reader.read(60))
        writer.write(GOOD)
        await writer.drain()

    async with serving(behave) as server:
        verdict = await asked(server.url("/v1/moderations"), model="m")
    assert verdict == Verdict(True, ("hate",), {"hate": 0.8})
    head = server.asked[0].decode()
    assert head.startswith("POST /v1/moderations HTTP/1.1\r\n")
    assert f"Authorization: Bearer {KEY}\r\n" in head
    assert json.loads(bodies[0]) == {"model": "m", "input": ["words"]}


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GOOD[:40])
    for byte in GOOD[40:]:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("behave", "why"),
    [
        (hang, "it takes too long"),
        (trickle, "it takes too long"),
        (b"", "RemoteProtocolError"),
        (b"nonsense\r\n\r\n", "RemoteProtocolError"),
        (GOOD[:-5], "RemoteProtocolError"),
        (answer(b"{}", "500 Internal Server Error"), "it answers with status 500"),
        (answer(b"{}", "401 Unauthorized"), "it answers with status 401"),
        (answer(b"", "302 Found", "Location: http://127.0.0.1:1/"), "it answers with status 302"),
        (answer(b"not json"), "its answer is no verdict in OpenAI's form"),
        (answer(b'{"results": []}'), "its answer is no verdict in OpenAI's form"),
        (answer(b'{"results": [{"flagged": 1}]}'), "its answer is no verdict in OpenAI's form"),
        (answer(b'{"results": "' + b"x" * MOST_BYTES + b'"}'), f"its answer is larger than {MOST_BYTES} bytes"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_whatever_is_wrong_it_cannot_be_asked(
    behave: Behave | bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says where and why, once; keys are in the header, and may be in the URL."""
    caplog.set_level(logging.DEBUG, "qwen3vl_compat")
    async with serving(behave) as server:
        url = server.url("/v1/moderations")
        with pytest.raises(Unavailable):
            await asked(f"{url.replace('//', f'//me:{KEY}@')}?key={KEY}")
    told = [record.message for record in caplog.records if record.name.startswith("qwen3vl_compat")]
    assert told == [f"the moderator 'service' at {url} cannot be asked: {why}"]


async def test_an_outage_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(answer(b"{}", "503 Service Unavailable")) as server:
        described = ModeratorSettings(kind="service", url=server.url(), key=KEY)
        (moderator,) = make_moderators(ModerationSettings(moderators=(described,)))
        for _ in range(5):
            with pytest.raises(Unavailable):
                await moderator.look(["words"], [])
        await moderator.close()
    assert [record.message for record in caplog.records if "status 503" in record.message] == [
        f"the moderator 'service' at {server.url()} cannot be asked: it answers with status 503"
    ]


async def test_nobody_is_there() -> None:
    with pytest.raises(Unavailable):
        await asked("http://127.0.0.1:1/")


async def test_a_connection_that_was_closed_meanwhile_is_made_anew() -> None:
    """Each of these closes after its answer, without having said so."""
    async with serving(GOOD) as server:
        questions = Questions(server.url(), "", "m")
        for _ in range(3):
            assert (await questions.ask(["x"], [])).flagged
        await questions.close()
    assert server.accepted == 3


async def test_a_connection_is_kept() -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            writer.write(GOOD)
            await reader.readuntil(b"\r\n\r\n")
        writer.write(GOOD)

    async with serving(behave) as server:
        questions = Questions(server.url(), "", "m")
        for _ in range(3):
            await questions.ask(["x"], [])
        await questions.close()
    assert server.accepted == 1


async def test_questions_that_were_given_up_take_no_room() -> None:
    """More of them than there can be connections at once."""
    slow = True

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if slow:
            await asyncio.sleep(60)
        writer.write(GOOD)

    async with serving(behave) as server:
        questions = Questions(server.url(), "", "m")
        for _ in range(2):
            asked = [asyncio.create_task(questions.ask(["x"], [])) for _ in range(CONNECTIONS)]
            await asyncio.sleep(0.05)
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)
        slow = False
        async with asyncio.timeout(10):
            assert (await questions.ask(["x"], [])).flagged
        await questions.close()


async def test_a_question_given_up_at_any_moment_leaves_no_connection() -> None:
    """So many turns of the loop after it was begun; as many at once as there can be connections."""
    begun = 0

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal begun
        begun += 1
        await asyncio.sleep(60)

    async with serving(behave) as server:
        questions = Questions(server.url(), "", "m")
        pool = questions._connections()
        for turns in range(100):
            asked = [asyncio.create_task(questions.ask(["x"], [])) for _ in range(CONNECTIONS)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)
            assert [each for each in pool.connections if not each.is_closed()] == [], turns
            if begun:  # by now they are sent
                break
        await questions.close()
    assert begun


async def test_a_question_beside_one_that_is_given_up_is_answered() -> None:
    async with serving(GOOD) as server:
        for turns in range(30):
            questions = Questions(server.url(), "", "m")
            given_up, other = (asyncio.create_task(questions.ask(["x"], [])) for _ in range(2))
            for _ in range(turns):
                await asyncio.sleep(0)
            given_up.cancel()
            async with asyncio.timeout(10):
                assert (await other).flagged, turns
            await asyncio.wait({given_up})
            await questions.close()


async def test_names_of_categories_that_the_ledger_could_not_hold_are_left_out() -> None:
    told = {"results": [{"flagged": True, "categories": {"a;b": True, "x\n": True, "self-harm/intent": True}}]}
    async with serving(answer(json.dumps(told).encode())) as server:
        assert (await asked(server.url())).categories == ("self-harm/intent",)


@pytest.mark.parametrize(
    ("moderators", "fault"),
    [
        ([{"kind": "service"}], "needs the url"),
        ([{"kind": "service", "url": "http://x", "key_variable": "QWEN_NO_SUCH"}], "in the variable QWEN_NO_SUCH"),
        ([{"kind": "service", "url": "http://x", "key": "a\nb"}], "no header"),
        ([{"kind": "service", "url": "http:///x"}], "cannot be asked"),
        ([{"kind": "words"}], "has no words"),
        ([{"kind": "words", "words": {"a": ("x",)}}, {"kind": "words", "words": {"a": ("y",)}}], "Two moderators"),
    ],
)
def test_what_cannot_be_used_ends_the_start(moderators: list[dict[str, Any]], fault: str) -> None:
    described = tuple(ModeratorSettings(**each) for each in moderators)
    with pytest.raises(SettingsError, match=fault):
        make_moderators(ModerationSettings(moderators=described))


def test_a_key_is_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEY not in repr(ModerationSettings(moderators=(ModeratorSettings(kind="service", key=KEY),)))
    monkeypatch.setenv("MY_KEY", KEY)
    described = ModeratorSettings(kind="service", url="https://x.example/m", key_variable="MY_KEY")
    assert len(make_moderators(ModerationSettings(moderators=(described,)))) == 1
