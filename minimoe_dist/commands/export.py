"""``minimoe-dist export``: writes a model's folder for others, with card, ONNX, sentence layout."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoints.folders import (
    copy_model,
    exported_parameters,
    exported_shapes,
    load_model,
    write_sentence_layout,
)
from ..checkpoints.onnx_export import write_onnx
from ..checkpoints.tensors import replaced_model
from ..config.commands import ExportOptions
from ..model_description import read_model_json
from ..models.compute import sequence_gmac
from ..models.pretrained import longest_sequence
from ..recipes.saved_students import opened_model
from ..reporting.model_card import CardFacts, model_card
from ..reporting.runs import Export
from ..runtime import Launch, logger

ONNX_FILE = "onnx/model.onnx"
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
        onnx = _write_onnx(model, aside) if options.onnx else None
        sentences = _write_sentences(options, model.config, aside)
        facts = CardFacts(
            config=config,
            parameters=exported_parameters(export.folder),
            has_pooler=any("pooler." in name for name in exported_shapes(export.folder)),
            gmac=sequence_gmac(model.config),
            license=options.license,
            languages=tuple(options.language),
            onnx=onnx,
            sentences=sentences,
        )
        (aside / "README.md").write_text(model_card(export, facts), "utf-8")
    origin = f"step {export.step} of {options.source}" if export.step else export.folder
    _log.info("exported %s to %s", origin, target)


def _write_onnx(model: Any, folder: Path) -> dict[str, Any]:
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
    return {"file": ONNX_FILE, **asdict(written)}


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
