"""The map of a student's last states, beside the weights that it starts from.

Exports leave it out, as what trains alone. A start that was fitted to a teacher has it in a file of
its own, for the run that it is made for.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import UserError
from .tensors import save_tensors


def _file(folder: Path) -> Path:
    """Beside the folder, which holds a model and nothing else."""
    return folder.with_name(f"{folder.name}.state_map.safetensors")


def save_state_map(student: Any, folder: Path) -> None:
    """Writes a student's map, if it has one, beside a folder that has its other weights."""
    if student.state_map is not None:
        save_tensors(student.state_map.state_dict(), _file(folder))


def load_state_map(student: Any, folder: Path) -> None:
    """Gives a student the map beside a folder, if both have one, of one shape.

    Raises:
        UserError: the file is damaged.
    """
    linear, path = student.state_map, _file(folder)
    if not isinstance(linear, nn.Linear) or not path.is_file():
        return
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); delete it, and the map begins at random"
        ) from error
    own = linear.state_dict()
    if {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in own.items()
    }:
        linear.load_state_dict(found)
