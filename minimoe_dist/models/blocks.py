"""Building blocks of the package's encoders: embeddings, dropout, and what stands on top.

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
from .packing import Layout, Packing, layout_of


@dataclass
class EncoderOutput(ModelOutput):
    """The outputs of an encoder's pass.

    Attributes:
        last_hidden_state: [B, S, H], zeros at padding; [T, H] of a batch that came packed. None
            with ``projections_only``.
        pooler_output: [B, H], or None without a pooler, and of a batch that came packed.
        hidden_states: with ``output_hidden_states``, one more than there are layers: the
            embeddings' output and each layer's, shaped as the last one, which is among them.
        attentions: with ``output_attentions``, each layer's [B, heads, S, S], behind dropout.
        embedding_output: [B, S, H] after dropout, with ``output_states``.
        queries_keys_values: three [B, S, H] of the last layer, with ``projections_only`` or
            ``output_states``.
        routers: statistics per layer and expert block, attention before feed-forward, with
            ``output_routers``; sums over the batch.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    embedding_output: Tensor | None = None
    queries_keys_values: tuple[Tensor, Tensor, Tensor] | None = None
    routers: tuple[RouterStatistics, ...] | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns what there is of BertModel's outputs, in its order; others go by their names."""
        found = (self.last_hidden_state, self.pooler_output, self.hidden_states, self.attentions)
        return tuple(output for output in found if output is not None)


class AskedOutputs(NamedTuple):
    """Which of the outputs that are not always there a caller asked for."""

    hidden_states: bool
    attentions: bool


def asked_outputs(
    config: MiniMoeConfig, hidden_states: bool | None, attentions: bool | None
) -> AskedOutputs:
    """Returns what is asked for: by a pass's arguments, or else by its model's configuration."""
    if hidden_states is None:
        hidden_states = config.output_hidden_states
    if attentions is None:
        attentions = config.output_attentions
    return AskedOutputs(bool(hidden_states), bool(attentions))


class StudentOutput(NamedTuple):
    """The outputs of a student's pass that its objective reads; None where not asked for.

    Attributes:
        routers: the routers' statistics.
        signals: query, key, value [B, S, H] for the relation loss.
        last_states: [B, S, W], mapped to the teacher's width.
        states: what TinyBERT compares, mapped to the teacher's width.
        masked_lm_sum: summed cross entropy of masked tokens, a scalar.
        predicted: number of positions it is over.
    """

    routers: tuple[RouterStatistics, ...]
    signals: tuple[Tensor, Tensor, Tensor] | None = None
    last_states: Tensor | None = None
    states: Any = None
    masked_lm_sum: Tensor | None = None
    predicted: int = 0


def apply_if_present(module: nn.Module, name: str, values: Tensor) -> Tensor:
    """Applies the submodule ``name``; where the family has none there, returns ``values``."""
    submodule = getattr(module, name, None)
    result: Tensor = values if submodule is None else submodule(values)
    return result


class Dropout:
    """Dropout at one place in the network, whose number (the site) selects its random bits."""

    def __init__(self, probability: float, site: int) -> None:
        self.probability = probability
        self.site = site

    def __call__(self, values: Tensor, noise: NoiseKeys | None) -> Tensor:
        if noise is None or self.probability == 0.0:
            return values
        return noise.dropout(values, self.probability, self.site)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Sets the dropout of all places of an encoder; its configuration stays as it is."""
    for module in model.modules():
        for part in vars(module).values():
            if isinstance(part, Dropout):
                part.probability = probability


class TokenInputs(NamedTuple):
    """The tokens of a batch, in its shape: [B, S], or [T] where it came packed.

    Attributes:
        ids: integers; None where ``embedded`` stands for them.
        segments: integers.
        positions: integers, also [1, S]; None means that the family counts them.
        embedded: [B, S, H], instead of the ids' rows of the table of words.
    """

    ids: Tensor | None
    segments: Tensor
    positions: Tensor | None = None
    embedded: Tensor | None = None

    @classmethod
    def of(
        cls,
        ids: Tensor | None,
        segments: Tensor | None,
        positions: Tensor | None,
        embedded: Tensor | None,
    ) -> "TokenInputs":
        """Makes it of an encoder's arguments.

        Raises:
            ValueError: neither ids nor embeddings, or both.
        """
        if (ids is None) == (embedded is None):
            raise ValueError("give input_ids or inputs_embeds, one of them")
        if segments is None:
            like = ids if embedded is None else embedded[..., 0]
            assert like is not None
            segments = torch.zeros_like(like, dtype=torch.long)
        return cls(ids, segments, positions, embedded)

    def lay_out(
        self, attention_mask: Tensor | None, *, keep_padding: bool, keep_attentions: bool
    ) -> Packing:
        """Lays out a batch that came padded.

        Args:
            attention_mask: bool or int [B, S]; None means no padding.
            keep_padding: pack every position, as if all were real.
            keep_attentions: keep the probabilities of attention.

        Raises:
            ValueError: a mask of another shape.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(self.segments)
        elif attention_mask.shape != self.segments.shape:
            raise ValueError(
                f"attention_mask has shape {list(attention_mask.shape)}, but the batch is "
                f"{list(self.segments.shape)}: give one value for each token"
            )
        return layout_of(
            attention_mask.bool(), keep_padding=keep_padding, keep_attentions=keep_attentions
        )


