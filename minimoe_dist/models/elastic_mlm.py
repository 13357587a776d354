"""A sliceable BERT with BERT's masked-LM head: what importances of elements are measured on."""

from torch import Tensor

from .elastic import ElasticForRelations, ElasticModel
from .mlm_head import MaskedLmPass


class ElasticForMaskedLM(MaskedLmPass, ElasticForRelations):
    """The encoder with a masked-LM head, and relation projections if the configuration has them.

    The head reads hidden states in their original order and its decoder is the word embeddings,
    brought into that order too; so reordering leaves the predictions as they are.
    """

    def decoder_weight(self, sparsity: str | None) -> Tensor:
        """[V, H]; a sub-model's is the word embeddings' kept dimensions, zeros elsewhere."""
        encoder = self.bert
        assert isinstance(encoder, ElasticModel)
        kept = encoder.shape_of(sparsity).hidden
        return encoder.recover(encoder.embeddings.word_embeddings.weight[:, :kept])
