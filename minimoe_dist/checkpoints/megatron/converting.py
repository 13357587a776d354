"""Conversions that are compared with what they were made of before they get their name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import MegatronBertConfig

from ...megatron_files.arguments import LAYER_NORM_EPSILON, ModelOverrides, config_values
from ...megatron_files.finding import find_rank_files
from ...megatron_files.naming import HEADS, SEGMENTS
from ...models.megatron.reading import MegatronCheckpoint
from ...runtime import logger
from ..tensors import replaced_model
from .folders import MegatronBertFolder, class_name, write_folder
from .forward import (
    Difference,
    differences,
    hugging_face_outputs,
    megatron_outputs,
    random_probe,
)
from .writing import Target, check_target, write_checkpoint

_log = logger("convert")


@dataclass(frozen=True)
class Report:
    """The report of a conversion.

    Attributes:
        megatron: the Megatron side in a few words.
        vocab_size: rows of Hugging Face's word embeddings.
        padded_vocab_size: rows of Megatron's.
        differences: of the two sides' outputs on a random batch; empty if not compared.
    """

    megatron: str
    vocab_size: int
    padded_vocab_size: int
    differences: dict[str, Difference]


def to_hugging_face(
    source: Path,
    folder: Path,
    overrides: ModelOverrides,
    *,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
    compare: bool = True,
) -> Report:
    """Writes a Megatron checkpoint as a Hugging Face folder, whole or not at all.

    Args:
        source: a folder with the tracker, an iteration's folder, or the only rank's file.
        folder: where to; what is there is replaced.
        overrides: what the checkpoint does not say, or what shall win over it.
        dtype: of the weights; None keeps each one's.
        tokenizer: saved beside the model where given.
        compare: compute a random batch on both sides first, which takes the model in float32.

    Raises:
        ValueError: the checkpoint is no BERT, damaged, incomplete, or unsafe to read.
        RuntimeError: the two sides do not compute the same.
    """
    checkpoint = MegatronCheckpoint(find_rank_files(source), overrides)
    values = config_values(checkpoint.sizes, overrides, checkpoint.arguments)
    config = MegatronBertConfig(**values)
    _log_assumptions(checkpoint, config, overrides)
    with replaced_model(folder) as aside:
        write_folder(checkpoint, config, aside, dtype)
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
        compared = _compare(checkpoint, aside, config, dtype) if compare else {}
    return Report(_describe(checkpoint), config.vocab_size, checkpoint.sizes.vocab_size, compared)


def to_megatron(source: Path, root: Path, target: Target, *, compare: bool = True) -> Report:
    """Writes a Hugging Face folder as a Megatron checkpoint, whole or not at all.

    Args:
        source: a folder with a ``megatron-bert`` model.
        root: where to; what is there is replaced.
        target: version, layout and split.
        compare: as of :func:`to_hugging_face`.

    Raises:
        ValueError: the folder holds no such model, or it cannot have that form.
        RuntimeError: the two sides do not compute the same.
    """
    model = MegatronBertFolder(source)
    check_target(model, target)
    missing = [head for head in HEADS if head not in model.heads]
    if missing:
        _log.warning(
            "%s has no %s: Megatron-LM, which loads strictly, will miss those",
            source,
            ", ".join(missing),
        )
    with replaced_model(root) as aside:
        write_checkpoint(model, aside, target)
        # What is compared is what stands on the disk, read anew.
        checkpoint = MegatronCheckpoint(find_rank_files(aside), ModelOverrides())
        compared = _compare(checkpoint, source, model.config, target.dtype) if compare else {}
    return Report(
        _describe(checkpoint), model.config.vocab_size, checkpoint.sizes.vocab_size, compared
    )


def _compare(
    checkpoint: MegatronCheckpoint,
    folder: Path,
    config: MegatronBertConfig,
    dtype: torch.dtype | None,
) -> dict[str, Difference]:
    heads = [head for head, names in HEADS.items() if names[0] in checkpoint.names]
    rows = min(config.vocab_size, checkpoint.sizes.vocab_size)
    probe = random_probe(config, rows)
    compared = differences(
        megatron_outputs(checkpoint, config, probe, dtype),
        hugging_face_outputs(folder, class_name(heads), config, probe, dtype),
    )
    problems = [
        f"{name} differ by {difference.largest:.1e}"
        for name, difference in compared.items()
        if not difference.is_rounding
    ]
    if problems:
        raise RuntimeError(
            "; ".join(problems) + ": the two sides do not compute the same, nothing was written"
        )
    return compared


def _log_assumptions(
    checkpoint: MegatronCheckpoint, config: MegatronBertConfig, overrides: ModelOverrides
) -> None:
    arguments, sizes = checkpoint.arguments, checkpoint.sizes
    if overrides.layer_norm_eps is None and "layernorm_epsilon" not in arguments:
        _log.warning(
            "the checkpoint does not say its LayerNorm epsilon: %g, Megatron's default, is taken; "
            "--layer_norm_eps gives another",
            LAYER_NORM_EPSILON,
        )
    if overrides.hidden_act is None and arguments.get("bias_gelu_fusion"):
        _log.warning(
            "it was trained with Megatron's fused gelu, an approximation by tanh: hidden_act gelu "
            "is written, as usual; --hidden_act gelu_pytorch_tanh keeps the approximation"
        )
    if config.vocab_size < sizes.vocab_size:
        _log.info(
            "%d rows behind the vocabulary of %d are cut off, and kept apart for the way back",
            sizes.vocab_size - config.vocab_size,
            config.vocab_size,
        )
    elif overrides.vocab_size is None:
        _log.info(
            "the vocabulary is taken to have all %d rows; --tokenizer_name_or_path or --vocab_size "
            "cuts off Megatron's padding",
            sizes.vocab_size,
        )
    if SEGMENTS not in checkpoint.names:
        _log.warning("it has no token-type embeddings: zeros are written")


def _describe(checkpoint: MegatronCheckpoint) -> str:
    files = checkpoint.files
    return (
        f"{'megatron-core' if checkpoint.is_core else 'legacy'}, version {checkpoint.version:g}, "
        f"{files.tensor_parallel_size} tensor-parallel × {files.pipeline_parallel_size} "
        "pipeline-parallel ranks"
    )