class HiddenStates:
    """Keeps the states between layers, where they are wanted, in the batch's shape.

    What is kept lies on the way from one layer to the next, so that gradients reach it.

    Args:
        layout: of the batch.
        wanted: whether to keep any.
    """

    def __init__(self, layout: Layout, wanted: bool) -> None:
        self._layout = layout
        self._kept: list[Tensor] | None = [] if wanted else None

    def keep(self, hidden: Tensor) -> Tensor:
        """Keeps [T, H], and returns it."""
        if self._kept is None:
            return hidden
        padded = self._layout.pad(hidden)
        self._kept.append(padded)
        return self._layout.pack(padded)

    def ending_with(self, padded: Tensor) -> tuple[Tensor, ...] | None:
        """Returns what was kept with the last states behind it; None where none are wanted."""
        return None if self._kept is None else (*self._kept, padded)


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

    def forward(self, tokens: TokenInputs, layout: Layout, noise: NoiseKeys | None) -> Tensor:
        """Embeds a batch as [T, H]."""
        embedded = self.look_up(tokens, layout)
        return self.dropout(apply_if_present(self, "LayerNorm", embedded), noise)

    def look_up(self, tokens: TokenInputs, layout: Layout) -> Tensor:
        """Sums the three tables' rows, [T, H], before LayerNorm and dropout."""
        segments = tokens.segments
        if not self.reads_segments:
            segments = torch.zeros_like(segments)
        if tokens.positions is None:
            positions = layout.positions(tokens.ids, self.first_position)
        else:
            positions = layout.pack(tokens.positions.expand_as(segments))
        if tokens.embedded is not None:
            embedded = layout.pack(tokens.embedded)
        else:
            assert tokens.ids is not None
            embedded = layout.embed(self.word_embeddings, layout.pack(tokens.ids))
        embedded = embedded + layout.embed(self.token_type_embeddings, layout.pack(segments))
        return embedded + layout.embed(self.position_embeddings, positions)


def project_jointly(values: Tensor, linears: Sequence[nn.Linear]) -> Tensor:
    """Applies several linear maps in one product; their results lie side by side."""
    if any(linear.weight.dim() != 2 for linear in linears):
        # Shared out by ZeRO-3: a map's call brings its weights.
        return torch.cat([linear(values) for linear in linears], dim=-1)
    weight = torch.cat([linear.weight for linear in linears])
    return F.linear(values, weight, torch.cat([linear.bias for linear in linears]))


class Pooler(nn.Module):
    """BERT's pooler: a map and tanh on the first position."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps [B, S, H] to [B, H]."""
        return torch.tanh(self.dense(hidden[:, 0]))


class RelationProjections(nn.Module):
    """Three H → H maps that make queries, keys and values of the final hidden states."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps […, H] to query, key and value, each […, H]."""
        linears = (self.query, self.key, self.value)
        query, key, value = project_jointly(hidden, linears).chunk(3, -1)
        return query, key, value


class StudentPass(PreTrainedModel):
    """The pass of a student: its encoder, and what stands on that for its objective.

    Classes of students put themselves before their encoder's own base class. They make ``bert`` and
    give :meth:`student_output`; a further part, such as a masked-LM head, extends :meth:`one_pass`.
    """

    bert: Any

    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        """Runs one pass; takes what the encoder takes."""
        return self.one_pass(input_ids, **inputs)

    def one_pass(self, input_ids: Tensor, **inputs: Any) -> StudentOutput:
        """Runs the encoder once and returns what the objective compares."""
        return self.student_output(self.encode(input_ids, **inputs))

    def encode(self, input_ids: Tensor, **inputs: Any) -> EncoderOutput:
        """Runs the whole encoder, with all outputs that :meth:`student_output` reads."""
        raise NotImplementedError

    def student_output(self, encoded: EncoderOutput) -> StudentOutput:
        """Makes what the objective compares out of the encoder's output."""
        raise NotImplementedError


class RelationPass(StudentPass):
    """The pass of a student that gives queries, keys and values for the relation loss.

    They come from ``relation``, maps of the final hidden states, or, where a student has no such
    maps, from its last layer: then the pass stops there. With ``state_map`` it goes on, to last
    states of the teacher's width.
    """

    relation: RelationProjections | None
    state_map: nn.Linear | None

    def one_pass(self, input_ids: Tensor, **inputs: Any) -> StudentOutput:
        """Runs the encoder up to what the objective compares and no further."""
        if self.state_map is not None:
            return self.student_output(self.encode(input_ids, **inputs))
        stops_early = self.relation is None
        encoded = self.bert(input_ids, projections_only=stops_early, output_routers=True, **inputs)
        return self.student_output(encoded)

    def encode(self, input_ids: Tensor, **inputs: Any) -> EncoderOutput:
        """Runs the whole encoder, also where the signals would end the pass earlier."""
        encoded: EncoderOutput = self.bert(
            input_ids, output_states=self.relation is None, output_routers=True, **inputs
        )
        return encoded

    def student_output(self, encoded: EncoderOutput) -> StudentOutput:
        """Returns what the objective compares of a pass, and its routers' statistics."""
        signals = encoded.queries_keys_values
        if self.relation is not None:
            signals = self.relation(encoded.last_hidden_state)
        states = None if self.state_map is None else self.state_map(encoded.last_hidden_state)
        return StudentOutput(encoded.routers or (), signals, states)
