"""The checks in their order, what each of them needs, and how they are carried out."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.doctor import access, answers, features
from qwen3vl_compat.doctor.finding import Failed, Finding, NotAvailable, Result
from qwen3vl_compat.doctor.visit import Visit
from qwen3vl_compat.doctor.wires import WIRES

_MOST_SHOWN = 200


class Check(Struct, frozen=True):
    """`run` returns what was seen, or raises Failed or NotAvailable; it is not carried out without what it `needs`."""

    name: str
    run: Callable[[Visit], Awaitable[str]]
    needs: str = ""


def make_checks(picture: bytes) -> list[Check]:
    """All of them; `picture` is a PNG for the model to look at."""
    alive, known, chat = "alive", "key accepted", f"{WIRES[0].name}: answer"
    checks = [
        Check(alive, access.check_alive),
        Check("ready", access.check_ready, alive),
        Check("version", access.check_version, "ready"),
        Check("wrong key, OpenAI", access.check_wrong_openai, alive),
        Check("wrong key, Google", access.check_wrong_google, alive),
        Check("wrong key, Anthropic", access.check_wrong_anthropic, alive),
        Check("no key", access.check_no_key, alive),
        Check(known, access.check_key, alive),
        Check("models", access.check_models, known),
        Check("limits", access.check_limits, known),
    ]
    for wire in WIRES:
        whole = f"{wire.name}: answer"
        checks += [
            Check(whole, partial(answers.check_whole, wire), known),
            Check(f"{wire.name}: stream", partial(answers.check_stream, wire), whole),
            Check(f"{wire.name}: tokens", partial(answers.check_count, wire), whole),
            Check(f"{wire.name}: picture", partial(answers.check_picture, wire, picture), whole),
        ]
    return [
        *checks,
        Check("tool call", features.check_tool, chat),
        Check("JSON schema", features.check_schema, chat),
        Check("cache", features.check_cache, chat),
        Check("files", partial(features.check_files, picture), known),
        Check("moderation", features.check_moderation, known),
    ]


async def examine(visit: Visit, checks: list[Check], seconds: float) -> AsyncIterator[Finding]:
    """Carry them out one after the other, each for so many seconds at most; tells of each when it is over."""
    results: dict[str, Result] = {}
    for check in checks:
        if check.needs and results[check.needs] != "ok":
            finding = Finding(check.name, "not available", f"needs '{check.needs}'")
        else:
            finding = await _carry_out(check, visit, seconds)
        results[check.name] = finding.result
        yield replace(finding, seen=_plain(finding.seen, visit.key))


async def _carry_out(check: Check, visit: Visit, seconds: float) -> Finding:
    begun = time.monotonic()
    try:
        async with asyncio.timeout(seconds):
            found = Finding(check.name, "ok", await check.run(visit))
    except NotAvailable as error:
        found = Finding(check.name, "not available", str(error))
    except Failed as error:
        found = Finding(check.name, "failed", error.seen, error.expected, error.hint)
    except TimeoutError:
        hint = "It may be busy, or is no HTTP server; --timeout gives it more time."
        found = Finding(check.name, "failed", "nothing", f"an answer within {seconds:g} s", hint)
    return replace(found, seconds=round(time.monotonic() - begun, 3))


def _plain(text: str, key: str) -> str:
    """One line for a terminal, whatever a server said, and without the key."""
    text = text.replace(key, "sk-...") if len(key) > 8 else text
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."
