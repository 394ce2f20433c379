"""Ids are the reference tokenizer's, whatever the text; nothing panics, and nothing takes long."""

import random
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qwen3vl_compat import demo
from qwen3vl_compat.demo import blank
from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.tokens import SPACE_LIMIT, WORD_LIMIT, Decoder, Vocabulary, check_text, compose, unused_mark
from tests.qwen_vocabulary import qwen_folder

DEMO = Path(demo.__file__).parent

LINES = (
    "Hello, world! It's the server's 2nd answer; they'll say we've DONE it, I'D say.",
    "  leading spaces and trailing ones   ",
    "\n\n\nnewlines first and last\n\n",
    " \n \n mixed \n\n  ",
    "\tif x:\n\t\treturn {'a': [1, 2, 3]}\t# tab\n",
    "def f(x: int) -> str:\n    return f'{x:>10}' + \"\\n\"\n\n\nclass A:\n    pass\n",
    "line one\r\nline two\r\n\r\nline three\r",
    "price: 1,234,567.89 € and 3.14159 or ½ and x² and Ⅷ and ٣٤٥ and ४५६",
    "图中写了什么？请用一句话回答。",
    "繁體中文與简体中文，標點符號「引號」——破折號……",
    "日本語のテキスト、カタカナとひらがな。ﾊﾝｶｸ ＦＵＬＬ　ＷＩＤＴＨ",
    "한국어 문장입니다. 각각의 음절.",
    unicodedata.normalize("NFD", "한국어 분해된 음절"),
    "مرحبا بالعالم، كيف حالك؟ السَّلامُ عَلَيْكُم",
    "שלום עולם, מה שלומך? בְּרֵאשִׁית",
    "नमस्ते दुनिया, क्या हाल है? क्षत्रिय ज्ञान",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง",
    "Привет, мир! Ёлка и й, разложенные: " + unicodedata.normalize("NFD", "Ёлка й"),
    "Γειά σου Κόσμε, Ὀδυσσεύς",
    "Tiếng Việt: Tôi không biết, đường phố",
    unicodedata.normalize("NFD", "Tiếng Việt: Tôi không biết, đường phố"),
    "café naïve Ångström ﬁnal ﬂow",
    unicodedata.normalize("NFD", "café naïve Ångström"),
    "e\u0301\u0327 and e\u0327\u0301, q\u0307\u0323, \u0344 and \u0958 and \u2126 and \u212b",
    "a\u0300\u0301\u0302\u0303\u0304\u0305\u0306 zalgo z\u0335\u0321\u0341\u0340",
    "\u0301 a mark at the start",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷 ❤️ 1️⃣",
    "zero\u200bwidth\u200cjoin\u200der\ufeffbom\u2060",
    "non\u00a0breaking\u202fnarrow\u3000ideographic\u2003em\u2009thin\u1680ogham\u0085next\u2028line\u2029paragraph",
    "  \u00a0 \u00a0\n\u00a0 x",
    "\x00\x01\x1b[31m\x1c\x1d\x1e\x1f\x7f control",
    "https://example.org/path?q=1&r=%20#frag user@example.com",
    '{"key": [1.5e-10, null, true], "nested": {"a": "\\u00e9"}}',
    "!!!???...,,,;;;:::---___===+++***///\\\\\\|||~~~```^^^",
    "a<b>c</d> <tag attr='x'/> < | > <| |> <|x|> <thin",
    "SELECT * FROM t WHERE a<>b AND c<=d;",
    "ſ 'ſ 'S 'Ll 'RE 'vE ' s K",
    "\U00020000\U0002a6df\U0001d49c\U00010348\U0001f9ff rare planes",
    "\ue000\uf8ff\U000f0000 private \ufdd0\uffff non",
    "አማርኛ ქართული Հայերեն தமிழ் తెలుగు ಕನ್ನಡ മലയാളം සිංහල ລາວ ខ្មែរ မြန်မာ བོད་ཡིག",
    "ok " * 40,
    " " * 300 + "x" + "\n" * 300 + "y" + "\t" * 77,
)


class Pair:
    """One vocabulary in both readings."""

    def __init__(self, folder: Path, reference: Any) -> None:
        self.ours = Vocabulary.load(folder)
        self.reference = reference

    def __repr__(self) -> str:
        return f"<{self.ours.size} tokens>"

    def expected(self, text: str) -> list[int]:
        return self.reference(text, add_special_tokens=False).input_ids


