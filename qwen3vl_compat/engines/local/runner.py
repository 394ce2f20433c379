"""The only file that loads and calls the model."""

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.image_transforms import normalize, rescale

from qwen3vl_compat.engines import EngineUnusable
from qwen3vl_compat.engines.local import attention, gpu
from qwen3vl_compat.engines.local.allocation import keep_freed_memory
from qwen3vl_compat.engines.local.blocks import Blocks
from qwen3vl_compat.engines.local.checkpoint import Checkpoint
from qwen3vl_compat.engines.local.compiling import Compiled, Recipe
from qwen3vl_compat.engines.local.decoding import Decoding, Scores, score
from qwen3vl_compat.engines.local.memory import Memory, Shape
from qwen3vl_compat.engines.local.pace import Pace
from qwen3vl_compat.engines.local.packed import pack_linear, packable
from qwen3vl_compat.engines.local.pages import Pages
from qwen3vl_compat.engines.local.scheduler import Piece
from qwen3vl_compat.engines.local.sequence import Sequence
from qwen3vl_compat.engines.local.slots import Slots
from qwen3vl_compat.engines.local.vision import Vision
from qwen3vl_compat.messages import Picture
from qwen3vl_compat.settings import ModelSettings

log = logging.getLogger(__name__)
NOTHING: Scores = torch.empty(0), torch.empty(0)


