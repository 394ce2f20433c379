"""Pictures, videos and documents through the HTTP API: what the model sees of them, and what they cost."""

import base64
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from qwen3vl_compat.adapters.times import seconds_in
from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.demo.pictures import Line, examination
from tests.media.crafted import drawing, encoded
from tests.media.films import film, long_film, pdf_of
from tests.media.typeset import typeset
from tests.sdks import openai_client
from tests.serving import Served, serving

CHAT, NATIVE = "/v1/chat/completions", "/v1beta/models/qwen3-vl:generateContent"


def url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def picture(data: bytes, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(data, "image/png")} | more}


def document(data: bytes, **more: Any) -> dict[str, Any]:
    return {"type": "file", "file": {"file_data": url(data, "application/pdf"), "filename": "a.pdf"} | more}


def clip(data: bytes, **more: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url(data, "video/mp4")} | more}


def blob(data: bytes, mime: str, **more: Any) -> dict[str, Any]:
    return {"inlineData": {"mimeType": mime, "data": base64.b64encode(data).decode()}} | more


def asked(served: Served, *parts: dict[str, Any], room: int = 24) -> tuple[str, dict[str, int]]:
    """The answer on OpenAI's wire, and the prompt's tokens by what they are."""
    content = [*parts, {"type": "text", "text": "Read the text."}]
    body = {"model": "qwen3-vl", "messages": [{"role": "user", "content": content}], "max_tokens": room}
    answer = served.post(CHAT, body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"], answer.json()["usage"]["prompt_tokens_details"]


def asked_native(served: Served, *parts: dict[str, Any], **config: Any) -> tuple[str, dict[str, int]]:
    """The same on Google's."""
    contents = [{"parts": [*parts, {"text": "Read the text."}]}]
    body = {"contents": contents, "generationConfig": {"maxOutputTokens": 24} | config}
    answer = served.post(NATIVE, body)
    assert answer.status_code == 200, answer.text
    details = answer.json()["usageMetadata"]["promptTokensDetails"]
    text = answer.json()["candidates"][0]["content"]["parts"][0]["text"]
    return text, {each["modality"]: each["tokenCount"] for each in details}


# ------------------------------------------------------------------------------------------- the bundled model reads


def whole(image: Image.Image) -> Image.Image:
    """At the size of its grid: a video's frames are even, and only then nothing is resampled."""
    size = [max(32, round(side / 32) * 32) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)


def in_a_film(image: Image.Image) -> bytes:
    return film([(whole(image), 0.0)], options={"crf": "12"})


FORMS: dict[str, Callable[[Image.Image], dict[str, Any]]] = {
    "as it is": lambda image: picture(encoded(image, "PNG")),
    "rotated by EXIF": lambda image: picture(turned(image)),
    "with alpha": lambda image: picture(encoded(image.convert("RGBA"), "PNG")),
    "as WebP": lambda image: picture(encoded(image, "WEBP", quality=95)),
    "as a page": lambda image: document(pdf_of([image])),
    "as a frame": lambda image: clip(in_a_film(image)),
}
LINES = 40


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return examination(11, LINES)


@pytest.fixture(scope="module")
def plainly(demo: Served, lines: list[Line]) -> int:
    """How many are read right as they are."""
    return sum(asked(demo, FORMS["as it is"](line.picture))[0] == line.text for line in lines)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "as it is"])
def test_pictures_are_read_as_well_in_any_form(demo: Served, lines: list[Line], plainly: int, form: str) -> None:
    right = sum(asked(demo, FORMS[form](line.picture))[0] == line.text for line in lines)
    assert plainly >= 0.85 * LINES
    assert right >= plainly - 2, f"{right} instead of {plainly} of {LINES}"


SIZE = (160, 64)
"""Of the frames and pages below, pixels."""


@pytest.fixture(scope="module")
def readable(demo: Served) -> list[Line]:
    """Some lines that the model reads right, of one size so that they can be frames of one film."""
    found: list[Line] = []
    for line in examination(23, 120):
        fitting = Line(line.picture.resize(SIZE, Image.Resampling.BICUBIC), line.text)
        if len(line.text) in range(3, 6) and 120 < line.picture.width < 200:
            still = film([(fitting.picture, number / 10) for number in range(30)], rate=10, options={"crf": "12"})
            if all(asked(demo, clip(still, end=end))[0] == line.text for end in (0, 2.9)):
                found.append(fitting)
        if len(found) == 4:
            return found
    raise AssertionError("the model reads too few lines")


