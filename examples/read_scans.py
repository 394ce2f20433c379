"""Reads a folder of scans and says how well: `.venv/bin/python examples/read_scans.py [FOLDER] --url ... --key ...`.

Beside each picture lies its true text, `a.png` and `a.txt`. The character error rate is the number of characters that
have to be put in, taken out or changed, for each character of the true text. The bundled model reads
the scans that are there.
"""

import argparse
from pathlib import Path

from qwen3vl_compat.adapters.abilities import read_text
from qwen3vl_compat.adapters.client import Qwen3VLClient

SCANS = Path(__file__).parent / "scans"


def edits(one: str, other: str) -> int:
    """The fewest single characters to put in, take out or change that make one text the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for count, character in enumerate(one, 1):
        above, row = row, [count]
        for place, wanted in enumerate(other, 1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (character != wanted)))
    return row[-1]


def main() -> None:
    """Print each scan's text and its error rate, and that of all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=SCANS)
    parser.add_argument("--url", default="http://localhost:8080")
    parser.add_argument("--key")
    options = parser.parse_args()
    wrong = length = 0
    with Qwen3VLClient(options.url, options.key) as client:
        for scan in sorted(options.folder.glob("*.png")):
            truth = scan.with_suffix(".txt").read_text(encoding="utf-8").strip()
            text = client.run(read_text(scan)).text.strip()
            errors = edits(text, truth)
            wrong, length = wrong + errors, length + len(truth)
            print(f"{scan.name}: {text!r}, CER {errors / len(truth):.3f}")
    if not length:
        parser.error(f"{options.folder} holds no scans")
    print(f"all: CER {wrong / length:.3f} ({wrong} of {length} characters)")


if __name__ == "__main__":
    main()
