"""Records passes as CUDA graphs: what is launched once is launched again as a whole."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

_WARM_UP_RUNS = 3  # compiling, autotuning and lazy loading must be over before recording

Play = Callable[[], None]


class TrainingPass(Protocol):
    """A recorded forward and backward pass.

    Attributes:
        outputs: what the forward pass makes, in place.
        upstream: gradients of those of ``outputs`` that have one, read by the backward pass.
    """

    outputs: list[Tensor]
    upstream: list[Tensor]

    def forward(self) -> None:
        """Plays the forward pass."""

    def backward(self) -> None:
        """Plays the backward pass of the last forward one: adds the parameters' gradients."""


class Recorder(Protocol):
    """Makes recordings that read and write the same tensors whenever they are played."""

    def inference(self, run: Callable[[], Any]) -> tuple[Play, Any]:
        """Records ``run``; returns what plays it, and its results, in place."""

    def training(
        self, run: Callable[[], Sequence[Tensor]], parameters: Sequence[Tensor]
    ) -> TrainingPass:
        """Records ``run`` and its backward pass into ``grad`` of ``parameters``."""


class CudaRecorder:
    """Records CUDA graphs, all in one pool of memory.

    A recording's own memory is free for later recordings, so no two may be at work at once, and
    what one made is to be read before another is played.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def inference(self, run: Callable[[], Any]) -> tuple[Play, Any]:
        _warm_up(run)
        graph, results = self.record(run)
        return graph.replay, results

    def training(
        self, run: Callable[[], Sequence[Tensor]], parameters: Sequence[Tensor]
    ) -> TrainingPass:
        return _CudaTrainingPass(self, run, parameters)

    def record(self, run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        """Records a graph of what ``run`` launches; returns it and its results."""
        graph = torch.cuda.CUDAGraph()
        # Other threads copy batches and watch collectives meanwhile: only this one is recorded.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = run()
        return graph, results


class _CudaTrainingPass:
    def __init__(
        self,
        recorder: CudaRecorder,
        run: Callable[[], Sequence[Tensor]],
        parameters: Sequence[Tensor],
    ) -> None:
        _warm_up(lambda: _gradients(_with_gradient(run()), parameters))
        self._forward, outputs = recorder.record(run)
        differentiable = _with_gradient(outputs)
        self.upstream = [torch.zeros_like(output) for output in differentiable]
        self._backward, _ = recorder.record(
            lambda: _add_gradients(differentiable, parameters, self.upstream)
        )
        # The activations that autograd holds are recorded too: nothing keeps them from here on.
        self.outputs = [output.detach() for output in outputs]

    def forward(self) -> None:
        self._forward.replay()

    def backward(self) -> None:
        self._backward.replay()


def _warm_up(run: Callable[[], Any]) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(stream)


def _with_gradient(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [output for output in outputs if output.requires_grad]


def _gradients(
    outputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    upstream: Sequence[Tensor] | None = None,
) -> Sequence[Tensor | None]:
    if upstream is None:
        upstream = [torch.ones_like(output) for output in outputs]
    return torch.autograd.grad(outputs, parameters, upstream, allow_unused=True)


def _add_gradients(
    outputs: Sequence[Tensor], parameters: Sequence[Tensor], upstream: Sequence[Tensor]
) -> None:
    sums, gradients = [], []
    for parameter, gradient in zip(
        parameters, _gradients(outputs, parameters, upstream), strict=True
    ):
        if gradient is not None:
            assert parameter.grad is not None, "a flat update's parameters have their gradients"
            sums.append(parameter.grad)
            gradients.append(gradient)
    torch._foreach_add_(sums, gradients)
