"""Grammars: what they allow, how they end, and what hostile ones cost."""

import asyncio
import itertools
import json
import re
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.engines.local import grammars
from qwen3vl_compat.engines.local.dialect import Tags
from qwen3vl_compat.engines.local.engine import LocalEngine
from qwen3vl_compat.engines.local.grammar import LONGEST_STRING, MOST_ITEMS, answer_grammar, bounded, call_grammar
from qwen3vl_compat.engines.local.grammars import KEPT, Grammars
from qwen3vl_compat.engines.local.matching import Matching, TooComplex
from qwen3vl_compat.errors import InvalidRequest, Overloaded
from qwen3vl_compat.events import TextDelta, fold
from qwen3vl_compat.messages import Message, OutputFormat, Request, Sampling, Text, Tool, ToolChoice
from qwen3vl_compat.settings import load_settings
from qwen3vl_compat.tokens import Vocabulary
from tests.serving import UNCOMPILED

VOCABULARY = Vocabulary.load(MODEL)
END = VOCABULARY.added["<|im_end|>"]
TAGS = Tags.of(VOCABULARY)
MATCHING = Matching(VOCABULARY, [END])


def request_of(**fields: Any) -> Request:
    return Request(id="r", created=0, model="qwen3-vl", messages=(Message("user", (Text("x"),)),), **fields)


def schema_form(schema: Any, *, strict: bool = True) -> OutputFormat:
    return OutputFormat(kind="json_schema", value=json.dumps(schema), strict=strict, param="response_format")


def takes(form: OutputFormat, text: str) -> bool:
    """Whether the grammar of a form takes this text, and may end there."""
    return matches(answer_grammar(request_of(format=form), TAGS), VOCABULARY.encode(text))


def matches(grammar: Any, tokens: list[int]) -> bool:
    matcher = MATCHING.compile(grammar.text)
    for token in tokens:
        if not MATCHING.mask(matcher)[token // 32] >> (token % 32) & 1 and not matcher.validate_tokens([token]):
            return False
        if not matcher.consume_token(token):
            return False
    return matcher.is_accepting()


POINT = {
    "type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}, "required": ["x", "y"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        (schema_form(POINT), ['{"x": 1, "y": -2}', '{"x":1,"y":2}', '{\n  "x": 1,\n  "y": 2\n}'],
         ['{"y": 1, "x": 2}', '{"x": 1}', '{"x": 1.5, "y": 2}', '{"x": 1, "y": 2, "z": 3}', '{"x":      1, "y": 2}',
          "{}x"]),
        (schema_form(True), ["1", '"a"', "[1, {}]"], ["a", ""]),
        (OutputFormat(kind="json_object"), ["{}", '{"a": [1]}'], ["[]", "1"]),
        (OutputFormat(kind="regex", value=r"a/b|\d{2}\n"), ["a/b", "42\n"], ["a", "421", "a\\/b"]),
        (OutputFormat(kind="regex", value="[^/]+"), ["ab", "ü"], ["a/b", ""]),
        (OutputFormat(kind="regex", value="a\nb"), ["a\nb"], ["a b"]),
        (OutputFormat(kind="choice", value='["yes", "no \\"q\\" \\\\ ü", "a/b"]'),
         ["yes", 'no "q" \\ ü', "a/b"], ["ye", "maybe"]),
        (OutputFormat(kind="choice", value='["a\x7fb"]'), ["a\x7fb"], ["ab"]),
    ],
)  # fmt: skip
def test_what_a_form_takes(form: OutputFormat, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not takes(form, text)] == []
    assert [text for text in wrong if takes(form, text)] == []


F = Tool(name="f", parameters=json.dumps(POINT))
G = Tool(name="g")


def tagged(text: str) -> list[int]:
    pieces = re.split("(</?tool_call>)", text)
    return [
        token
        for piece in pieces
        for token in ([VOCABULARY.added[piece]] if piece in VOCABULARY.added else VOCABULARY.encode(piece))
    ]


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


ONE = call("f", '{"x": 1, "y": 2}')


