"""Says how to mend what a photo shows broken: `.venv/bin/python examples/repair_advice.py [PHOTO] --url ... --key ...`.

The link of the manual comes through a function that the model has to call before it answers, so that it need not make
one up. It takes the real model (`serve --model Qwen/Qwen3-VL-4B-Instruct`): the bundled one reads short lines only, and
calls nothing.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from qwen3vl_compat.adapters.abilities import extract
from qwen3vl_compat.adapters.client import Answer, Attachment, Message, Qwen3VLClient, tool, tool_result

PHOTO = Path(__file__).parent / "hinge.png"
MANUALS = {
    "hinge": "https://manuals.example.org/hinge.pdf",
    "handle": "https://manuals.example.org/handle.pdf",
}
"""Yours would be a database."""
FIND_MANUAL = tool(
    "find_manual",
    "The link of the manual of a part.",
    {"type": "object", "properties": {"part": {"type": "string"}}, "required": ["part"]},
)
MOST_CALLS = 3


@dataclass
class Defect:
    """What is wrong with what."""

    part: str
    damage: str
    severity: Literal["slight", "moderate", "severe"]


class _Asked(msgspec.Struct):
    part: str


def find_manual(arguments: str) -> dict[str, str]:
    """What the function gives back; arguments of another form, which are not ruled out, are told as an error."""
    try:
        part = msgspec.json.decode(arguments, type=_Asked).part
    except msgspec.DecodeError as error:
        return {"error": str(error)}
    return {"link": MANUALS[part]} if part in MANUALS else {"error": f"no manual; there are {', '.join(MANUALS)}"}


def advice(client: Qwen3VLClient, photo: Path, defect: Defect) -> Answer:
    """What the model says is to be done, after it has looked up what it wants to."""
    question = (
        f"What is to be done about the {defect.part}? It is {defect.damage} ({defect.severity}). "
        "Look its manual up, say in two sentences how to repair it, and name the manual's link."
    )
    turns: list[str | Path | Attachment | Message] = [Attachment(photo), question]
    for left in reversed(range(MOST_CALLS + 1)):
        choice = FIND_MANUAL.name if left == MOST_CALLS else "auto" if left else "none"
        answer = client.generate(turns, tools=[FIND_MANUAL], tool_choice=choice)
        if not answer.calls:
            break
        results = [tool_result(call, find_manual(call.arguments)) for call in answer.calls]
        turns += [answer.message, *results]
    return answer


def main() -> None:
    """Print the defect and the advice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path, nargs="?", default=PHOTO)
    parser.add_argument("--url", default="http://localhost:8080")
    parser.add_argument("--key")
    options = parser.parse_args()
    with Qwen3VLClient(options.url, options.key) as client:
        defect = client.run(extract(options.photo, Defect, "What is damaged, in what way, and how badly?")).value
        print(f"{defect.part}: {defect.damage}, {defect.severity}")
        print(advice(client, options.photo, defect))


if __name__ == "__main__":
    main()
