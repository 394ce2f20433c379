"""Start-up time, resident memory, time to first token and tokens per second of a served model.

`python -m benchmarks.first_token [--model PATH] [--runs 15] [--json FILE]` starts a server of its own on a free port.
"""

import argparse
import base64
import json
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from qwen3vl_compat.demo import SAMPLE

PICTURE = "data:image/png;base64," + base64.b64encode(SAMPLE.read_bytes()).decode("ascii")
WORKLOADS = {
    "text, 20 tokens": [{"type": "text", "text": "Who are you?"}],
    "192x48 picture, 8 tokens": [
        {"type": "image_url", "image_url": {"url": PICTURE}},
        {"type": "text", "text": "Read the text."},
    ],
}


def once(client: httpx.Client, parts: list[dict[str, object]]) -> tuple[float, float]:
    """Time to the first token in ms, and tokens per second over the whole answer, prompt included."""
    body = {
        "model": "qwen3-vl", "stream": True, "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": parts}], "max_tokens": 64,
    }  # fmt: skip
    began, times = time.perf_counter(), list[float]()
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if '"delta":{"content"' in line:
                times.append(time.perf_counter())
    return (times[0] - began) * 1000, len(times) / (times[-1] - began)


def main() -> None:
    """Start, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output.txt"
        command = [sys.executable, "-m", "qwen3vl_compat", "serve", "--port", str(port), "--state-dir", f"{folder}/s"]
        command += ["--model", options.model] if options.model else []
        began = time.perf_counter()
        with output.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=sink) as process:
            while "Try it:" not in output.read_text(encoding="utf-8"):
                assert process.poll() is None, output.read_text(encoding="utf-8")
                time.sleep(0.02)
            figures = {"start-up, s": round(time.perf_counter() - began, 2)}
            found = re.search(r"sk-\S+", output.read_text(encoding="utf-8"))
            assert found
            headers = {"authorization": f"Bearer {found[0]}"}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120) as client:
                for name, parts in WORKLOADS.items():
                    once(client, parts)
                    runs = [once(client, parts) for _ in range(options.runs)]
                    figures[f"{name}: first token, ms"] = round(statistics.median(run[0] for run in runs), 1)
                    figures[f"{name}: tokens/s"] = round(statistics.median(run[1] for run in runs), 1)
            figures["resident memory, MiB"] = psutil.Process(process.pid).memory_info().rss // 2**20
            process.terminate()
    print(f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, medians of {options.runs} runs\n")
    print("| figure | value |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value} |")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
