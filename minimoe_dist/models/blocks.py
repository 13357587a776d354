"""What the encoders of this package share: embeddings, dropout, what stands on top.

Shapes: B samples, S positions, T packed tokens, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration import MiniMoeConfig
from .experts import RouterStatistics
from .noise import NoiseKeys
from .packing import Layout


@dataclass
class EncoderOutput(ModelOutput):
    """What an encoder returns.

    Attributes:
        last_hidden_state: [B, S, H], zeros at padding; [T, H] of a batch that came packed. None
            with ``projections_only``.
        pooler_output: [B, H], or None without a pooler, and of a batch that came packed.
        embedding_output: [B, S, H] after dropout, with ``output_states``.
        queries_keys_values: three [B, S, H] of the last layer, with ``projections_only`` or
            ``output_states``.
        routers: statistics per layer and expert block: attention before feed-forward.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    embedding_output: Tensor | None = None
    queries_keys_values: tuple[Tensor, Tensor, Tensor] | None = None
    routers: tuple[RouterStatistics, ...] | None = None


class StudentOutput(NamedTuple):
    """What a student's pass gives its objective; None where it was not asked for.

    Attributes:
        routers: the routers' statistics.
        signals: query, key, value [B, S, H] for the relation loss.
        states: what TinyBERT compares, mapped to the teacher's width.
        masked_lm_sum: summed cross entropy of masked tokens, a scalar.
        predicted: number of positions it is over.
    """

    routers: tuple[RouterStatistics, ...]
    signals: tuple[Tensor, Tensor, Tensor] | None = None
    states: Any = None
    masked_lm_sum: Tensor | None = None
    predicted: int = 0


def through(module: nn.Module, name: str, values: Tensor) -> Tensor:
    """``values`` through the part of that name, or as they are if the family has none there."""
    part = getattr(module, name, None)
    result: Tensor = values if part is None else part(values)
    return result


class Dropout:
    """A place in the network where dropout happens, with its number."""

    def __init__(self, probability: float, site: int) -> None:
        self.probability = probability
        self.site = site

    def __call__(self, values: Tensor, noise: NoiseKeys | None) -> Tensor:
        if noise is None or self.probability == 0.0:
            return values
        return noise.dropout(values, self.probability, self.site)


class Embeddings(nn.Module):
    """The sum of word, position and segment embeddings, on packed tokens."""

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__()
        size, padding = config.hidden_size, config.pad_token_id
        self.reads_segments = config.reads_segments
        # RoBERTa counts positions from its padding id on, which is itself the position of padding.
        self.first_position = padding if config.family == "roberta" else None
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding)
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, size, self.first_position
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        if not config.normalizes_input:
            self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob, site=0)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor, layout: Layout, noise: NoiseKeys | None
    ) -> Tensor:
        """Ids and segments in the batch's shape to [T, H]."""
        embedded = self.look_up(input_ids, token_type_ids, layout)
        return self.dropout(through(self, "LayerNorm", embedded), noise)

    def look_up(self, input_ids: Tensor, token_type_ids: Tensor, layout: Layout) -> Tensor:
        """The sum of the three tables' rows, [T, H]."""
        segments = token_type_ids if self.reads_segments else torch.zeros_like(input_ids)
        positions = layout.positions(input_ids, self.first_position)
        embedded = layout.embed(self.word_embeddings, layout.pack(input_ids))
        embedded = embedded + layout.embed(self.token_type_embeddings, layout.pack(segments))
        return embedded + layout.embed(self.position_embeddings, positions)


def projected(values: Tensor, maps: Sequence[nn.Linear]) -> Tensor:
    """``values`` through several maps at once, results side by side: one product, not several."""
    if any(each.weight.dim() != 2 for each in maps):
        # Shared out by ZeRO-3: a map's call brings its weights.
        return torch.cat([each(values) for each in maps], dim=-1)
    weight = torch.cat([each.weight for each in maps])
    return F.linear(values, weight, torch.cat([each.bias for each in maps]))


class Pooler(nn.Module):
    """BERT's pooler: a map and tanh on the first position."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, H] to [B, H]."""
        return torch.tanh(self.dense(hidden[:, 0]))


class RelationProjections(nn.Module):
    """Three H → H maps of the final hidden states."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[…, H] to three of them."""
        query, key, value = projected(hidden, (self.query, self.key, self.value)).chunk(3, -1)
        return query, key, value


class StudentPass(PreTrainedModel):
    """The pass of a student: its encoder, and what stands on that for its objective.

    Classes of students put themselves before their encoder's own base class. They make ``bert`` and
    say what is compared; a further part, such as a masked-LM head, extends :meth:`one_pass`.
    """

    bert: Any

    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        """Takes what the encoder takes."""
        return self.one_pass(input_ids, **inputs)

    def one_pass(self, input_ids: Tensor, **inputs: Any) -> StudentOutput:
        """What the objective compares, of one pass of the encoder."""
        return self.compared(self.encode(input_ids, **inputs))

    def encode(self, input_ids: Tensor, **inputs: Any) -> EncoderOutput:
        """A whole pass of the encoder, with all that :meth:`compared` reads."""
        raise NotImplementedError

    def compared(self, encoded: EncoderOutput) -> StudentOutput:
        """What the objective compares."""
        raise NotImplementedError


class RelationPass(StudentPass):
    """Queries, keys and values for the relation loss.

    They come from ``relation``, maps of the final hidden states, or, where a student has no such
    maps, from its last layer: then the pass stops there.
    """

    relation: RelationProjections | None

    def one_pass(self, input_ids: Tensor, **inputs: Any) -> StudentOutput:
        """The signals of one pass, which stops where they are."""
        stops_early = self.relation is None
        return self.compared(self.bert(input_ids, projections_only=stops_early, **inputs))

    def encode(self, input_ids: Tensor, **inputs: Any) -> EncoderOutput:
        """The whole encoder, not stopped where the signals are."""
        encoded: EncoderOutput = self.bert(input_ids, output_states=self.relation is None, **inputs)
        return encoded

    def compared(self, encoded: EncoderOutput) -> StudentOutput:
        """The signals of a pass."""
        signals = encoded.queries_keys_values
        if self.relation is not None:
            signals = self.relation(encoded.last_hidden_state)
        return StudentOutput(routers=encoded.routers or (), signals=signals)
