"""Processes in which Triton interprets kernels, or only compiles them; neither needs a GPU.

Which of the two happens is decided when triton is imported, so each has a process of its own.
"""

import multiprocessing as mp
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Run = Callable[..., Any]


@contextmanager
def interpreting() -> Iterator[Run]:
    """Gives ``run(body, *arguments)``: what a module-level function returns when interpreted."""
    yield from _worker({"TRITON_INTERPRET": "1"}, _multiply_bfloat16)


@contextmanager
def compiling(architecture: int) -> Iterator[Run]:
    """The same where launches only compile; ``architecture`` is 80 for A100, 90 for H100."""
    yield from _worker({"TRITON_INTERPRET": "0"}, _compile_only, architecture)


def _worker(environment: dict[str, str], initializer: Run, *arguments: Any) -> Iterator[Run]:
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        pool = mp.get_context("spawn").Pool(1, initializer, arguments)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    with pool:
        yield lambda body, *given: pool.apply(body, given)


def _multiply_bfloat16() -> None:
    """Triton's interpreter keeps bfloat16 as bits and multiplies these as integers."""
    import triton.language as tl
    from triton.runtime import interpreter

    own = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        a, b = (
            interpreter.TensorHandle(
                interpreter._convert_float(one.data, tl.bfloat16, tl.float32, None).view("float32"),
                tl.float32,
            )
            if one.dtype == tl.bfloat16
            else one
            for one in (a, b)
        )
        return own(self, a, b, *others)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _compile_only(architecture: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Driver:
        """Answers what compiling asks."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", architecture, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    own = JITFunction.run

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = own(self, *arguments, grid=grid, warmup=True, **options)
        compiled.append((self.fn.__name__, kernel.metadata.shared))
        return kernel

    driver.set_active(Driver())
    JITFunction.run = run


compiled: list[tuple[str, int]] = []
