"""Places in models, and what passes them while a sample of text is run through.

Shapes: B samples, S positions, n tokens of a batch, N of the sample, C channels.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.batches import MicroBatch


class Tap(NamedTuple):
    """A place in a model: what goes into a module, or comes out of it, at its n-th call."""

    module: nn.Module
    is_input: bool
    call: int = 0


class _HeardError(Exception):
    """Ends a pass whose only tap was passed."""


@contextmanager
def listening(
    taps: Collection[Tap], heard: dict[Tap, Tensor], ends_pass: bool = False
) -> Iterator[Callable[[], None]]:
    """Keeps what passes the taps of a pass; yields what forgets the calls between passes.

    Args:
        taps: the places.
        heard: is given what passes them.
        ends_pass: whether the first tap that is passed ends the pass, with an error.
    """
    calls: dict[tuple[nn.Module, bool], int] = {}

    def listen(module: nn.Module, is_input: bool, values: Tensor) -> None:
        tap = Tap(module, is_input, calls.get((module, is_input), 0))
        calls[module, is_input] = tap.call + 1
        if tap in taps:
            heard[tap] = values
            if ends_pass:
                raise _HeardError

    def before(module: nn.Module, inputs: Any, named: Mapping[str, Any]) -> None:
        listen(module, True, inputs[0] if inputs else named["hidden_states"])

    def behind(module: nn.Module, inputs: Any, output: Any) -> None:
        listen(module, False, output[0] if isinstance(output, tuple) else output)

    hooks = [
        module.register_forward_pre_hook(before, with_kwargs=True)
        if is_input
        else module.register_forward_hook(behind)
        for module, is_input in {(tap.module, tap.is_input): None for tap in taps}
    ]
    try:
        yield calls.clear
    finally:
        for hook in hooks:
            hook.remove()


def rows_of(values: Tensor, mask: Tensor) -> Tensor:
    """Returns a batch's tokens [n, C], of values [B, S, C] or already packed."""
    return (values[mask] if values.dim() == 3 else values).float()


@contextmanager
def at_rest(student: Any, seed: int) -> Iterator[None]:
    """Holds a student still while its parts are fitted: no dropout, and tokens are all its rows.

    What is drawn meanwhile is of ``seed``, and the process's own generator stays as it was.
    """
    was_training, routes_padding = student.training, student.config.route_padding
    student.eval()
    student.config.route_padding = False
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        student.config.route_padding = routes_padding
        student.train(was_training)


def hear(student: Any, tap: Tap, batches: Iterable[MicroBatch]) -> Tensor:
    """Runs a sample through a student; returns the rows [N, …] at a place of its encoder.

    Passes end at that place.
    """
    found = []
    heard: dict[Tap, Tensor] = {}
    with listening([tap], heard, ends_pass=True) as forget:
        for batch in batches:
            forget()
            with suppress(_HeardError):
                student.bert(**batch.inputs())
            found.append(rows_of(heard[tap], batch.attention_mask))
    return torch.cat(found)
