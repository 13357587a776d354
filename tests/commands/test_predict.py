"""``minimoe-dist predict``: models of classes, pairs, numbers and tags on texts without labels."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from minimoe_dist.cli import main
from tests.commands import support
from tests.commands.support import Workshop
from tests.commands.test_finetune import BAD, GOOD, finetune, options, sentences, tasks
from tests.data.tasks.files import write_table

__all__ = ["tasks"]
TEXTS = [f"{GOOD} word10", f"word11 {BAD}", "", f"word12 {GOOD} word13"]
LABELS = ["1", "0", "", "1"]


def tuned(workshop: Workshop, tasks: Path, name: str, **changes: Any) -> Path:
    output_dir = workshop.folder / f"predicting_{name}"
    if not output_dir.is_dir():
        finetune(options(workshop, tasks, output_dir, **changes))
    return output_dir


@pytest.fixture(scope="module")
def classes(workshop: Workshop, tasks: Path) -> Path:
    return tuned(workshop, tasks, "sst2")


@pytest.fixture(scope="module")
def numbers(workshop: Workshop, tasks: Path) -> Path:
    table = {"task": None, "data_dir": None, "dataset": str(tasks / "values"), "regression": True}
    columns = {"text_columns": ["text"], "label_column": "value"}
    return tuned(workshop, tasks, "values", **table, **columns)


@pytest.fixture(scope="module")
def tags(workshop: Workshop, tasks: Path) -> Path:
    return tuned(workshop, tasks, "ner", task="ner", num_train_epochs=6)


@pytest.fixture(scope="module")
def pair_tasks(workshop: Workshop) -> Path:
    """Whether two texts have the good word: a task of RTE's layout."""
    folder = workshop.folder / "pair_tasks"
    for split, count in (("train", 128), ("dev", 20)):
        rows = [
            (str(number), text, "word10", ("entailment", "not_entailment")[1 - label])
            for number, (text, label) in enumerate(sentences(count, count))
        ]
        heads = ("index", "sentence1", "sentence2", "label")
        write_table(folder / "RTE" / f"{split}.tsv", [heads, *rows])
    return folder


@pytest.fixture(scope="module")
def pairs(workshop: Workshop, pair_tasks: Path) -> Path:
    return tuned(workshop, pair_tasks, "rte", task="rte", num_train_epochs=6)


