"""A Megatron checkpoint of any version, layout and split, stage by stage.

What is known of its tensors here are their shapes: `headers` reads no more of the files, and
`models.megatron.reading` their numbers too.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ..errors import UserError
from .arguments import (
    ModelOverrides,
    Sizes,
    check_numbers,
    check_overrides,
    check_same_arguments,
    check_same_model,
    check_version,
    simple_arguments,
)
from .finding import RankFiles, missing_ranks
from .naming import (
    FINAL_NORM,
    HEADS,
    LAYER,
    POSITIONS,
    SEGMENTS,
    WORDS,
    common_names,
    expected_shape,
    kind_of,
    layer_names,
    numbered,
)

_MOST_VERSION = 1000
# What weights begin with that are not below a key of their own.
_PLAIN_NAMES = ("language_model", "module.", "embedding.", "encoder.layers.", "lm_head")


class HasShape(Protocol):
    """A tensor, or what stands for one."""

    @property
    def shape(self) -> Any: ...


Weight = TypeVar("Weight", bound=HasShape)
Weights = dict[str, Weight]


@dataclass(frozen=True)
class Stage(Generic[Weight]):
    """A run of layers, with the embeddings before or the heads behind them.

    Attributes:
        first_layer: number of its first layer.
        num_layers: how many it has.
        ranks: each tensor rank's weights by common names.
    """

    first_layer: int
    num_layers: int
    ranks: list[Weights[Weight]]


@dataclass(frozen=True)
class _Rank(Generic[Weight]):
    """A rank's file, as it was read; several chunks where the pipeline is interleaved."""

    chunks: list[Weights[Weight]]
    version: float
    says_version: bool
    is_core: bool
    iteration: int | None
    arguments: dict[str, Any]
    stays_open: bool


