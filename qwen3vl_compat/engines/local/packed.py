"""Linear layers on a CPU, with their weights in the order in which oneDNN reads them.

In bfloat16 a plain weight is put in that order again in every call. One that is kept in it halves the time of a decode
step's largest layer, the output layer (docs/performance.md).
"""

import torch


class PackedLinear(torch.nn.Module):
    """A linear layer that can only be called; its weight is opaque and its own."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach().contiguous(), 1)
        self._bias = None if plain.bias is None else plain.bias.detach()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        return torch.ops.mkldnn._linear_pointwise(values, self._weight, self._bias, "none", [], None)


def pack(model: torch.nn.Module) -> None:
    """Replace the linear layers of a bfloat16 model. A weight that another layer reads too is kept for that one."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes != {torch.bfloat16} or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(module, name, PackedLinear(child))
