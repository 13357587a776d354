"""The map of a student's last states, beside the weights that it starts from.

Models leave it out, as what trains alone. Students that go on from a start that was fitted to a
teacher, or from the export of an earlier run, find it in a file beside the folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from .tensors import save_tensors

_PREFIX = "state_map."


def _file(folder: Path) -> Path:
    """Beside the folder, which holds a model and nothing else."""
    return folder.with_name(f"{folder.name}.state_map.safetensors")


def save_state_map(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the map of a student's weights beside a folder that has the others.

    Where it has none, one of an earlier student goes.
    """
    found = {
        name.removeprefix(_PREFIX): value
        for name, value in weights.items()
        if name.startswith(_PREFIX)
    }
    if found:
        save_tensors(found, _file(folder))
    else:
        _file(folder).unlink(missing_ok=True)


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
