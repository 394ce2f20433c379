"""What obeying costs: the same clients asking plainly, with penalties, a schema, chance, logprobs.

`python -m benchmarks.decoding`: eight streaming clients in a closed loop on the benchmark's checkpoint, 64 new tokens
each, every manner in turn in every round.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import psutil

from benchmarks.checkpoint import write_checkpoint
from benchmarks.engine import ROOT, free_port, loop, new_key, ours, started, wait_until_compiled, workloads

AT_ONCE, COUNT = 8, 32
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string"}, "amount": {"type": "integer"}, "kind": {"enum": ["goods", "service", "other"]},
        "notes": {"type": "array", "items": {"type": "string", "maxLength": 40}},
    },
    "required": ["name", "amount", "kind", "notes"],
    "additionalProperties": False,
}  # fmt: skip
INVOICE = {
    "type": "object",
    "properties": {"seller": {"type": "string", "maxLength": 60}, "items": {"type": "array", "items": ITEM}},
    "required": ["seller", "items"],
    "additionalProperties": False,
}
SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"name": "i", "schema": INVOICE, "strict": True}}}
PENALTIES = {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1}
MANNERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalties": PENALTIES,
    "schema": SCHEMA,
    "schema and penalties": SCHEMA | PENALTIES,
    "temperature 0.7, top_p 0.8, top_k 20": {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    "temperature 1": {"temperature": 1.0},
    "5 logprobs": {"logprobs": True, "top_logprobs": 5},
}


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / ".build" / "benchmark")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    checkpoint = options.work / "checkpoint"
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint)
    os.environ |= {
        "QWEN3VL_MODEL__DTYPE": "bfloat16", "QWEN3VL_MODEL__CLOSE_EARLY": "false",
        "QWEN3VL_SERVER__OPEN_METRICS": "true",
    }  # fmt: skip
    port = free_port()
    url, content = f"http://127.0.0.1:{port}", workloads()["text"]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in MANNERS}
    with started(ours(checkpoint, options.work, port), url, "/readyz", options.work / "decoding.log"):
        where = (url, new_key(options.work), "qwen3-vl")
        wait_until_compiled(url)
        for more in MANNERS.values():
            asyncio.run(loop(where, content, AT_ONCE, AT_ONCE, more))
        for number in range(options.rounds):
            for name in list(MANNERS)[:: -1 if number % 2 else 1]:
                found[name].append(asyncio.run(loop(where, content, AT_ONCE, COUNT, MANNERS[name])))
    print(f"{platform.machine()}, {psutil.cpu_count()} cores; {AT_ONCE} at once, medians of {options.rounds} rounds\n")
    print("| manner | tokens/s | between tokens, ms | of the plain rate |\n|---|---|---|---|")
    rates = {name: statistics.median(each["tokens/s"] for each in rounds) for name, rounds in found.items()}
    for name, rounds in found.items():
        gap = statistics.median(each["between tokens, ms"] for each in rounds)
        print(f"| {name} | {rates[name]:.0f} | {gap} | {rates[name] / rates['plain']:.2f} |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
