"""Another form of `tokenizer.json` is refused at load, in one sentence, rather than read wrongly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_compat.demo import blank
from qwen3vl_compat.tokens import Vocabulary


@pytest.fixture
def spoilt(tmp_path: Path) -> Callable[..., Path]:
    """Write a tokenizer.json in which something was changed; returns its folder."""
    blank.vocabulary(300).save(str(tmp_path / "tokenizer.json"))
    contents = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))

    def spoil(change: Callable[[dict[str, Any]], object]) -> Path:
        change(contents)
        (tmp_path / "tokenizer.json").write_text(json.dumps(contents), encoding="utf-8")
        return tmp_path

    return spoil


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.pop("model"),
        lambda file: file.update(normalizer={"type": "NFKC"}),
        lambda file: file["model"].update(type="Unigram"),
        lambda file: file["model"].update(byte_fallback=True),
        lambda file: file["model"]["merges"].reverse(),
        lambda file: file["model"]["merges"].pop(),
        lambda file: file["model"]["vocab"].update({"never": 5000}),
        lambda file: file["pre_tokenizer"]["pretokenizers"].pop(),
        lambda file: file["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        lambda file: file["added_tokens"][0].update(lstrip=True),
    ],
)
def test_another_form_of_file_is_refused_in_one_sentence(
    spoilt: Any, change: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(ValueError, match=r"^The model's tokenizer.json is of a form that is not supported: .*\.$"):
        Vocabulary.load(spoilt(change))


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^The model's folder holds no readable tokenizer\.json\.$"):
        Vocabulary.load(tmp_path)


def test_merges_may_be_written_as_pairs_or_with_a_space(spoilt: Any) -> None:
    as_pairs = Vocabulary.load(spoilt(lambda file: None))
    spaced = Vocabulary.load(
        spoilt(lambda file: file["model"].update(merges=[" ".join(merge) for merge in file["model"]["merges"]]))
    )
    assert spaced.encode("Hello, world!") == as_pairs.encode("Hello, world!")
