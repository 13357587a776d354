"""A Megatron checkpoint of any version, layout and split, stage by stage."""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...runtime import logger
from .arguments import (
    ModelOverrides,
    Sizes,
    check_numbers,
    check_overrides,
    check_same_arguments,
    check_same_model,
    simple_arguments,
)
from .finding import RankFiles, missing_ranks
from .layout import (
    FINAL_NORM,
    HEADS,
    LAYER,
    OUTPUT_BIAS,
    POSITIONS,
    QKV,
    QKV_NAMES,
    SEGMENTS,
    WORDS,
    WORDS_AGAIN,
    Weights,
    common_names,
    hugging_face_name,
    layer_names,
)
from .splitting import check_version, kind_of, merge, unfuse
from .unpickling import load_rank

_log = logger("convert")
_MOST_VERSION = 1000
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What weights begin with that are not below a key of their own.
_PLAIN_NAMES = ("language_model", "module.", "embedding.", "encoder.layers.", "lm_head")


@dataclass(frozen=True)
class Stage:
    """A run of layers, with the embeddings before or the heads behind them.

    Attributes:
        first_layer: number of its first layer.
        num_layers: how many it has.
        ranks: each tensor rank's weights by common names.
    """

    first_layer: int
    num_layers: int
    ranks: list[Weights]


@dataclass(frozen=True)
class _Rank:
    """A rank's file, as it was read; several chunks where the pipeline is interleaved."""

    chunks: list[Weights]
    version: float
    is_core: bool
    iteration: int | None
    arguments: dict[str, Any]
    is_mapped: bool


class MegatronCheckpoint:
    """An open checkpoint.

    Attributes:
        files: of the ranks.
        version: of the order of queries, keys and values.
        is_core: whether its names are megatron-core's.
        arguments: the plain values among those that it carries.
        sizes: of its tensors.
        names: common names of all weights, layers numbered through.

    Raises:
        UserError: files are damaged, do not belong together, or are no BERT's.
    """

    def __init__(self, files: RankFiles, overrides: ModelOverrides) -> None:
        self.files = files
        self._mapped: dict[Path, _Rank] = {}
        first = self._open(files.files[0][0])
        self.version, self.is_core = first.version, first.is_core
        self.arguments, self._iteration = first.arguments, first.iteration
        self._num_chunks = len(first.chunks)
        self._check_arguments()
        check_version(self.version)
        heads = overrides.num_attention_heads or self.arguments.get("num_attention_heads")
        if not heads:
            raise UserError(
                f"{files.root}: does not say how many heads it has; give --num_attention_heads or "
                "--model_config_path"
            )
        shapes: dict[str, tuple[int, ...]] = {}
        layers = 0
        for stage in self.stages():
            for name in stage.ranks[0]:
                parts = [rank[name] for rank in stage.ranks if name in rank]
                shapes[_numbered(name, stage.first_layer)] = _whole_shape(name, parts)
            layers += stage.num_layers
        self.names = list(shapes)
        self.sizes = self._sizes(shapes, layers, int(heads))
        self._check_shapes(shapes)
        check_overrides(overrides, self.arguments, self.sizes.vocab_size)

    def stages(self) -> Iterator[Stage]:
        """Yields the stages from first to last; a rank's file is mapped while its stage is used.

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

    def tensors(self, vocab_size: int) -> Iterator[tuple[str, Tensor]]:
        """Yields weights by Hugging Face's names, merged, with the vocabulary's rows alone.

        Args:
            vocab_size: rows to keep.

        Raises:
            UserError: ranks that hold the same weight disagree about its shape.
        """
        local_heads = self.sizes.num_attention_heads // self.files.tensor_parallel_size
        differing = 0
        for stage in self.stages():
            for name in stage.ranks[0]:
                parts = [rank[name] for rank in stage.ranks]
                if name == WORDS_AGAIN:
                    self._check_tied(stage, parts)
                    continue
                kind, target = kind_of(name), hugging_face_name(name, stage.first_layer)
                if kind == "by_heads":
                    split = [unfuse(part, local_heads, self.version) for part in parts]
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
            _log.warning(
                "%d weights that all tensor ranks hold differ between them; the first rank's are "
                "taken, as Megatron's own tools do",
                differing,
            )

    def padding(self, vocab_size: int) -> dict[str, Tensor]:
        """Returns the rows behind the vocabulary, by common names."""
        rows: dict[str, Tensor] = {}
        for stage in self.stages():
            for name in (WORDS, OUTPUT_BIAS):
                if name in stage.ranks[0]:
                    merged = merge([rank[name] for rank in stage.ranks], "by_output")
                    rows[name] = merged[vocab_size:].clone()
        return rows

    def _open(self, path: Path) -> _Rank:
        """Opens a rank's file; one that is mapped takes no memory and stays open."""
        rank = self._mapped.get(path) or _read(path)
        if rank.is_mapped:
            self._mapped[path] = rank
        return rank

    def _chunk(self, path: Path, number: int) -> Weights:
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

    def _check_tied(self, stage: Stage, parts: list[Tensor]) -> None:
        """Refuses output weights of the last stage that are not the first one's word embeddings."""
        first = next(self.stages()).ranks
        if not all(torch.equal(rank[WORDS], part) for rank, part in zip(first, parts, strict=True)):
            raise UserError(
                f"{self.files.root}: its output weights are not its word embeddings, which Hugging "
                "Face's megatron-bert ties; it cannot be converted"
            )