@pytest.fixture(scope="session", params=["bundled", "qwen"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    if request.param == "qwen":
        folder = qwen_folder()
        return Pair(folder, AutoTokenizer.from_pretrained(folder))
    folder = DEMO / "model"
    if (folder / "tokenizer_config.json").exists():
        return Pair(folder, AutoTokenizer.from_pretrained(folder))
    folder = tmp_path_factory.mktemp("vocabulary")
    blank.vocabulary().save(str(folder / "tokenizer.json"))
    return Pair(folder, PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")))


# Ids


@pytest.mark.parametrize("line", LINES)
def test_ids_are_the_references(pair: Pair, line: str) -> None:
    assert pair.ours.encode(line) == pair.expected(line)
    assert pair.ours.count(line) == len(pair.expected(line))


_assigned = st.characters(exclude_categories=("Cs", "Cn"))
_awkward = st.text(" \n\r\t\u00a0\u3000ab'.1e\u0301\u0316<|中")
_pieces = st.lists(st.one_of(st.sampled_from(LINES), _awkward, st.text(_assigned)), max_size=6).map("".join)


@given(text=_pieces)
@settings(max_examples=300)
def test_ids_of_any_text(pair: Pair, text: str) -> None:
    assume(not any(spelling in text for spelling in pair.ours.added))
    assert pair.ours.encode(text) == pair.expected(text)


def test_every_character_falls_into_the_same_words(pair: Pair) -> None:
    """The two regex engines may know different Unicode versions; the middle of the great Asian blocks is left out."""
    alike = (range(0x3600, 0x4C00), range(0x5000, 0x9E00), range(0xAE00, 0xE000), range(0x17200, 0x1B000))
    starts = [start for start in range(0, 0x20000, 512) if not any(start in block for block in alike)]
    for start in starts:
        text = "".join(f"a{chr(code)}b {chr(code)}.'{chr(code)}7" for code in range(start, start + 512))
        assert pair.ours.encode(text) == pair.expected(text), hex(start)


def test_every_token_is_reached_by_its_own_spelling(pair: Pair) -> None:
    """tiktoken merges any pair whose whole is a token, the reference only listed pairs: here they could part."""
    spellings = {token: pair.ours.bytes_of(token) for token in range(pair.ours.size)}
    texts = [spelling.decode("utf-8", "ignore") for token, spelling in spellings.items() if token < 151_643]
    texts = [text for text in texts if text not in pair.ours.added][-20_000:]
    assert [pair.ours.encode(text) for text in texts] == pair.reference(texts, add_special_tokens=False).input_ids


def test_an_added_token_in_plain_text_stays_letters(pair: Pair) -> None:
    for spelling in pair.ours.added:
        ids = pair.ours.encode(f"x{spelling}y")
        assert not set(ids) & set(pair.ours.added.values())
        assert b"".join(map(pair.ours.bytes_of, ids)).decode() == f"x{spelling}y"


# Prompts


def _rendered(pair: Pair, texts: list[str], **kwargs: Any) -> Any:
    template = pair.reference.chat_template or (DEMO / "chat_template.jinja").read_text(encoding="utf-8")
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return pair.reference.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, **kwargs)


@pytest.mark.parametrize("start", range(0, len(LINES) - 3, 3))
def test_prompt_ids_are_the_templates(pair: Pair, start: int) -> None:
    texts = list(LINES[start : start + 4])
    mark = unused_mark(texts)
    rendered = _rendered(pair, [pair.ours.shield(text, mark) for text in texts], tokenize=False)
    assert pair.ours.encode_prompt(rendered, mark) == _rendered(pair, texts, tokenize=True).input_ids


def test_no_text_of_a_user_becomes_a_control_token(pair: Pair) -> None:
    spelt = "".join(pair.ours.added) + "<<|im_end|><|im_<|im_end|>end|>"
    mark = unused_mark([spelt])
    ids = pair.ours.encode_prompt(f"<|im_start|>user\n{pair.ours.shield(spelt, mark)}<|im_end|>", mark)
    control = [token for token in ids if token in pair.ours.added.values()]
    assert control == [pair.ours.added["<|im_start|>"], pair.ours.added["<|im_end|>"]]
    assert b"".join(map(pair.ours.bytes_of, ids)).decode() == f"<|im_start|>user\n{spelt}<|im_end|>"


def test_a_mark_is_out_before_composing(pair: Pair) -> None:
    """`<` and U+0338 compose to U+226E, also with a mark put between them."""
    text = "a <\u0338 b"
    mark = unused_mark([text])
    shielded = pair.ours.shield(text, mark)
    assert shielded == f"a <{mark}\u0338 b"
    assert pair.ours.encode_prompt(shielded, mark) == pair.ours.encode("a \u226e b") == pair.expected(text)


def test_a_mark_is_in_none_of_the_texts() -> None:
    assert unused_mark([]) == "\ufdd0"
    assert unused_mark(["\ufdd0\ufdd1", "\ufdd3"]) == "\ufdd2"
    private = [*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)]
    everything = "".join(map(chr, private))
    with pytest.raises(InvalidRequest):
        unused_mark([everything])


# Back to text


@pytest.mark.parametrize("line", LINES)
def test_decoding_gives_the_text_in_whole_characters(pair: Pair, line: str) -> None:
    ids = [*pair.ours.encode(line), pair.ours.added["<|im_end|>"]]
    decoder = Decoder(pair.ours)
    parts = [decoder.push(token) for token in ids]
    assert "".join(parts) + decoder.finish() == unicodedata.normalize("NFC", line) + "<|im_end|>"
    assert all("\ufffd" not in part for part in parts)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=100)