class Checkpoint(ABC, Generic[Weight]):
    """A checkpoint whose ranks belong together, and whose weights are one BERT's.

    Attributes:
        files: of the ranks.
        version: of the order of queries, keys and values.
        says_version: False where that is what Megatron takes of one that does not say.
        is_core: whether its names are megatron-core's.
        arguments: the plain values among those that it carries.
        sizes: of its tensors.
        names: common names of all weights, layers numbered through.

    Raises:
        UserError: files are damaged, do not belong together, or are no BERT's.
    """

    def __init__(self, files: RankFiles, overrides: ModelOverrides) -> None:
        self.files = files
        self._ranks: dict[Path, _Rank[Weight]] = {}
        first = self._open(files.files[0][0])
        self.version, self.is_core = first.version, first.is_core
        self.says_version = first.says_version
        self.arguments, self._iteration = first.arguments, first.iteration
        self._num_chunks = len(first.chunks)
        self._check_arguments()
        check_version(self.version)
        heads = overrides.num_attention_heads or self.arguments.get("num_attention_heads")
        if not heads:
            raise UserError(
                f"{files.root}: does not say how many heads it has; put a config.json that says "
                "num_attention_heads beside it or, to convert it, give --num_attention_heads"
            )
        shapes: dict[str, tuple[int, ...]] = {}
        layers = 0
        for stage in self.stages():
            for name in stage.ranks[0]:
                parts = [rank[name] for rank in stage.ranks if name in rank]
                shapes[numbered(name, stage.first_layer)] = _whole_shape(name, parts)
            layers += stage.num_layers
        self.names = list(shapes)
        self.sizes = self._sizes(shapes, layers, int(heads))
        self._check_shapes(shapes)
        check_overrides(overrides, self.arguments, self.sizes.vocab_size)

    def stages(self) -> Iterator[Stage[Weight]]:
        """Yields the stages from first to last; a rank's file is open while its stage is used.

        Raises:
            UserError: a file is damaged or of another checkpoint.
        """
        first_layer = 0
        for chunk in range(self._num_chunks):
            for row in self.files.files:
                ranks = [self._chunk(path, chunk) for path in row]
                _check_same_names(row, ranks)
                numbers = {int(match[1]) for name in ranks[0] if (match := LAYER.fullmatch(name))}
                count = len(numbers)
                if numbers != set(range(count)):
                    raise UserError(f"{row[0]}: its layers are {sorted(numbers)}; some are missing")
                yield Stage(first_layer, count, ranks)
                first_layer += count

    @abstractmethod
    def _load(self, path: Path) -> tuple[Any, bool]:
        """Reads what a rank saved; returns too whether that takes hardly any memory.

        Raises:
            UserError: the file is damaged, or unsafe to read.
        """

    @abstractmethod
    def _check_tensor(self, spelling: str, value: Any) -> None:
        """Refuses what is called a tensor and has no numbers in memory, or not as many.

        Raises:
            UserError: it is no plain tensor.
        """

    def _open(self, path: Path) -> _Rank[Weight]:
        rank = self._ranks.get(path) or self._read(path)
        if rank.stays_open:
            self._ranks[path] = rank
        return rank

    def _read(self, path: Path) -> _Rank[Weight]:
        loaded, stays_open = self._load(path)
        if not isinstance(loaded, dict):
            raise UserError(f"{path}: holds no dictionary; give a file that Megatron-LM saved")
        state = _with_model(loaded, path)
        keys = ["model"] if "model" in state else []
        while f"model{len(keys)}" in state:
            keys.append(f"model{len(keys)}")
        chunks, is_core = [], False
        for key in keys:
            if not isinstance(state[key], Mapping):
                raise UserError(f"{path}: its {key} is no dictionary; give a file of Megatron-LM's")
            try:
                weights, is_core = common_names(state[key], self._check_tensor)
            except UserError as error:
                raise UserError(f"{path}: {error}; give a checkpoint of Megatron's BERT") from None
            chunks.append(weights)
        if not chunks:
            raise UserError(f"{path}: holds no 'model'; give a file that Megatron-LM saved")
        version = _version(state, is_core, path)
        try:
            arguments = simple_arguments(state)
        except UserError as error:
            raise UserError(f"{path}: {error}; give a file that Megatron-LM saved") from None
        iteration = state.get("iteration")
        iteration = iteration if isinstance(iteration, int) else None
        says_version = is_core or "checkpoint_version" in state
        return _Rank(chunks, version, says_version, is_core, iteration, arguments, stays_open)

    def _chunk(self, path: Path, number: int) -> Weights[Weight]:
        rank = self._open(path)
        if (rank.version, rank.is_core, len(rank.chunks)) != (
            self.version,
            self.is_core,
            self._num_chunks,
        ):
            raise UserError(
                f"{path}: is of checkpoint version {rank.version:g}, the first rank of "
                f"{self.version:g}, or of another layout; give the ranks of one checkpoint"
            )
        try:
            check_same_arguments(rank.arguments, self.arguments)
        except UserError as error:
            raise UserError(f"{path}: {error}; give the ranks of one checkpoint") from None
        if None not in (rank.iteration, self._iteration) and rank.iteration != self._iteration:
            raise UserError(
                f"{path}: is of iteration {rank.iteration}, the first rank of {self._iteration}; "
                "give the ranks of one checkpoint"
            )
        return rank.chunks[number]

    def _check_arguments(self) -> None:
        try:
            check_same_model(self.arguments)
            check_numbers(self.arguments)
        except UserError as error:
            raise UserError(f"{self.files.root}: {error}") from None
        recorded = self.arguments.get("tensor_model_parallel_size") or self.arguments.get(
            "model_parallel_size"
        )
        tensor = int(recorded or self.files.tensor_parallel_size)
        pipeline = int(
            self.arguments.get("pipeline_model_parallel_size") or self.files.pipeline_parallel_size
        )
        if (tensor, pipeline) == (
            self.files.tensor_parallel_size,
            self.files.pipeline_parallel_size,
        ):
            return
        present = {path.parent.name for row in self.files.files for path in row}
        if pipeline * tensor > len(present):
            raise missing_ranks(self.files.root, pipeline, tensor, present)
        raise UserError(
            f"{self.files.root}: has {self.files.tensor_parallel_size} tensor and "
            f"{self.files.pipeline_parallel_size} pipeline ranks, but was saved by {tensor} and "
            f"{pipeline}; give the folder as it was saved"
        )

    def _sizes(self, shapes: Mapping[str, tuple[int, ...]], layers: int, heads: int) -> Sizes:
        for name in self._required_names(shapes, layers):
            if name not in shapes:
                raise UserError(
                    f"{self.files.root}: has no {name}; give a whole checkpoint of Megatron's BERT"
                )
        sizes = Sizes(
            num_layers=layers,
            hidden_size=shapes[POSITIONS][1],
            num_attention_heads=heads,
            ffn_hidden_size=shapes["encoder.layers.0.mlp.linear_fc1.bias"][0],
            max_position_embeddings=shapes[POSITIONS][0],
            type_vocab_size=shapes.get(SEGMENTS, (2,))[0],
            vocab_size=shapes[WORDS][0],
        )
        for name, size in (
            ("num_layers", sizes.num_layers),
            ("hidden_size", sizes.hidden_size),
            ("ffn_hidden_size", sizes.ffn_hidden_size),
            ("max_position_embeddings", sizes.max_position_embeddings),
            ("padded_vocab_size", sizes.vocab_size),
        ):
            recorded = self.arguments.get(name)
            if recorded and recorded != size:
                raise UserError(
                    f"{self.files.root}: its arguments say {name} {recorded}, its tensors {size}; "
                    "ranks are missing or of another checkpoint: copy it again"
                )
        sizes.check_split(self.files.tensor_parallel_size, 1)
        return sizes

    @staticmethod
    def _required_names(shapes: Mapping[str, Any], layers: int) -> Iterator[str]:
        yield from (WORDS, POSITIONS)
        for number in range(max(1, layers)):
            yield from layer_names(number)
        yield from (f"{FINAL_NORM}.weight", f"{FINAL_NORM}.bias")
        for names in HEADS.values():
            if any(name in shapes for name in names):
                yield from names

    def _check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            expected = expected_shape(name, self.sizes)
            if shape != expected:
                raise UserError(
                    f"{self.files.root}: {name} of all ranks is {list(shape)}, but must be "
                    f"{list(expected)}; ranks are missing or of another checkpoint: copy it again"
                )


