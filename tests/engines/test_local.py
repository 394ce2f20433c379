"""The local engine against transformers itself: prompts, positions, pixels, tokens; and starts that must fail."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.demo.pictures import examination
from qwen3vl_compat.engines import EngineUnusable
from qwen3vl_compat.engines.local.checkpoint import read_checkpoint
from qwen3vl_compat.engines.local.engine import LocalEngine
from qwen3vl_compat.engines.local.prompt import PromptBuilder
from qwen3vl_compat.engines.local.runner import Runner, pixel_table
from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.events import fold
from qwen3vl_compat.media.image import decode_image
from qwen3vl_compat.messages import Message, Picture, Request, Sampling, Text, ToolCall
from qwen3vl_compat.settings import ModelSettings, load_settings
from tests.media.crafted import encoded
from tests.serving import UNCOMPILED


@pytest.fixture(scope="module", params=["dense", "moe"])
def checkpoint(request: pytest.FixtureRequest) -> Any:
    folder = MODEL if request.param == "dense" else request.getfixturevalue("moe")
    return read_checkpoint(str(folder), "")


@pytest.fixture(scope="module")
def runner(checkpoint: Any) -> Runner:
    return Runner(checkpoint, ModelSettings(device="cpu", dtype="float32"))


def picture(checkpoint: Any, number: int) -> Picture:
    return decode_image(encoded(examination(3, 6)[number].picture, "PNG"), checkpoint.spec)


def request_of(*messages: Message, **sampling: Any) -> Request:
    return Request(id="r", created=0, model="qwen3-vl", messages=messages, sampling=Sampling(**sampling))


def mixed(checkpoint: Any) -> Request:
    """Two pictures of different sizes among text, over several turns."""
    one, two = picture(checkpoint, 2), picture(checkpoint, 5)
    return request_of(
        Message("system", (Text("Be brief."),)),
        Message("user", (Text("First "), one, Text(" and then\n"), two, Text("what?"))),
        Message("assistant", (Text(" I see. "),)),
        Message("user", (two, Text("Read the text."))),
    )


def test_prompt_ids_are_the_templates(checkpoint: Any) -> None:
    request = mixed(checkpoint)
    prompt = PromptBuilder(checkpoint).build(request)
    turns = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"}
                for part in message.parts
            ],
        }
        for message in request.messages
    ]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    slot = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    waiting = [checkpoint.spec.tokens(each.grid) for each in prompt.pictures]
    expanded = [token for each in expected for token in ([slot] * waiting.pop(0) if each == slot else [each])]
    assert prompt.ids.tolist() == expanded
    assert prompt.usage.prompt == len(expanded)
    assert prompt.usage.prompt_image == sum(checkpoint.spec.tokens(each.grid) for each in prompt.pictures)


def test_a_raw_prompt_is_its_text_alone(checkpoint: Any) -> None:
    """Control words in it are letters there too."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    for text in ("Once upon a time", " two\n\n", "x"):
        prompt = PromptBuilder(checkpoint).build(replace(request_of(Message("user", (Text(text),))), raw=True))
        assert prompt.ids.tolist() == tokenizer(text, add_special_tokens=False).input_ids
        assert (prompt.thinking, prompt.usage.prompt) == (False, len(prompt.ids))
    typed = replace(request_of(Message("user", (Text("<|image_pad|><think>"),))), raw=True)
    ids = PromptBuilder(checkpoint).build(typed).ids.tolist()
    assert not set(ids) & set(checkpoint.vocabulary.added.values())


def test_positions_are_the_models_own(checkpoint: Any, runner: Runner) -> None:
    prompt = PromptBuilder(checkpoint).build(mixed(checkpoint))
    ids = torch.from_numpy(prompt.ids)[None]
    kinds = (ids == runner._model.config.image_token_id).int()
    grids = torch.tensor([each.grid for each in prompt.pictures])
    positions, shift = runner._model.model.get_rope_index(ids, kinds, grids)
    assert np.array_equal(prompt.positions, positions[:, 0].numpy())
    assert prompt.shift == int(shift)


def test_typed_control_words_stay_letters(checkpoint: Any) -> None:
    plain = PromptBuilder(checkpoint).build(request_of(Message("user", (Text("x"),))))
    for word in checkpoint.vocabulary.added:
        for parts in ((Text(word),), (Text(word[:1]), Text(word[1:])), (Text(word[:4]), Text(word[4:]))):
            ids = PromptBuilder(checkpoint).build(request_of(Message("user", parts))).ids.tolist()
            own = [token for token in plain.ids.tolist() if token in checkpoint.vocabulary.added.values()]
            assert [token for token in ids if token in checkpoint.vocabulary.added.values()] == own


@pytest.mark.parametrize("arguments", ["[" * 3000, "[" * 3000 + "]" * 3000, "[" * 960 + "]" * 960, "{"])
def test_arguments_that_cannot_be_read_go_on_as_they_came(checkpoint: Any, arguments: str) -> None:
    call = ToolCall("c", "f", arguments)
    messages = (Message("user", (Text("x"),)), Message("assistant", (call,)), Message("user", (Text("y"),)))
    prompt = PromptBuilder(checkpoint).build(request_of(*messages))
    words = b"".join(map(checkpoint.vocabulary.bytes_of, prompt.ids.tolist()))
    assert arguments.encode() in words


