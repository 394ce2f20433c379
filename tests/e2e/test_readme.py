"""The documentation's programs run as they stand, only the port and the key filled in, and in one place a picture."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_compat.demo import SAMPLE
from tests.media.crafted import drawing
from tests.media.films import film, steady
from tests.media.typeset import typeset
from tests.serving import ROOT, UNCACHED, Served, serving

pytestmark = pytest.mark.filterwarnings("default")
OPEN = {"QWEN3VL_SERVER__ANONYMOUS_TENANT": "default"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled model, for callers with a key and without one, as the README starts it."""
    with serving(tmp_path_factory.mktemp("readme"), environment=UNCACHED | OPEN) as served:
        yield served


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the files that the programs name; the README's are those of a checkout."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "picture.png").write_bytes(SAMPLE.read_bytes())
    (tmp_path / "report.pdf").write_bytes(typeset(["ONE", "TWO"]))
    (tmp_path / "film.mp4").write_bytes(film(steady([drawing(64, 64, seed=n) for n in range(100)], 1), rate=1))
    monkeypatch.chdir(tmp_path)


def programs(document: str, section: str = "") -> list[str]:
    """Those of a document, or of one section of it."""
    text = (ROOT / document).read_text(encoding="utf-8")
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.+?)^```", text, re.MULTILINE | re.DOTALL)


def run(served: Served, listed: list[str]) -> dict[str, Any]:
    """Run them one after the other in one namespace, which is returned."""
    assert listed
    names: dict[str, Any] = {}
    for program in listed:
        filled = program.replace("http://localhost:8080", served.url.replace("127.0.0.1", "localhost"))
        filled = filled.replace("sk-...", served.key)
        filled = filled.replace("base64,...", "base64," + base64.b64encode(SAMPLE.read_bytes()).decode())
        exec(filled, names)
    return names


def test_the_readmes_programs_run(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """OpenAI's client, and no client and no key; LangChain's has a test of its own."""
    openai_sdk, langchain, keyless = programs("README.md")
    assert "ChatQwen3VL" in langchain
    assert not re.search("key|authorization", keyless, re.IGNORECASE)
    run(served, [openai_sdk])["client"].close()
    names = run(served, [keyless])
    assert capsys.readouterr().out == "INVOICE7\nINVOICE7\n"
    assert names["answer"].request.url.startswith("http://localhost:")
    assert not {"authorization", "x-goog-api-key"} & {name.lower() for name in names["answer"].request.headers}


def test_the_readmes_langchain_runs(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    openai_sdk, langchain, _ = programs("README.md")
    run(served, [openai_sdk, langchain])["client"].close()
    assert capsys.readouterr().out == "INVOICE7\nINVOICE7\n"


def test_openais_programs_run(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(served, programs("docs/clients.md", "OpenAI"))
    with names["client"]:
        assert capsys.readouterr().out.startswith("HELLO42")
        assert names["answer"].usage.prompt_tokens_details.video_tokens > 0


def test_googles_programs_run(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(served, programs("docs/clients.md", "Google"))
    try:
        assert re.match(r"HELLO42\n\d+\n", capsys.readouterr().out)
        assert names["answer"].usage_metadata.prompt_token_count > 100
    finally:
        names["gemini"].close()


def test_langchains_programs_run(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(served, programs("docs/clients.md", "LangChain"))
    printed = capsys.readouterr().out
    assert printed.startswith("HELLO42\nHELLO42")
    assert printed.endswith("HELLO42\n")
    assert isinstance(names["sign"], names["Sign"])
    assert [turn.type for turn in names["turns"]] == ["human", "ai", "tool"]


def test_anthropics_programs_run(served: Served) -> None:
    names = run(served, programs("docs/clients.md", "Anthropic"))
    with names["client"]:
        assert names["message"].content[0].text


def test_the_clients_programs_run(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = programs("docs/clients.md", "Python client")
    names = run(served, [first])
    with names["client"]:
        for program in others:
            exec(program, names)
    assert capsys.readouterr().out.startswith(f"HELLO42 {names['stream'].answer.usage.prompt_image} None ")
    assert names["both"].usage.prompt_image > 0
    assert names["moment"].usage.prompt_video > 0
    (call,) = names["answer"].calls
    assert json.loads(call.arguments).keys() == {"city"}


def test_the_tools_programs_run(expert: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("report.png", "street.jpg", "sketch.png", "screen.png", "pictures/street.jpg"):
        (tmp_path / name).write_bytes(SAMPLE.read_bytes())
    names = run(expert, programs("docs/tools.md"))
    names["client"].close()
    printed = capsys.readouterr().out.splitlines()
    assert printed[:5] == ["# Annual report", "car 19 9 58 20", "1.5", "red", "<main>sketch</main>"]
    assert printed[5].startswith("Click(at=Point(x=191, y=12, label=''), button='left', times=1) next_action.")
    assert printed[6:8] == ["red", "red"]
    assert json.loads(printed[8])["boxes"][0]["label"] == "car"
    assert json.loads(printed[9])["text"] == "[192x48] A red car."
    assert len(names["definitions"]) == len(names["tools"]) == 3