class Runner:
    """The model on its device, its KV memory and its pictures. Only the one thread that owns them calls it.

    All but `adopt`, which reads the weights beside it.
    """

    def __init__(self, checkpoint: Checkpoint, settings: ModelSettings) -> None:
        cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
        if cuda and not torch.cuda.is_available():
            raise EngineUnusable("The settings ask for a CUDA device and this machine shows none.")
        self.device = torch.device("cuda" if cuda else "cpu")
        if not cuda:
            keep_freed_memory()
        self._spec = checkpoint.spec
        self._model = _load(checkpoint, settings, cuda)
        attention.register(self._model)
        self.packed = not cuda and packable(self._model.dtype)
        """Whether the linear layers' weights are packed."""
        if self.packed:
            pack_linear(self._model)
        self._text: Any = self._model.model.language_model
        self._table = pixel_table(checkpoint).to(self.device)
        shape = Shape.of(self._text)
        devices = [next(layer.parameters()).device for layer in self._text.layers]
        self.pace = Pace()
        """Of prompt tokens."""
        self.vision = Vision(self._encode, int(settings.vision_memory * 2**30))
        self.blocks = Blocks(_tokens_of_memory(shape, settings, devices) // settings.kv_block, settings.kv_block)
        self.token_bytes = shape.token_bytes * (1 if cuda else 2)
        """Memory that is set aside for each token."""
        _check_room(checkpoint.context, self.blocks.tokens, self.token_bytes, asked=settings.max_model_len)
        if cuda:
            heads = self._text.config.num_attention_heads
            kernel = gpu.kernel_for(shape, heads, settings.kv_block, self.device)
            self.memory: Memory = Pages(shape, self.blocks, devices, kernel)
        else:
            self.memory = Slots(shape, settings.max_rows, checkpoint.context, self.blocks)
        self.decoding: Callable[..., Scores] = self.decoder(self.memory)
        """The step over the newest tokens; a compiled one may take its place between two steps."""
        if len(set(devices)) > 1:
            log.warning(
                "the layers stand on %d GPUs and take turns, uncaptured; to run them side by side (tensor parallelism) "
                "is the work of an upstream engine such as vLLM or SGLang", len(set(devices)),
            )  # fmt: skip
        elif isinstance(self.memory, Pages) and self.memory.captures:
            captured = gpu.capture(self.decoder(self.memory), self.memory, settings.max_rows, checkpoint.context)
            self.decoding = captured or self.decoding

    def decoder(self, memory: Memory) -> Decoding:
        """The decode step over a memory."""
        return Decoding(self._text, self._model.lm_head, memory.make_step)

    def recipe(self) -> Recipe | None:
        """What a compiled step over this memory is made from; None on a GPU and for quantised weights."""
        if not isinstance(self.memory, Slots) or getattr(self._model.config, "quantization_config", None):
            return None
        return Recipe(
            architecture=type(self._model).__name__,
            config=self._model.config.to_json_string(use_diff=False),
            dtype=str(self._model.dtype).removeprefix("torch."),
            packed=self.packed,
            rows=self.memory.rows,
            context=self.memory.context,
        )

    def adopt(self, folder: Path) -> bool:
        """Decode with the compiled steps in a folder from the next step on, if they say what the plain one says."""
        assert isinstance(self.memory, Slots)
        compiled = Compiled(folder, self.decoder(self.memory))
        beside = Slots(self.memory.shape, self.memory.rows, self.memory.context, Blocks(1, 1))
        if not compiled.agrees(self.decoder(beside), beside.layers):
            log.warning("decoding stays uncompiled: the compiled step's logits are others")
            return False
        self.decoding = compiled
        log.info("decoding is compiled from now on")
        return True

    @torch.inference_mode()
    def decode(self, sequences: Items[Sequence]) -> Scores:
        """Compute the newest token of each; returns a row of scores of what follows for each."""
        layout = self.memory.layout(sequences)
        ids = torch.zeros(layout.rows, dtype=torch.long)
        places = torch.zeros(3, layout.rows, dtype=torch.long)
        for row, sequence in zip(layout.order, sequences, strict=True):
            ids[row] = sequence.tokens[-1]
            places[:, row] = len(sequence) - 1 + sequence.owner.prompt.shift
        logits, best = self.decoding(ids.to(self.device), places.to(self.device), *layout.tensors)
        dense = layout.order == list(range(layout.rows))
        return (logits, best) if dense else (logits[layout.order], best[layout.order])

    @torch.inference_mode()
    def compute(self, pieces: Items[Piece]) -> Scores:
        """Compute pieces of prompts; returns a row of scores for each piece that completes its prompt."""
        self.vision.gather(pieces)
        began = time.monotonic()
        ids = np.concatenate([np.asarray(piece.sequence.tokens[piece.start : piece.end]) for piece in pieces])
        places = np.concatenate(
            [piece.sequence.owner.prompt.places(piece.start, piece.end) for piece in pieces], axis=1
        )
        embeds = self._text.embed_tokens(torch.from_numpy(ids).to(self.device))
        is_slot = torch.zeros(len(ids), dtype=torch.bool, device=self.device)
        features: list[torch.Tensor] = []
        passed = 0
        for piece in pieces:
            for span in piece.spans:
                start, end = max(span.start, piece.start), min(span.end, piece.end)
                features.append(self.vision.features(piece.sequence, span)[:, start - span.start : end - span.start])
                is_slot[passed + start - piece.start : passed + end - piece.start] = True
            passed += piece.end - piece.start
        deep: list[torch.Tensor] = []
        if features:
            embeds[is_slot], *deep = torch.cat(features, dim=1).to(embeds.dtype)
        hidden = self._run(embeds, torch.from_numpy(places), self.memory.piece_step(pieces), is_slot, deep)
        lasts = np.cumsum([piece.end - piece.start for piece in pieces]) - 1
        lasts = lasts[[piece.completes for piece in pieces]]
        scores = score(self._model.lm_head(hidden[torch.from_numpy(lasts).to(self.device)])) if len(lasts) else NOTHING
        self._settle()
        self.pace.saw(len(ids), time.monotonic() - began)
        return scores

    def _run(
        self,
        embeds: torch.Tensor,
        places: torch.Tensor,
        step: attention.Step,
        is_slot: torch.Tensor | None = None,
        deep: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The text model over tokens [n] in a row -> its last hidden states [n, width]."""
        return self._text(
            inputs_embeds=embeds[None],
            position_ids=places[:, None].to(self.device),
            visual_pos_masks=is_slot[None] if deep and is_slot is not None else None,
            deepstack_visual_embeds=deep or None,
            use_cache=False,
            step=step,
        ).last_hidden_state[0]

    def _settle(self) -> None:
        """Wait for the device, whose pace is measured."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def _encode(self, pictures: Items[Picture]) -> list[torch.Tensor]:
        """The tower over pictures of any sizes in one call: [1 + deepstack layers, tokens, width] of each."""
        pixels = torch.cat([self._pixels(picture) for picture in pictures])
        grids = torch.tensor([picture.grid for picture in pictures], device=self.device)
        seen = self._model.model.visual(pixels.to(self._model.dtype), grid_thw=grids)
        features = torch.stack([seen.pooler_output, *seen.deepstack_features])
        self._settle()
        parts = features.split([self._spec.tokens(picture.grid) for picture in pictures], dim=1)
        # A view would keep all pictures of the call alive as long as one of them is remembered.
        return [part.clone() for part in parts] if len(parts) > 1 else list(parts)

    def _pixels(self, picture: Picture) -> torch.Tensor:
        """uint8 patches -> the processor's values [patches, channels * time * side * side]; one frame is doubled."""
        side, times, frames = self._spec.patch_size, self._spec.temporal_patch_size, picture.frames
        raw = torch.frombuffer(bytearray(picture.patches), dtype=torch.uint8).to(self.device)
        channels = torch.arange(3, device=self.device)[None, :, None, None]
        values = self._table[channels, raw.view(-1, 3, frames, side * side).int()]
        return values.repeat_interleave(times // frames, dim=2).flatten(1)


def _tokens_of_memory(shape: Shape, settings: ModelSettings, devices: list[torch.device]) -> int:
    """Tokens there is room for: on a CPU by setting, half of it for rows and half for what prompts share."""
    if devices[0].type == "cpu":
        return int(settings.kv_memory * 2**30) // (2 * shape.token_bytes)
    return gpu.room(shape, devices, settings.kv_share, int(settings.vision_memory * 2**30))


def _check_room(context: int, tokens: int, token_bytes: int, *, asked: int) -> None:
    """Refuse to start with a context that was asked for and cannot be kept, or with hardly any memory at all."""
    if tokens < min(context, max(asked, 256)):
        asked = max(asked, 256)
        raise EngineUnusable(
            f"A context of {asked} tokens takes {asked * token_bytes / 2**30:.2f} GiB for keys and values; there is "
            f"room for {tokens} tokens in {tokens * token_bytes / 2**30:.2f} GiB. Lower model.max_model_len or raise "
            "the memory."
        )


def pixel_table(checkpoint: Checkpoint) -> torch.Tensor:
    """[3, 256] float32: what the image processor makes of each byte, computed by its own functions.

    They divide by the standard deviation; multiplying by its reciprocal would differ in the last bit.
    """
    bytes_ = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, None], (3, 1, 256))
    scaled = rescale(bytes_, checkpoint.rescale, dtype=np.dtype(np.float32))
    values = normalize(scaled, mean=checkpoint.image_mean, std=checkpoint.image_std, input_data_format="channels_first")
    return torch.from_numpy(np.ascontiguousarray(values[:, 0], dtype=np.float32))


def _stretched(checkpoint: Checkpoint, factor: float) -> Any:
    """The checkpoint's configuration with YaRN (Peng et al., 2023) over its native length; M-RoPE's sections stay."""
    config: Any = transformers.AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    text = config.text_config
    rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": text.max_position_embeddings}
    text.rope_parameters = {**text.rope_parameters, **rope}
    text.max_position_embeddings = int(text.max_position_embeddings * factor)
    return config


def _placement(checkpoint: Checkpoint) -> str:
    """One GPU where the weights leave room on it, else all there are, as accelerate divides them."""
    weights = sum(path.stat().st_size for path in checkpoint.folder.glob("*.safetensors"))
    free, _ = torch.cuda.mem_get_info(0)
    return "cuda:0" if weights < 0.8 * free or torch.cuda.device_count() == 1 else "auto"


def _load(checkpoint: Checkpoint, settings: ModelSettings, cuda: bool) -> Any:
    chosen = ("auto" if cuda else "float32") if settings.dtype == "auto" else settings.dtype
    transformers.utils.logging.disable_progress_bar()
    model_class = getattr(transformers, checkpoint.architecture)
    try:
        model, report = model_class.from_pretrained(
            checkpoint.folder,
            **({"config": _stretched(checkpoint, settings.yarn)} if settings.yarn > 1 else {}),
            dtype=chosen if chosen == "auto" else getattr(torch, chosen),
            device_map=_placement(checkpoint) if cuda else None,
            **({"experts_implementation": "grouped_mm"} if cuda and "Moe" in checkpoint.architecture else {}),
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise EngineUnusable(f"The model in {checkpoint.folder} does not fit the device's memory.") from None
    except Exception as error:  # transformers and safetensors raise a dozen kinds here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineUnusable(f"The weights in {checkpoint.folder} cannot be loaded: {reason}") from None
    if report["missing_keys"]:
        name = min(report["missing_keys"])
        raise EngineUnusable(f"The weights in {checkpoint.folder} lack the tensor {name}.")
    return model.eval()
