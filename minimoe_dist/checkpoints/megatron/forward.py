"""Computes what a Megatron checkpoint does, as its ranks would, to compare with Hugging Face.

Written after what Megatron-LM's layers do with their own tensors, without a look at how the
converter renames, cuts and reorders them: each tensor rank looks up its rows of the vocabulary,
runs its heads and its feed-forward neurons, and the partial sums are added. So a weight under a
wrong name, heads in a wrong order or a wrong cut show as another output. It is in float32, without
dropout. Kernels of Megatron's own are not run.

Shapes: B samples, S positions, H hidden size, N heads of one rank, D numbers a head.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers import MegatronBertConfig
from transformers.activations import ACT2FN

from ...models.megatron.reading import MegatronCheckpoint
from ...models.pretrained import quiet_transformers

_SAMPLES, _LENGTH = 2, 32
_MASKED = -10000.0


@dataclass(frozen=True)
class Probe:
    """A random batch: ids and segments int64 [B, S], mask bool [B, S]."""

    ids: Tensor
    segments: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference of two sides' outputs, and their largest absolute value."""

    largest: float
    scale: float

    @property
    def is_rounding(self) -> bool:
        """Whether sums in another order explain the difference."""
        return self.largest <= 1e-3 * max(1.0, self.scale)


