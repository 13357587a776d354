"""Small task folders in the published layouts."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def write_table(path: Path, rows: Iterable[Sequence[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), "utf-8")
    return path


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), "utf-8")
    return path


def write_columns(path: Path, sentences: Iterable[Sequence[str]], blank: str = " ") -> Path:
    """Sentences of "word tag" lines, whose blanks become `blank`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join("".join(word.replace(" ", blank) + "\n" for word in one) for one in sentences)
    path.write_text(text, "utf-8")
    return path
