"""``minimoe-dist export``: writes a model's folder for others, with card, ONNX, sentence layout."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.folders import (
    copy_model,
    exported_parameters,
    exported_shapes,
    load_model,
    write_sentence_layout,
)
from ..checkpoints.onnx_export import OnnxExport, write_onnx
from ..checkpoints.onnx_quantized import OnnxModel, write_quantized
from ..checkpoints.tensors import replaced_model
from ..config.commands import EvaluateOptions, ExportOptions
from ..model_description import read_model_json
from ..models.compute import sequence_gmac
from ..models.pretrained import longest_sequence
from ..recipes.saved_students import opened_model
from ..reporting.model_card import CardFacts, model_card
from ..reporting.runs import Export
from ..runtime import Launch, logger
from ..train.task_scores import score_on_task

ONNX_FILE, INT8_FILE = "onnx/model.onnx", "onnx/model_int8.onnx"
_log = logger("export")


def run(options: ExportOptions, launch: Launch) -> int:
    """Writes the export's folder, whole or not at all.

    Returns:
        0.
    """
    with opened_model(options.source, options.student, options.step) as export:
        _write(options, export)
    return 0


def _write(options: ExportOptions, export: Export) -> None:
    target = Path(options.output_dir)
    config = read_model_json(export.folder)
    model = load_model(export.folder)
    with replaced_model(target) as aside:
        copy_model(export.folder, aside)
        onnx = quantized = None
        if options.onnx or options.quantize:
            written = _write_onnx(model, aside)
            onnx = {"file": ONNX_FILE, **asdict(written)}
            if options.quantize:
                quantized = _write_quantized(model, aside, export, written)
        sentences = _write_sentences(options, model.config, aside)
        facts = CardFacts(
            config=config,
            parameters=exported_parameters(export.folder),
            has_pooler=any("pooler." in name for name in exported_shapes(export.folder)),
            gmac=sequence_gmac(model.config),
            license=options.license,
            languages=tuple(options.language),
            onnx=onnx,
            quantized=quantized,
            sentences=sentences,
        )
        (aside / "README.md").write_text(model_card(export, facts), "utf-8")
    origin = f"step {export.step} of {options.source}" if export.step else export.folder
    _log.info("exported %s to %s", origin, target)


def _write_onnx(model: Any, folder: Path) -> OnnxExport:
    path = folder / ONNX_FILE
    path.parent.mkdir()
    written = write_onnx(model, path)
    _log.info(
        "ONNX: opset %d, %s -> %s; at most %.1e from PyTorch on %d random batches with padding",
        written.opset,
        ", ".join(written.inputs),
        written.output,
        written.largest_difference,
        written.checked_batches,
    )
    return written


def _write_quantized(
    model: Any, folder: Path, export: Export, written: OnnxExport
) -> dict[str, Any]:
    """Writes the int8 file; of a fine-tuned model whose dev set is there, scores both."""
    quantized = write_quantized(folder / ONNX_FILE, folder / INT8_FILE, model, written)
    _log.info(
        "int8 ONNX: %.1f of %.1f MB; outputs at a mean cosine of %.4f, at most %.1e apart",
        quantized.bytes / 1e6,
        quantized.float_bytes / 1e6,
        quantized.cosine,
        quantized.largest_difference,
    )
    facts: dict[str, Any] = {"file": INT8_FILE, **asdict(quantized)}
    options = _dev_set(export)
    if options is not None and export.run is not None:
        device = torch.device("cpu")
        for name, scored in (
            ("scores_before", model),
            ("scores", OnnxModel(folder / INT8_FILE, model.config, written)),
        ):
            given = score_on_task(scored, export.folder, options, export.run.results, device)
            facts[name] = given.scores
            facts["samples"] = given.samples
        _log.info(
            "on %d samples of its dev set: %s",
            facts["samples"],
            ", ".join(
                f"{name} {facts['scores_before'][name]:.4f} -> {value:.4f}"
                for name, value in facts["scores"].items()
            ),
        )
    else:
        _log.warning("no dev set of a fine-tuning is there: what int8 costs in scores is not known")
    return facts


def _dev_set(export: Export) -> EvaluateOptions | None:
    """Returns what a fine-tuned model's scores were measured on; None where it is not there."""
    results = export.run.results if export.run else None
    if results is None:
        return None
    tree = results.options.tree
    source = {"task": results.task, "data_dir": tree.get("data_dir")}
    if tree.get("dataset"):
        source = {"dataset": tree.get("dev") or tree["dataset"]}
    place = source.get("data_dir") or source.get("dataset")
    if place is None or not Path(place).exists():
        return None
    return EvaluateOptions(source=str(export.folder), **source)


def _write_sentences(options: ExportOptions, config: Any, folder: Path) -> str | None:
    if not options.sentence_transformers:
        return None
    write_sentence_layout(
        folder,
        hidden_size=config.hidden_size,
        longest=longest_sequence(config),
        pooling=options.pooling,
        normalize=options.normalize,
    )
    return f"{options.pooling} pooling" + (", normalised" if options.normalize else "")
