"""The documentation's programs run as they stand, only the address, the key and the picture filled in."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_compat.demo import SAMPLE
from tests.media.crafted import drawing
from tests.media.films import film, steady
from tests.media.typeset import typeset
from tests.serving import ROOT, Served

pytestmark = pytest.mark.filterwarnings("default")


def programs(document: str = "README.md", section: str = "") -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8").partition(section or "\n")[2]
    return re.findall(r"^```python\n(.+?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_programs_run(
    demo: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture.png").write_bytes(SAMPLE.read_bytes())
    (tmp_path / "film.mp4").write_bytes(film(steady([drawing(64, 64, seed=n) for n in range(100)], 1), rate=1))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    parts: list[Any] = []
    for program in programs():
        filled = program.replace("http://127.0.0.1:8080", demo.url).replace("sk-...", demo.key)
        filled = filled.replace("base64,...", "base64," + base64.b64encode(SAMPLE.read_bytes()).decode())
        exec(filled, names)
        parts += [names.pop("part")] if "part" in names else []
    try:
        printed = capsys.readouterr().out
        assert printed.startswith("HELLO42HELLO42\n")
        openai_part, google_part = parts
        content = [openai_part, {"type": "text", "text": "What is this?"}]
        messages = [{"role": "user", "content": content}]
        answer = names["client"].chat.completions.create(model="qwen3-vl", messages=messages, max_tokens=5)
        assert answer.usage.prompt_tokens_details.video_tokens > 0
        counted = names["gemini"].models.count_tokens(model="qwen3-vl", contents=[google_part, "What is this?"])
        assert counted.total_tokens > 100
    finally:
        names["client"].close()
        names["gemini"].close()


def test_the_clients_programs_run(
    demo: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture.png").write_bytes(SAMPLE.read_bytes())
    (tmp_path / "report.pdf").write_bytes(typeset(["ONE", "TWO"]))
    (tmp_path / "film.mp4").write_bytes(film(steady([drawing(64, 64, seed=n) for n in range(100)], 1), rate=1))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    first, *others = programs("docs/clients.md", "## Python client")
    exec(first.replace("http://localhost:8080", demo.url).replace("sk-...", demo.key), names)
    with names["client"]:
        for program in others:
            exec(program, names)
    assert capsys.readouterr().out.startswith(f"HELLO42 {names['stream'].answer.usage.prompt_image} None ")
    assert names["both"].usage.prompt_image > 0
    assert names["moment"].usage.prompt_video > 0
    (call,) = names["answer"].calls
    assert json.loads(call.arguments).keys() == {"city"}
