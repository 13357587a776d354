"""What a Megatron checkpoint is, by the headers of its files: the sizes of its model."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from ..errors import UserError, first_line
from ..foreign import read_json, shown
from ..pickled import Pickled, UnsafePickleError, read_pickled
from .arguments import Activation, ModelOverrides, config_values
from .checkpoints import Checkpoint
from .finding import RELEASE, RankFiles, find_rank_files, is_megatron_checkpoint
from .unpickling import SET_ASIDE, unsafe

# Of Hugging Face's weights, beside which a tracker or a rank's folder says nothing.
_OTHER_WEIGHTS = ("model.safetensors*", "pytorch_model*.bin*")
_ALSO = ("argparse.Namespace", *SET_ASIDE)


def is_megatron_folder(folder: Path) -> bool:
    """Returns whether a model's folder is a checkpoint of Megatron's."""
    if not folder.is_dir() or any(any(folder.glob(pattern)) for pattern in _OTHER_WEIGHTS):
        return False
    return is_megatron_checkpoint(folder)


def megatron_values(folder: Path) -> dict[str, Any]:
    """Returns what a ``config.json`` of a Megatron checkpoint's would say.

    Reads the headers of all ranks' files, without torch; the numbers are not read.

    Args:
        folder: with the tracker, or of an iteration.

    Raises:
        UserError: ranks are missing, damaged, unsafe to read, not of one checkpoint or no BERT's,
            or do not say how many heads there are.
    """
    files = find_rank_files(folder)
    paths = [path for row in files.files for path in row]
    changes = tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in paths)
    return dict(_values(files, stated_beside(folder), changes))


@functools.lru_cache(maxsize=8)
def _values(
    files: RankFiles, overrides: ModelOverrides, changes: tuple[tuple[int, int], ...]
) -> dict[str, Any]:
    header = _Headers(files, overrides)
    values = config_values(header.sizes, overrides, header.arguments)
    return {"model_type": "megatron-bert", "pad_token_id": 0, **values}


def rank_paths(folder: Path) -> list[Path]:
    """Returns the files of all ranks.

    Raises:
        UserError: it is no checkpoint, or ranks are missing.
    """
    return [path for row in find_rank_files(folder).files for path in row]


def stated_beside(folder: Path) -> ModelOverrides:
    """Returns what a ``config.json`` beside the ranks' folders says; nothing where there is none.

    Args:
        folder: with the tracker, or of an iteration, whose parent may have it too; or a file.

    Raises:
        UserError: it says what no model can have, or cannot be read.
    """
    folder = folder.parent if folder.is_file() else folder
    is_iteration = folder.name.startswith((RELEASE, "iter_"))
    for place in (folder, *((folder.parent,) if is_iteration else ())):
        path = place / "config.json"
        if path.is_file():
            try:
                values = read_json(path)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{path}: not readable as JSON ({first_line(error)}); copy it again"
                ) from None
            return stated_by(values, path)
    return ModelOverrides()


def stated_by(values: Any, path: Path) -> ModelOverrides:
    """Returns what a configuration says of a model that its checkpoint may not say.

    Args:
        values: content of a ``config.json``, unchecked.
        path: of it, for messages.

    Raises:
        UserError: it is no configuration, or says what no model can have.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: no JSON object; give the model's config.json")
    kinds = {
        "num_attention_heads": _is_count,
        "vocab_size": _is_count,
        "layer_norm_eps": lambda value: isinstance(value, float) and 0 < value < 1,
        "hidden_act": lambda value: value in get_args(Activation),
    }
    known: dict[str, Any] = {}
    for name, fits in kinds.items():
        value = values.get(name)
        if value is None:
            continue
        if not fits(value):
            raise UserError(
                f"{path}: {name} {shown(value)} is none that a BERT of Megatron's can have; give "
                "the model's own config.json"
            )
        known[name] = value
    return ModelOverrides(**known)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1 << 30


class _Headers(Checkpoint[Pickled]):
    """A checkpoint of whose weights the shapes are read."""

    def _load(self, path: Path) -> tuple[Any, bool]:
        try:
            state = read_pickled(path, _ALSO)
        except UnsafePickleError as error:
            raise unsafe(path, f"it names {error}") from None
        except Exception as error:  # damaged archives come as many kinds
            raise UserError(
                f"{path}: cannot be read ({first_line(error)}); copy the file again"
            ) from None
        if state is None:
            raise UserError(f"{path}: cannot be read; copy the file again")
        return state, True  # the headers of all ranks take little memory

    def _check_tensor(self, spelling: str, value: Any) -> None:
        if not isinstance(value, Pickled) or not value.is_plain:
            raise UserError(f"{spelling} is no plain tensor")
        if not value.fits:
            raise UserError(
                f"{spelling} has {list(value.shape or ())} numbers, more than are stored"
            )
