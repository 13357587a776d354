"""Configuration of sliceable BERTs: sparse and once-for-all students."""

from collections.abc import Sequence
from typing import Any

from .configuration import MiniMoeConfig
from .errors import UserError
from .submodels import WHOLE, Sizes, SparsityMap, SubModelShape, sub_model_shape


class ElasticConfig(MiniMoeConfig):
    """Configuration of a sliceable BERT. All sizes are those of the *whole* model.

    Args:
        sparsity: the sub-model whose weights there are: a key of the map, "0" for all of it.
        sparsity_map: the sub-models (see :mod:`.submodels`).
        recover_indices: ``recover_indices[i]`` is the original place of hidden dimension i, once
            hidden dimensions have been reordered; None where they have not.
        keep_missing_layers: let layers that a once-for-all sub-model does not have keep their two
            LayerNorms, as the published implementation does, instead of skipping them.
    """

    model_type = "minimoe-elastic"

    def __init__(
        self,
        sparsity: str = WHOLE,
        sparsity_map: SparsityMap | None = None,
        recover_indices: Sequence[int] | None = None,
        keep_missing_layers: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**(kwargs | {"attention_experts": 1, "feedforward_experts": 1}))
        if self.family != "bert":
            raise UserError(f"family: {self.family} cannot be sliced; give a bert")
        self.sparsity = sparsity
        self.sparsity_map: SparsityMap = dict(sparsity_map or {})
        self.recover_indices = None if recover_indices is None else list(recover_indices)
        self.keep_missing_layers = keep_missing_layers
        indices = self.recover_indices
        if indices is not None and sorted(indices) != list(range(self.hidden_size)):
            raise UserError(
                f"recover_indices: not an order of the {self.hidden_size} hidden dimensions; "
                "the weights are damaged or belong to another configuration"
            )
        self.shape()

    @property
    def sizes(self) -> Sizes:
        """Sizes of the whole model, whichever sub-model's weights there are."""
        heads = self.num_attention_heads
        head_size = self.hidden_size // heads
        return Sizes(self.num_hidden_layers, heads, head_size, self.intermediate_size)

    @property
    def sub_models(self) -> tuple[str, ...]:
        """Names of a once-for-all student's sub-models, "layers,hidden"; empty for a sparse one."""
        names = tuple(self.sparsity_map)
        is_once_for_all = self.sparsity == WHOLE and all("," in name for name in names)
        return names if is_once_for_all else ()

    def shape(self, sparsity: str | None = None) -> SubModelShape:
        """Returns the sizes of a sub-model, by default of the one whose weights there are.

        Raises:
            UserError: the map has no such sub-model.
        """
        return sub_model_shape(
            self.sizes,
            self.sparsity_map,
            self.sparsity if sparsity is None else sparsity,
            keep_missing_layers=self.keep_missing_layers,
        )
