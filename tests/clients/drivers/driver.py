"""The half of a check that runs beside a foreign client, under whatever interpreter that has: standard library only.

The environment says what is to be done: ADDRESS (of the server, without a path), KEY, MODEL, CASE, PROMPT, PICTURE (a
file). The last line printed is a JSON object: `saw` is what the client gave (texts or ids), `error` what it would have
shown its user.
"""

import base64
import json
import os
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Asked:
    """What a case asks, and of whom."""

    address: str
    key: str
    model: str
    prompt: str
    picture: Path

    @property
    def base64(self) -> str:
        return base64.b64encode(self.picture.read_bytes()).decode()

    @property
    def data_url(self) -> str:
        return f"data:image/png;base64,{self.base64}"


class Shown(Exception):
    """What a command printed before it failed."""

    def __str__(self) -> str:
        return str(self.args[0])


def look_up(code: str) -> str:
    """Look a code up.

    Args:
        code: what to look up
    """
    return f"found {code}"


LOOK_UP = {
    "name": "look_up",
    "description": "Look a code up.",
    "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
}
"""The same for clients that take a schema."""


def shell(*command: str, environment: dict[str, str] | None = None) -> str:
    """What a command prints; where it fails, all that it printed is the error."""
    ran = subprocess.run(
        command,
        env=os.environ | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if ran.returncode:
        raise Shown(ran.stdout + ran.stderr)
    return ran.stdout


def run(**cases: Callable[[Asked], Any]) -> None:
    """Carry out the case that is asked for and print what came of it."""
    asked = Asked(
        address=os.environ["ADDRESS"],
        key=os.environ["KEY"],
        model=os.environ["MODEL"],
        prompt=os.environ["PROMPT"],
        picture=Path(os.environ["PICTURE"]),
    )
    try:
        told = {"saw": cases[os.environ["CASE"]](asked)}
    except Exception as error:  # whatever it is, it is what a user sees
        told = {"error": "".join(traceback.format_exception_only(error))}
    print(json.dumps(told))
