"""The command `llm`, with a model in its file of OpenAI-like ones."""

import os
import sys
from pathlib import Path

from driver import Asked, run, shell

FUNCTION = '''
def look_up(code: str) -> str:
    """Look a code up."""
    return f"found {code}"
'''


def llm(asked: Asked, *words: str) -> str:
    """What the command prints, in a folder of its own that knows the model."""
    folder = Path(os.environ["HOME"])
    model = {"model_id": "ours", "model_name": asked.model, "api_base": f"{asked.address}/v1"}
    lines = [f"{name}: {value}" for name, value in model.items()]
    lines += ["api_key_name: ours", "vision: true", "supports_tools: true"]
    (folder / "extra-openai-models.yaml").write_text("- " + "\n  ".join(lines) + "\n", encoding="utf-8")
    command = str(Path(sys.executable).parent / "llm")
    return shell(command, "-m", "ours", "--key", asked.key, *words, environment={"LLM_USER_PATH": str(folder)})


run(
    plain=lambda asked: llm(asked, "--no-stream", asked.prompt),
    streamed=lambda asked: llm(asked, asked.prompt),
    picture=lambda asked: llm(asked, "-a", str(asked.picture), asked.prompt),
    tool=lambda asked: llm(asked, "--functions", FUNCTION, asked.prompt),
)
