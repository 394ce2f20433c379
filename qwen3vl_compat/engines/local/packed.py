"""Linear layers on a CPU, with their weights in the order in which oneDNN reads them.

In bfloat16 a plain weight is put in that order again in every call. One that is kept in it halves the time of a decode
step's largest layer, the output layer (docs/performance.md).
"""

import torch


class PackedLinear(torch.nn.Module):
    """A linear layer that can only be called; its weight is opaque and its own.

    Without `pack` the weight stays as it is: of the same names and shapes, to be compiled for packed ones.
    """

    def __init__(self, plain: torch.nn.Linear, *, pack: bool = True) -> None:
        super().__init__()
        weight = plain.weight.detach()
        weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1) if pack else weight.clone()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = plain.bias

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        return torch.ops.mkldnn._linear_pointwise(values, self.weight, self.bias, "none", [], None)


def packable(dtype: torch.dtype) -> bool:
    """Whether packing helps: float32 layers are as fast without."""
    return dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack_linear(module: torch.nn.Module, *, pack: bool = True) -> None:
    """Replace the linear layers in a module. A weight that another layer reads too is kept for that one."""
    for name, child in list(module.named_children()):
        if type(child) is torch.nn.Linear:
            setattr(module, name, PackedLinear(child, pack=pack))
        else:
            pack_linear(child, pack=pack)
