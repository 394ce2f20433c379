"""The Python client against real servers: what is asked arrives, what is answered is told, what it took is booked."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from qwen3vl_compat.adapters import client
from qwen3vl_compat.adapters.client import (
    AsyncQwen3VLClient,
    Attachment,
    Progress,
    Sampling,
    Thinking,
    tool,
    tool_result,
)
from qwen3vl_compat.demo import SAMPLE
from tests.adapters.faces import FACES, Face
from tests.media.crafted import drawing, encoded
from tests.media.films import film, steady
from tests.media.typeset import typeset
from tests.metered import closed_row, cost_of, nano, new_key, nothing_runs, priced, public, rows, wait_until
from tests.serving import Served, serving

faces = pytest.mark.parametrize("face", FACES.values(), ids=FACES)
WEATHER = tool("weather", "The weather of a place.", {"type": "object", "properties": {"city": {"type": "string"}},
                                                      "required": ["city"]})  # fmt: skip
SIGN = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}


@dataclass
class Sign:
    text: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The scripted engine with prices, 20 ms a token; it says of each picture how large it was."""
    with serving(tmp_path_factory.mktemp("client"), environment={"QWEN3VL_MODEL__ENGINE": "scripted"}) as server:
        yield priced(server)


@pytest.fixture
def key(served: Served) -> str:
    return new_key(served)


def photograph(path: Path, size: tuple[int, int], orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.write_bytes(encoded(drawing(*size), "JPEG", exif=exif, quality=95))
    return path


@faces
def test_words(face: Face, served: Served, key: str) -> None:
    """Usage and cost are those of the ledger's row, which has the request's id."""
    with face(served.url, key) as asking:
        words = f"Hello {public(key)}"
        answer = asking.generate(words, temperature=0)
        row = closed_row(served, key)
        assert (answer.text, answer.finish_reason, answer.request_id) == (f"You said: {words}", "stop", row["id"])
        assert (answer.usage.prompt, answer.usage.completion) == (row["text_in"], row["out"])
        assert answer.cost is not None
        assert (nano(str(answer.cost)), answer.currency) == (row["cost"], "USD")
        assert row["cost"] == cost_of(row) > 0
        assert answer.headers["x-cache"] == "miss"
        again = asking.generate(words, temperature=0)
        assert (again.text, again.cached, answer.cached) == (answer.text, True, False)
        assert Decimal(0) < again.cost < answer.cost


@faces
def test_pictures_videos_and_documents(face: Face, served: Served, key: str, tmp_path: Path) -> None:
    one = photograph(tmp_path / "one.jpg", (300, 200))
    (tmp_path / "film.mp4").write_bytes(film(steady([drawing(64, 64, seed=n) for n in range(20)], 1), rate=1))
    (tmp_path / "two.pdf").write_bytes(typeset(["ONE", "TWO", "THREE"]))
    with face(served.url, key) as asking:
        assert asking.generate("Look", one).text == "[300x200] You said: Look"
        assert asking.generate("Look", str(one)).text == "[300x200] You said: Look"
        several = [Attachment(one), encoded_png(40, 60), "and ", tmp_path / "one.jpg", "look"]
        assert asking.generate(several).text == "[300x200] [40x60] [300x200] You said: and  look"
        clip = asking.generate([Attachment(tmp_path / "film.mp4", start=4, end=8, fps=1), "Look"])
        assert "<4.5 seconds> <6.5 seconds>" in clip.text
        assert clip.usage.prompt_video > 0
        pages = asking.generate([Attachment(tmp_path / "two.pdf", pages=(2, 3)), "Read"])
        assert pages.usage.prompt_image > 0
        assert pages.text.count("x") == 2
        near, far = (asking.generate([Attachment(photograph(tmp_path / "b.jpg", (1500, 1500)), detail=detail), "Look"])
                     for detail in ("auto", "low"))  # fmt: skip
        assert far.usage.prompt_image <= 256 < near.usage.prompt_image


def encoded_png(width: int, height: int) -> Attachment:
    return Attachment(encoded(drawing(width, height), "PNG"))


@faces
def test_downscaling_saves_tokens_and_keeps_orientation(face: Face, served: Served, key: str, tmp_path: Path) -> None:
    """A photograph that lies on its side arrives upright, no larger than it is looked at, and in far fewer bytes."""
    path = photograph(tmp_path / "large.jpg", (4000, 3000), orientation=6)
    sent: list[Progress] = []

    def ask(longest_side: int) -> client.Answer:
        with face(served.url, key, longest_side=longest_side) as asking:
            return asking.generate("Look", path, on_progress=sent.append)

    plain, usual, small = ask(0), ask(2048), ask(512)
    assert [answer.text[: answer.text.index("]") + 1] for answer in (plain, usual, small)] == [
        "[3000x4000]", "[1536x2048]", "[384x512]",
    ]  # fmt: skip
    assert usual.usage == plain.usage
    assert small.usage.prompt_image * 15 <= usual.usage.prompt_image
    sizes = [each.total for each in sent if each.stage == "request"]
    assert len(set(sizes)) == 3
    assert sizes == sorted(sizes, reverse=True)


@faces
def test_what_is_large_is_uploaded(face: Face, served: Served, key: str, tmp_path: Path) -> None:
    """Beside the request, for an hour; what is small goes in it. Another tenant's servers tell of no file."""
    path = tmp_path / "long.pdf"
    path.write_bytes(typeset(["ONE"]) + b"\n%" + b"x" * (9 * 2**20))
    told: list[Progress] = []
    with face(served.url, key) as asking:
        answer = asking.generate([path, Attachment(typeset(["TWO"])), "Read"], on_progress=told.append)
        assert answer.text.count("x") == 2
        (kept,) = asking.files()
        assert (kept.filename, kept.bytes, kept.mime_type) == ("long.pdf", path.stat().st_size, "application/pdf")
        assert kept.expires_at - kept.created_at == 3600
        asking.delete_file(kept)
        assert asking.files() == []
    stages = [each.stage for each in told]
    assert stages == sorted(stages, key=["upload", "request", "answer"].index)
    for stage in ("upload", "request", "answer"):
        steps = [(each.done, each.total) for each in told if each.stage == stage]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]
    assert max(each.done for each in told if each.stage == "upload") > 9 * 2**20


