"""Students that are trained with a masked-LM head, beside what their objective compares.

Shapes: B samples, S positions, N masked positions, H hidden size, V vocabulary.
"""

from typing import Any

from torch import Tensor

from ..objectives.mlm import masked_lm_loss_sum, masked_rows, packed_masked_lm_loss_sum
from .blocks import StudentOutput, StudentPass
from .elastic import ElasticForRelations
from .masked_lm import MaskedLmHead, WithMaskedLmHead
from .moebert import MiniMoeForRelations


class MaskedLmPass(WithMaskedLmHead, StudentPass):
    """BERT's masked-LM head on a student, beside what its objective compares.

    Stands before the class of the student without the head.
    """

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
        head: Any = self.cls["predictions"]
        hidden, weight = encoded.last_hidden_state, self.decoder_weight(inputs.get("sparsity"))
        assert hidden is not None
        loss_sum, predicted = _loss_sum(head, hidden, labels, weight, predicted_rows)
        return output._replace(masked_lm_sum=loss_sum, predicted=predicted)


def _loss_sum(
    head: MaskedLmHead,
    hidden: Tensor,
    labels: Tensor,
    decoder_weight: Tensor,
    predicted_rows: Tensor | None,
) -> tuple[Tensor, int]:
    """Computes the summed cross entropy, and the number of positions it is over.

    Args:
        head: of the student.
        hidden: [B, S, H], final hidden states; [T, H] with ``predicted_rows``.
        labels: int64 [B, S], -100 where nothing is to be predicted; int32 [N] with
            ``predicted_rows``.
        decoder_weight: [V, H], the word embeddings.
        predicted_rows: int32 [N], of a batch that came packed; then the number is N, also where
            labels do not count.
    """
    if predicted_rows is not None:
        rows = head.transform(hidden.index_select(0, predicted_rows))
        return packed_masked_lm_loss_sum(rows, labels, decoder_weight, head.bias), len(labels)
    rows, targets = masked_rows(hidden, labels)
    return masked_lm_loss_sum(head.transform(rows), targets, decoder_weight, head.bias)


class MiniMoeForRelationsAndMaskedLM(MaskedLmPass, MiniMoeForRelations):
    """A student with a masked-LM head, and what the relation loss compares if it is wanted too."""


class ElasticForRelationsAndMaskedLM(MaskedLmPass, ElasticForRelations):
    """A sliceable BERT with a masked-LM head, on which importances of elements are measured.

    Its decoder is the word embeddings in the original order of their dimensions; so reordering
    leaves the predictions as they are.
    """
