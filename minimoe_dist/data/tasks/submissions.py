"""The files that GLUE's and CLUE's leaderboards take."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import clue, glue

_GLUE_FILES = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI-m",
    "mnlimm": "MNLI-mm",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
}
# Of test sets that came in two versions; the first version's file is called test1.0.json.
_CLUE_FILES = {"tnews": "tnews{}", "cluewsc2020": "cluewsc{}", "ocnli": "ocnli_50k"}
_LEAST_SIMILAR, _MOST_SIMILAR = 0.0, 5.0  # of STS-B's scale


def submission_name(task: str, tested: Path) -> str:
    """Returns the name that a submission's file must have.

    Args:
        task: of GLUE or CLUE.
        tested: the file of its samples.
    """
    if task in glue.NAMES:
        return f"{_GLUE_FILES[task]}.tsv"
    version = "10" if "1.0" in tested.stem else "11"
    return f"{_CLUE_FILES.get(task, task).format(version)}_predict.json"


def submission(task: str, rows: Iterable[tuple[str | int, str | float]]) -> Iterator[str]:
    """Yields the lines of a submission.

    Args:
        task: of GLUE or CLUE.
        rows: of each sample its name, and its label or number.
    """
    if task in clue.NAMES:
        for name, label in rows:
            yield json.dumps({"id": name, "label": str(label)}, ensure_ascii=False)
        return
    yield "index\tprediction"
    for name, label in rows:
        if isinstance(label, float):
            label = f"{min(max(label, _LEAST_SIMILAR), _MOST_SIMILAR):.3f}"
        yield f"{name}\t{label}"
