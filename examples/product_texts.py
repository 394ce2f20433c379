"""Writes a product's text after its sketch: `.venv/bin/python examples/product_texts.py [SKETCH] --url ... --key ...`.

All languages come in one answer, held to a schema, so that none is missing. It takes the real model
(`serve --model Qwen/Qwen3-VL-4B-Instruct`): the bundled one reads short lines only, and makes everything else up.
"""

import argparse
from pathlib import Path

from qwen3vl_compat.adapters.abilities import extract
from qwen3vl_compat.adapters.client import Qwen3VLClient

SKETCH = Path(__file__).parent / "lamp.png"
TEXT = {
    "type": "object",
    "properties": {"title": {"type": "string", "minLength": 1}, "text": {"type": "string", "minLength": 1}},
    "required": ["title", "text"],
    "additionalProperties": False,
}


def main() -> None:
    """Print title and text in each language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sketch", type=Path, nargs="?", default=SKETCH)
    parser.add_argument("--languages", nargs="+", default=["en", "de", "zh"])
    parser.add_argument("--url", default="http://localhost:8080")
    parser.add_argument("--key")
    options = parser.parse_args()
    schema = {
        "type": "object",
        "properties": dict.fromkeys(options.languages, TEXT),
        "required": options.languages,
        "additionalProperties": False,
    }
    wish = "Write the text that sells what is sketched: a title and two sentences, in each of the languages."
    with Qwen3VLClient(options.url, options.key) as client:
        texts = client.run(extract(options.sketch, schema, wish)).value
    for language in options.languages:
        print(f"[{language}] {texts[language]['title']}: {texts[language]['text']}")


if __name__ == "__main__":
    main()