@pytest.mark.parametrize(
    ("choice", "text", "right"),
    [
        (ToolChoice(mode="required"), ONE, True),
        (ToolChoice(mode="required"), call("g", "{}"), True),
        (ToolChoice(mode="required"), f"{ONE}\n{ONE}", True),
        (ToolChoice(mode="required", parallel=False), f"{ONE}\n{ONE}", False),
        (ToolChoice(mode="required", names=("g",)), ONE, False),
        (ToolChoice(mode="required"), call("f", '{"x": 1}'), False),
        (ToolChoice(mode="required"), call("h", "{}"), False),
        (ToolChoice(mode="required"), "Hello", False),
    ],
)
def test_what_a_forced_call_takes(choice: ToolChoice, text: str, right: bool) -> None:
    grammar = answer_grammar(request_of(tools=(F, G), tool_choice=choice), TAGS)
    assert matches(grammar, tagged(text)) is right


@pytest.mark.parametrize("kind", ["string", ["array", "null"], None, 5])
def test_arguments_that_are_no_object_are_refused(kind: Any) -> None:
    tool = Tool(name="f", parameters=json.dumps({"type": kind}), param="tools[0].function.parameters")
    with pytest.raises(InvalidRequest, match=r"tools\[0\].function.parameters: .* must be object"):
        call_grammar(request_of(tools=(tool,)), TAGS)


def test_arguments_that_may_be_an_object_are_one() -> None:
    tool = Tool(name="f", parameters=json.dumps({"type": ["null", "object"]}))
    grammar = call_grammar(request_of(tools=(tool,)), TAGS)
    assert [matches(grammar, tagged(call("f", each))[1:]) for each in ("{}", "null")] == [True, False]


def test_letters_that_spell_a_tag_satisfy_no_grammar() -> None:
    grammar = answer_grammar(request_of(tools=(F, G), tool_choice=ToolChoice(mode="required")), TAGS)
    assert not matches(grammar, VOCABULARY.encode(ONE))


def test_a_call_chosen_freely_is_bound_until_its_end() -> None:
    request = request_of(tools=(F, G))
    assert answer_grammar(request, TAGS) is None
    assert matches(call_grammar(request, TAGS), tagged(ONE)[1:])
    assert not matches(call_grammar(request, TAGS), tagged(call("f", "{}"))[1:])


def test_a_form_beside_tools_takes_either() -> None:
    grammar = answer_grammar(request_of(tools=(F,), format=schema_form(POINT)), TAGS)
    assert matches(grammar, tagged(ONE))
    assert matches(grammar, tagged('{"x": 1, "y": 2}'))


def test_bounds_are_put_where_a_schema_has_none() -> None:
    words = {"type": "string", "pattern": "^a"}
    schema = {
        "properties": {"a": {"type": "string"}, "b": {"type": ["array", "null"], "items": words}},
        "$defs": {"c": {"type": "string", "minLength": 10**5}}, "not": {"type": "string"}, "const": 1,
        "anyOf": [{"type": "array", "maxItems": 3}],
    }  # fmt: skip
    made = bounded(schema)
    assert made["properties"]["a"]["maxLength"] == LONGEST_STRING
    assert made["properties"]["b"]["maxItems"] == MOST_ITEMS
    assert "maxLength" not in made["properties"]["b"]["items"]
    assert made["$defs"]["c"]["maxLength"] == 10**5
    assert made["not"] == {"type": "string"}
    assert made["anyOf"] == [{"type": "array", "maxItems": 3}]


def test_what_strict_cannot_keep_is_named_and_lenient_passes_over_it() -> None:
    unique = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    with pytest.raises(TooComplex, match="uniqueItems"):
        takes(schema_form(unique), "[1]")
    assert takes(schema_form(unique, strict=False), "[1, 1]")


@pytest.mark.parametrize(
    "text", ["cafe\u0301 au lait", "a" * 63 + "e\u0301z", "\u1100\u1161\u11a8", "ﬁ Å", "👩‍👩‍👧" * 30]
)
def test_settled_text_is_spelt_as_it_is(text: str) -> None:
    """Composed or not, long or short: the one way through leads to exactly these characters."""
    form = OutputFormat(kind="choice", value=json.dumps([text]))
    matcher, data = MATCHING.compile(answer_grammar(request_of(format=form), TAGS).text), b""  # type: ignore[union-attr]
    for _ in range(1000):
        bits = MATCHING.mask(matcher)
        token = int(np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))[0])
        if token == END or matcher.is_stopped():
            break
        data += VOCABULARY.bytes_of(token)
        assert matcher.consume_token(token)
        if matcher.is_stopped():
            break
    assert data.decode() == text


