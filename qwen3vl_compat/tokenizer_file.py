"""The one form of `tokenizer.json` that Qwen checkpoints have: NFC, a splitting regex, byte-level BPE, added tokens.

Anything that would make tiktoken's ids differ from the file's own meaning is refused at load.
"""

from itertools import pairwise
from pathlib import Path

import msgspec
from msgspec import Struct

_OTHER_FORM = "The model's tokenizer.json is of a form that is not supported"


class _Named(Struct):
    type: str


class _Pattern(Struct):
    Regex: str


class _Step(Struct):
    """One step of the pre-tokenizer: `Split` carries a pattern, `ByteLevel` two switches."""

    type: str
    pattern: _Pattern | None = None
    behavior: str = "Isolated"
    invert: bool = False
    add_prefix_space: bool = False
    use_regex: bool = False


class _Steps(Struct):
    type: str
    pretokenizers: list[_Step] = []


class _Bpe(Struct):
    type: str
    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]
    dropout: float | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False


class _Added(Struct):
    id: int
    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


class _File(Struct):
    model: _Bpe
    pre_tokenizer: _Steps
    added_tokens: list[_Added]
    normalizer: _Named | None = None


class Contents(Struct, frozen=True):
    """What an encoding is built from: bytes of each mergeable token to its id, which is also its merge's rank."""

    ranks: dict[bytes, int]
    pattern: str
    nfc: bool
    added: dict[str, int]
    special: frozenset[int]


def read(path: Path) -> Contents:
    """Read a `tokenizer.json`. ValueError with one plain sentence if it is missing, damaged or of another form."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError:
        raise ValueError("The model's folder holds no readable tokenizer.json.") from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ValueError(f"{_OTHER_FORM}: it does not have a byte-level BPE tokenizer's fields.") from None
    if file.normalizer is not None and file.normalizer.type != "NFC":
        raise ValueError(f"{_OTHER_FORM}: its normalizer is {file.normalizer.type}, not NFC.")
    if any(token.single_word or token.lstrip or token.rstrip or not token.content for token in file.added_tokens):
        raise ValueError(f"{_OTHER_FORM}: an added token takes in more than its own spelling.")
    return Contents(
        ranks=_ranks(file.model),
        pattern=_pattern(file.pre_tokenizer),
        nfc=file.normalizer is not None,
        added={token.content: token.id for token in file.added_tokens},
        special=frozenset(token.id for token in file.added_tokens if token.special),
    )


def _pattern(steps: _Steps) -> str:
    """The regex that cuts text into words; the steps must be [Split by it, ByteLevel without a regex of its own]."""
    if [step.type for step in steps.pretokenizers] == ["Split", "ByteLevel"]:
        split, level = steps.pretokenizers
        plain = not (split.invert or level.add_prefix_space or level.use_regex)
        if plain and split.pattern is not None and split.behavior == "Isolated":
            return split.pattern.Regex
    raise ValueError(f"{_OTHER_FORM}: its pre-tokenizer is not one splitting regex before a byte level.")


def _ranks(model: _Bpe) -> dict[bytes, int]:
    """Ids by bytes, once they are known to mean to tiktoken what the merges mean: all bytes, then merges in order."""
    odd = model.dropout or model.unk_token or model.continuing_subword_prefix or model.end_of_word_suffix
    if model.type != "BPE" or model.byte_fallback or odd:
        raise ValueError(f"{_OTHER_FORM}: its model is not a plain BPE.")
    letters = byte_letters()
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.merges)
    merged = ["".join(pair) for pair in pairs]
    ids = [model.vocab.get(token, -1) for token in merged]
    ascending = all(before < after for before, after in pairwise(ids))
    if not ascending or ids[:1] == [-1] or set(model.vocab) != {*letters, *merged}:
        raise ValueError(f"{_OTHER_FORM}: its ids do not follow the order of its merges.")
    return {bytes(letters[letter] for letter in token): number for token, number in model.vocab.items()}


def byte_letters() -> dict[str, int]:
    """GPT-2's table: the printable character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
