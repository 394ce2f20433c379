"""What was uploaded by one family's client is asked about by id and by URI, with either family's."""

import base64
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from google.genai import errors, types
from PIL import Image

from qwen3vl_compat.demo import SAMPLE
from tests.media.films import film, pdf_of
from tests.sdks import google_client, openai_client
from tests.serving import ROOT, Served, serving

pytestmark = pytest.mark.filterwarnings("default")

PICTURE = Image.open(SAMPLE).convert("RGB")
WORD = "HELLO42"
MEDIA = {
    "picture": (SAMPLE.read_bytes(), "a.png", "image/png"),
    "video": (film([(PICTURE.resize((192, 64)), 0.0)], options={"crf": "8"}), "a.mp4", "video/mp4"),
    "document": (pdf_of([PICTURE]), "a.pdf", "application/pdf"),
}
VERSIONS = ("v1", "v1beta")


def uploaded(served: Served, how: str, what: str) -> tuple[str, str, str]:
    """(Id, name, URI) of a medium that a client has uploaded."""
    data, name, mime = MEDIA[what]
    if how == "openai":
        with openai_client(served) as client:
            number = client.files.create(file=(name, data, mime), purpose="user_data").id
        bare = number.removeprefix("file-")
        return number, f"files/{bare}", f"{served.url}/v1beta/files/{bare}"
    with google_client(served, how) as client:
        file = client.files.upload(file=io.BytesIO(data), config={"mime_type": mime, "display_name": name})
    assert file.name is not None
    assert file.uri is not None
    return f"file-{file.name.removeprefix('files/')}", file.name, file.uri


def openai_asked(served: Served, reference: str, what: str, key: str | None = None) -> str:
    """By id as a file, or by URI in the part of its kind."""
    part: Any = {"type": "file", "file": {"file_id": reference}}
    if reference.startswith("http") and what != "document":
        kind = {"picture": "image_url", "video": "video_url"}[what]
        part = {"type": kind, kind: {"url": reference}}
    elif reference.startswith("http"):
        part = {"type": "file", "file": {"file_url": reference}}
    with openai_client(served, key) as client:
        answer = client.chat.completions.create(
            model="qwen3-vl",
            messages=[{"role": "user", "content": [part, {"type": "text", "text": "Read the text."}]}],
            max_tokens=16,
        )
    return answer.choices[0].message.content or ""


def google_asked(served: Served, version: str, reference: str, key: str | None = None) -> str:
    """By name or URI as file data."""
    part = types.Part(file_data=types.FileData(file_uri=reference))
    with google_client(served, version, key) as client:
        answer = client.models.generate_content(
            model="qwen3-vl",
            contents=[types.Content(role="user", parts=[part, types.Part(text="Read the text.")])],
            config=types.GenerateContentConfig(max_output_tokens=16),
        )
    return answer.text or ""


@pytest.mark.parametrize("what", MEDIA)
@pytest.mark.parametrize("how", ["openai", *VERSIONS])
def test_a_file_is_read_by_either_family(demo: Served, how: str, what: str) -> None:
    number, name, uri = uploaded(demo, how, what)
    said = [openai_asked(demo, reference, what) for reference in (number, uri)]
    said += [google_asked(demo, version, reference) for version in VERSIONS for reference in (name, number, uri)]
    assert set(said) == {WORD}


@pytest.mark.parametrize("kind", ["image_url", "video_url", "video"])
def test_an_id_stands_where_a_url_may(demo: Served, kind: str) -> None:
    number, name, _ = uploaded(demo, "openai", "video" if kind == "video_url" else "picture")
    for reference in (number, name):
        part: Any = {"type": kind, kind: [reference] * 3 if kind == "video" else {"url": reference}}
        with openai_client(demo) as client:
            answer = client.chat.completions.create(
                model="qwen3-vl",
                messages=[{"role": "user", "content": [part, {"type": "text", "text": "Read the text."}]}],
                max_tokens=16,
            )
        assert answer.choices[0].message.content == WORD


def command(served: Served, *arguments: str) -> str:
    """What the command prints."""
    run = subprocess.run(
        [sys.executable, "-m", "qwen3vl_compat", *arguments, "--state-dir", str(served.state)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return run.stdout.strip()


@pytest.fixture(scope="module")
def stranger(scripted: Served) -> str:
    """A key of another tenant, made as an operator would make it."""
    command(scripted, "tenants", "create", "stranger")
    return command(scripted, "keys", "create", "--tenant", "stranger")


def test_another_tenant_s_file_is_not_there(scripted: Served, stranger: str) -> None:
    number, name, uri = uploaded(scripted, "openai", "picture")
    for reference in (number, uri):
        with pytest.raises(openai.NotFoundError, match="no such file") as refusal:
            openai_asked(scripted, reference, "picture", stranger)
        assert refusal.value.param == (
            "messages[0].content[0].file.file_id" if reference == number else "messages[0].content[0].image_url.url"
        )
    for reference in (name, uri):
        with pytest.raises(errors.ClientError, match="no such file") as missing:
            google_asked(scripted, "v1beta", reference, stranger)
        assert missing.value.code == 404
    assert openai_asked(scripted, number, "picture").startswith("[192x48]")


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose files live for two seconds."""
    environment = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_FILES__LIFE": "2", "QWEN3VL_FILES__SWEEP": "0.5"}
    with serving(tmp_path_factory.mktemp("brief"), environment=environment) as served:
        yield served


def test_a_file_that_has_expired_is_not_there(brief: Served) -> None:
    number, name, _ = uploaded(brief, "v1beta", "picture")
    assert openai_asked(brief, number, "picture").startswith("[192x48]")
    time.sleep(2.5)
    with pytest.raises(openai.NotFoundError):
        openai_asked(brief, number, "picture")
    with pytest.raises(errors.ClientError, match="no such file"):
        google_asked(brief, "v1", name)
    time.sleep(1)
    assert not [path for path in (brief.state / "files").rglob("*") if path.is_file()]


def test_a_tenant_s_own_limits_hold_within_seconds(scripted: Served, stranger: str) -> None:
    part = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(SAMPLE.read_bytes()).decode()}}

    def asked(count: int) -> httpx.Response:
        body = {"contents": [{"parts": [part] * count}], "generationConfig": {"maxOutputTokens": 1}}
        return scripted.post("/v1beta/models/qwen3-vl:generateContent", body, key=stranger)

    assert asked(3).status_code == 200
    assert command(scripted, "tenants", "set", "stranger", "media.max_images=2").endswith("\nmedia.max_images=2")
    end = time.monotonic() + 7
    while asked(3).status_code == 200 and time.monotonic() < end:
        time.sleep(0.5)
    refused = asked(3)
    assert refused.status_code == 400
    assert "at most 2 are accepted" in refused.text
    assert asked(2).status_code == 200
    command(scripted, "tenants", "set", "stranger", "media.max_images=")
