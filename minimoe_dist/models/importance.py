"""Measures how much a masked-LM loss depends on each head, neuron and hidden dimension.

The importance of an element is |d loss / d mask| at masks of ones, averaged over batches and
divided by its L2 norm per layer (hidden dimensions: one vector for the model).

A batch may be spread over ranks: each computes the gradient of its own loss sum, these vectors are
summed over the ranks, and every rank adds the sum to a meter. So importances depend on what a batch
is, not on how many ranks share it, and all ranks hold the same meter.
"""

from typing import Any

import torch
from torch import Tensor

from .elastic import ElementValues
from .errors import UserError
from .mlm_head import ElasticForRelationsAndMaskedLM
from .submodels import Sizes


def mask_gradient(model: ElasticForRelationsAndMaskedLM, labels: Tensor, **inputs: Any) -> Tensor:
    """Computes the gradient of a batch's masked-LM loss sum by the masks.

    Args:
        model: whole, in evaluation mode.
        labels: int64 [B, S], -100 where nothing is to be predicted.
        inputs: what :meth:`ElasticForRelationsAndMaskedLM.forward` takes.

    Returns:
        float32 [1 + number of elements]: the number of predicted positions, then the gradient by
        heads, neurons and hidden dimensions. Of batches spread over ranks it is to be summed.
    """
    assert not model.training, "dropout would be part of the importances"
    sizes = model.config.sizes
    shapes = ((sizes.layers, sizes.heads), (sizes.layers, sizes.neurons), (sizes.hidden,))
    ones = [torch.ones(shape, device=model.device, requires_grad=True) for shape in shapes]
    with torch.enable_grad():
        output = model(labels=labels, masks=ElementValues(*ones), **inputs)
        # backward() would compute the weights' gradients too.
        gradients = torch.autograd.grad(output.masked_lm_sum, ones)
    count = torch.full((1,), float(output.predicted), device=model.device)
    return torch.cat([count, *(gradient.float().flatten() for gradient in gradients)])


class ImportanceMeter:
    """Averages |d mean loss / d mask| over batches.

    Args:
        sizes: of the model.
    """

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        elements = sizes.layers * (sizes.heads + sizes.neurons) + sizes.hidden
        self._sums = torch.zeros(elements, dtype=torch.float64)
        self.batches = 0

    def add(self, gradient: Tensor) -> None:
        """Counts a batch: what :func:`mask_gradient` returned, summed over ranks.

        A batch without a predicted position is left out, and so is one whose loss is not finite.
        """
        gradient = gradient.double().cpu()
        if gradient[0] > 0 and bool(gradient.isfinite().all()):
            self._sums += gradient[1:].abs() / gradient[0]
            self.batches += 1

    def importances(self) -> ElementValues:
        """Returns float32 importances; those of a layer without any influence are zeros.

        Raises:
            UserError: no batch has been counted.
        """
        if not self.batches:
            raise UserError("importances: no batch had a masked token; give a longer corpus")
        sizes = self._sizes
        counts = [sizes.layers * sizes.heads, sizes.layers * sizes.neurons, sizes.hidden]
        heads, neurons, hidden = (self._sums / self.batches).split(counts)
        parts = (heads.view(sizes.layers, -1), neurons.view(sizes.layers, -1), hidden)
        return ElementValues(*(_normalize(part).float() for part in parts))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the meter's state: ``sums`` float64 [elements], ``batches`` int64 scalar."""
        return {"sums": self._sums.clone(), "batches": torch.tensor(self.batches)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from what :meth:`state_dict` gave.

        Raises:
            UserError: it is of a model of other sizes.
        """
        if state["sums"].shape != self._sums.shape:
            raise UserError(
                f"importances: saved of {len(state['sums'])} elements, but the model has "
                f"{len(self._sums)}; start anew or give the same model"
            )
        self._sums = state["sums"].double().clone()
        self.batches = int(state["batches"])


def _normalize(values: Tensor) -> Tensor:
    norm = values.norm(dim=-1, keepdim=True)
    return values / torch.where(norm > 0, norm, torch.ones_like(norm))
