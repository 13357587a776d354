"""The files of a Megatron checkpoint's ranks, found without torch."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..errors import UserError
from ..foreign import UnreadableError, is_whole_number, read_text

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
_MOST_TRACKER_BYTES = 1000
WEIGHTS = "model_optim_rng.pt"
# The second is what Megatron wrote for a while when its optimizer was distributed.
_SHOWN_RANKS = 8
_WEIGHTS = (WEIGHTS, "model_rng.pt")
# Of files that hold one rank's weights under another name, as MegatronBERT.pt.
_PLAIN_SUFFIXES = (".pt", ".pth", ".ckpt")
_RANK = re.compile(r"mp_rank_(\d+)(?:_(\d+))?")
_ITERATION = re.compile(r"iter_\d+")
_DEEPSPEED_FILES = ("layer_*model_states.pt", "mp_rank_*_model_states.pt", "zero_pp_rank_*.pt")


@dataclass(frozen=True)
class RankFiles:
    """The files that hold the ranks' weights.

    Attributes:
        root: what messages name.
        files: by pipeline rank, then by tensor rank.
    """

    root: Path
    files: tuple[tuple[Path, ...], ...]

    @property
    def tensor_parallel_size(self) -> int:
        """The number of ranks that share each layer."""
        return len(self.files[0])

    @property
    def pipeline_parallel_size(self) -> int:
        """The number of ranks that share the row of layers."""
        return len(self.files)


def iteration_name(iteration: int | None) -> str:
    """Returns the name of an iteration's folder; None is a release."""
    return RELEASE if iteration is None else f"iter_{iteration:07d}"


def rank_name(tensor_rank: int, pipeline_rank: int, pipeline_parallel_size: int) -> str:
    """Returns the name of a rank's folder, with its pipeline rank only where there are several."""
    name = f"mp_rank_{tensor_rank:02d}"
    return name if pipeline_parallel_size == 1 else f"{name}_{pipeline_rank:03d}"


def is_megatron_checkpoint(path: Path) -> bool:
    """Returns whether a path looks like a checkpoint of Megatron's, whole or not."""
    if path.is_file():
        return path.suffix in _PLAIN_SUFFIXES
    if _deepspeed_folder(path) is not None:
        return True
    folders = (path, *_iterations(path)) if path.is_dir() else ()
    return (path / TRACKER).is_file() or any(
        _is_distributed(folder) or any(_rank_folders(folder)) for folder in folders
    )


def find_rank_files(path: Path) -> RankFiles:
    """Finds the files of all ranks.

    Args:
        path: a folder with the tracker, an iteration's folder in it, or the file of the only rank.

    Raises:
        UserError: there is no such checkpoint, it is not clear which, ranks are missing, or it is
            DeepSpeed's.
    """
    if path.is_file():
        return RankFiles(path, ((path,),))
    if not path.is_dir():
        raise UserError(f"{path}: does not exist; give a Megatron checkpoint's folder")
    deepspeed = _deepspeed_folder(path)
    if deepspeed is not None:
        raise UserError(
            f"{deepspeed}: is a checkpoint of Megatron-DeepSpeed's, with layers or ZeRO's parts in "
            f"files such as {_deepspeed_files(deepspeed)[0].name}, which are not read; make one of "
            "Megatron-LM's of it by Megatron-DeepSpeed's own tools/convert_checkpoint/"
            "deepspeed_to_megatron.py, and give that"
        )
    folder = path if any(_rank_folders(path)) else _iteration_folder(path)
    if _is_distributed(folder):
        raise UserError(
            f"{folder}: is a distributed checkpoint, whose index is a pickle that could run any "
            "code; load it in Megatron-LM and save it with --ckpt-format torch"
        )
    file_of: dict[tuple[int, int], Path] = {}
    for rank_folder in _rank_folders(folder):
        ranks = _RANK.fullmatch(rank_folder.name)
        if ranks is None:
            raise UserError(
                f"{rank_folder}: is of expert-parallel ranks, which BERT has not; give a BERT"
            )
        tensor_rank, pipeline_rank = (_rank_number(text, rank_folder) for text in ranks.groups())
        if (pipeline_rank, tensor_rank) in file_of:
            raise UserError(
                f"{rank_folder}: is there with and without a pipeline rank; give one of both"
            )
        file_of[pipeline_rank, tensor_rank] = _weights_file(rank_folder)
    if not file_of:
        raise UserError(
            f"{folder}: has no folder mp_rank_00 with {WEIGHTS}; give a Megatron checkpoint"
        )
    pipeline, tensor = (1 + max(ranks) for ranks in zip(*file_of, strict=True))
    if len(file_of) < pipeline * tensor:
        present = {file.parent.name for file in file_of.values()}
        raise missing_ranks(folder, pipeline, tensor, present)
    return RankFiles(
        folder, tuple(tuple(file_of[p, t] for t in range(tensor)) for p in range(pipeline))
    )