schemas = st.recursive(
    st.sampled_from(
        [{"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": "null"},
         {"enum": ["a", 1, None]}, {"const": "x]}"}, {"type": "string", "minLength": 3}]
    ),
    lambda inner: st.builds(lambda each: {"type": "array", "items": each, "minItems": 1}, inner)
    | st.builds(lambda each: {"anyOf": each}, st.lists(inner, min_size=1, max_size=3))
    | st.builds(
        lambda fields: {"type": "object", "properties": fields, "required": [*fields][:2]},
        st.dictionaries(st.sampled_from(["a", "b", 'q"]', "ü"]), inner, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=60)
@given(schemas, st.integers(0, 40), st.integers(0, 1000))
def test_the_shortest_way_ends_every_text_validly(schema: dict[str, Any], free: int, seed: int) -> None:
    """From wherever chance has led, closing reaches an end, and the whole is valid."""
    matcher = MATCHING.compile(answer_grammar(request_of(format=schema_form(schema)), TAGS).text)  # type: ignore[union-attr]
    rng, data = np.random.default_rng(seed), b""
    for made in range(400):
        bits = MATCHING.mask(matcher)
        bits = bits if made < free else MATCHING.closing(bits)
        token = int(rng.choice(np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))))
        if token == END:
            break
        data += VOCABULARY.bytes_of(token)
        assert matcher.consume_token(token)
        if matcher.is_stopped():
            break
    else:
        pytest.fail("no end was reached")
    jsonschema.validate(json.loads(data), schema)


# ----------------------------------------------------------------------------------------------------------- hostility

