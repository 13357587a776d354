"""CUDA graphs of passes: what is launched once is launched again as a whole."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

_WARM_UP_RUNS = 3  # compiling, autotuning and lazy loading must be over before recording

Play = Callable[[], None]


class TrainingPass(Protocol):
    """A recorded forward and backward pass.

    Attributes:
        made: what the forward pass makes, in place.
        upstream: gradients of those of ``made`` that have one, read by the backward pass.
    """

    made: list[Tensor]
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
        """A graph of what ``run`` launches, and its results."""
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
        self._forward, made = recorder.record(run)
        outputs = _with_gradient(made)
        self.upstream = [torch.zeros_like(one) for one in outputs]
        self._backward, _ = recorder.record(
            lambda: _add_gradients(outputs, parameters, self.upstream)
        )
        # The activations that autograd holds are recorded too: nothing keeps them from here on.
        self.made = [one.detach() for one in made]

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


def _with_gradient(made: Sequence[Tensor]) -> list[Tensor]:
    return [one for one in made if one.requires_grad]


def _gradients(
    outputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    upstream: Sequence[Tensor] | None = None,
) -> Sequence[Tensor | None]:
    given = [torch.ones_like(one) for one in outputs] if upstream is None else upstream
    made: Sequence[Tensor | None] = torch.autograd.grad(
        outputs, parameters, given, allow_unused=True
    )
    return made


def _add_gradients(
    outputs: Sequence[Tensor], parameters: Sequence[Tensor], upstream: Sequence[Tensor]
) -> None:
    targets, found = [], []
    made = _gradients(outputs, parameters, upstream)
    for parameter, gradient in zip(parameters, made, strict=True):
        if gradient is not None:
            assert parameter.grad is not None, "a flat update's parameters have their gradients"
            targets.append(parameter.grad)
            found.append(gradient)
    torch._foreach_add_(targets, found)
