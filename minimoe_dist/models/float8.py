"""Linear maps of frozen teachers in 8-bit floating point, for devices that multiply it.

Weights are quantised once, one scale an output; rows are quantised as they come, one scale a row
(its largest number becomes 448, the largest that e4m3 has). Products are summed in float32.
Elsewhere the same rounding is done and the product taken in float32: to measure what it changes,
not to train with.

Shapes: T rows, K inputs, N outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_DTYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(_DTYPE).max
_SMALLEST = 1e-12
_MULTIPLE = 16  # of inputs and outputs, as the hardware's products want


def multiplies_float8(device: torch.device) -> bool:
    """Tells whether a device has products of 8-bit floats (Ada, Hopper and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


class Float8Linear(nn.Module):
    """A linear map whose weights are 8-bit; without gradients.

    Args:
        linear: the exact map that it stands for; in and out are multiples of 16.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize_rows(linear.weight.detach().float())
        self.register_buffer("weight", weight)  # [N, K]
        self.register_buffer("weight_scale", scale.t().contiguous())  # float32 [1, N]
        bias = None if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)

    def forward(self, rows: Tensor) -> Tensor:
        """Maps […, K] to […, N] of the rows' type."""
        quantized, scale = quantize_rows(rows.flatten(0, -2))
        if quantized.is_cuda:
            result = torch._scaled_mm(
                quantized,
                self.weight.t(),
                scale_a=scale,
                scale_b=self.weight_scale,
                bias=self.bias,
                out_dtype=rows.dtype,
                use_fast_accum=True,
            )
        else:
            product = F.linear(quantized.float(), self.weight.float()) * scale * self.weight_scale
            result = product if self.bias is None else product + self.bias.float()
            result = result.to(rows.dtype)
        return result.unflatten(0, rows.shape[:-1])


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds rows [T, K] to 8 bits; returns them with the scale of each, float32 [T, 1]."""
    scale = rows.abs().amax(-1, keepdim=True).float().clamp(min=_SMALLEST) / _LARGEST
    return (rows.float() / scale).clamp(-_LARGEST, _LARGEST).to(_DTYPE), scale


def quantize_maps(module: nn.Module) -> int:
    """Replaces the linear maps inside of a frozen module, in place; returns how many."""
    count = 0
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear and _is_aligned(child):
            setattr(module, name, Float8Linear(child))
            count += 1
        else:
            count += quantize_maps(child)
    return count


def _is_aligned(linear: nn.Linear) -> bool:
    return linear.in_features % _MULTIPLE == 0 and linear.out_features % _MULTIPLE == 0