def _version(state: Mapping[str, Any], is_core: bool, path: Path) -> float:
    # megatron-core came after version 3; Megatron takes 0 of others that do not say.
    version = state.get("checkpoint_version", 3.0 if is_core else 0)
    is_huge = isinstance(version, int) and version > _MOST_VERSION  # perhaps too large for a float
    if not isinstance(version, int | float) or is_huge:
        raise UserError(f"{path}: its checkpoint_version is no number; copy the file again")
    if is_core and version < 2:
        raise UserError(
            f"{path}: has megatron-core's names, but checkpoint_version {version:g}; they came "
            "with 3.0: copy the file again"
        )
    return float(version)


def _with_model(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns what a file holds with its weights under ``model``, where Megatron-LM has them.

    Files that were made of a checkpoint have them under DeepSpeed's ``module``, or nothing else.

    Raises:
        UserError: the weights have Hugging Face's names.
    """
    if "model" in state or "model0" in state:
        return state
    if isinstance(state.get("module"), Mapping):
        return {**state, "model": state["module"]}
    names = [str(name) for name in state]
    if any(name.startswith(("bert.", "embeddings.", "encoder.layer.")) for name in names):
        raise UserError(
            f"{path}: has Hugging Face's names, as {names[0]}, so it is converted already; put it "
            "into a folder as pytorch_model.bin, with its config.json of model_type megatron-bert "
            "and its vocab.txt, and give that folder as a model"
        )
    is_plain = any(name.startswith(_PLAIN_NAMES) for name in names)
    return {"model": state} if is_plain else state


def _check_same_names(row: tuple[Path, ...], ranks: Sequence[Mapping[str, Any]]) -> None:
    for path, rank in zip(row, ranks, strict=True):
        differing = rank.keys() ^ ranks[0].keys()
        if differing:
            raise UserError(
                f"{path}: {min(differing)} is not in every tensor rank; give those of one "
                "checkpoint"
            )


def _whole_shape(name: str, parts: Sequence[HasShape]) -> tuple[int, ...]:
    kind = kind_of(name)
    dimension = {"whole": None, "by_input": 1}.get(kind, 0)
    shapes = [tuple(part.shape) for part in parts]
    uncut = {shape[:dimension] + shape[dimension + 1 :] if dimension is not None else shape
             for shape in shapes}  # fmt: skip
    if len(uncut) > 1 or len(set(shapes)) > 1:
        raise UserError(f"{name} is {shapes} on the tensor ranks, which do not belong together")
    if dimension is None:
        return shapes[0]
    shape = list(shapes[0])
    if dimension >= len(shape):
        raise UserError(f"{name} has {len(shape)} dimensions; the checkpoint is damaged")
    shape[dimension] *= len(parts)
    return tuple(shape)
