"""Padded batches without their padding.

Shapes: B samples, S positions, T packed tokens.
"""

import torch
from torch import Tensor

# Finite in float16 too, so that a sample of nothing but padding has no NaN in its unused rows.
_PADDING_SCORE = -30000.0


class Packing:
    """The real tokens of a padded batch, and the way there and back.

    Args:
        attention_mask: bool [B, S].
        keep_padding: pack every position, as if all were real.
    """

    def __init__(self, attention_mask: Tensor, keep_padding: bool) -> None:
        self.batch, self.length = attention_mask.shape
        packed = attention_mask.reshape(-1)
        whole = keep_padding or bool(packed.all())
        self.rows = None if whole else packed.nonzero().squeeze(-1)
        bias = torch.zeros(attention_mask.shape, device=attention_mask.device)
        bias = bias.masked_fill(~attention_mask, _PADDING_SCORE)
        self.key_bias = bias[:, None, None, :]

    def pack(self, padded: Tensor) -> Tensor:
        """[B, S, …] to [T, …]."""
        flat = padded.flatten(0, 1)
        return flat if self.rows is None else flat.index_select(0, self.rows)

    def pad(self, packed: Tensor) -> Tensor:
        """[T, …] to [B, S, …] with zeros at padding."""
        if self.rows is None:
            flat = packed
        else:
            shape = (self.batch * self.length, *packed.shape[1:])
            flat = packed.new_zeros(shape).index_copy(0, self.rows, packed)
        return flat.unflatten(0, (self.batch, self.length))