def of_words(lines: list[Line], seconds: float, times: list[float]) -> list[tuple[Image.Image, float]]:
    """Each line on the screen for so many seconds, with a frame at each of these times."""
    return [(lines[int(at // seconds)].picture, at) for at in times]


FILMS = {
    "steady": [number / 10 for number in range(160)],
    "unsteady": sorted({*(number / 4 for number in range(64)), *(4.0 + number / 50 for number in range(100))}),
}


def of_rate(lines: list[Line], rate: str) -> bytes:
    """Four words for four seconds each."""
    ticks = 0 if rate == "steady" else 1000
    return film(of_words(lines, 4.0, FILMS[rate]), rate=10, ticks=ticks, options={"crf": "12"})


@pytest.mark.parametrize("rate", FILMS)
@pytest.mark.parametrize("number", range(4))
def test_a_part_of_a_film_shows_its_word(demo: Served, readable: list[Line], rate: str, number: int) -> None:
    data = of_rate(readable, rate)
    start, end = 4.0 * number + 0.5, 4.0 * number + 3
    here, _ = asked(demo, clip(data, start=start, end=end))
    metadata = {"startOffset": f"{start}s", "endOffset": f"{end}s"}
    there, _ = asked_native(demo, blob(data, "video/mp4", videoMetadata=metadata))
    assert here == there == readable[number].text


def test_a_page_of_a_document_is_that_page(demo: Served, readable: list[Line]) -> None:
    data = pdf_of([line.picture for line in readable])
    for number, line in enumerate(readable, 1):
        assert asked(demo, document(data, pages=number))[0] == line.text
        metadata = {"startPage": number, "endPage": number}
        assert asked_native(demo, blob(data, "application/pdf", documentMetadata=metadata))[0] == line.text


def test_a_page_of_real_text_is_read(demo: Served) -> None:
    words = ["ABC12", "7XK", "HELLO", "4TWO2"]
    data = typeset(words)
    for number, word in enumerate(words, 1):
        assert asked(demo, document(data, pages=f"{number}-{number}"))[0] == word


def test_text_of_a_page_goes_along_where_an_operator_says_so(tmp_path: Path) -> None:
    environment = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_MEDIA__PDF_TEXT": "true"}
    with serving(tmp_path, environment=environment) as served:
        data = typeset(["first words", "second words", "third words"])
        for number, word in enumerate(("first", "second", "third"), 1):
            said, _ = asked(served, document(data, pages=number), room=40)
            assert f"page {number}:" in said
            assert f"{word} words" in said
            assert said.count("words") == 1
        metadata = {"startPage": 2, "endPage": 3}
        native, _ = asked_native(served, blob(data, "application/pdf", documentMetadata=metadata), maxOutputTokens=40)
        assert "second words" in native
        assert "third words" in native
        assert "first" not in native


MINUTES, MOMENTS = 120, ("00:00:30", "01:15:32", "01:59:20")


@pytest.fixture(scope="module")
def two_hours(readable: list[Line]) -> tuple[bytes, list[Line]]:
    """Two hours at 10 frames a second, with another word in each minute; the model can read those it is asked about."""
    lines = [Line(line.picture.resize(SIZE, Image.Resampling.BICUBIC), line.text) for line in examination(31, MINUTES)]
    for at, line in zip(MOMENTS, readable, strict=False):
        lines[int(seconds_in(at)[0] // 60)] = line
    return long_film([line.picture for line in lines], 60, rate=10, gop=20), lines


def sent(served: Served, data: bytes) -> str:
    """A film's URI, once openai-py has uploaded it."""
    with openai_client(served) as client:
        number = client.files.create(file=("long.mp4", data), purpose="user_data").id
    return f"{served.url}/v1beta/files/{number.removeprefix('file-')}"


@pytest.fixture(scope="module")
def uploaded(demo: Served, scripted: Served, two_hours: tuple[bytes, list[Line]]) -> dict[str, str]:
    """Where that film is at either server."""
    return {"demo": sent(demo, two_hours[0]), "scripted": sent(scripted, two_hours[0])}


def long_clip(uri: str, **more: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": uri} | more}


def test_two_hours_are_seen_from_end_to_end_at_their_true_times(scripted: Served, uploaded: dict[str, str]) -> None:
    said, tokens = asked(scripted, long_clip(uploaded["scripted"]), room=3000)
    moments = seconds_in(said.partition("]")[0])
    assert moments == sorted(moments)
    assert moments[0] < 20
    assert moments[-1] > 7180
    assert max(after - before for before, after in pairwise(moments)) < 60, "no minute goes unseen"
    assert tokens["video_tokens"] >= len(moments)
    native, _ = asked_native(scripted, {"fileData": {"fileUri": uploaded["scripted"]}}, maxOutputTokens=3000)
    assert seconds_in(native.partition("]")[0]) == moments


@pytest.mark.parametrize("at", MOMENTS)
def test_a_moment_of_two_hours_shows_its_word(
    demo: Served, uploaded: dict[str, str], two_hours: tuple[bytes, list[Line]], at: str
) -> None:
    (start,) = seconds_in(at)
    said, _ = asked(demo, long_clip(uploaded["demo"], start=start, end=start + 4, fps=0.5))
    assert said == two_hours[1][int(start // 60)].text


# ------------------------------------------------------------------------------------------------ times and costs


@pytest.mark.parametrize(("start", "end", "fps"), [(None, None, None), (4.0, 8.0, 1.0), (0.0, 16.0, 0.5)])
def test_times_are_told_to_the_model(
    scripted: Served, readable: list[Line], start: float | None, end: float | None, fps: float | None
) -> None:
    """The scripted engine says what it was shown."""
    for rate, times in FILMS.items():
        data = film(of_words(readable, 4.0, times), rate=10, ticks=0 if rate == "steady" else 1000)
        wishes = {"start": start, "end": end, "fps": fps}
        part = clip(data, **{name: wish for name, wish in wishes.items() if wish is not None})
        said, tokens = asked(scripted, part, room=100)
        moments = seconds_in(said.partition("]")[0])
        inside = [at for at in times if (start or 0) <= at <= (16 if end is None else end)]
        count = len(inside) if len(inside) < 4 else max(4, int((inside[-1] - inside[0]) * (fps or 2.0)))
        assert len(moments) == pytest.approx((count + 1) // 2, abs=1 if rate == "steady" else 16)
        assert inside[0] - 0.06 <= moments[0]
        assert moments[-1] <= inside[-1] + 0.06  # told to a tenth of a second
        assert tokens["video_tokens"] > 0
        metadata: dict[str, Any] = {} if fps is None else {"fps": fps}
        if start is not None and end is not None:
            metadata |= {"startOffset": f"{start}s", "endOffset": f"{end}s"}
        native, counted = asked_native(scripted, blob(data, "video/mp4", videoMetadata=metadata), maxOutputTokens=100)
        assert seconds_in(native.partition("]")[0]) == moments
        assert counted["VIDEO"] == tokens["video_tokens"]


@pytest.mark.parametrize(
    ("part", "native", "params"),
    [
        (
            lambda data: document(data["pdf"], pages=9),
            lambda data: blob(data["pdf"], "application/pdf", documentMetadata={"startPage": 9, "endPage": 9}),
            ("messages[0].content[0].file.pages", "contents[0].parts[0].documentMetadata"),
        ),
        (
            lambda data: clip(data["mp4"], start=100),
            lambda data: blob(data["mp4"], "video/mp4", videoMetadata={"startOffset": "100s"}),
            ("messages[0].content[0].video_url.start", "contents[0].parts[0].videoMetadata.startOffset"),
        ),
        (
            lambda data: {"type": "file", "file": {"file_data": url(data["mp4"], "video/mp4"), "start": 5, "end": 4}},
            lambda data: blob(data["mp4"], "video/mp4", videoMetadata={"startOffset": "5s", "endOffset": "4s"}),
            ("messages[0].content[0].file.end", "contents[0].parts[0].videoMetadata.endOffset"),
        ),
    ],
    ids=["page", "start", "end"],
)
def test_what_is_asked_of_a_medium_is_refused_by_its_own_name(
    scripted: Served, part: Any, native: Any, params: tuple[str, str]
) -> None:
    data = {"pdf": typeset(["A"] * 3), "mp4": film([(drawing(64, 64), 0.0), (drawing(64, 64), 1.0)], rate=1)}
    body = {"model": "qwen3-vl", "messages": [{"role": "user", "content": [part(data)]}]}
    refused = scripted.post(CHAT, body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, params[0]), refused.text
    refused = scripted.post(NATIVE, {"contents": [{"parts": [native(data)]}]})
    assert refused.status_code == 400
    assert f"{params[1]}:" in refused.json()["error"]["message"]


def test_a_file_may_be_a_part_of_a_video(scripted: Served) -> None:
    data = film([(drawing(64, 64, seed=number), number / 2) for number in range(20)], rate=2)
    said, _ = asked(scripted, {"type": "file", "file": {"file_data": url(data, "video/mp4"), "start": 4, "end": 6}})
    assert 4 <= min(seconds_in(said.partition("]")[0])) <= max(seconds_in(said.partition("]")[0])) <= 6


def test_a_list_of_frames(scripted: Served) -> None:
    urls = [url(encoded(drawing(64, 64, seed=number), "PNG"), "image/png") for number in range(5)]
    said, tokens = asked(scripted, {"type": "video", "video": urls, "fps": 1})
    assert seconds_in(said.partition("]")[0]) == [0.5, 2.5, 4.0]
    joined = "data:video/jpeg;base64," + ",".join(each.partition(",")[2] for each in urls)
    again, same = asked(scripted, {"type": "video_url", "video_url": {"url": joined, "fps": 1}})
    assert (again, same) == (said, tokens)


LARGE = encoded(drawing(2000, 1500), "JPEG", quality=60)


@pytest.mark.parametrize(
    ("detail", "level", "tokens"),
    [
        ("auto", None, 62 * 47),
        ("high", "MEDIA_RESOLUTION_HIGH", 62 * 47),
        ("original", "MEDIA_RESOLUTION_ULTRA_HIGH", 62 * 47),
        ("medium", "MEDIA_RESOLUTION_MEDIUM", 36 * 27),
        ("low", "MEDIA_RESOLUTION_LOW", 18 * 13),
    ],
)
def test_how_closely_to_look_is_what_it_costs(scripted: Served, detail: str, level: str | None, tokens: int) -> None:
    assert asked(scripted, picture(LARGE, detail=detail))[1]["image_tokens"] == tokens
    if level is None:
        assert asked_native(scripted, blob(LARGE, "image/jpeg"))[1]["IMAGE"] == tokens
        return
    assert asked_native(scripted, blob(LARGE, "image/jpeg", mediaResolution={"level": level}))[1]["IMAGE"] == tokens
    assert asked_native(scripted, blob(LARGE, "image/jpeg"), mediaResolution=level)[1]["IMAGE"] == tokens


def test_most_pixels_and_most_tokens_are_kept_to(scripted: Served) -> None:
    assert asked(scripted, picture(LARGE, max_pixels=100 * 1024))[1]["image_tokens"] <= 100
    assert asked(scripted, picture(LARGE, max_pixels=10**12))[1]["image_tokens"] == 62 * 47
    part = blob(LARGE, "image/jpeg", mediaResolution={"numTokens": 64})
    assert asked_native(scripted, part)[1]["IMAGE"] <= 64


def test_what_is_looked_at_less_closely_everywhere(scripted: Served) -> None:
    data = film([(drawing(640, 480, seed=number), number / 2) for number in range(8)], rate=2)
    closely, hardly = (asked(scripted, clip(data, detail=detail))[1]["video_tokens"] for detail in ("high", "low"))
    assert hardly <= closely
    pages = pdf_of([drawing(1240, 1754)], 150)
    closely, hardly = (asked(scripted, document(pages, detail=detail))[1]["image_tokens"] for detail in ("high", "low"))
    assert hardly <= 256 < closely


def test_pages_come_with_their_numbers(scripted: Served) -> None:
    data = pdf_of([drawing(200, 100, seed=page) for page in range(12)])
    said, tokens = asked(scripted, document(data, pages="3-5"))
    assert "page 3:" in said
    assert "page 5:" in said
    assert "page 2:" not in said
    assert "page 6:" not in said
    assert said.count("[") == 3
    assert tokens["image_tokens"] > 0


# -------------------------------------------------------------------------------------------------- from elsewhere


class _Shelf(BaseHTTPRequestHandler):
    FILES: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        body = self.FILES.get(self.path)
        self.send_response(200 if body else 404)
        self.send_header("content-length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def shelf() -> Iterator[str]:
    """A server of files; its address."""
    server = HTTPServer(("127.0.0.1", 0), _Shelf)
    _Shelf.FILES = {
        "/a.png": SAMPLE.read_bytes(),
        "/a.pdf": pdf_of([drawing(100, 100)]),
        "/a.mp4": film([(drawing(64, 64, seed=number), number / 2) for number in range(4)], rate=2),
        "/large.png": SAMPLE.read_bytes() + bytes(11 * 2**20),
        "/words": b"no picture",
    }
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def reaching(tmp_path_factory: pytest.TempPathFactory, shelf: str) -> Iterator[Served]:
    """A server that may fetch from this machine."""
    environment = {
        "QWEN3VL_MODEL__ENGINE": "scripted",
        "QWEN3VL_MEDIA__ALLOW_NETWORKS": "127.0.0.0/8",
        "QWEN3VL_MEDIA__PORTS": shelf.rpartition(":")[2],
    }
    with serving(tmp_path_factory.mktemp("reaching"), environment=environment) as served:
        yield served


def by_url(address: str) -> dict[str, dict[str, Any]]:
    """The same three media, in the parts of both wires."""
    return {
        "picture": {"type": "image_url", "image_url": {"url": f"{address}/a.png"}},
        "video": {"type": "video_url", "video_url": {"url": f"{address}/a.mp4"}},
        "document": {"type": "file", "file": {"file_data": f"{address}/a.pdf"}},
        "document by URL": {"type": "file", "file": {"file_url": f"{address}/a.pdf"}},
        "frames": {"type": "video", "video": [f"{address}/a.png"] * 3},
    }


@pytest.mark.parametrize("what", by_url(""))
def test_media_are_fetched(reaching: Served, shelf: str, what: str) -> None:
    said, tokens = asked(reaching, by_url(shelf)[what])
    assert said.startswith("[") or "Page 1" in said
    assert tokens["image_tokens"] + tokens["video_tokens"] > 0


@pytest.mark.parametrize("name", ["a.png", "a.mp4", "a.pdf"])
def test_google_fetches_too(reaching: Served, shelf: str, name: str) -> None:
    _, tokens = asked_native(reaching, {"fileData": {"fileUri": f"{shelf}/{name}"}})
    assert tokens.get("IMAGE", 0) + tokens.get("VIDEO", 0) > 0


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/large.png", "invalid_image_url"),
        ("/nothing", "invalid_image_url"),
        ("/words", "invalid_image_format"),
        ("/a.pdf", "invalid_image_format"),
    ],
)
def test_what_cannot_be_fetched_is_told(reaching: Served, shelf: str, path: str, code: str) -> None:
    part = {"type": "image_url", "image_url": {"url": shelf + path}}
    answer = reaching.post(CHAT, {"model": "qwen3-vl", "messages": [{"role": "user", "content": [part]}]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, "messages[0].content[0].image_url.url")
    assert shelf not in answer.text


def test_nothing_private_is_fetched_unless_it_is_listed(scripted: Served, shelf: str) -> None:
    part = {"type": "image_url", "image_url": {"url": f"{shelf}/a.png"}}
    answer = scripted.post(CHAT, {"model": "qwen3-vl", "messages": [{"role": "user", "content": [part]}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image_url")


def test_the_state_folder_holds_no_media(demo: Served) -> None:
    assert not [path for path in Path(demo.state).rglob("*") if path.suffix in (".png", ".mp4", ".pdf")]