@faces
def test_a_file_is_asked_about_twice(face: Face, served: Served, key: str) -> None:
    with face(served.url, key) as asking:
        file = asking.upload(SAMPLE.read_bytes(), name="sign.png", life=600)
        assert (file.filename, file.expires_at - file.created_at) == ("sign.png", 600)
        for source in (file, file.id):
            assert asking.generate([Attachment(source), "Look"]).text == "[192x48] You said: Look"
        asking.delete_file(file.id)
        with pytest.raises(client.NotFound) as caught:
            asking.delete_file(file)
        assert caught.value.code == "file_not_found"


@faces
def test_a_stream(face: Face, served: Served, key: str) -> None:
    """It tells what a whole answer does, piece by piece; its cost is in the ledger only."""
    told: list[Progress] = []
    with face(served.url, key) as asking:
        deltas, answer = asking.stream("think: hm then say: count to 5", on_progress=told.append)
        whole = asking.generate("think: hm then say: count to 5")
        assert len(deltas) > 2
        assert {type(delta) for delta in deltas} == {client.ReasoningDelta, client.TextDelta}
        assert (answer.text, answer.reasoning, answer.usage) == (whole.text, whole.reasoning, whole.usage)
        assert answer.cost is None
        row = rows(served, key)[0]
        assert (row["id"], row["stream"], row["out"]) == (answer.request_id, True, answer.usage.completion)
    done = [each.done for each in told if each.stage == "answer"]
    assert done[:-1] == list(range(1, len(deltas) + 1))
    assert told[-1] == Progress("answer", answer.usage.completion, answer.usage.completion)


def test_texts_of_a_stream(served: Served, key: str) -> None:
    with client.Qwen3VLClient(served.url, key) as asking, asking.stream("count to 3", choices=2) as stream:
        assert list(stream.texts()) == ["1", " 2", " 3"]
        assert [choice.text for choice in stream.answer.choices] == ["1 2 3"] * 2

    async def texts() -> list[str]:
        async with AsyncQwen3VLClient(served.url, key) as asking:
            return [text async for text in asking.stream("count to 3").texts()]

    assert asyncio.run(texts()) == ["1", " 2", " 3"]


