"""The only file that loads and calls the model."""

from typing import Any

import numpy as np
import torch
import transformers
from transformers import DynamicCache
from transformers.image_transforms import normalize, rescale

from qwen3vl_compat.engines import EngineUnusable
from qwen3vl_compat.engines.local.checkpoint import Checkpoint
from qwen3vl_compat.engines.local.prompt import Prompt
from qwen3vl_compat.messages import Picture
from qwen3vl_compat.settings import ModelSettings


class Sequence:
    """One sequence in the making: its keys and values, and where the next token stands."""

    def __init__(self, cache: DynamicCache, length: int, shift: int) -> None:
        self.cache, self.length, self.shift = cache, length, shift


class Runner:
    """The model on its device. Every call is made from the one thread that owns the device."""

    def __init__(self, checkpoint: Checkpoint, settings: ModelSettings) -> None:
        cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
        if cuda and not torch.cuda.is_available():
            raise EngineUnusable("The settings ask for a CUDA device and this machine shows none.")
        self.device = torch.device("cuda" if cuda else "cpu")
        self._spec = checkpoint.spec
        self._model = _load(checkpoint, settings.dtype, cuda)
        self._table = pixel_table(checkpoint).to(self.device)

    @torch.inference_mode()
    def prefill(self, prompt: Prompt) -> tuple[Sequence, torch.Tensor]:
        """Read a whole prompt; returns the sequence and the logits [vocabulary] of its next token."""
        seen = self._encode(prompt.pictures) if prompt.pictures else None
        cache = DynamicCache(config=self._model.config.text_config)
        output = self._model(
            input_ids=torch.from_numpy(prompt.ids)[None].to(self.device),
            position_ids=torch.from_numpy(prompt.positions)[:, None].to(self.device),
            past_key_values=cache,
            mm_encoder_outputs={"image": seen},
            logits_to_keep=1,
            use_cache=True,
        )
        return Sequence(cache, len(prompt.ids), prompt.shift), output.logits[0, -1]

    @torch.inference_mode()
    def step(self, sequence: Sequence, token: int) -> torch.Tensor:
        """Append one token; returns the logits [vocabulary] of the next."""
        position = torch.full((3, 1, 1), sequence.length + sequence.shift, device=self.device)
        output = self._model(
            input_ids=torch.tensor([[token]], device=self.device),
            position_ids=position,
            past_key_values=sequence.cache,
            logits_to_keep=1,
            use_cache=True,
        )
        sequence.length += 1
        return output.logits[0, -1]

    def _encode(self, pictures: tuple[Picture, ...]) -> Any:
        """The tower's output for all pictures of a prompt, deepstack features included."""
        pixels = torch.cat([self._pixels(picture) for picture in pictures])
        grids = torch.tensor([picture.grid for picture in pictures], device=self.device)
        return self._model.model.get_image_features(pixels, grids, return_dict=True)

    def _pixels(self, picture: Picture) -> torch.Tensor:
        """uint8 patches -> the processor's values [patches, channels * time * side * side], doubled in time."""
        side, time = self._spec.patch_size, self._spec.temporal_patch_size
        raw = torch.frombuffer(bytearray(picture.patches), dtype=torch.uint8).to(self.device).view(-1, 3, side * side)
        channels = torch.arange(3, device=self.device)[None, :, None]
        values = self._table[channels, raw.int()]
        return values[:, :, None].expand(-1, -1, time, -1).reshape(len(raw), -1)


def pixel_table(checkpoint: Checkpoint) -> torch.Tensor:
    """[3, 256] float32: what the image processor makes of each byte, computed by its own functions.

    They divide by the standard deviation; multiplying by its reciprocal would differ in the last bit.
    """
    bytes_ = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, None], (3, 1, 256))
    scaled = rescale(bytes_, checkpoint.rescale, dtype=np.dtype(np.float32))
    values = normalize(scaled, mean=checkpoint.image_mean, std=checkpoint.image_std, input_data_format="channels_first")
    return torch.from_numpy(np.ascontiguousarray(values[:, 0], dtype=np.float32))


def _load(checkpoint: Checkpoint, dtype: str, cuda: bool) -> Any:
    chosen = ("auto" if cuda else "float32") if dtype == "auto" else dtype
    transformers.utils.logging.disable_progress_bar()
    model_class = getattr(transformers, checkpoint.architecture)
    try:
        model, report = model_class.from_pretrained(
            checkpoint.folder,
            dtype=chosen if chosen == "auto" else getattr(torch, chosen),
            device_map="auto" if cuda else None,
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
