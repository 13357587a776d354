"""Files of others that commands read: whatever they are, one line says what is wrong, and soon."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist import cli
from minimoe_dist.corpus.tokenizing import load_tokenizer, open_tokenizer
from minimoe_dist.errors import UserError
from tests.test_cli import arguments, own_environment, write_teacher

__all__ = ["own_environment"]
SECONDS = 5.0


def content(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 34)


WRONG: dict[str, Callable[[Path], Any]] = {
    "deep arrays": content(b"[" * 10_000),
    "deep objects": content(b'{"a":' * 10_000),
    "deep but closed": content(b'{"a":' * 900 + b"1" + b"}" * 900),
    "long number": content(b'{"hidden_size": ' + b"9" * 5000 + b"}"),
    "infinite number": content(b'{"hidden_size": 1e999}'),
    "no number": content(b'{"hidden_size": NaN}'),
    "NUL bytes": content(b"\0" * 100),
    "no text": content(b"\xff\xfe\xfa"),
    "list": content(b"[1]"),
    "number": content(b"1"),
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "16 GB": make_sparse,
}


def finetune(tmp_path: Path, *source: str) -> list[str]:
    model = write_teacher(tmp_path / "model")
    return [
        *("finetune", "--model_name_or_path", str(model), "--use_cpu"),
        *("--output_dir", str(tmp_path / "out"), *source),
    ]


def table(tmp_path: Path, name: str) -> list[str]:
    columns = ("--text_columns", "text", "--label_column", "label")
    return finetune(tmp_path, "--dataset", str(tmp_path / name), *columns)


def task(tmp_path: Path) -> list[str]:
    (tmp_path / "data").mkdir()
    return finetune(tmp_path, "--task", "sst2", "--data_dir", str(tmp_path / "data"))


def convert(tmp_path: Path, name: str, ranks: bool = True) -> list[str]:
    (tmp_path / "input" / ("mp_rank_00" if ranks else "release")).mkdir(parents=True)
    return ["convert", "--input", str(tmp_path / name), "--output", str(tmp_path / "out")]


def to_megatron(tmp_path: Path) -> list[str]:
    write_teacher(tmp_path / "model", model_type="megatron-bert")
    return ["convert", "--input", str(tmp_path / "model"), "--output", str(tmp_path / "out")]


def student(tmp_path: Path) -> list[str]:
    model = write_teacher(tmp_path / "student")
    return arguments(tmp_path, "--dry_run", f"--student_model_name_or_path={model}")


def plan(tmp_path: Path) -> list[str]:
    return ["plan", *arguments(tmp_path)[1:], f"--machine={tmp_path}/machine.yaml"]


# The file that becomes wrong, and the command that reads it.
PLACES: dict[str, Callable[[Path], list[str]]] = {
    "teacher/config.json": lambda path: arguments(path, "--dry_run"),
    "teacher/model.safetensors": lambda path: arguments(path, "--dry_run"),
    "student/config.json": student,
    "corpus.manifest.json": lambda path: arguments(path, "--dry_run"),
    "corpus.idx": lambda path: arguments(path, "--dry_run"),
    "corpus.bin": lambda path: arguments(path, "--dry_run"),
    "recipe.yaml": lambda path: arguments(path, "--dry_run", f"--config={path}/recipe.yaml"),
    "zero.json": lambda path: arguments(path, "--dry_run", f"--deepspeed={path}/zero.json"),
    "machine.yaml": plan,
    "table.csv": lambda path: table(path, "table.csv"),
    "table.tsv": lambda path: table(path, "table.tsv"),
    "table.json": lambda path: table(path, "table.json"),
    "table.jsonl": lambda path: table(path, "table.jsonl"),
    "data/train.tsv": task,
    "model/config.json": to_megatron,
    "input/mp_rank_00/model_optim_rng.pt": lambda path: convert(path, "input"),
    "input/latest_checkpointed_iteration.txt": lambda path: convert(path, "input", ranks=False),
    "rank.pt": lambda path: convert(path, "rank.pt"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.timeout(30)
def test_a_wrong_file_is_refused_in_one_line(
    place: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, path = PLACES[place](tmp_path), tmp_path / place
    path.unlink(missing_ok=True)
    WRONG[kind](path)
    before = time.monotonic()
    status = cli.main(tokens)
    # Importing torch for the first time is not of the file.
    assert time.monotonic() - before < SECONDS or "mp_rank_00" in place or place == "rank.pt"
    captured = capsys.readouterr()
    said = captured.err or captured.out  # a dry run says what would stop the run
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") <= 1
    assert status == 2, said
    assert path.name in said or path.parent.name in said


TOKENIZER_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "vocab.txt")


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", TOKENIZER_FILES)
@pytest.mark.timeout(30)
def test_a_tokenizers_wrong_file_is_refused_or_makes_no_difference(
    name: str, kind: str, tmp_path: Path
) -> None:
    path = write_teacher(tmp_path / "teacher") / name
    path.unlink(missing_ok=True)
    WRONG[kind](path)
    for load in (open_tokenizer, load_tokenizer):
        try:
            assert len(load(str(tmp_path / "teacher"))) >= 6  # type: ignore[operator]
        except UserError as error:
            assert "\n" not in str(error)


def test_a_students_name_too_long_for_a_folder_is_refused_with_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("students: [{name: " + "a" * 300 + ", layer: 1, hidden: 16, heads: 2}]\n")
    assert cli.main(arguments(tmp_path, f"--config={recipe}")) == 2
    assert "students.0.name: must have at most 100 bytes" in capsys.readouterr().err