@faces
def test_forms_of_an_answer(face: Face, served: Served, key: str) -> None:
    with face(served.url, key) as asking:
        assert asking.generate("Well?", schema=SIGN).json() == {"text": "text"}
        assert asking.generate("Well?", schema=Sign).json(Sign) == Sign("text")
        with pytest.raises(client.Unreadable, match="ended with stop"):
            asking.generate("Well?").json()
        cut = asking.generate("count to 100", max_tokens=3)
        assert (cut.text, cut.finish_reason) == ("1 2 3", "length")
        stopped = asking.generate("count to 9", sampling=Sampling(stop=(" 4",), logprobs=0))
        assert stopped.text == "1 2 3"
        assert len(stopped.choices[0].logprobs) >= 3
        thought = asking.generate("think: a b c d then say: e", thinking=Thinking(budget=2))
        assert (thought.reasoning.split(), thought.text) == (["a", "b"], "e")
        assert asking.generate("Well?", system="Be brief.").usage.prompt > asking.generate("Well?").usage.prompt


@faces
def test_tools(face: Face, served: Served, key: str) -> None:
    asked = 'call weather with {"city": "Oslo"}'
    with face(served.url, key) as asking:
        first = asking.generate(asked, tools=[WEATHER])
        (call,) = first.calls
        assert (call.name, json.loads(call.arguments), first.finish_reason) == (
            "weather",
            {"city": "Oslo"},
            "tool_calls",
        )
        last = asking.generate([asked, first.message, tool_result(call, "rain")], tools=[WEATHER])
        assert last.text == "The tool says: rain"
        (forced,) = asking.generate("Hello", tools=[WEATHER], tool_choice="weather").calls
        assert json.loads(forced.arguments) == {"city": "text"}
        assert asking.generate(asked, tools=[WEATHER], tool_choice="none").calls == ()
        deltas, streamed = asking.stream(asked, tools=[WEATHER])
        assert {type(delta) for delta in deltas} == {client.ToolCallDelta}
        assert [(each.name, each.arguments) for each in streamed.calls] == [(call.name, call.arguments)]


@faces
@pytest.mark.parametrize(
    ("options", "kind", "code", "param"),
    [
        ({"model": "other"}, client.NotFound, "model_not_found", "model"),
        ({"temperature": 3}, client.BadRequest, "invalid_value", "temperature"),
        ({"sampling": Sampling(top_p=5)}, client.BadRequest, "invalid_value", "top_p"),
        ({"tools": [WEATHER], "tool_choice": "other"}, client.BadRequest, "invalid_value", "tool_choice"),
    ],
)
def test_refusals(
    face: Face, served: Served, options: dict[str, Any], kind: type[client.Refused], code: str, param: str
) -> None:
    """Each as its own type, with all the server says; the same for whole answers and streams."""
    with face(served.url, served.key) as asking:
        for ask in (asking.generate, asking.stream):
            with pytest.raises(kind) as caught:
                ask("Well?", **options)
            error = caught.value
            assert (type(error), error.code, error.param) == (kind, code, param)
            assert error.request_id in served.log()


@faces
def test_what_is_of_no_known_kind_the_server_names(face: Face, served: Served, tmp_path: Path) -> None:
    (tmp_path / "sound.mp3").write_bytes(b"ID3" + b"\0" * 100)
    with face(served.url, served.key) as asking, pytest.raises(client.BadRequest, match="an MP3 sound") as caught:
        asking.generate("Listen", tmp_path / "sound.mp3")
    assert caught.value.param == "messages[0].content[0].file.file_data"


@faces
def test_keys(face: Face, served: Served, key: str) -> None:
    with face(served.url, "sk-wrong") as asking:
        for ask in (asking.generate, asking.stream):
            with pytest.raises(client.Unauthorized) as caught:
                ask("Well?")
            assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
        with pytest.raises(client.Unauthorized):
            asking.upload(SAMPLE)
    with face(served.url) as asking, pytest.raises(client.Unauthorized):
        asking.models()
    with face(served.url, served.admin_key) as asking, pytest.raises(client.Forbidden):
        asking.generate("Well?")
    with face(served.url, key) as asking:
        assert [model.id for model in asking.models()] == ["qwen3-vl"]
    with face(served.url, new_key(served, "--budget", "0.000001/day")) as asking:
        with pytest.raises(client.OutOfCredit) as spent:
            asking.generate("Well?")
        assert spent.value.retry_after is None
    with face(served.url, new_key(served, "--rpm", "1"), retries=0) as asking:
        with pytest.raises(client.RateLimited) as limited:
            list(map(asking.generate, ("Well?",) * 3))  # a minute may end in between
        assert not isinstance(limited.value, client.OutOfCredit)
        assert 1 <= limited.value.retry_after <= 60


