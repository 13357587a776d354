"""``minimoe-dist convert``: converts BERTs between Megatron-LM and Hugging Face."""

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from ..checkpoints.megatron.converting import Report, to_hugging_face, to_megatron
from ..checkpoints.megatron.writing import Target
from ..config import ConfigError
from ..config.commands import ConvertOptions
from ..corpus.tokenizing import embedding_rows, load_tokenizer
from ..errors import first_line
from ..exit_status import ExitStatus
from ..megatron_files.arguments import ModelOverrides
from ..megatron_files.headers import stated_beside, stated_by
from ..preflight.convert import config_json, direction_of
from ..runtime import Launch, logger

_log = logger("convert")


def run(options: ConvertOptions, launch: Launch) -> int:
    """Converts, compares and prints what was done.

    Returns:
        0; 1 if the two sides do not compute the same or the disk fails, and nothing is written.

    Raises:
        UserError: the input cannot be converted as asked.
    """
    source, output = Path(options.input).expanduser(), Path(options.output).expanduser()
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    tokenizer = None
    if options.tokenizer_name_or_path is not None:
        tokenizer = load_tokenizer(options.tokenizer_name_or_path)
    tokens = options.vocab_size
    if tokenizer is not None:
        tokens = embedding_rows(tokenizer)
        if options.vocab_size not in (None, tokens):
            raise ConfigError(
                f"--vocab_size: {options.vocab_size}, but {options.tokenizer_name_or_path} has "
                f"{tokens} tokens; leave --vocab_size out"
            )
    direction = direction_of(options)
    try:
        if direction == "huggingface":
            facts = _given_facts(options, tokens)
            report = to_hugging_face(
                source, output, facts, dtype=dtype, tokenizer=tokenizer, compare=options.compare
            )
        else:
            target = Target(
                layout=options.layout,
                version=options.checkpoint_version,
                tensor_parallel_size=options.tensor_parallel_size,
                pipeline_parallel_size=options.pipeline_parallel_size,
                divisible_by=options.make_vocab_size_divisible_by,
                vocab_size=tokens,
                iteration=options.iteration,
                dtype=dtype,
            )
            report = to_megatron(source, output, target, compare=options.compare)
    except (RuntimeError, OSError, SafetensorError) as error:
        # The comparison failed, or the disk is full; torch and safetensors say it in many lines.
        _log.error("%s: %s", output, first_line(error))
        return ExitStatus.FAILED
    _show(direction, output, report)
    return 0


def _given_facts(options: ConvertOptions, tokens: int | None) -> ModelOverrides:
    """Collects facts from flags, else from a ``config.json``, given or beside the ranks."""
    if options.model_config_path:
        stated = stated_by(config_json(options.model_config_path), Path(options.model_config_path))
    else:
        stated = stated_beside(Path(options.input).expanduser())
    return ModelOverrides(
        num_attention_heads=options.num_attention_heads or stated.num_attention_heads,
        layer_norm_eps=options.layer_norm_eps or stated.layer_norm_eps,
        hidden_act=options.hidden_act or stated.hidden_act,
        vocab_size=tokens or stated.vocab_size,
    )


def _show(direction: str, output: Path, report: Report) -> None:
    table = Table(title=f"converted to {direction}", show_header=False)
    table.add_row("output", str(output))
    table.add_row("Megatron", report.megatron)
    rows = f"{report.vocab_size:,} in Hugging Face, {report.padded_vocab_size:,} in Megatron"
    table.add_row("vocabulary", rows)
    for name, difference in report.differences.items():
        text = f"differ by at most {difference.largest:.1e} (largest value {difference.scale:.1f})"
        table.add_row(name, text)
    if not report.differences:
        table.add_row("outputs", "not compared")
    Console().print(table)
