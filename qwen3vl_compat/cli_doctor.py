"""The command `qwen3vl-compat doctor`: is a running server what its clients expect."""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.doctor.finding import Finding, Result

USUAL_URL = "http://127.0.0.1:8080"
USUAL_SECONDS = 60.0
KEY = "QWEN3VL_API_KEY"


def add_doctor(commands: Any) -> None:
    """Add the command to an argparse parser's subparsers."""
    doctor: argparse.ArgumentParser = commands.add_parser("doctor", help="check a running server as its clients use it")
    doctor.add_argument("--url", default=USUAL_URL, help=f"the server's address (default: {USUAL_URL})")
    doctor.add_argument("--key", help=f"an API key (default: ${KEY}, which other users cannot see; else none)")
    doctor.add_argument("--model", default="", help="which model to ask (default: the first that the server lists)")
    doctor.add_argument("--timeout", type=_seconds, default=USUAL_SECONDS, help="seconds for each check (default: 60)")
    doctor.add_argument("--json", action="store_true", help="one JSON object, for programs")
    doctor.set_defaults(run=_examine)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds up to 3600")
    return seconds


def _examine(options: argparse.Namespace) -> None:
    if not asyncio.run(_examined(options)):
        sys.stdout.flush()
        sys.exit(1)


async def _examined(options: argparse.Namespace) -> bool:
    """Print what the checks come to; returns whether none has failed."""
    import httpx  # which the other commands do not need

    from qwen3vl_compat.doctor.checks import examine, make_checks
    from qwen3vl_compat.doctor.visit import Visit, checked_key, origin_of

    key = checked_key(options.key if options.key is not None else os.environ.get(KEY, ""))
    origin, checks = origin_of(options.url), make_checks(SAMPLE.read_bytes())
    found: list[Finding] = []
    begun, width = time.monotonic(), max(len(check.name) for check in checks)
    if not options.json:
        print(f"{origin}\n\n{'CHECK':{width}}  {'RESULT':13}  SEEN", flush=True)
    async with httpx.AsyncClient(base_url=origin, timeout=None) as client:  # noqa: S113, each check has its time
        visit = Visit(client, key, options.model)
        async for finding in examine(visit, checks, options.timeout):
            found.append(finding)
            if not options.json:
                print(f"{finding.check:{width}}  {finding.result:13}  {finding.seen}", flush=True)
    ok = all(finding.result != "failed" for finding in found)
    told = {"requests": visit.requests, "tokens": visit.tokens, "seconds": round(time.monotonic() - begun, 3)}
    if options.json:
        print(msgspec.json.encode({"url": origin, "ok": ok} | told | {"checks": found}).decode())
    else:
        print("\n".join(_end(found)))
        print("{requests} requests, {tokens:,} tokens, {seconds:.1f} s".format(**told))
    return ok


def _end(found: list[Finding]) -> Iterator[str]:
    """What stands below the table: more of what failed, and the sums."""
    for finding in found:
        if finding.result == "failed":
            yield f"\n{finding.check}\n  expected  {finding.expected}\n  seen      {finding.seen}"
            if finding.hint:
                yield f"  try       {finding.hint}"
    results: tuple[Result, ...] = get_args(Result)
    yield "\n" + ", ".join(f"{sum(finding.result == result for finding in found)} {result}" for result in results)
