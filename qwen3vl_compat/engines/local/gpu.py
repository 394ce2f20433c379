"""What this GPU, this torch and this machine's compilers really support, found out at start by trying it."""

import logging
from collections.abc import Sequence as Items

import torch

from qwen3vl_compat.engines.local.captured import Captured
from qwen3vl_compat.engines.local.decoding import Decoding
from qwen3vl_compat.engines.local.memory import Shape
from qwen3vl_compat.engines.local.pages import Kernel, Pages, gathered

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""How far the kernel may be from gathered attention over values of spread 1, where rounding alone accounts for it."""


def kernel_for(shape: Shape, heads: int, size: int, device: torch.device) -> Kernel | None:
    """The paged kernel, if it runs here and says what attention over gathered blocks says; else None, with the reason
    in the log.
    """
    try:
        from qwen3vl_compat.engines.local import paged_attention as paged

        if not paged.fits(size, shape.width):
            raise ValueError(f"it takes no blocks of {size} tokens with heads of {shape.width}")
        off = _difference(paged.paged_attention, shape, heads, size, device)
        if not off <= TOLERANCE[shape.dtype]:
            raise ValueError(f"its answers are off by {off:.1e}")
    except Exception as error:  # whatever Triton, its compiler and the driver may raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning("decoding runs without the paged kernel and without CUDA graphs: %s", reason)
        return None
    return paged.paged_attention


def _difference(kernel: Kernel, shape: Shape, heads: int, size: int, device: torch.device) -> float:
    dice = torch.Generator(device).manual_seed(0)

    def drawn(*parts: int) -> torch.Tensor:
        return torch.randn(parts, generator=dice, device=device).to(shape.dtype)

    keys, values = (drawn(9, shape.kv_heads, size, shape.width) for _ in range(2))
    tables = torch.tensor([[3, 1, 4], [5, 8, 2], [6, 0, 7]], dtype=torch.int32, device=device)
    ends = torch.tensor([1, size + 3, 3 * size], dtype=torch.int32, device=device)
    query = drawn(3, heads, shape.width)
    whole = gathered(query, keys, values, tables, ends)
    return float((kernel(query, keys, values, tables, ends).float() - whole.float()).abs().max())


@torch.inference_mode()
def capture(step: Decoding, pages: Pages, rows: int, context: int) -> Captured | None:
    """The decode step as CUDA graphs; None, with the reason in the log, where it cannot be captured."""
    try:
        return Captured(step, rows, -(-context // pages.size), pages.spare, pages.layers)
    except torch.AcceleratorError:
        raise
    except Exception as error:
        log.warning("decoding runs without CUDA graphs: %s", (str(error).splitlines() or [type(error).__name__])[0])
        return None


def room(shape: Shape, devices: Items[torch.device], share: float, aside: int) -> int:
    """Tokens of keys and values there is room for in a share of what the weights leave free.

    `devices` is each layer's; `aside` bytes of the first are for pictures.
    """
    layer_bytes = shape.token_bytes // shape.layers
    rooms: list[int] = []
    for device in set(devices):
        free, _ = torch.cuda.mem_get_info(device)
        left = share * free - (aside if device == devices[0] else 0)
        rooms.append(int(left) // (layer_bytes * devices.count(device)))
    return max(0, min(rooms))
