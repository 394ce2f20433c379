"""Codex CLI, which speaks to the Responses API and always streams."""

import os
from pathlib import Path

from driver import Asked, run, shell

CONFIG = """
model = "{model}"
model_provider = "ours"
web_search = "disabled"
check_for_update_on_startup = false

[model_providers.ours]
name = "ours"
base_url = "{address}/v1"
env_key = "OUR_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0

[analytics]
enabled = false
"""


def codex(asked: Asked, *words: str) -> str:
    """What the agent says at last, in a folder of its own."""
    home = Path(os.environ["HOME"]) / ".codex"
    home.mkdir()
    (home / "config.toml").write_text(CONFIG.format(model=asked.model, address=asked.address), encoding="utf-8")
    # The script decides what runs, and not every machine lets the sandbox in.
    rights = ("--skip-git-repo-check", "--sandbox", "danger-full-access", "--strict-config")
    return shell("codex", "exec", *rights, *words, "--", asked.prompt, environment={"OUR_KEY": asked.key})


run(streamed=codex, tool=codex, picture=lambda asked: codex(asked, "--image", str(asked.picture)))