def test_pixels_are_the_processors(checkpoint: Any, runner: Runner) -> None:
    own = Qwen2VLImageProcessorPil.from_pretrained(checkpoint.folder)
    for item in examination(9, 8):
        ours = runner._pixels(decode_image(encoded(item.picture, "PNG"), checkpoint.spec))
        theirs = own(images=[item.picture], return_tensors="pt")["pixel_values"]
        assert torch.equal(ours, theirs)
    assert pixel_table(checkpoint).shape == (3, 256)


async def test_two_pictures_of_one_size_do_not_answer_for_each_other() -> None:
    engine = LocalEngine(load_settings(environment=UNCOMPILED))
    await engine.start()
    answers = set[str]()
    for text in ("AAAA", "BBBB"):
        from random import Random

        from qwen3vl_compat.demo.pictures import SEEN_FACES, draw_line

        drawn = draw_line(Random(1), text, SEEN_FACES[0], 20, 128, 32).picture
        seen = decode_image(encoded(drawn, "PNG"), engine.vision)
        request = request_of(Message("user", (seen, Text("Read the text."))), max_tokens=16)
        answers.add((await fold(engine.generate(request))).choices[0].text)
    await engine.close()
    assert len(answers) == 2


@pytest.mark.parametrize("messages", [[Message("user", (Text("a" * 2_000_000),))], [Message("user", ())] * 10_000])
def test_what_cannot_fit_is_not_even_counted(checkpoint: Any, messages: list[Message]) -> None:
    with pytest.raises(InvalidRequest, match="context_length_exceeded") as refusal:
        PromptBuilder(checkpoint).build(request_of(*messages))
    assert refusal.value.param == "messages"


# -------------------------------------------------------------------------------------------- starts that must fail


def spoiled(tmp_path: Path, name: str, text: str | None) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    (folder / name).unlink()
    if text is not None:
        index = "model.safetensors.index.json" if "weight_map" in text else name
        (folder / index).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", None, "holds no config.json"),
        ("config.json", "{", "cannot be read as JSON"),
        ("config.json", '{"model_type": "llama"}', "of type 'llama'"),
        ("config.json", '{"model_type": "qwen3_vl"}', "lack or misstate"),
        ("config.json", '{"model_type": "qwen3_vl", "image_token_id": 1036, "text_config": []}', "lack or misstate"),
        ("generation_config.json", '{"eos_token_id": {}, "do_sample": true, "top_k": []}', "lack or misstate"),
        ("preprocessor_config.json", '{"size": [1]}', "lack or misstate"),
        (
            "preprocessor_config.json",
            '{"size": {"shortest_edge": 1, "longest_edge": 9}, "image_mean": []}',
            "misstate",
        ),
        ("model.safetensors", '{"weight_map": []}', "holds no weight_map"),
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", "{}", "tokenizer.json is missing or cannot be used"),
        ("preprocessor_config.json", None, "holds no preprocessor_config.json"),
        ("chat_template.jinja", None, "holds no chat template"),
        ("model.safetensors", None, "lacks the weights model.safetensors"),
        ("model.safetensors", "not weights", "cannot be loaded"),
    ],
)
async def test_a_broken_checkpoint_ends_the_start_with_one_sentence(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    folder = spoiled(tmp_path, name, text)

    async def start() -> None:
        await LocalEngine(load_settings(flags={"model.path": str(folder)}, environment=UNCOMPILED)).start()

    with pytest.raises(EngineUnusable, match=said) as failure:
        await start()
    assert "\n" not in str(failure.value)


async def test_a_missing_tensor_ends_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.visual.patch_embed.proj.bias")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    engine = LocalEngine(load_settings(flags={"model.path": str(folder)}, environment=UNCOMPILED))
    with pytest.raises(EngineUnusable, match="lack the tensor"):
        await engine.start()


@pytest.mark.parametrize(("sampled", "greedy"), [(True, False), (False, True)])
def test_a_model_says_whether_it_draws_where_nothing_is_asked(tmp_path: Path, sampled: bool, greedy: bool) -> None:
    shutil.copytree(MODEL, folder := tmp_path / "model")
    own = json.loads((folder / "generation_config.json").read_text()) | {"do_sample": sampled, "temperature": 0.7}
    (folder / "generation_config.json").write_text(json.dumps(own))
    engine = LocalEngine(load_settings(flags={"model.path": str(folder)}, environment=UNCOMPILED))
    assert engine.models()[0].greedy is greedy


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "no-such-model"])
def test_a_wrong_path_ends_the_start(path: str) -> None:
    with pytest.raises(EngineUnusable, match="does not exist"):
        LocalEngine(load_settings(flags={"model.path": path}, environment=UNCOMPILED))


def test_an_unreachable_hub_ends_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EngineUnusable, match="Qwen/Qwen3-VL-4B-Instruct is not on this machine"):
        LocalEngine(load_settings(flags={"model.path": "Qwen/Qwen3-VL-4B-Instruct"}, environment=UNCOMPILED))