def converted(source: Path, name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Returns a weight in the type that it is written in.

    Args:
        source: where it is from, for messages.
        name: its name, for messages.
        value: the weight.
        dtype: None keeps its own.

    Raises:
        UserError: it is not of finite numbers, or some are too large for the type.
    """
    is_of_weights = value.dtype in _WEIGHT_DTYPES
    result = value.to(dtype) if is_of_weights and dtype is not None else value
    if not is_of_weights:
        fault = f"is of {value.dtype}, which no weight is; give the model as it was trained"
    elif result.isfinite().all():
        return result
    elif value.isfinite().all():
        fault = f"has numbers that {dtype} cannot hold; give --dtype bfloat16, or leave it out"
    else:
        fault = "has numbers that are not finite; give a checkpoint from before that"
    raise UserError(f"{source}: {name} {fault.replace('torch.', '')}")


def expected_shape(name: str, sizes: Sizes) -> tuple[int, ...]:
    """Returns the shape of a whole tensor, by its common name."""
    hidden, feed_forward = sizes.hidden_size, sizes.ffn_hidden_size
    tables = {
        WORDS: sizes.vocab_size,
        WORDS_AGAIN: sizes.vocab_size,
        POSITIONS: sizes.max_position_embeddings,
        SEGMENTS: sizes.type_vocab_size,
        "pooler.dense.weight": hidden,
        "lm_head.dense.weight": hidden,
        "binary_head.weight": 2,
    }
    if name in tables:
        return (tables[name], hidden)
    vectors = {OUTPUT_BIAS: sizes.vocab_size, "binary_head.bias": 2}
    layer = LAYER.fullmatch(name)
    part, kind = (layer.group(2), layer.group(3)) if layer else ("", "bias")
    if kind == "bias" or "layernorm" in part:
        wide = {QKV: 3 * hidden, "mlp.linear_fc1": feed_forward}
        return (wide.get(part, vectors.get(name, hidden)),)
    weights = {
        QKV: (3 * hidden, hidden),
        "self_attention.linear_proj": (hidden, hidden),
        "mlp.linear_fc1": (feed_forward, hidden),
        "mlp.linear_fc2": (hidden, feed_forward),
    }
    return weights[part]


def _read(path: Path) -> _Rank:
    state = load_rank(path)
    state = _with_model(state, path)
    keys = ["model"] if "model" in state else []
    while f"model{len(keys)}" in state:
        keys.append(f"model{len(keys)}")
    chunks, is_core = [], False
    for key in keys:
        if not isinstance(state[key], Mapping):
            raise UserError(f"{path}: its {key} is no dictionary; give a file of Megatron-LM's")
        try:
            weights, is_core = common_names(state[key])
        except UserError as error:
            raise UserError(f"{path}: {error}; give a checkpoint of Megatron's BERT") from None
        chunks.append(weights)
    if not chunks:
        raise UserError(f"{path}: holds no 'model'; give a file that Megatron-LM saved")
    # megatron-core came after version 3.
    version = state.get("checkpoint_version", 3.0 if is_core else 0)
    if not is_core and "checkpoint_version" not in state:
        _log.warning("%s: does not say its checkpoint_version: 0 is taken, as Megatron does", path)
    is_huge = isinstance(version, int) and version > _MOST_VERSION  # perhaps too large for a float
    if not isinstance(version, int | float) or is_huge:
        raise UserError(f"{path}: its checkpoint_version is no number; copy the file again")
    if is_core and version < 2:
        raise UserError(
            f"{path}: has megatron-core's names, but checkpoint_version {version:g}; they came "
            "with 3.0: copy the file again"
        )
    try:
        arguments = simple_arguments(state)
    except UserError as error:
        raise UserError(f"{path}: {error}; give a file that Megatron-LM saved") from None
    mapped = zipfile.is_zipfile(path)
    iteration = state.get("iteration")
    iteration = iteration if isinstance(iteration, int) else None
    return _Rank(chunks, float(version), is_core, iteration, arguments, mapped)


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


def _check_same_names(row: tuple[Path, ...], ranks: list[Weights]) -> None:
    for path, rank in zip(row, ranks, strict=True):
        differing = rank.keys() ^ ranks[0].keys()
        if differing:
            raise UserError(
                f"{path}: {min(differing)} is not in every tensor rank; give those of one "
                "checkpoint"
            )


def _numbered(name: str, first_layer: int) -> str:
    layer = LAYER.fullmatch(name)
    if layer is None:
        return name
    return f"encoder.layers.{int(layer.group(1)) + first_layer}.{layer.group(2)}.{layer.group(3)}"


def _whole_shape(name: str, parts: list[Tensor]) -> tuple[int, ...]:
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
