"""A recorder for CPUs: what is played runs again, and writes where it wrote before.

As with CUDA graphs, inputs are read from where they lay when they were recorded, results come where
they came, and Python of the caller takes no part; so what is wrong with aliases and order shows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


class RerunRecorder:
    """A :class:`minimoe_dist.train.recorder.Recorder`; counts its recordings."""

    def __init__(self) -> None:
        self.recorded = 0

    def inference(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.recorded += 1
        results = run()

        def play() -> None:
            for target, value in zip(tree_leaves(results), tree_leaves(run()), strict=True):
                if isinstance(target, Tensor):
                    target.copy_(value)

        return play, results

    def training(
        self, run: Callable[[], Sequence[Tensor]], parameters: Sequence[Tensor]
    ) -> "_Rerun":
        self.recorded += 1
        return _Rerun(run, parameters)


class _Rerun:
    def __init__(self, run: Callable[[], Sequence[Tensor]], parameters: Sequence[Tensor]) -> None:
        self._run, self._parameters = run, parameters
        self._differentiable: list[Tensor] = []
        outputs = list(run())
        self.outputs = [output.detach().clone() for output in outputs]
        self.upstream = [torch.zeros_like(output) for output in outputs if output.requires_grad]

    def forward(self) -> None:
        outputs = list(self._run())
        self._differentiable = [output for output in outputs if output.requires_grad]
        for target, value in zip(self.outputs, outputs, strict=True):
            target.copy_(value.detach())

    def backward(self) -> None:
        gradients = torch.autograd.grad(
            self._differentiable, self._parameters, self.upstream, allow_unused=True
        )
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad.add_(gradient)
        for output in self.outputs:
            output.fill_(torch.nan)  # another recording may have had this memory by now
