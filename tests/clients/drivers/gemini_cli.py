"""Gemini CLI, which always streams."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from driver import Asked, look_up, run, shell

SETTINGS = {
    "security": {"auth": {"selectedType": "gemini-api-key"}},
    "privacy": {"usageStatisticsEnabled": False},
    "general": {"enableAutoUpdate": False, "maxAttempts": 1},
}


def gemini(asked: Asked) -> str:
    """What the agent says at last, in a folder of its own."""
    folder = Path(os.environ["HOME"]) / ".gemini"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    environment = {"GOOGLE_GEMINI_BASE_URL": asked.address, "GEMINI_API_KEY": asked.key}
    return shell("gemini", "--skip-trust", "--model", asked.model, "--prompt", asked.prompt, environment=environment)


def picture(asked: Asked) -> str:
    shutil.copy(asked.picture, "picture.png")
    return gemini(replace(asked, prompt=f"{asked.prompt} @picture.png"))


def tool(asked: Asked) -> str:
    Path("code.txt").write_text(look_up("A1"), encoding="utf-8")
    return gemini(asked)


run(streamed=gemini, picture=picture, tool=tool)