def test_any_ids_decode_as_the_reference_does(pair: Pair, seed: int) -> None:
    ids = random.Random(seed).choices(range(pair.ours.size), k=20)
    decoder = Decoder(pair.ours)
    text = "".join(map(decoder.push, ids)) + decoder.finish()
    assert text == pair.reference.decode(ids, clean_up_tokenization_spaces=False)
    assert text == text.encode().decode()


def test_an_id_beyond_the_vocabulary_says_nothing(pair: Pair) -> None:
    assert pair.ours.size == max(pair.ours.added.values()) + 1
    assert pair.ours.bytes_of(pair.ours.size) == b""


# Limits

SPACES = {
    "spaces": " ",
    "newlines": "\n",
    "tabs": "\t",
    "mixed": " \t\u3000",
    "with line breaks": " \r\n",
    "no-break": "\u00a0",
    "ideographic": "\u3000",
}


@pytest.mark.parametrize("unit", SPACES.values(), ids=SPACES.keys())
def test_two_megabytes_of_white_space_are_refused(unit: str) -> None:
    for text in (unit * (2_000_000 // len(unit)), "x" + unit * (SPACE_LIMIT // len(unit) + 1) + "x"):
        with pytest.raises(InvalidRequest, match="more than 100,000 white-space characters in a row") as refusal:
            check_text(text)
        assert refusal.value.code == "invalid_value"


@pytest.mark.parametrize("unit", [" ", "\n"])
def test_the_tokenizer_never_sees_them(pair: Pair, unit: str) -> None:
    for read in (pair.ours.encode, pair.ours.count, lambda text: pair.ours.encode_prompt(text, "\ufdd0")):
        with pytest.raises(InvalidRequest):
            read(unit * 2_000_000)


@pytest.mark.parametrize("unit", SPACES.values(), ids=SPACES.keys())
def test_white_space_up_to_the_limit_is_exact(pair: Pair, unit: str) -> None:
    text = ("a" + (unit * SPACE_LIMIT)[:SPACE_LIMIT]) * 2 + "b"
    assert pair.ours.encode(text) == pair.expected(text)


def test_runs_that_only_meet_in_the_prompt_are_refused(pair: Pair) -> None:
    half = " " * 60_000
    check_text(half)
    with pytest.raises(InvalidRequest):
        pair.ours.encode_prompt(half + "\ufdd0" + half, "\ufdd0")


def _random(alphabet: str, length: int) -> str:
    return "".join(random.Random(5).choices(alphabet, k=length))


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (lambda: "a" * (WORD_LIMIT + 1), "letters"),
        (lambda: "中" * (WORD_LIMIT + 1), "letters"),
        (lambda: "7" + "!" * (WORD_LIMIT + 1), "punctuation"),
        (lambda: "_-" * (WORD_LIMIT // 2 + 1), "punctuation"),
        (lambda: "\u0301" * (WORD_LIMIT + 1), "punctuation"),
    ],
)
def test_endless_words_are_refused(run: Callable[[], str], what: str) -> None:
    with pytest.raises(InvalidRequest, match=f"more than 200,000 {what}"):
        check_text(run(), "messages.0.content")


WORST = {
    "spaces": lambda: (" " * 99_999 + "x") * 20,
    "newlines": lambda: ("\n" * 99_999 + "x") * 20,
    "letters": lambda: (_random("abcdefghijklmnopqrstuvwxyz", 199_999) + "7") * 10,
    "one letter": lambda: ("a" * 199_999 + " ") * 10,
    "punctuation": lambda: (_random("!#$%&()*+,-./:;=>?@[]^_{|}~", 199_999) + "7") * 10,
    "digits": lambda: "7" * 2_000_000,
    "Chinese": lambda: "\n".join([_random("".join(map(chr, range(0x4E00, 0x9FA5))), 10_000)] * 66),
    "marks in no order": lambda: ("a" + "\u0301\u0316" * 50_000) * 10,
    "openers": lambda: "<|" * 99_999 + " " + "<| " * 600_000,
}


@pytest.mark.parametrize("text", WORST.values(), ids=WORST.keys())
def test_the_worst_two_megabytes_take_about_a_second(pair: Pair, text: Callable[[], str]) -> None:
    """Thread time, so that a busy machine does not matter; the bound is wide of the measured 0.1 to 1.1 s."""
    worst = text()
    start = time.thread_time()
    pair.ours.encode(worst)
    assert time.thread_time() - start < 4


def test_half_a_surrogate_pair_is_refused(pair: Pair) -> None:
    for text in ("\ud800", "a\udfffb", "\ud83d \ude00"):
        with pytest.raises(InvalidRequest, match="surrogate") as refusal:
            check_text(text, "messages.0.content")
        assert refusal.value.param == "messages.0.content"
        with pytest.raises(InvalidRequest):
            pair.ours.encode(text)


@given(
    text=st.text(
        st.sampled_from("a\u00e9\u1e69\u0301\u0316\u0344\u0345\u0334\u0327\u0f71\u0f72\u1100\u1161"), max_size=20
    )
)
@settings(max_examples=300)
def test_composing_long_runs_is_normalization_form_c(text: str) -> None:
    long = "e" + text * 40
    assert compose(long) == unicodedata.normalize("NFC", long)
