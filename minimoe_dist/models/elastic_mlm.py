"""A sliceable BERT with BERT's masked-LM head: what importances of elements are measured on."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .elastic import ElasticForRelations
from .elastic_configuration import ElasticConfig
from .mlm_head import MaskedLmHead, MaskedLmOutput


class ElasticForMaskedLM(ElasticForRelations):
    """The encoder with a masked-LM head, and relation projections if the configuration has them.

    The head reads hidden states in their original order and its decoder is the word embeddings,
    brought into that order too; so reordering leaves the predictions as they are.
    """

    def __init__(self, config: ElasticConfig) -> None:
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

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        labels: Tensor,
        with_signals: bool = False,
        sparsity: str | None = None,
        **inputs: Any,
    ) -> MaskedLmOutput:
        """Predicts what was masked.

        Args:
            input_ids: int64 [B, S].
            labels: int64 [B, S], -100 where nothing is to be predicted.
            with_signals: also return what :class:`ElasticForRelations` does.
            sparsity: a sub-model, whose decoder is the word embeddings' kept dimensions.
            inputs: what :meth:`ElasticModel.forward` takes.
        """
        encoded = self.bert(input_ids, sparsity=sparsity, **inputs)
        hidden = encoded.last_hidden_state
        signals = self.relation(hidden) if with_signals and self.relation is not None else None
        kept = self.bert.shape_of(sparsity).hidden
        decoder = self.bert.recover(self.bert.embeddings.word_embeddings.weight[:, :kept])
        loss_sum, predicted = self.cls["predictions"](hidden, labels, decoder)
        return MaskedLmOutput(loss_sum, predicted, signals, encoded.routers)