def predict(capsys: pytest.CaptureFixture[str], source: Path, *words: str) -> list[str]:
    capsys.readouterr()
    assert main(["predict", str(source), "--use_cpu", *words]) == 0
    return capsys.readouterr().out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], source: Path, *words: str) -> str:
    capsys.readouterr()
    assert main(["predict", str(source), "--use_cpu", *words]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1, said
    return said.err


def test_lines_have_a_line_each_in_their_order(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    lines = [
        line.split("\t")
        for line in predict(capsys, classes, "--input", str(tmp_path / "texts.txt"))
    ]
    assert [line[0] for line in lines] == LABELS
    assert [line[2] for line in lines] == TEXTS
    assert all(0.5 <= float(line[1]) <= 1 for line in lines if line[0])


def test_probabilities_are_the_models(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [text for text, _ in sentences(40, 9)]
    (tmp_path / "texts").write_text("\n".join(texts) + "\n")
    target = tmp_path / "out.jsonl"
    words = ("--input", str(tmp_path / "texts"), "--output", str(target), "--batch_size", "7")
    assert predict(capsys, classes, *words) == []
    found = [json.loads(line) for line in target.read_text().splitlines()]
    model = AutoModelForSequenceClassification.from_pretrained(classes / "export").eval()
    tokenizer = AutoTokenizer.from_pretrained(classes / "export")
    for text, one in zip(texts, found, strict=True):
        shares = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert one["text"] == text and list(one["probabilities"]) == ["0", "1"]
        assert list(one["probabilities"].values()) == pytest.approx(shares, abs=1e-5)
        assert one["label"] == str(int(shares[1] > shares[0]))
    assert "is there already" in refused(capsys, classes, *words)
    assert predict(capsys, classes, *words, "--overwrite") == []


def test_standard_input_is_read_where_nothing_else_is_given(
    classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert [line.split("\t")[0] for line in predict(capsys, classes)] == LABELS


def test_one_text_a_table_and_numbers(
    classes: Path, numbers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = predict(capsys, classes, "--text", f"word11 {BAD}")
    assert line.split("\t")[0] == "0"
    (line,) = predict(capsys, classes, "--text", "word11, word12")
    assert line.split("\t")[2] == "word11, word12"
    table = tmp_path / "table.csv"
    table.write_text(f'id,text\n7,"{GOOD}\nword11"\n8,word12 {BAD}\n')
    lines = predict(capsys, numbers, "--input", str(table))
    values = [float(line.split("\t")[0]) for line in lines]
    assert values[0] == pytest.approx(2.5, abs=0.8) and values[1] == pytest.approx(0, abs=0.8)
    assert lines[0].split("\t")[1] == f"{GOOD} word11"
    (line,) = predict(capsys, numbers, "--text", GOOD, "--format", "json")
    assert set(json.loads(line)) == {"text", "value"}


def test_tags_of_lines_and_of_columns(
    tags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"word10\t{tag}" for tag in ("O",)]
    lines = predict(capsys, tags, "--text", f"word10 {GOOD} {BAD}")
    assert lines == [*words, f"{GOOD}\tB-G", f"{BAD}\tO", ""]
    columns = tmp_path / "test.txt"
    columns.write_text(f"-DOCSTART- -X-\n\n1 {GOOD}\n2 word11\n\n\n1 word12\n")
    lines = predict(capsys, tags, "--input", str(columns), "--word_column", "2")
    assert lines == [f"{GOOD}\tB-G", "word11\tO", "", "word12\tO", ""]
    (line,) = predict(capsys, tags, "--text", GOOD, "--format", "json")
    assert json.loads(line) == {"words": [GOOD], "tags": ["B-G"]}


def test_submissions_have_their_names_and_every_row(
    classes: Path, pairs: Path, pair_tasks: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_table(
        pair_tasks / "SST-2" / "test.tsv",
        [("index", "sentence"), *((str(number), text or "?") for number, text in enumerate(TEXTS))],
    )
    words = (
        "--task",
        "sst2",
        "--data_dir",
        str(pair_tasks),
        "--output",
        str(tmp_path / "out") + "/",
    )
    predict(capsys, classes, *words)
    lines = (tmp_path / "out" / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 5
    assert (lines[1], lines[2], lines[4]) == ("0\t1", "1\t0", "3\t1")
    rows = [("index", "sentence1", "sentence2"), ("17", GOOD, "word10"), ("18", BAD, "word10")]
    write_table(pair_tasks / "RTE" / "test.tsv", rows)
    words = ("--task", "rte", "--data_dir", str(pair_tasks))
    assert predict(capsys, pairs, *words) == [
        "index\tprediction", "17\tentailment", "18\tnot_entailment",
    ]  # fmt: skip
    said = refused(capsys, classes, *words)
    assert "task: its labels are entailment, not_entailment, the model's 0, 1" in said


def test_pairs_are_lines_with_a_tab(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs").write_text(f"{GOOD}\tword10\n{BAD} word11\tword10\n")
    lines = predict(capsys, pairs, "--input", str(tmp_path / "pairs"))
    assert [line.split("\t")[0] for line in lines] == ["entailment", "not_entailment"]
    (tmp_path / "pairs").write_text(f"{GOOD}\n")
    assert main(["predict", str(pairs), "--use_cpu", "--input", str(tmp_path / "pairs")]) == 2
    assert "pairs:1: has 0 tabs, and two texts have one" in capsys.readouterr().err
    (line,) = predict(capsys, pairs, "--text", GOOD, "--text_pair", "word10")
    assert line.split("\t")[0] == "entailment"


def test_what_cannot_be_predicted_is_refused_in_one_line(
    classes: Path, tags: Path, workshop: Workshop, tasks: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "table.tsv").write_text("a\tb\n1\t2\n")
    table = str(tmp_path / "table.tsv")
    for source, words, expected in (
        (workshop.teacher, ("--text", "a"), "which predicts nothing; give the output_dir"),
        (tmp_path / "no", ("--text", "a"), "no such folder"),
        (classes, ("--input", str(tmp_path / "no")), "no such file"),
        (classes, ("--text", "a", "--input", table), "is given beside text"),
        (classes, ("--text", "a", "--word_column", "1"), "word_column: is for --input FILE"),
        (classes, ("--input", table), "text_columns: is missing"),
        (classes, ("--input", table, "--text_columns", "c"), "has no column 'c'"),
        (classes, ("--task", "sst", "--data_dir", str(tasks)), "did you mean sst2?"),
        (classes, ("--task", "sst2"), "data_dir: is missing"),
        (classes, ("--task", "ner", "--data_dir", str(tasks)), "'ner' has no submission"),
        (classes, ("--task", "stsb", "--data_dir", str(tasks)), "stsb"),
        (tags, ("--text", "a", "--text_pair", "b"), "text_pair: is for --text"),
        (classes, ("--text", "a", "--max_length", "9999"), "longer than the 64 positions"),
    ):
        assert expected in refused(capsys, source, *words), words


def test_a_file_that_is_no_text_leaves_no_output(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").write_bytes(b"word10\nGr\xfc\xdfe\n")
    target = tmp_path / "out.tsv"
    words = ("--input", str(tmp_path / "texts"), "--output", str(target))
    assert "texts:2: is not UTF-8" in refused(capsys, classes, *words)
    assert not list(tmp_path.glob("out*"))


def test_a_pipe_gets_its_predictions_from_a_process(classes: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "minimoe_dist", "predict", str(classes), "--use_cpu"],
        input="\n".join(TEXTS), capture_output=True, text=True, timeout=240,
        env=support.clean_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == LABELS
