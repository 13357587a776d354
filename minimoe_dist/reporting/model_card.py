"""Writes the model card of an export: what is known of it, and where something is not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from ..model_description import description_of
from ..runs.folder import EXPORT
from ..runs.tuning import TuningResults
from .runs import Export, Run, basename

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # Markdown; pages have their own environment
)
_NAMES = {
    "minimoe": "MiniMoE encoder",
    "minimoe-elastic": "sliceable BERT encoder",
    "bert": "BERT encoder",
    "roberta": "RoBERTa encoder",
    "megatron-bert": "MegatronBert encoder",
}

_PIPELINES = {
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
}


@dataclass(frozen=True)
class CardFacts:
    """The facts of an export that its run does not tell.

    Attributes:
        config: content of the model's ``config.json``.
        parameters: number of exported parameters.
        has_pooler: whether BERT's pooler is among the weights.
        gmac: 10⁹ multiply-accumulates of a sequence of 128 tokens.
        license: identifier of the Hugging Face hub; None where it was not given.
        languages: codes such as "en"; empty where they were not given.
        onnx: file, opset, inputs, output, largest_difference, checked_batches; None without ONNX.
        quantized: file, bytes, float_bytes, cosine, largest_difference, and, where they were
            measured, scores_before, scores, samples; None without an int8 file.
        sentences: how sentence embeddings are made, in words; None without.
    """

    config: Mapping[str, Any]
    parameters: int
    gmac: float | None
    has_pooler: bool = True
    license: str | None = None
    languages: tuple[str, ...] = ()
    onnx: Mapping[str, Any] | None = None
    quantized: Mapping[str, Any] | None = None
    sentences: str | None = None


def model_card(export: Export, facts: CardFacts) -> str:
    """Renders the card as Markdown with YAML front matter.

    Args:
        export: the model's folder and its run.
        facts: facts of the model itself.
    """
    config, run = facts.config, export.run
    needs_code = bool(config.get("auto_map"))
    architecture = str((config.get("architectures") or ["AutoModel"])[0])
    kind = _NAMES.get(str(config.get("model_type")), str(config.get("model_type")))
    student = run.students.get(export.name) if run else None
    teacher = _teacher(run) if run else None
    experts = max(config.get("attention_experts", 1), config.get("feedforward_experts", 1))
    return _TEMPLATES.get_template("model_card.md.j2").render(
        front_matter=_front_matter(facts, architecture, bool(experts > 1)),
        title=(student and student.student) or _title(kind, export),
        kind=f"A {kind} ({architecture})" if kind[0] not in "AEIOU" else f"An {kind}",
        teacher=basename(teacher) if teacher else None,
        experts=experts if experts > 1 else None,
        usage=_usage(architecture, needs_code, _draws_pooler(facts, architecture)),
        trusting=", trust_remote_code=True" if needs_code else "",
        files={"onnx": facts.onnx, "quantized": facts.quantized, "sentences": facts.sentences},
        longest=_longest(config),
        sizes=list(_sizes(config, facts)),
        data=_data(export),
        recipe_words=_recipe_words(export),
        recipe=_recipe(export),
        scores=list(_scores(export)),
        limits=list(_limits(export, facts, architecture)),
    )


def _teacher(run: Run) -> str | None:
    teacher = run.summary.teacher if run.summary else run.recipe.teacher.model_name_or_path
    return teacher or (run.results.teacher if run.results else None)


def _title(kind: str, export: Export) -> str:
    results = export.run.results if export.run else None
    return f"{kind} for {results.task}" if results else kind


def _front_matter(facts: CardFacts, architecture: str, has_experts: bool) -> str:
    values: dict[str, Any] = {"library_name": "transformers"}
    for task, tag in _PIPELINES.items():
        if task in architecture:
            values["pipeline_tag"] = tag
    if facts.sentences:
        values = {"library_name": "sentence-transformers"}
        values["pipeline_tag"] = "sentence-similarity"
    values["license"] = facts.license or "unknown"
    if facts.languages:
        values["language"] = list(facts.languages)
    tags = ["knowledge-distillation", "minilm"]
    tags += ["mixture-of-experts"] if has_experts else []
    tags += ["onnx"] if facts.onnx else []
    values["tags"] = tags
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _draws_pooler(facts: CardFacts, architecture: str) -> bool:
    """Whether transformers makes a pooler for the model that its weights do not have."""
    return architecture.endswith("Model") and not (facts.has_pooler or facts.config.get("auto_map"))


def _usage(architecture: str, needs_code: bool, draws_pooler: bool) -> str:
    name = "AutoModel"
    for task in ("SequenceClassification", "TokenClassification", "MaskedLM"):
        # A student's masked-LM head has no automatic class: what loads is its encoder.
        if task in architecture and not (task == "MaskedLM" and needs_code):
            name = f"AutoModelFor{task}"
    trusting = ", trust_remote_code=True" if needs_code else ""
    options = ", add_pooling_layer=False" if draws_pooler else trusting
    return (
        f"from transformers import {name}, AutoTokenizer\n\n"
        f'model = {name}.from_pretrained("FOLDER"{options})\n'
        # Without it transformers asks whether to run the model's code, for a tokenizer too.
        f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"{trusting})\n'
        'outputs = model(**tokenizer(["A sentence."], return_tensors="pt", padding=True))'
    )


def _longest(config: Mapping[str, Any]) -> int:
    return description_of(config, "model", "").longest_sequence


def _sizes(config: Mapping[str, Any], facts: CardFacts) -> Iterator[tuple[str, str]]:
    yield "layers × hidden size", f"{config['num_hidden_layers']} × {config['hidden_size']}"
    attention, feedforward = (
        config.get("attention_experts", 1), config.get("feedforward_experts", 1),
    )  # fmt: skip
    if (attention, feedforward) != (1, 1):
        yield "experts (attention, feed-forward)", f"{attention}, {feedforward}"
    yield "parameters", f"{facts.parameters:,}"
    if facts.gmac is not None:
        yield "compute of 128 tokens", f"{facts.gmac:.3g} GMAC (12 · layers · hidden² a token)"
    yield "longest input", f"{_longest(config)} tokens"
    yield "vocabulary", f"{config['vocab_size']:,}"


def _data(export: Export) -> str:
    if export.run and export.run.results:
        results = export.run.results
        unlabelled = ""
        if results.unlabelled_samples:
            unlabelled = f", {_count(results.unlabelled_samples)} more without their labels"
        return (
            f"Fine-tuned on the task `{results.task}`: {_count(results.train_samples)} samples to "
            f"train on{unlabelled}, {_count(results.dev_samples)} to choose by. The card of "
            f"`{_model_name(results.model)}` tells what the encoder was trained on before."
        )
    data = export.run.recipe.data if export.run else None
    if not data or not data.record_path_or_regex:
        return "Not known: the folder was exported without the run that made it."
    corpora = [basename(corpus.path) for corpus in data.record_path_or_regex]
    heldout = [basename(corpus.path) for corpus in data.heldout_path_or_regex or ()]
    text = f"Trained on {_listed(corpora)} (names of indexed corpora; what text they hold is not "
    text += f"recorded here), in pairs of up to {data.max_length} tokens."
    return text + (f" Measured on {_listed(heldout)}." if heldout else "")


def _recipe_words(export: Export) -> str:
    run = export.run
    if run and run.results and run.results.best:
        best = run.results.best
        return (
            f"Fine-tuning with seed {best.seed}, peak learning rate {best.learning_rate:g}, "
            f"batches of {best.batch_size}; the weights are those of epoch {best.best_epoch}."
        )
    if export.step is not None and run is not None:
        return (
            f"`{run.recipe.model_type}`: a checkpoint after step {export.step:,} of a run, peak "
            f"learning rate {run.recipe.training.learning_rate}, seed {run.recipe.seed}."
        )
    if run is None or run.summary is None or not run.recipe.tree:
        return "Not known: the folder was exported without the run that made it."
    recipe, ranks = run.recipe, run.summary.world_size
    batch = recipe.training.sequences_of_step(ranks or 1)
    return (
        f"`{recipe.model_type}`, {_count(run.summary.steps)} steps of {batch} sequences, peak "
        f"learning rate {recipe.training.learning_rate}, seed {recipe.seed}, "
        f"{recipe.parallel.precision}, on {ranks} processes."
    )


def _count(number: int | None) -> str:
    return "an unknown number of" if number is None else f"{number:,}"


def _recipe(export: Export) -> str | None:
    run = export.run
    options = run and (run.recipe.tree or (run.results.options.tree if run.results else None))
    if not options:
        return None
    return yaml.safe_dump(_without_folders(options), sort_keys=False, allow_unicode=True)


def _without_folders(value: Any) -> Any:
    """Cuts paths in options to their last part: a machine's folders are nobody's business."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return basename(value) if isinstance(value, str) and value.startswith(("/", "~")) else value


