"""The numbers in a Megatron checkpoint: whole tensors, or slices, by Hugging Face's names."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...megatron_files.arguments import ModelOverrides
from ...megatron_files.checkpoints import Checkpoint, Stage
from ...megatron_files.finding import RankFiles, find_rank_files
from ...megatron_files.headers import stated_beside
from ...megatron_files.naming import (
    OUTPUT_BIAS,
    QKV_NAMES,
    SEGMENTS,
    WORDS,
    WORDS_AGAIN,
    Kind,
    hugging_face_name,
    kind_of,
)
from ...runtime import logger
from ..weights import refuse_incomplete
from .splitting import merge, unfuse
from .unpickling import load_rank

_log = logger("megatron")
_ENCODER = "bert."  # before an encoder's names in a whole model
_DIFFER = "differ between them; the first rank's are taken, as Megatron's own tools do"


class MegatronCheckpoint(Checkpoint[Tensor]):
    """An open checkpoint, whose files are mapped."""

    def __init__(self, files: RankFiles, overrides: ModelOverrides) -> None:
        super().__init__(files, overrides)
        if not self.says_version:
            _log.warning(
                "%s: does not say its checkpoint_version: 0 is taken, as Megatron does",
                files.files[0][0],
            )

    def tensors(self, vocab_size: int) -> Iterator[tuple[str, Tensor]]:
        """Yields weights by Hugging Face's names, merged, with the vocabulary's rows alone.

        Args:
            vocab_size: rows to keep.

        Raises:
            UserError: ranks that hold the same weight disagree about its shape.
        """
        differing = 0
        for stage in self.stages():
            for name in stage.ranks[0]:
                parts = [rank[name] for rank in stage.ranks]
                if name == WORDS_AGAIN:
                    self._check_tied(stage, parts)
                    continue
                kind, target = kind_of(name), hugging_face_name(name, stage.first_layer)
                if kind == "by_heads":
                    split = [unfuse(part, self.local_heads, self.version) for part in parts]
                    for number, part_name in enumerate(QKV_NAMES):
                        joined = torch.cat([unfused[number] for unfused in split])
                        yield target.format(part_name), joined
                    continue
                if kind == "whole":
                    differing += any(not torch.equal(parts[0], part) for part in parts[1:])
                merged = merge(parts, kind)
                is_of_words = name in (WORDS, OUTPUT_BIAS)
                yield target, merged[:vocab_size].clone() if is_of_words else merged
        if differing:
            _log.warning("%d weights that all tensor ranks hold %s", differing, _DIFFER)

    @property
    def local_heads(self) -> int:
        """The attention heads of one rank."""
        return self.sizes.num_attention_heads // self.files.tensor_parallel_size

    def padding(self, vocab_size: int) -> dict[str, Tensor]:
        """Returns the rows behind the vocabulary, by common names."""
        rows: dict[str, Tensor] = {}
        for stage in self.stages():
            for name in (WORDS, OUTPUT_BIAS):
                if name in stage.ranks[0]:
                    merged = merge([rank[name] for rank in stage.ranks], "by_output")
                    rows[name] = merged[vocab_size:].clone()
        return rows

    def _load(self, path: Path) -> tuple[Any, bool]:
        # What is mapped takes no memory and stays open.
        return load_rank(path), zipfile.is_zipfile(path)

    def _check_tensor(self, spelling: str, value: Any) -> None:
        is_plain = isinstance(value, Tensor) and value.layout is torch.strided
        if not is_plain or value.device.type != "cpu" or value.is_nested or value.is_quantized:
            raise UserError(f"{spelling} is no plain tensor")
        # A stride of 0 makes a small file say any size.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{spelling} has {list(value.shape)} numbers, more than are stored")

    def _check_tied(self, stage: Stage[Tensor], parts: list[Tensor]) -> None:
        """Refuses output weights of the last stage that are not the first one's word embeddings."""
        first = next(self.stages()).ranks
        if not all(torch.equal(rank[WORDS], part) for rank, part in zip(first, parts, strict=True)):
            raise UserError(
                f"{self.files.root}: its output weights are not its word embeddings, which Hugging "
                "Face's megatron-bert ties; it cannot be converted"
            )


