"""The documentation says what the code does."""

import re
from pathlib import Path

import pytest

from qwen3vl_compat import cli
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.settings import load_settings
from qwen3vl_compat.wire.tables import markdown

ROOT = Path(__file__).parents[1]


def test_the_field_tables_are_the_codes() -> None:
    assert (ROOT / "docs/api.md").read_text(encoding="utf-8").endswith(markdown().rstrip() + "\n")


def test_the_readmes_commands_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each `qwen3vl-compat` line of the README is accepted; those for accounts are run, as after a first start."""
    open_database(tmp_path / "state").dispose()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\.venv/bin/qwen3vl-compat (.+)$", text, re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        words = line.split()
        if words[0] in ("serve", "doctor"):  # which test_doctor.py runs
            assert cli._parser().parse_args(words).run
        else:
            cli.main([*words, "--state-dir", str(tmp_path / "state")])
    printed = capsys.readouterr().out
    assert re.search(r"sk-\w{12}-[\w-]{43}", printed)


def test_the_example_of_moderators_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs/moderation.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.+?)```", text, re.DOTALL)
    (tmp_path / "q.toml").write_text(example, encoding="utf-8")
    assert load_settings(tmp_path / "q.toml", environment={}).moderation.names == ("words", "openai")


def test_the_readmes_links_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