def _scores(export: Export) -> Iterator[str]:
    run = export.run
    student = run.students.get(export.name) if run else None
    before = student.heldout_loss_before if student else None
    after = student.heldout_loss_after if student else None
    if after is not None:
        comparison = f" ({before:.4f} before training)" if before is not None else ""
        yield f"Held-out loss of the run's own objective: {after:.4f}{comparison}."
    elif not (run and run.results):
        yield "Held-out loss: not measured."
    scores = list(_task_scores(run.results)) if run and run.results else []
    yield from scores
    if not scores:
        yield "Downstream tasks: not measured."


def _task_scores(results: TuningResults) -> Iterator[str]:
    """Words what fine-tuning measured; the export is the best model, chosen on the same data."""
    best, metric = results.best, results.metric
    if best is None or best.scores is None:
        return
    chosen = f"{results.task}, dev set ({_count(results.dev_samples)} samples)"
    names = sorted(best.scores, key=lambda name: name != metric)
    scores = ", ".join(f"{name} {best.scores[name]:.4f}" for name in names)
    trainings = len(results.cells)
    choice = f" It is the best of {trainings} trainings on this set." if trainings > 1 else ""
    yield f"{chosen}: {scores}.{choice}"
    setting = results.best_setting
    if setting is not None and setting.deviation is not None:
        yield (
            f"Mean over {len(setting.scores)} seeds with the best learning rate and batch size: "
            f"{metric} {setting.mean:.4f} ± {setting.deviation:.4f}."
        )


def _limits(export: Export, facts: CardFacts, architecture: str) -> Iterator[str]:
    if "Classification" not in architecture:
        yield "An encoder without a task: fine-tune it before use."
    if _draws_pooler(facts, architecture):
        yield (
            "It has no pooler: distillation trains none. Where `add_pooling_layer=False` is not "
            "said, transformers draws one at random, and reports it as missing."
        )
    if facts.sentences:
        yield (
            "Sentence embeddings are pooled token states. The student was trained on relations of "
            "tokens, not on pairs of sentences; how well they compare sentences was not measured."
        )
    yield f"Inputs longer than {_longest(facts.config)} tokens are refused or must be cut."
    if facts.license is None:
        yield "Its license was not stated; data and teacher have licenses of their own."
    if not facts.languages:
        yield "Its languages were not stated."
    yield "Biases of its data and teacher were not examined."


def _model_name(path: str) -> str:
    """Returns "run/student" for "…/run/export/student": a student's own name says little."""
    parts = Path(path).parts
    return f"{parts[-3]}/{parts[-1]}" if EXPORT in parts[-2:-1] and parts[2:] else basename(path)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "a corpus that is not named"