def missing_ranks(folder: Path, pipeline: int, tensor: int, present: Collection[str]) -> UserError:
    """Makes the error for a checkpoint of which some ranks are not there.

    Args:
        folder: of the ranks.
        pipeline: how many pipeline ranks there should be, maybe by a damaged file.
        tensor: how many tensor ranks.
        present: names of the ranks' folders that are there.
    """
    names = (rank_name(t, p, pipeline) for p in range(pipeline) for t in range(tensor))
    # Whatever the numbers are, one more than are there has to be missing.
    looked_at = islice(names, len(present) + _SHOWN_RANKS)
    first = [name for name in looked_at if name not in present][:_SHOWN_RANKS]
    more = pipeline * tensor - len(present) - len(first)
    others = f" and {more:,} more" if more > 0 else ""
    return UserError(
        f"{folder}: {', '.join(first)}{others} is missing; copy the folders of all ranks"
    )


def _rank_number(text: str | None, folder: Path) -> int:
    if text is not None and not is_whole_number(text):
        raise UserError(f"{folder}: is the folder of no rank; give a Megatron checkpoint")
    return int(text or 0)


def _iterations(path: Path) -> list[Path]:
    return sorted(
        folder
        for folder in path.iterdir()
        if folder.is_dir() and (folder.name == RELEASE or _ITERATION.fullmatch(folder.name))
    )


def _iteration_folder(path: Path) -> Path:
    if _is_distributed(path):
        return path
    tracker = path / TRACKER
    if tracker.is_file():
        try:
            text = read_text(tracker, _MOST_TRACKER_BYTES).strip()
        except UnreadableError as error:
            raise UserError(f"{tracker}: {error}; it must be a number or {RELEASE}") from None
        if text != RELEASE and not is_whole_number(text):
            raise UserError(f"{tracker}: says {text[:40]!r}; it must be a number or {RELEASE}")
        folder = path / iteration_name(None if text == RELEASE else int(text))
        if not folder.is_dir():
            raise UserError(f"{tracker}: names {folder.name}, which is missing; give another one")
        return folder
    iterations = _iterations(path)
    if len(iterations) > 1:
        names = ", ".join(iteration.name for iteration in iterations)
        raise UserError(f"{path}: has {names} and no {TRACKER}; give the folder of one")
    if not iterations:
        raise UserError(f"{path}: has no {TRACKER} and no mp_rank_00; give a Megatron checkpoint")
    return iterations[0]


def _deepspeed_folder(path: Path) -> Path | None:
    """Finds DeepSpeed's files: here, or in one of the folders of steps; None without any."""
    if not path.is_dir() or ((path / TRACKER).is_file() and any(_iterations(path))):
        return None
    folders = (path, *sorted(step for step in path.glob("global_step*") if step.is_dir()))
    return next((folder for folder in reversed(folders) if _deepspeed_files(folder)), None)


def _deepspeed_files(folder: Path) -> list[Path]:
    return sorted(file for pattern in _DEEPSPEED_FILES for file in folder.glob(pattern))


def _rank_folders(folder: Path) -> list[Path]:
    return [path for path in folder.glob("mp_rank_*") if path.is_dir()]


def _is_distributed(folder: Path) -> bool:
    return (folder / ".metadata").is_file() or any(folder.glob("*.distcp"))


def _weights_file(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: has no {WEIGHTS}; copy the folder again")