@dataclass(frozen=True)
class _Place:
    """Where a weight is.

    Attributes:
        parts: of the tensor ranks, as they are stored.
        kind: how they are parts of the whole.
        number: of queries (0), keys (1) and values (2), which one.
    """

    parts: Sequence[Tensor]
    kind: Kind
    number: int = 0


class MegatronWeights:
    """The weights of a checkpoint's encoder under the names that Hugging Face's gives them.

    Args:
        path: of the teacher as the user gave it, for messages.
        folder: where that is.

    Raises:
        UserError: it is damaged, unsafe to read, or no BERT's.
    """

    def __init__(self, path: str, folder: str) -> None:
        self._source = f"teacher.model_name_or_path: {path}"
        root = Path(folder)
        self._checkpoint = MegatronCheckpoint(find_rank_files(root), stated_beside(root))
        self._places: dict[str, _Place] = {}
        for stage in self._checkpoint.stages():
            for name in stage.ranks[0]:
                if name == WORDS_AGAIN:
                    continue
                kind = kind_of(name)
                target = hugging_face_name(name, stage.first_layer).removeprefix(_ENCODER)
                parts = [rank[name] for rank in stage.ranks]
                if kind != "by_heads":
                    self._places[target] = _Place(parts, kind)
                    continue
                for number, part_name in enumerate(QKV_NAMES):
                    self._places[target.format(part_name)] = _Place(parts, kind, number)
        self._has_warned = False

    def check(self, model_type: str, shapes: Mapping[str, torch.Size]) -> None:
        """Refuses a model whose parameters are not all there.

        Their shapes were held against the sizes that the configuration was made of.

        Args:
            model_type: for the message.
            shapes: of the parameters, by name.

        Raises:
            UserError: one is missing.
        """
        missing = [name for name in shapes if name not in self._places and name != _SEGMENTS]
        refuse_incomplete(self._source, model_type, missing, [])

    def copy_into(self, target: Tensor, name: str, dim: int = 0, start: int = 0) -> None:
        """Fills ``target`` with a parameter, or with the slice of it that has ``target``'s shape.

        No more is read than that, of queries, keys and values no more than the ranks' that hold
        some of it; rows of the vocabulary that are padding are left out.

        Args:
            target: any device and floating-point type.
            name: the model's for the parameter.
            dim: along which ``target`` is a slice.
            start: of the slice.
        """
        place = self._places.get(name)
        if place is None:
            target.zero_()  # segments, of which a checkpoint may have none
            return
        if place.kind == "whole":
            self._check_alike(place.parts)
            target.copy_(place.parts[0].narrow(dim, start, target.shape[dim]))
            return
        cut = 1 if place.kind == "by_input" else 0
        lead = start if dim == cut else 0
        position = 0  # of a rank's part, along the dimension that ranks share
        for part in place.parts:
            width = part.shape[cut] // (3 if place.kind == "by_heads" else 1)
            first, last = max(position, lead), min(position + width, lead + target.shape[cut])
            if first < last:
                heads, version = self._checkpoint.local_heads, self._checkpoint.version
                own = part
                if place.kind == "by_heads":
                    own = unfuse(part, heads, version)[place.number]
                own = own.narrow(cut, first - position, last - first)
                if dim != cut:
                    own = own.narrow(dim, start, target.shape[dim])
                target.narrow(cut, first - lead, last - first).copy_(own)
            position += width

    def _check_alike(self, parts: Sequence[Tensor]) -> None:
        if not self._has_warned and any(not torch.equal(parts[0], part) for part in parts[1:]):
            self._has_warned = True
            _log.warning("%s: weights that all tensor ranks hold %s", self._source, _DIFFER)


_SEGMENTS = hugging_face_name(SEGMENTS).removeprefix(_ENCODER)
