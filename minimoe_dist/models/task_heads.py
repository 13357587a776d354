"""Students with a head for a task: a class or a number for a text, or a tag for every token.

A text's head is BERT's: the pooler (a map and tanh on the first position), dropout, a linear map.
Students leave distillation without a trained pooler; theirs is fresh, and learns with the task. A
token's head is dropout and a linear map. Keys are those of ``BertForSequenceClassification`` and
``BertForTokenClassification``. Dropout in the heads is a function of (seed, sample) too.

Shapes: B samples, S positions, H hidden size, C classes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .blocks import Dropout, RelationProjections
from .configuration import MiniMoeConfig
from .elastic import ElasticModel, ElasticPreTrainedModel
from .encoder import Layer
from .experts import RouterStatistics
from .masked_lm import ElasticForMaskedLM, MiniMoeForMaskedLM  # noqa: F401 (carried along)
from .moebert import MiniMoeModel, MiniMoePreTrainedModel
from .noise import NoiseKeys, sample_keys

_IGNORED_LABEL = -100


@dataclass
class TaskOutput(ModelOutput):
    """The outputs of a model with a task's head.

    Attributes:
        loss: a scalar, where labels were given.
        logits: [B, C], or [B, S, C] of tokens.
        hidden_states: the encoder's, where they were asked for.
        attentions: likewise.
        signals: query, key, value [B, S, H] for the relation loss, where they were asked for.
        routers: the routers' statistics.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    signals: tuple[Tensor, Tensor, Tensor] | None = None
    routers: tuple[RouterStatistics, ...] | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns what there is of BERT's outputs, in its order; others go by their names."""
        found = (self.loss, self.logits, self.hidden_states, self.attentions)
        return tuple(output for output in found if output is not None)


class _TaskModel:
    """The common part of the four classes; stands before a ``PreTrainedModel`` among their bases.

    Attributes:
        encoder_class: what the head stands on.
        tags_tokens: whether there is a prediction for each token, or one for the sample.
    """

    encoder_class: ClassVar[type[PreTrainedModel]]
    tags_tokens: ClassVar[bool]
    # transformers' trainer would else leave the mean over accumulated batches to the loss here.
    accepts_loss_kwargs: ClassVar[bool] = False
    config: MiniMoeConfig
    training: bool

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        config.with_pooler = not self.tags_tokens
        self.bert = self.encoder_class(config)
        dropout = getattr(config, "classifier_dropout", None)
        if dropout is None:
            dropout = config.hidden_dropout_prob
        # Behind the sites of all layers.
        site = 1 + Layer.sites * config.num_hidden_layers
        self.head_dropout = Dropout(dropout, site)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.relation: RelationProjections | None = None
        self.post_init()  # type: ignore[attr-defined]

    def add_relations(self) -> None:
        """Puts fresh relation projections on top, where the student has such, for distillation."""
        if self.config.relation_projections:
            self.relation = RelationProjections(self.config.hidden_size)

    def _encode(self, input_ids: Tensor | None, with_signals: bool, inputs: dict[str, Any]) -> Any:
        """Runs the encoder; returns its output, and the signals if they are wanted."""
        from_last_layer = with_signals and self.relation is None
        states = {"output_states": True} if from_last_layer else {}
        encoded = self.bert(input_ids, **states, **inputs)
        if not with_signals:
            return encoded, None
        if self.relation is None:
            return encoded, encoded.queries_keys_values
        return encoded, self.relation(encoded.last_hidden_state)

    def _classify(self, values: Tensor, sample_ids: Tensor | None, noise_seed: int) -> Tensor:
        """Maps [B, …, H] to logits [B, …, C], in float32."""
        if self.training and self.head_dropout.probability:
            if sample_ids is None:
                values = F.dropout(values, self.head_dropout.probability)
            else:
                rows = values.flatten(0, -2)
                positions = len(rows) // max(1, len(sample_ids))
                noise = NoiseKeys(sample_keys(noise_seed, sample_ids, positions), None)
                values = self.head_dropout(rows, noise).view_as(values)
        return self.classifier(values).float()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        sample_ids: Tensor | None = None,
        noise_seed: int = 0,
        with_signals: bool = False,
        **inputs: Any,
    ) -> TaskOutput:
        """Classifies texts, or tags tokens.

        Args:
            input_ids: int64 [B, S].
            attention_mask: of the encoder, like those up to ``inputs_embeds``.
            token_type_ids: see there.
            position_ids: see there.
            inputs_embeds: see there.
            labels: of texts by ``config.problem_type``, which follows from the first labels where
                it is not set: int64 [B]; float [B] or [B, C] of a regression, or where there is
                one class; float [B, C] of texts that may have several. Of tokens int64 [B, S],
                -100 where none counts.
            sample_ids: int64 [B]; dropout is a function of (noise_seed, sample).
            noise_seed: the run's seed.
            with_signals: also return what the relation loss compares.
            inputs: what else the encoder takes.
        """
        inputs |= {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs |= {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
        inputs |= {"sample_ids": sample_ids, "noise_seed": noise_seed, "return_dict": True}
        encoded, signals = self._encode(input_ids, with_signals, inputs)
        values = encoded.last_hidden_state if self.tags_tokens else encoded.pooler_output
        logits = self._classify(values, sample_ids, noise_seed)
        loss = None if labels is None else self._loss(logits, labels)
        return TaskOutput(
            loss, logits, encoded.hidden_states, encoded.attentions, signals, encoded.routers
        )

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Averages the loss over samples, or over the tokens that count."""
        if self.tags_tokens:
            return F.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED_LABEL
            )
        if self.config.problem_type is None:
            self.config.problem_type = self._kind_of(labels)
        if self.config.problem_type == "regression":
            predicted = logits.squeeze(-1)
            return F.mse_loss(predicted, labels.float().view_as(predicted))
        if self.config.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        return F.cross_entropy(logits, labels.view(-1))

    def _kind_of(self, labels: Tensor) -> str:
        """Says what labels are of, as BERT's classes do."""
        if self.config.num_labels == 1:
            return "regression"
        is_number = labels.dtype in (torch.long, torch.int)
        return "single_label_classification" if is_number else "multi_label_classification"


class MiniMoeForSequenceClassification(_TaskModel, MiniMoePreTrainedModel):
    """MiniMoE and plain students with a head for texts."""

    encoder_class, tags_tokens = MiniMoeModel, False


class MiniMoeForTokenClassification(_TaskModel, MiniMoePreTrainedModel):
    """MiniMoE and plain students with a head for tokens."""

    encoder_class, tags_tokens = MiniMoeModel, True


class ElasticForSequenceClassification(_TaskModel, ElasticPreTrainedModel):
    """Sliceable students with a head for texts, as wide as the whole model."""

    encoder_class, tags_tokens = ElasticModel, False


class ElasticForTokenClassification(_TaskModel, ElasticPreTrainedModel):
    """Sliceable students with a head for tokens, as wide as the whole model."""

    encoder_class, tags_tokens = ElasticModel, True