HOSTILE: dict[str, OutputFormat] = {
    "foo(": OutputFormat(kind="regex", value="foo("),
    "1 MB": OutputFormat(kind="regex", value="ab" * 500_000),
    "((a{1000}){1000}){1000}": OutputFormat(kind="regex", value="((a{1000}){1000}){1000}"),
    "look-ahead": OutputFormat(kind="regex", value="(?!a)b"),
    "nested": OutputFormat(kind="regex", value="(" * 5000 + "a" + ")" * 5000),
    "10,000 references": schema_form({
        "$ref": "#/$defs/d0",
        "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(10_000)} | {"d10000": {}},
    }),
    "itself": schema_form({"$ref": "#"}),
    "100,000 values": schema_form({"enum": [f"v{n}" for n in range(100_000)]}),
    "nothing": schema_form(False),
    "too short": schema_form({"type": "string", "minLength": 5, "maxLength": 2}),
    "type null": schema_form({"type": None}),
    "a number for a type": schema_form({"properties": {"a": {"type": 5}}}, strict=False),
    "types of objects": schema_form({"type": [{}]}),
    "elsewhere": schema_form({"$ref": "http://127.0.0.1:9/x"}),
    "a file": schema_form({"$ref": "file:///etc/passwd"}),
    "patterns": schema_form({"allOf": [{"type": "string", "pattern": f"(.*{c}.{{50}}){{3}}"} for c in "abcdefgh"]}),
    "20 choices of 2": schema_form({
        "allOf": [
            {"anyOf": [{"properties": {f"a{n}": {}}}, {"properties": {f"b{n}": {"type": "null"}}}]} for n in range(20)
        ],
    }),
    "20,000 properties": schema_form({
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "pattern": f"^[a-z]{{{n}}}$"} for n in range(20_000)},
    }),
}  # fmt: skip
HARMLESS: dict[str, OutputFormat] = {
    "foo**": OutputFormat(kind="regex", value="foo**"),
    "(a+)+$": OutputFormat(kind="regex", value="(a+)+$"),
    "a{1,5000}": OutputFormat(kind="regex", value="a{1,5000}"),
    "a million items": schema_form({"type": "array", "items": {"const": "x"}, "minItems": 1_000_000}),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[LocalEngine]:
    made = LocalEngine(load_settings(environment=UNCOMPILED))
    await made.start()
    yield made
    await made.close()


def ask(form: OutputFormat) -> Request:
    return request_of(format=form, sampling=Sampling(temperature=0.0, max_tokens=30))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_form_is_refused_soon(engine: LocalEngine, name: str) -> None:
    await fold(engine.generate(ask(OutputFormat(kind="regex", value="child|ready"))))
    began = time.monotonic()
    with pytest.raises(InvalidRequest) as refused:
        await fold(engine.generate(ask(HOSTILE[name])))
    assert time.monotonic() - began < 2.5
    assert refused.value.code == "invalid_schema"
    assert len(refused.value.message) < 400


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", HARMLESS)
async def test_what_only_looks_hostile_is_served(engine: LocalEngine, name: str) -> None:
    completion = await fold(engine.generate(ask(HARMLESS[name])))
    assert completion.usage.completion > 0


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
async def test_hostile_forms_hardly_disturb_a_running_answer(engine: LocalEngine) -> None:
    """The median time between tokens at most doubles, with a core for the child."""
    gaps: dict[bool, list[float]] = {False: [], True: []}
    under_attack = asyncio.Event()

    async def stream() -> None:
        always = Sampling(max_tokens=12_000, logit_bias=((VOCABULARY.encode("I")[0], 100.0),))
        request = request_of(sampling=always)
        last = time.monotonic()
        async for event in engine.generate(request):
            if isinstance(event, TextDelta):
                gaps[under_attack.is_set()].append(time.monotonic() - last)
            last = time.monotonic()

    running = asyncio.create_task(stream())
    await asyncio.sleep(3)
    under_attack.set()
    until = time.monotonic() + 10
    for name in itertools.cycle(HOSTILE):
        with pytest.raises(InvalidRequest):
            await fold(engine.generate(ask(HOSTILE[name])))
        if time.monotonic() > until or running.done():
            break
    running.cancel()
    await asyncio.wait({running})
    before, during = (statistics.median(gaps[attacked]) for attacked in (False, True))
    print(f"\nbetween tokens: {1e3 * before:.2f} ms alone, {1e3 * during:.2f} ms under attack")
    assert during <= 2 * before


async def test_what_fails_unforeseen_in_the_child_has_its_verdict_too() -> None:
    kept = Grammars(MODEL, VOCABULARY, [END])
    child = await kept._start()
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        for line in (b"5\n", b'"%llguidance {}\\nstart: /a/"\n'):
            child.stdin.write(line)
        async with asyncio.timeout(20):
            first, second = [json.loads(await child.stdout.readline()) for _ in range(2)]
        assert first["fault"] == "it is too complex"
        assert second["fault"] == ""
    finally:
        child.kill()
        await child.wait()


async def test_the_cache_is_bounded_and_a_killed_child_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Grammars(MODEL, VOCABULARY, [END])
    try:
        for number in range(KEPT + 5):
            form = OutputFormat(kind="regex", value=f"a{number}", param="regex")
            await kept.prepare(answer_grammar(request_of(format=form), TAGS))  # type: ignore[arg-type]
        assert len(kept._kept) == KEPT
        assert kept._child is not None
        kept._child.kill()
        await kept._child.wait()
        form = OutputFormat(kind="regex", value="b", param="regex")
        assert (await kept.prepare(answer_grammar(request_of(format=form), TAGS))).reserve > 0  # type: ignore[arg-type]
        monkeypatch.setattr(grammars, "SECONDS", 0.0)
        form = OutputFormat(kind="regex", value="c", param="regex")
        with pytest.raises(Overloaded):
            await kept.prepare(answer_grammar(request_of(format=form), TAGS))  # type: ignore[arg-type]
        assert kept._child is None
    finally:
        await kept.close()


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "integer", "minimum": 10**20}, "minimum is beyond 64 bits"),
        ({"type": "object", "properties": {"a": {"type": "integer", "maximum": 2**63}}}, "maximum is beyond 64 bits"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"anyOf": [{"patternProperties": {"^a$": {}}, "minProperties": 2}]}, "minProperties"),
    ],
)
def test_what_would_be_passed_over_in_silence_is_refused_where_exactness_is_asked_for(schema: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        answer_grammar(request_of(format=schema_form(schema)), TAGS)
    assert answer_grammar(request_of(format=schema_form(schema, strict=False)), TAGS) is not None


@pytest.mark.parametrize(
    ("schema", "bounds"),
    [
        ({"type": "number"}, (-(10.0**15), 10.0**15)),
        ({"type": "integer"}, (1 - 2**53, 2**53 - 1)),
        ({"type": ["number", "null"], "minimum": 3}, (3, 10.0**15)),
        ({"type": "integer", "minimum": 2**60}, (2**60, None)),
        ({"type": "number", "exclusiveMaximum": 0}, (-(10.0**15), None)),
        ({"type": "number", "enum": [10**20]}, (None, None)),
    ],
)
def test_numbers_have_bounds(schema: Any, bounds: tuple[float | None, float | None]) -> None:
    made = bounded(schema)
    assert (made.get("minimum"), made.get("maximum")) == bounds
