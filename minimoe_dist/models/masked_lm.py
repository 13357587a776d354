"""BERT's masked-LM head, and students with it that predict tokens.

The head is BERT's: a map, its activation and LayerNorm, then the word embeddings as decoder, with a
bias of its own. Keys are those of ``BertForMaskedLM`` (``cls.predictions.…``) in every family. How
students are trained with it is in ``mlm_head``.

Shapes: B samples, S positions, N rows, H hidden size, V vocabulary.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from .configuration import MiniMoeConfig
from .elastic import ElasticModel, ElasticPreTrainedModel
from .moebert import MiniMoeModel, MiniMoePreTrainedModel

_IGNORED_LABEL = -100


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
        config: of the student.
    """

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__()
        self.transform = _Transform(config.hidden_size, config.hidden_act, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, rows: Tensor, decoder_weight: Tensor) -> Tensor:
        """Predicts the vocabulary's logits: [..., H] to [..., V], by the word embeddings [V, H]."""
        return F.linear(self.transform(rows), decoder_weight, self.bias)

    def resize(self, vocab_size: int) -> None:
        """Gives the bias of so many tokens; new ones get 0."""
        missing = vocab_size - len(self.bias)
        self.bias = nn.Parameter(F.pad(self.bias.detach(), (0, missing)))


class WithMaskedLmHead:
    """A student with the head. Stands before a ``PreTrainedModel`` among a class's bases."""

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.cls = nn.ModuleDict({"predictions": MaskedLmHead(config)})
        self.post_init()  # type: ignore[attr-defined]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, MaskedLmHead):
            init.zeros_(module.bias)
        super()._init_weights(module)  # type: ignore[misc]

    def decoder_weight(self, sparsity: str | None = None) -> Tensor:
        """Returns the word embeddings, [V, H]; a sub-model's where the student has some."""
        encoder: Any = self.bert  # type: ignore[attr-defined]
        weight: Tensor = encoder.embeddings.word_embeddings.weight
        if not isinstance(encoder, ElasticModel):
            assert sparsity is None, "only sliceable students have sub-models"
            return weight
        # The head reads hidden states in their original order, and zeros where there are none.
        return encoder.recover(weight[:, : encoder.shape_of(sparsity).hidden])


class _Encoder:
    """The encoder of a student with the head. Stands before a ``PreTrainedModel`` too."""

    encoder_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        config.with_pooler = False
        self.bert = self.encoder_class(config)


class _MaskedLm(WithMaskedLmHead, _Encoder):
    """The common part of both classes."""

    # transformers reads plain lists. Exports also carry the maps of the relation loss.
    _keys_to_ignore_on_load_unexpected = [r"^relation\."]  # noqa: RUF012
    # transformers' trainer would else leave the mean over accumulated batches to the loss here.
    accepts_loss_kwargs: ClassVar[bool] = False

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> MaskedLMOutput:
        """Predicts every token.

        Args:
            input_ids: int64 [B, S].
            attention_mask: of the encoder, like those up to ``inputs_embeds``.
            token_type_ids: see there.
            position_ids: see there.
            inputs_embeds: see there.
            labels: int64 [B, S], -100 where nothing is to be predicted.
            inputs: what else the encoder takes.
        """
        inputs |= {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs |= {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
        encoded: Any = self.bert(input_ids, **inputs | {"return_dict": True})
        head, weight = self.cls["predictions"], self.decoder_weight()
        logits = head(encoded.last_hidden_state, weight)
        loss = None
        if labels is not None:
            rows, targets = logits.flatten(0, 1).float(), labels.flatten()
            loss = F.cross_entropy(rows, targets, ignore_index=_IGNORED_LABEL)
        return MaskedLMOutput(loss, logits, encoded.hidden_states, encoded.attentions)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *arguments: Any, **options: Any
    ) -> nn.Embedding:
        """Resizes the vocabulary as every model of transformers does, and the head's bias."""
        resize = super().resize_token_embeddings  # type: ignore[misc]
        embeddings: nn.Embedding = resize(new_num_tokens, *arguments, **options)
        head: Any = self.cls["predictions"]
        head.resize(embeddings.num_embeddings)
        return embeddings


class MiniMoeForMaskedLM(_MaskedLm, MiniMoePreTrainedModel):
    """MiniMoE and plain students that predict tokens."""

    encoder_class = MiniMoeModel


class ElasticForMaskedLM(_MaskedLm, ElasticPreTrainedModel):
    """Sliceable students that predict tokens."""

    encoder_class = ElasticModel