def random_probe(config: MegatronBertConfig, vocab_size: int, seed: int = 0) -> Probe:
    """Draws samples of two segments from the first ids, the last sample with padding."""
    generator = torch.Generator().manual_seed(seed)
    length = min(_LENGTH, config.max_position_embeddings)
    ids = torch.randint(0, vocab_size, (_SAMPLES, length), generator=generator)
    segments = torch.arange(length).ge(length // 2).long().expand_as(ids) % config.type_vocab_size
    mask = torch.arange(length) < torch.tensor([[length], [max(1, length - length // 4)]])
    return Probe(ids, segments, mask)


def differences(
    megatron: dict[str, Tensor], hugging_face: dict[str, Tensor]
) -> dict[str, Difference]:
    """Measures how far the two sides are apart, by the names of the outputs that both have."""
    distances = {}
    for name in megatron.keys() & hugging_face.keys():
        # Of logits, one side may have fewer rows of padding.
        width = min(megatron[name].shape[-1], hugging_face[name].shape[-1])
        expected = hugging_face[name][..., :width]
        largest = (megatron[name][..., :width] - expected).abs().nan_to_num(math.inf).max()
        distances[name] = Difference(float(largest), float(expected.abs().max()))
    return dict(sorted(distances.items()))


@torch.no_grad()
def hugging_face_outputs(
    folder: Path, name: str, config: MegatronBertConfig, probe: Probe, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Computes a transformers class's outputs at real positions, weights rounded to ``dtype``."""
    with quiet_transformers():
        model = getattr(transformers, name).from_pretrained(
            folder, config=config, dtype=torch.float32, weights_only=True
        )
    if dtype is not None:
        model = model.to(dtype).float()
    result = model.eval()(
        input_ids=probe.ids,
        attention_mask=probe.mask.long(),
        token_type_ids=probe.segments,
        output_hidden_states=True,
    )
    outputs = {"hidden states": result.hidden_states[-1][probe.mask]}
    for attribute, output in (
        ("prediction_logits", "masked-LM logits"),
        ("logits", "masked-LM logits"),
        ("seq_relationship_logits", "next-sentence logits"),
    ):
        if getattr(result, attribute, None) is not None:
            value = getattr(result, attribute)
            outputs[output] = value[probe.mask] if value.dim() == 3 else value
    return outputs


@torch.no_grad()
def megatron_outputs(
    checkpoint: MegatronCheckpoint,
    config: MegatronBertConfig,
    probe: Probe,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Computes a Megatron checkpoint's outputs at real positions, stage by stage, rank by rank."""
    norm_epsilon, activation = config.layer_norm_eps, ACT2FN[config.hidden_act]
    heads = checkpoint.sizes.num_attention_heads // checkpoint.files.tensor_parallel_size
    hidden, tables = torch.empty(0), [torch.empty(0)]
    outputs: dict[str, Tensor] = {}
    for stage in checkpoint.stages():
        ranks = [_Rank(weights, dtype, norm_epsilon) for weights in stage.ranks]
        if "embedding.word_embeddings.weight" in stage.ranks[0]:
            tables = [rank["embedding.word_embeddings.weight"] for rank in ranks]
            hidden = _embed(ranks[0], tables, probe)
        for layer in range(stage.num_layers):
            prefix = f"encoder.layers.{layer}."
            normed = ranks[0].norm(hidden, prefix + "input_layernorm")
            hidden = hidden + ranks[0][prefix + "self_attention.linear_proj.bias"]
            for rank in ranks:
                name = prefix + "self_attention."
                context = _attend(
                    rank.linear(normed, name + "linear_qkv"), heads, checkpoint.version, probe.mask
                )
                hidden = hidden + context @ rank[name + "linear_proj.weight"].T
            normed = ranks[0].norm(hidden, prefix + "pre_mlp_layernorm")
            hidden = hidden + ranks[0][prefix + "mlp.linear_fc2.bias"]
            for rank in ranks:
                inner = activation(rank.linear(normed, prefix + "mlp.linear_fc1"))
                hidden = hidden + inner @ rank[prefix + "mlp.linear_fc2.weight"].T
        if "encoder.final_layernorm.weight" in stage.ranks[0]:
            outputs = _heads(ranks, hidden, tables, probe, activation)
    return outputs


class _Rank:
    """A rank's weights in float32, after rounding to the type that they are converted to."""

    def __init__(
        self, weights: dict[str, Tensor], dtype: torch.dtype | None, epsilon: float
    ) -> None:
        self._weights, self._dtype, self._epsilon = weights, dtype, epsilon

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> Tensor:
        value = self._weights[name]
        return (value if self._dtype is None else value.to(self._dtype)).float()

    def linear(self, value: Tensor, name: str) -> Tensor:
        return F.linear(value, self[name + ".weight"], self[name + ".bias"])

    def norm(self, value: Tensor, name: str) -> Tensor:
        weight, bias = self[name + ".weight"], self[name + ".bias"]
        return F.layer_norm(value, weight.shape, weight, bias, self._epsilon)


def _embed(rank: _Rank, tables: list[Tensor], probe: Probe) -> Tensor:
    """Embeds the probe: each rank looks up the ids of its own rows; the others' give zeros."""
    looked_up, start = torch.zeros(()), 0
    for table in tables:
        is_local = (probe.ids >= start) & (probe.ids < start + table.shape[0])
        rows = table[(probe.ids - start).where(is_local, 0)]
        looked_up = looked_up + rows * is_local[..., None]
        start += table.shape[0]
    embedded = looked_up + rank["embedding.position_embeddings.weight"][: probe.ids.shape[1]]
    if "embedding.tokentype_embeddings.weight" in rank:
        embedded = embedded + rank["embedding.tokentype_embeddings.weight"][probe.segments]
    return embedded


def _attend(fused: Tensor, heads: int, version: float, mask: Tensor) -> Tensor:
    """Returns the context of one rank's heads, [B, S, N·D], of its projections [B, S, 3·N·D]."""
    size = fused.shape[-1] // (3 * heads)
    if version == 0:
        parts = [part.unflatten(-1, (heads, size)) for part in fused.chunk(3, -1)]
    elif version == 1:
        parts = list(fused.unflatten(-1, (heads, size, 3)).unbind(-1))
    else:
        parts = list(fused.unflatten(-1, (heads, 3 * size)).chunk(3, -1))
    query, key, value = (part.transpose(1, 2) for part in parts)
    scores = query @ key.transpose(-1, -2) / math.sqrt(size)
    scores = scores.masked_fill(~mask[:, None, None, :], _MASKED)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def _heads(
    ranks: list[_Rank],
    hidden: Tensor,
    word_tables: list[Tensor],
    probe: Probe,
    activation: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    first = ranks[0]
    final = first.norm(hidden, "encoder.final_layernorm")
    outputs = {"hidden states": final[probe.mask]}
    if "lm_head.dense.weight" in first:
        state = first.norm(activation(first.linear(final, "lm_head.dense")), "lm_head.layer_norm")
        again = "output_layer.weight"
        tables = [rank[again] for rank in ranks] if again in first else word_tables
        logits = [
            F.linear(state, table, rank["output_layer.bias"])
            for table, rank in zip(tables, ranks, strict=True)
        ]
        outputs["masked-LM logits"] = torch.cat(logits, -1)[probe.mask]
    if "binary_head.weight" in first and "pooler.dense.weight" in first:
        pooled = first.linear(final[:, 0], "pooler.dense").tanh()
        outputs["next-sentence logits"] = first.linear(pooled, "binary_head")
    return outputs
