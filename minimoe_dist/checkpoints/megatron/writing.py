"""A Megatron checkpoint of any version, layout and split, rank by rank."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import UserError
from ...megatron_files.arguments import Sizes, check_version
from ...megatron_files.finding import TRACKER, WEIGHTS, iteration_name, rank_name
from ...megatron_files.naming import (
    FINAL_NORM,
    HEADS,
    OUTPUT_BIAS,
    POSITIONS,
    QKV_NAMES,
    SEGMENTS,
    WORDS,
    WORDS_AGAIN,
    hugging_face_name,
    kind_of,
    layer_names,
)
from ...models.megatron.splitting import fuse, part_of
from .arguments import megatron_arguments, padded_vocab_size
from .folders import MegatronBertFolder, converted
from .layout import Layout, megatron_model


@dataclass(frozen=True)
class Target:
    """The form that a checkpoint is to have.

    Attributes:
        vocab_size: tokens of the vocabulary; None counts all rows that the folder has.
        iteration: None writes a release.
        dtype: of the weights; None keeps the folder's.
    """

    layout: Layout = "legacy"
    version: float = 3.0
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    divisible_by: int = 128
    vocab_size: int | None = None
    iteration: int | None = None
    dtype: torch.dtype | None = None


def write_checkpoint(source: MegatronBertFolder, root: Path, target: Target) -> None:
    """Writes and flushes the files of all ranks and the tracker.

    Holds one rank's weights at a time, and one whole tensor.

    Args:
        source: of the weights.
        root: exists, empty.
        target: the form.

    Raises:
        UserError: the model cannot have that form.
        OSError: the disk is full or broken.
    """
    sizes = check_target(source, target)
    dtype = target.dtype or source.dtype()
    arguments = megatron_arguments(
        source.config,
        sizes,
        layout=target.layout,
        divisible_by=target.divisible_by,
        tensor_parallel_size=target.tensor_parallel_size,
        pipeline_parallel_size=target.pipeline_parallel_size,
        dtype=dtype,
        has_binary_head="binary_head" in source.heads,
        iteration=target.iteration,
    )
    if target.vocab_size is not None:
        arguments.vocab_size = target.vocab_size
    folder = root / iteration_name(target.iteration)
    for pipeline_rank in range(target.pipeline_parallel_size):
        for tensor_rank in range(target.tensor_parallel_size):
            weights: dict[str, Tensor] = {}
            for name, value in _rank_weights(source, sizes, target, pipeline_rank, tensor_rank):
                weight = converted(source.folder, name, value, target.dtype)
                # A view would bring the whole tensor into the file.
                is_view = weight.untyped_storage().nbytes() > weight.nbytes
                weights[name] = weight.clone() if is_view else weight
            state = {
                "args": arguments,
                "checkpoint_version": target.version,
                "iteration": target.iteration or 0,
                "model": megatron_model(weights, target.layout, target.version),
            }
            name = rank_name(tensor_rank, pipeline_rank, target.pipeline_parallel_size)
            path = folder / name / WEIGHTS
            path.parent.mkdir(parents=True)
            torch.save(state, path)
    written = "release" if target.iteration is None else str(target.iteration)
    (root / TRACKER).write_text(written)


def check_target(source: MegatronBertFolder, target: Target) -> Sizes:
    """Returns the sizes that the checkpoint will have.

    Raises:
        UserError: the version is not known or not the layout's, or the split does not work out.
    """
    check_version(target.version)
    if target.layout != "legacy" and target.version < 2:
        raise UserError(
            f"checkpoint_version: {target.version:g} is older than layout {target.layout}; give "
            "at least 2.0, or layout legacy"
        )
    config = source.config
    tokens = target.vocab_size or config.vocab_size
    if tokens > config.vocab_size:
        raise UserError(
            f"vocab_size: {tokens} tokens, but {source.folder} has {config.vocab_size} rows of "
            "word embeddings; give its own tokenizer's"
        )
    padded = padded_vocab_size(tokens, target.divisible_by, target.tensor_parallel_size)
    sizes = Sizes(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        ffn_hidden_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        type_vocab_size=config.type_vocab_size,
        vocab_size=padded,
    )
    sizes.check_split(target.tensor_parallel_size, target.pipeline_parallel_size)
    return sizes


def _rank_weights(
    source: MegatronBertFolder, sizes: Sizes, target: Target, pipeline_rank: int, tensor_rank: int
) -> Iterator[tuple[str, Tensor]]:
    """Yields what one rank holds, by common names, in the order of Megatron's modules."""
    count = sizes.num_layers // target.pipeline_parallel_size
    first_layer = pipeline_rank * count
    is_last = pipeline_rank == target.pipeline_parallel_size - 1
    names = [] if pipeline_rank else [WORDS, POSITIONS, *([SEGMENTS] * source.has_segments)]
    for number in range(count):
        names += layer_names(number)
    if is_last:
        names += [f"{FINAL_NORM}.weight", f"{FINAL_NORM}.bias"]
        names += [name for head in source.heads for name in HEADS[head]]
        names += [WORDS_AGAIN] * (pipeline_rank > 0 and "lm_head" in source.heads)
    ranks = target.tensor_parallel_size
    heads = sizes.num_attention_heads // ranks
    for name in names:
        kind = kind_of(name)
        if kind == "by_heads":
            template = hugging_face_name(name, first_layer)
            parts = [
                part_of(source.get(template.format(part)), "by_output", tensor_rank, ranks)
                for part in QKV_NAMES
            ]
            yield name, fuse(parts, heads, target.version)
        elif name in (WORDS, WORDS_AGAIN, OUTPUT_BIAS):
            yield name, part_of(_padded(source, name, sizes), kind, tensor_rank, ranks)
        else:
            tensor = source.get(hugging_face_name(name, first_layer))
            yield name, part_of(tensor, kind, tensor_rank, ranks)


def _padded(source: MegatronBertFolder, name: str, sizes: Sizes) -> Tensor:
    """Returns a table of the vocabulary with the rows that are kept for it, then zeros."""
    common = WORDS if name == WORDS_AGAIN else name
    table = source.get(hugging_face_name(common))[: sizes.vocab_size]
    padding = source.padding.get(common, table[:0])[: sizes.vocab_size - table.shape[0]].to(
        table.dtype
    )
    missing = sizes.vocab_size - table.shape[0] - padding.shape[0]
    return torch.cat([table, padding, table.new_zeros(missing, *table.shape[1:])])
