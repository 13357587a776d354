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

from ..durable import sampled_hash
from ..errors import UserError
from ..runtime import logger
from .tensors import save_tensors

_log = logger("checkpoint")
STATE_MAP = "state_map."


def _file(folder: Path) -> Path:
    """Beside the folder, which holds a model and nothing else."""
    folder = folder.absolute()
    return folder.parent / f"{folder.name}.state_map.safetensors"


def has_state_map(folder: Path) -> bool:
    """Tells whether a map stands beside a folder: its student has learnt last states."""
    return _file(folder).is_file()


def state_map_contents(folder: Path) -> str | None:
    """Returns a hash of the map beside a folder; None where there is none."""
    return sampled_hash(_file(folder)) if has_state_map(folder) else None


def save_state_map(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the map of a student's weights beside a folder that has the others.

    Where it has none, one of an earlier student goes.
    """
    found = {
        name.removeprefix(STATE_MAP): value
        for name, value in weights.items()
        if name.startswith(STATE_MAP)
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
    linear = getattr(student, "state_map", None)
    if not isinstance(linear, nn.Linear) or not has_state_map(folder):
        return
    path = _file(folder)
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); delete it, and the map begins at random"
        ) from error
    shapes = [
        {name: value.shape for name, value in one.items()} for one in (found, linear.state_dict())
    ]
    if shapes[0] != shapes[1]:
        _log.warning("%s: is of other sizes; the map of last states begins at random", path)
        return
    linear.load_state_dict(found)
    _log.info("%s: the map of last states begins there", path)
