"""BERT's masked-LM head, and students that are trained with it.

The head is BERT's: a map, its activation and LayerNorm, then the word embeddings as decoder, with a
bias of its own. Keys are those of ``BertForMaskedLM`` (``cls.predictions.…``) in every family.

Shapes: B samples, S positions, N masked positions, H hidden size, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from ..objectives.mlm import masked_lm_loss_sum, masked_rows, packed_masked_lm_loss_sum
from .blocks import StudentOutput, StudentPass
from .configuration import MiniMoeConfig
from .elastic import ElasticForRelations, ElasticModel
from .moebert import MiniMoeForRelations


class _Transform(nn.Module):
    """``transform`` of BERT's naming."""

    def __init__(self, size: int, activation: str, epsilon: float) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size)
        self.activation = ACT2FN[activation]
        self.LayerNorm = nn.LayerNorm(size, eps=epsilon)

    def forward(self, rows: Tensor) -> Tensor:
        transformed: Tensor = self.LayerNorm(self.activation(self.dense(rows)))
        return transformed


class MaskedLmHead(nn.Module):
    """``cls.predictions`` of BERT's naming; the decoder's weight is given to each call.

    Args:
        hidden_size: H.
        vocab_size: V.
        activation: of the transform.
        epsilon: of its LayerNorm.
    """

    def __init__(self, hidden_size: int, vocab_size: int, activation: str, epsilon: float) -> None:
        super().__init__()
        self.transform = _Transform(hidden_size, activation, epsilon)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor,
        decoder_weight: Tensor,
        predicted_rows: Tensor | None = None,
    ) -> tuple[Tensor, int]:
        """Computes the summed cross entropy, and the number of positions it is over.

        Args:
            hidden: [B, S, H], final hidden states; [T, H] with ``predicted_rows``.
            labels: int64 [B, S], -100 where nothing is to be predicted; int32 [N] with
                ``predicted_rows``.
            decoder_weight: [V, H], the word embeddings.
            predicted_rows: int32 [N], of a batch that came packed; then the number is N, also
                where labels do not count.
        """
        if predicted_rows is not None:
            rows = self.transform(hidden.index_select(0, predicted_rows))
            arguments = (rows, labels, decoder_weight, self.bias)
            return packed_masked_lm_loss_sum(*arguments), len(labels)
        rows, targets = masked_rows(hidden, labels)
        return masked_lm_loss_sum(self.transform(rows), targets, decoder_weight, self.bias)

    def logits(self, rows: Tensor, decoder_weight: Tensor) -> Tensor:
        """Predicts the vocabulary's logits of a few rows: [N, H] to [N, V]."""
        return F.linear(self.transform(rows), decoder_weight, self.bias)


class MaskedLmPass(StudentPass):
    """BERT's masked-LM head on a student, beside what its objective compares.

    Stands before the class of the student without the head.
    """

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__(config)
        head = MaskedLmHead(
            config.hidden_size, config.vocab_size, config.hidden_act, config.layer_norm_eps
        )
        self.cls = nn.ModuleDict({"predictions": head})
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, MaskedLmHead):
            init.zeros_(module.bias)
        super()._init_weights(module)

    def one_pass(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        compares: bool = True,
        predicted_rows: Tensor | None = None,
        **inputs: Any,
    ) -> StudentOutput:
        """Predicts what was masked; without labels, does what the student without a head does.

        Args:
            input_ids: int64 [B, S], or [T] of a batch that comes packed.
            labels: int64 [B, S], -100 where nothing is to be predicted, or [N].
            predicted_rows: int32 [N], whose token is to be predicted, of a batch that comes packed.
            compares: also give what the student without a head gives.
            inputs: what the encoder takes.
        """
        if labels is None:
            return super().one_pass(input_ids, **inputs)
        if compares:
            encoded = self.encode(input_ids, **inputs)
            output = self.student_output(encoded)
        else:
            encoded = self.bert(input_ids, output_routers=True, **inputs)
            output = StudentOutput(routers=encoded.routers or ())
        loss_sum, predicted = self.cls["predictions"](
            encoded.last_hidden_state,
            labels,
            self.decoder_weight(inputs.get("sparsity")),
            predicted_rows,
        )
        return output._replace(masked_lm_sum=loss_sum, predicted=predicted)

    def decoder_weight(self, sparsity: str | None) -> Tensor:
        """Returns the word embeddings, [V, H]; a sub-model's where the student has some."""
        assert sparsity is None, "only sliceable students have sub-models"
        weight: Tensor = self.bert.embeddings.word_embeddings.weight
        return weight


class MiniMoeForMaskedLM(MaskedLmPass, MiniMoeForRelations):
    """A student with a masked-LM head, and what the relation loss compares if it is wanted too."""


class ElasticForMaskedLM(MaskedLmPass, ElasticForRelations):
    """A sliceable BERT with a masked-LM head, on which importances of elements are measured.

    The head reads hidden states in their original order and its decoder is the word embeddings,
    brought into that order too; so reordering leaves the predictions as they are.
    """

    def decoder_weight(self, sparsity: str | None) -> Tensor:
        """Returns [V, H], the word embeddings; zeros where the sub-model has no dimension."""
        encoder = self.bert
        assert isinstance(encoder, ElasticModel)
        hidden = encoder.shape_of(sparsity).hidden
        return encoder.recover(encoder.embeddings.word_embeddings.weight[:, :hidden])
