"""One rank's file, read without running anything that stands in it.

A checkpoint is a pickle, and unpickling may call any function. PyTorch's restricted unpickler calls
only those of a list; to these come ``argparse.Namespace``, a plain record that holds Megatron's
arguments, and the names of what Megatron puts beside the weights (enumerations, numpy's random
state, loss scalers), all of them as a blank stand-in: none of that code is imported or run.
"""

import argparse
import contextlib
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError
from ...megatron_files.unpickling import SET_ASIDE, unsafe


class StandIn:
    """Takes the place of an object whose code is not run, and knows nothing of it."""

    def __new__(cls, *arguments: Any, **named: Any) -> "StandIn":
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def load_rank(path: Path) -> Any:
    """Reads what a rank saved; its tensors are read from the disk when they are used.

    Raises:
        UserError: the file is damaged, or a pickle of more than the above.
    """
    allowed: list[Any] = [argparse.Namespace, *((StandIn, name) for name in SET_ASIDE)]
    try:
        with _only_allowed(allowed):
            # Files from before PyTorch 1.6 are no archives and cannot be mapped.
            state = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise unsafe(path, _reason(error)) from error
    except Exception as error:  # damaged archives come as many kinds
        raise UserError(
            f"{path}: cannot be read ({_reason(error)}); copy the file again"
        ) from error
    return state


@contextlib.contextmanager
def _only_allowed(allowed: list[Any]) -> Iterator[None]:
    """Allows these names and no others.

    Libraries add names of their own to PyTorch's list when they are imported (numpy's true
    constructors among them): a file must not be read otherwise for what else was imported.
    """
    previous = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(allowed)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(previous)


def _reason(error: Exception) -> str:
    """Returns the line that says what was found, without advice to load unrestricted."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or "Trying" in line or "operand" in line]
    line = (telling or lines or [type(error).__name__])[0]
    return line.split(" Please ")[0].removeprefix("WeightsUnpickler error: ")[:200]
