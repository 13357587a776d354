"""The layout of a batch's tokens, and that of padded batches without their padding.

An encoder works on packed tokens [T, …] and asks their layout for what needs to know which of them
belong together: attention, positions, keys of noise, the way to a block's experts. The layout here
comes from a padded batch and goes back to one, as CPUs like it; the one in `models.packed` never
pads.

Shapes: B samples, S positions, T packed tokens.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .experts import EveryExpertPlan, LocalDispatcher, Plan
from .noise import NoiseKeys, sample_keys

# Finite in float16 too, so that a sample of nothing but padding has no NaN in its unused rows.
_PADDING_SCORE = -30000.0


class Layout(Protocol):
    """Knows how packed tokens lie, and does what depends on it.

    Attributes:
        real: bool [T], which rows are tokens at all; None where all are.
    """

    real: Tensor | None

    def pack(self, values: Tensor) -> Tensor:
        """Packs what the batch gave for its positions as [T, …]."""

    def pad(self, packed: Tensor) -> Tensor:
        """Brings [T, …] into the shape that the batch has, the inverse of :meth:`pack`."""

    def positions(self, input_ids: Tensor | None, padding_id: int | None) -> Tensor:
        """Returns the positions of tokens, integers [T].

        They count from 0; with ``padding_id``, as RoBERTa does, from behind it, over tokens that
        are not it, which is itself the position of padding, or over all where there are no ids.
        """

    def embed(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        """Looks up the rows [T, H] of a table, for integers [T]."""

    def attend(
        self, projected: Tensor, heads: int, noise: NoiseKeys | None, dropout: float, site: int
    ) -> Tensor:
        """Computes scaled dot-product attention of each sample's tokens among themselves.

        Args:
            projected: queries, keys and values side by side, [T, 3 · heads · head size].
            heads: of these.
            noise: None outside training.
            dropout: probability of an attention probability to be dropped, in training.
            site: the dropout's number.

        Returns:
            The heads' contexts side by side, [T, heads · head size].
        """

    def noise(self, sample_ids: Tensor | None, seed: int) -> NoiseKeys:
        """Makes a training batch's keys from ``sample_ids`` int64 [B]; drawn at random if None."""

    def plan(self, expert: Tensor, num_experts: int) -> Plan:
        """Plans the way to a block's experts and back, where all experts are here."""


class Packing:
    """The layout of a padded batch, whose real tokens are packed.

    Args:
        attention_mask: bool [B, S].
        keep_padding: pack every position, as if all were real.
        keep_attentions: keep the probabilities of attention, in ``attentions``, [B, heads, S, S]
            of each layer in turn.
    """

    real: Tensor | None = None

    def __init__(
        self, attention_mask: Tensor, keep_padding: bool, keep_attentions: bool = False
    ) -> None:
        self.batch, self.length = attention_mask.shape
        self.attentions: list[Tensor] | None = [] if keep_attentions else None
        self.rows = None if keep_padding else self._rows(attention_mask.reshape(-1))
        bias = torch.zeros(attention_mask.shape, device=attention_mask.device)
        bias = bias.masked_fill(~attention_mask, _PADDING_SCORE)
        self.key_bias = bias[:, None, None, :]

    def _rows(self, mask: Tensor) -> Tensor | None:
        """Returns the flat indices of the real tokens; None where all are."""
        return None if bool(mask.all()) else mask.nonzero().squeeze(-1)

    def pack(self, values: Tensor) -> Tensor:
        """Packs [B, S, …] as [T, …]."""
        flat = values.flatten(0, 1)
        return flat if self.rows is None else flat.index_select(0, self.rows)

    def pad(self, packed: Tensor) -> Tensor:
        """Pads [T, …] to [B, S, …] with zeros."""
        if self.rows is None:
            flat = packed
        else:
            shape = (self.batch * self.length, *packed.shape[1:])
            flat = packed.new_zeros(shape).index_copy(0, self.rows, packed)
        return flat.unflatten(0, (self.batch, self.length))

    def positions(self, input_ids: Tensor | None, padding_id: int | None) -> Tensor:
        if padding_id is None or input_ids is None:
            first = 0 if padding_id is None else padding_id + 1
            positions = torch.arange(first, first + self.length, device=self.key_bias.device)
            return self.pack(positions.expand(self.batch, self.length))
        counts = (input_ids != padding_id).long()
        return self.pack(counts.cumsum(1) * counts + padding_id)

    def embed(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        rows: Tensor = table(ids)
        return rows

    def attend(
        self, projected: Tensor, heads: int, noise: NoiseKeys | None, dropout: float, site: int
    ) -> Tensor:
        by_head = self.pad(projected).unflatten(-1, (3, heads, -1))
        query, key, value = by_head.permute(2, 0, 3, 1, 4)
        bias = self.key_bias.to(query.dtype)
        if (noise is None or dropout == 0.0) and self.attentions is None:
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        else:
            scores = query @ key.transpose(-1, -2) * (1.0 / math.sqrt(query.shape[-1])) + bias
            probabilities = scores.softmax(-1)
            if noise is not None and dropout > 0.0:
                probabilities = noise.dropout_attention(probabilities, dropout, site)
            if self.attentions is not None:
                self.attentions.append(probabilities)
            context = probabilities @ value
        return self.pack(context.transpose(1, 2).flatten(2))

    def noise(self, sample_ids: Tensor | None, seed: int) -> NoiseKeys:
        device = self.key_bias.device
        if sample_ids is None:
            sample_ids = torch.randint(2**62, (self.batch,)).to(device)
        return NoiseKeys(sample_keys(seed, sample_ids, self.length), self.rows)

    def plan(self, expert: Tensor, num_experts: int) -> Plan:
        return LocalDispatcher().plan(expert, num_experts)


class FixedPacking(Packing):
    """The layout of a padded batch where no size may depend on its values, for compilers.

    Padding stays among the rows, and every expert computes all of them: E times the products, in
    one graph. Results are those of :class:`Packing` but for their rounding.
    """

    def __init__(
        self, attention_mask: Tensor, keep_padding: bool, keep_attentions: bool = False
    ) -> None:
        super().__init__(attention_mask, keep_padding, keep_attentions)
        self.real = None if keep_padding else attention_mask.reshape(-1)

    def _rows(self, mask: Tensor) -> Tensor | None:
        return None

    def pad(self, packed: Tensor) -> Tensor:
        if self.real is not None:
            packed = packed * self.real.unsqueeze(-1).to(packed.dtype)
        return super().pad(packed)

    def plan(self, expert: Tensor, num_experts: int) -> Plan:
        return EveryExpertPlan(expert, num_experts)


def layout_of(attention_mask: Tensor, *, keep_padding: bool, keep_attentions: bool) -> Packing:
    """Lays out a padded batch; arguments are those of :class:`Packing`."""
    is_compiled = torch.compiler.is_compiling()
    kind = FixedPacking if is_compiled else Packing
    return kind(attention_mask, keep_padding, keep_attentions)