class Cutting:
    """Stands before a server and breaks the first connection as soon as something of the answer comes."""

    def __init__(self, port: int) -> None:
        self._port, self._listening = port, socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads = [Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        cut = True
        with suppress(OSError):
            while True:
                inner, _ = self._listening.accept()
                outer = socket.create_connection(("127.0.0.1", self._port))
                for one, other, cutting in ((inner, outer, False), (outer, inner, cut)):
                    self._threads.append(Thread(target=self._pump, args=(one, other, cutting)))
                    self._threads[-1].start()
                cut = False

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket, cut: bool) -> None:
        with suppress(OSError):
            while data := one.recv(2**16):
                if cut:
                    break
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def __enter__(self) -> "Cutting":
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join()


@faces
def test_a_retry_is_never_charged_twice(face: Face, served: Served, key: str) -> None:
    """The answer is lost on its way; it is told again, for nothing."""
    with Cutting(int(served.url.rpartition(":")[2])) as between, face(between.url, key) as asking:
        answer = asking.generate("Hello")
        assert (answer.text, answer.replayed) == ("You said: Hello", True)
    assert closed_row(served, key)["cost"] > 0


@faces
def test_a_stream_with_a_key_survives_its_connection(face: Face, served: Served, key: str) -> None:
    with Cutting(int(served.url.rpartition(":")[2])) as between, face(between.url, key) as asking:
        deltas, answer = asking.stream("count to 30", idempotency_key=public(key))
        assert "".join(delta.text for delta in deltas) == answer.text == " ".join(map(str, range(1, 31)))
    assert closed_row(served, key)["out"] == answer.usage.completion == 30


@faces
def test_closing_a_stream_ends_the_generation(face: Face, served: Served, key: str) -> None:
    with face(served.url, key) as asking:
        told, answer = asking.stream("count to 3000", most=3, max_tokens=None)
        assert (len(told), answer) == (3, None)
        row = closed_row(served, key)
        assert (row["state"], row["finish"]) == ("aborted", "gone")
        assert 3 <= row["out"] < 1000
        wait_until(lambda: nothing_runs(served))
        assert asking.generate("Still there?").text == "You said: Still there?"


def test_a_cancelled_task_ends_the_generation(served: Served, key: str) -> None:
    """Unless it has a key, under which somebody may come back."""

    async def leave(idempotency_key: str) -> None:
        async with AsyncQwen3VLClient(served.url, key) as asking:
            asked = asking.generate("count to 3000", max_tokens=None, idempotency_key=idempotency_key)
            task = asyncio.create_task(asked)
            await asyncio.to_thread(wait_until, lambda: bool(rows(served, key)))
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(leave(""))
    assert closed_row(served, key)["finish"] == "gone"


def test_many_at_once_share_a_client(served: Served, key: str) -> None:
    async def all_of_them() -> list[client.Answer]:
        async with AsyncQwen3VLClient(served.url, key) as asking:
            return await asyncio.gather(*(asking.generate(f"Number {number}", SAMPLE) for number in range(8)))

    assert [answer.text for answer in asyncio.run(all_of_them())] == [
        f"[192x48] You said: Number {number}" for number in range(8)
    ]
    assert len({row["id"] for row in rows(served, key)}) == 8


@faces
def test_the_bundled_model_reads(face: Face, demo: Served, tmp_path: Path) -> None:
    """Upright also where only the EXIF orientation says so; on a PDF's page and in a video's frames too."""
    upright = Image.open(SAMPLE).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    path.write_bytes(encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95))
    with face(demo.url, demo.key) as asking:
        assert asking.generate("Read the text.", SAMPLE, temperature=0).text == "HELLO42"
        assert asking.generate("Read the text.", path, temperature=0).text == "HELLO42"
        deltas, answer = asking.stream("Read the text.", path, temperature=0)
        assert "".join(delta.text for delta in deltas) == answer.text == "HELLO42"
        held = asking.generate("Read the text.", SAMPLE, temperature=0, schema=Sign)
        assert held.json(Sign) == Sign("HELLO42")
