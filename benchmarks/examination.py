"""How well the bundled model reads held-out pictures, asked through the HTTP API.

`python -m benchmarks.examination http://127.0.0.1:8080 KEY [--count 504] [--json FILE]` prints the table that stands in
the model card.
"""

import argparse
import base64
import io
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx

from qwen3vl_compat.demo.pictures import QUESTIONS, UNSEEN_FACES, Line, examination


def ask(client: httpx.Client, item: Line, question: str) -> str:
    """What the model reads in the picture."""
    stored = io.BytesIO()
    item.picture.save(stored, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode("ascii")
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = {"model": "qwen3-vl", "messages": [{"role": "user", "content": parts}], "max_tokens": 32}
    answer = client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    return answer.json()["choices"][0]["message"]["content"]


def examine(url: str, key: str, count: int, seed: int = 2026) -> dict[str, list[bool]]:
    """Right or wrong of every answer, under each heading it counts for."""
    marks: dict[str, list[bool]] = defaultdict(list)
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
        for number, item in enumerate(examination(seed, count)):
            for question in QUESTIONS:
                right = ask(client, item, question) == item.text
                for heading in _headings(item, question, unseen=number % 2 == 1):
                    marks[heading].append(right)
    return marks


def _headings(item: Line, question: str, *, unseen: bool) -> Iterator[str]:
    yield "all"
    yield question
    yield f"typeface never seen ({UNSEEN_FACES[0][2].split('-')[0]})" if unseen else "typefaces of the training"
    yield f"{len(item.text)} characters"


def main() -> None:
    """Read the command line, examine, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("key")
    parser.add_argument("--count", type=int, default=504, help="pictures; each is asked about in three ways")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    marks = examine(options.url, options.key, options.count)
    print("| answers | right | exact |\n|---|---|---|")
    for heading, right in sorted(marks.items(), key=lambda pair: -len(pair[1])):
        print(f"| {heading} | {sum(right)} of {len(right)} | {sum(right) / len(right):.3f} |")
    if options.json:
        options.json.write_text(json.dumps({name: sum(right) / len(right) for name, right in marks.items()}, indent=2))


if __name__ == "__main__":
    main()
