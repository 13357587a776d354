"""``minimoe-dist predict``: what a fine-tuned model says of texts."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.folders import load_model
from ..config.commands import PredictOptions
from ..corpus.tokenizing import load_tokenizer
from ..data.tasks import task_of
from ..data.tasks.submissions import submission
from ..durable import written
from ..model_description import require_model
from ..preflight.predict import label_places, output_of, samples_of
from ..reporting.runs import find_export
from ..runtime import Launch, logger, prepare_environment
from ..train.task_predictions import Prediction, Predictor

_LENGTH = 128
_log = logger("predict")


def run(options: PredictOptions, launch: Launch) -> int:
    """Predicts, and writes a line, or of tags several, for each text.

    Returns:
        0.

    Raises:
        UserError: a text cannot be read.
    """
    device = torch.device(prepare_environment(options.use_cpu))
    export = find_export(options.source)
    tuned = export.run.results if export.run is not None else None
    longest = require_model(str(export.folder), "source", foreign=True).longest_sequence
    length = options.max_length or (tuned and tuned.options.max_length) or min(_LENGTH, longest)
    predictor = Predictor(
        load_model(export.folder).to(device).eval(),
        load_tokenizer(str(export.folder)),
        max_length=length,
        batch_size=options.batch_size,
        device=device,
    )
    predictions = predictor.predict(samples_of(options, tuned, predictor.kind))
    target = output_of(options)
    count = 0
    with _opened(target) as write:
        for line in _lines(options, predictor, predictions, target):
            write(line + "\n")
            count += 1
    if predictor.num_cut:
        _log.warning(
            "%d texts are longer than %d tokens and lost their end; --max_length takes more",
            predictor.num_cut,
            length,
        )
    if target is not None:
        _log.info("%d lines in %s", count, target)
    return 0


@contextlib.contextmanager
def _opened(target: Path | None) -> Iterator[Callable[[str], Any]]:
    """Opens standard output, or a file that is whole once it has its name."""
    if target is None:
        yield sys.stdout.write
        sys.stdout.flush()
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with written(target) as aside, aside.open("w", encoding="utf-8") as file:
        yield file.write


def _lines(
    options: PredictOptions,
    predictor: Predictor,
    predictions: Iterable[Prediction],
    target: Path | None,
) -> Iterator[str]:
    if options.task is not None:
        yield from submission(options.task, _rows(options.task, predictor, predictions))
        return
    is_json = options.format == "json" or (
        options.format is None and target is not None and target.suffix in (".json", ".jsonl")
    )
    if is_json:
        yield from map(_as_json, predictions)
    elif predictor.kind == "tagging":
        for prediction in predictions:
            yield from map("\t".join, zip(prediction.sample.texts, prediction.tags, strict=False))
            yield ""
    else:
        for prediction in predictions:
            yield "\t".join([*_numbers(prediction), *map(_on_one_line, prediction.sample.texts)])


def _rows(
    task: str, predictor: Predictor, predictions: Iterable[Prediction]
) -> Iterator[tuple[str | int, str | float]]:
    labels = task_of(task).labels
    places = label_places(predictor.labels, labels)
    own = {predictor.labels[place]: label for label, place in zip(labels, places, strict=True)}
    for one in predictions:
        if one.value is not None:
            yield one.sample.name, one.value
        else:
            # Of an empty text nothing is known; a submission has to have a label.
            label = one.label if one.label is not None else predictor.labels[0]
            yield one.sample.name, own.get(label, label)


def _numbers(prediction: Prediction) -> tuple[str, ...]:
    if prediction.value is not None:
        return (f"{prediction.value:.4f}",)
    if prediction.label is None or prediction.probabilities is None:
        return ("", "")
    return prediction.label, f"{prediction.probabilities[prediction.label]:.4f}"


def _as_json(prediction: Prediction) -> str:
    texts = prediction.sample.texts
    record: dict[str, Any]
    if prediction.tags:
        record = {"words": texts, "tags": prediction.tags}
    else:
        record = {"text": texts[0], **({"text_pair": texts[1]} if len(texts) > 1 else {})}
        if prediction.value is not None:
            record["value"] = round(prediction.value, 6)
        else:
            shares = prediction.probabilities or {}
            record |= {
                "label": prediction.label,
                "probabilities": {label: round(share, 6) for label, share in shares.items()},
            }
    return json.dumps(record, ensure_ascii=False)


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
