"""Evaluations of a real run: its own numbers again, its experts, its costs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from minimoe_dist.checkpoints.export import export_student
from minimoe_dist.checkpoints.tasks import export_task_model, load_task_model
from minimoe_dist.cli import main
from minimoe_dist.data.tasks import task_of
from minimoe_dist.models.build import build_student, student_config
from minimoe_dist.models.compute import encoder_gmac
from tests.commands.support import Workshop
from tests.data.tasks.files import write_table

FAST = ["--batch_sizes", "2,1", "--length", "8", "--repeats", "3", "--use_cpu"]


@pytest.fixture(scope="module")
def evaluation(unbroken: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    path = tmp_path_factory.mktemp("evaluated") / "evaluation.json"
    command = ["evaluate", str(unbroken), "--output", str(path), "--num_sequences", "16", *FAST]
    assert main(command) == 0
    return json.loads(path.read_text())


def test_relation_loss_is_the_one_that_training_reported(evaluation, unbroken: Path) -> None:
    summary = json.loads((unbroken / "summary.json").read_text())
    wanted = summary["students"]["student"]["heldout_loss_after"]
    assert evaluation["relations"]["loss"] == pytest.approx(wanted, rel=1e-3)
    assert evaluation["relations"]["sequences"] == 16


def test_relations_are_told_by_head(evaluation) -> None:
    by_head = torch.tensor(list(evaluation["relations"]["by_head"].values()), dtype=torch.float64)
    assert by_head.shape == (3, 4)
    assert float(by_head.mean()) == pytest.approx(evaluation["relations"]["loss"])


def test_every_token_met_one_expert_of_each_block(evaluation) -> None:
    (block,) = evaluation["experts"]
    assert block["block"] == "layer 1 feed-forward" and len(block["tokens"]) == 4
    tokens = evaluation["mean_length"] * evaluation["relations"]["sequences"]
    assert sum(block["tokens"]) == round(tokens)


def test_compute_is_counted_at_both_lengths(evaluation) -> None:
    assert evaluation["gmac_of_128"] == encoder_gmac(1, 16)
    wanted = encoder_gmac(1, 16, 1) * evaluation["mean_length"]
    assert evaluation["gmac_of_mean_length"] == pytest.approx(wanted)


def test_speed_is_measured_at_no_more_tokens_than_the_model_has_positions(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(workshop.teacher), "--output", str(tmp_path / "e.json"), "--use_cpu"]
    command += ["--batch_sizes", "1", "--repeats", "3"]
    assert main(command) == 0
    assert json.loads((tmp_path / "e.json").read_text())["speed"]["length"] == 64
    assert main([*command, "--length", "65"]) == 2
    assert "--length: 65 is longer than the 64 positions of source" in capsys.readouterr().err


def test_speed_is_told_for_each_batch_with_its_conditions(evaluation) -> None:
    speed = evaluation["speed"]
    assert (speed["length"], speed["repeats"]) == (8, 3)
    assert [one["batch_size"] for one in speed["batches"]] == [1, 2]
    assert evaluation["machine"]["device"] == "cpu"


def test_another_teacher_and_corpus_may_be_held_against(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    path = tmp_path / "evaluation.json"
    model = str(unbroken / "export" / "student")
    others = ["--teacher", str(workshop.teacher), "--corpus", str(workshop.train)]
    heads = ["--num_relation_heads", "2", "--num_sequences", "8", "--speed", "false", "--use_cpu"]
    assert main(["evaluate", model, "--output", str(path), *others, *heads]) == 0
    found = json.loads(path.read_text())
    assert found["relations"]["corpora"] == [str(workshop.train)]
    assert len(found["relations"]["by_head"]["key"]) == 2
    assert "speed" not in found


@pytest.fixture(scope="module")
def classifier(workshop: Workshop, sst2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with experts and a head for SST-2 that nobody trained, but that says both."""
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = AutoTokenizer.from_pretrained(workshop.teacher)
    config = student_config(
        AutoConfig.from_pretrained(workshop.teacher),
        layers=1,
        hidden=16,
        heads=2,
        experts=(1, 4),
        num_relation_heads=4,
    )
    student = build_student(config, 0)
    export_student(config, student.state_dict(), folder / "student", tokenizer)
    source = load_task_model(str(folder / "student"), task_of("sst2"))
    model = source.copy(seed=3).eval()
    texts = [line.split("\t")[0] for line in (sst2 / "dev.tsv").read_text().splitlines()[1:]]
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        model.classifier.bias[1] -= between_two_rows(logits[:, 1] - logits[:, 0])
    return export_task_model(source, model.state_dict(), folder / "model", tokenizer)


def between_two_rows(values: torch.Tensor) -> torch.Tensor:
    """The middle of the widest gap in the inner half of `values`: no rounding reaches a row."""
    inner = values.sort().values[len(values) // 4 : -(len(values) // 4)]
    below = int(inner.diff().argmax())
    assert inner[below + 1] - inner[below] > 0.01 * values.abs().max()
    return inner[below : below + 2].mean()


@pytest.fixture(scope="module")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sst2")
    rows = [
        (" ".join(f"word{7 * n % 190 + k}" for k in range(n % 9 + 1)), n % 2) for n in range(40)
    ]
    for split in ("train", "dev"):
        lines = "".join(f"{text}\t{label}\n" for text, label in rows)
        (folder / f"{split}.tsv").write_text(f"sentence\tlabel\n{lines}")
    return folder


def test_task_scores_are_those_of_the_rows_one_by_one(
    classifier: Path, sst2: Path, tmp_path: Path
) -> None:
    path = tmp_path / "evaluation.json"
    task = ["--task", "sst2", "--data_dir", str(sst2), "--speed", "false", "--use_cpu"]
    assert main(["evaluate", str(classifier), "--output", str(path), *task]) == 0
    found = json.loads(path.read_text())["task_scores"]
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    rows = [line.split("\t") for line in (sst2 / "dev.tsv").read_text().splitlines()[1:]]
    with torch.no_grad():
        guesses = [
            model(**tokenizer(text, return_tensors="pt")).logits.argmax().item() for text, _ in rows
        ]
    assert len(set(guesses)) == 2
    right = sum(guess == int(label) for guess, (_, label) in zip(guesses, rows, strict=True))
    assert found["scores"] == {"accuracy": right / len(rows)}
    assert (found["task"], found["split"], found["samples"]) == ("sst2", "dev", 40)
    assert json.loads(path.read_text())["description"] == "MiniMoE 1L;16H 1,4E"


def test_a_table_is_scored_as_the_task_of_its_rows(
    classifier: Path, sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    common = ["--speed", "false", "--use_cpu", "--max_length", "16"]
    table = ["--dataset", str(sst2 / "dev.tsv"), "--text_columns", "sentence"]
    for words in (["--task", "sst2", "--data_dir", str(sst2)], [*table, "--label_column", "label"]):
        path = tmp_path / "evaluation.json"
        assert main(["evaluate", str(classifier), "--output", str(path), *words, *common]) == 0
        found.append(json.loads(path.read_text())["task_scores"])
    assert found[1]["scores"]["accuracy"] == found[0]["scores"]["accuracy"]
    assert (found[1]["split"], found[1]["samples"]) == ("dev.tsv", 40)
    assert main(["evaluate", str(classifier), *table]) == 2
    assert "label_column: is missing" in capsys.readouterr().err


def test_texts_are_cut_at_the_models_positions(classifier: Path, tmp_path: Path) -> None:
    table, path = tmp_path / "dev.tsv", tmp_path / "evaluation.json"
    rows = "".join(f"{'word1 ' * length}\t{length % 2}\n" for length in (1, 90, 2, 200))
    table.write_text(f"sentence\tlabel\n{rows}")
    columns = ["--text_columns", "sentence", "--label_column", "label"]
    common = ["--speed", "false", "--use_cpu", "--output", str(path)]
    assert main(["evaluate", str(classifier), "--dataset", str(table), *columns, *common]) == 0
    assert json.loads(path.read_text())["task_scores"]["samples"] == 4


@pytest.mark.parametrize("command", ["evaluate", "finetune"])
def test_damaged_weights_are_refused_in_one_line(
    command: str, classifier: Path, sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(classifier, model)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-100])
    task = ["--task", "sst2", "--data_dir", str(sst2)]
    output = [] if command == "evaluate" else ["--output_dir", str(tmp_path / "run")]
    assert main([command, str(model), *task, *output]) == 2
    said = capsys.readouterr().err
    assert "has no weights that can be loaded (model.safetensors" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text_columns", "sentence"], "text_columns: sentence is for --dataset; leave it out"),
        (["--tag_column", "2"], "tag_column: 2 is for --task ner or conll2003; leave it out"),
        (["--split", "test"], "split: test is for --task, or --dataset FOLDER; leave it out"),
        (["--dataset", "{}/dev.tsv", "--split", "train"], "split: train is for --task, or --datas"),
        (["--dataset", "{}", "--word_column", "2"], "word_column: 2 is for --task ner or conll20"),
        (["--dataset", "{}", "--data_dir", "{}"], "data_dir: {} is for --task; leave it out"),
        (
            ["--dataset", "{}", "--text_columns", "a,b,c", "--label_column", "label"],
            "text_columns: a,b,c; give one column of the table, or two",
        ),
        (
            ["--task", "stsb", "--data_dir", "{}"],
            "task: stsb has a number to predict, and {model} is a model of 2 classes; give one",
        ),
    ],
)
def test_what_a_model_cannot_be_scored_by_is_refused(
    words: list[str],
    message: str,
    classifier: Path,
    sst2: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluate", str(classifier), *(word.format(sst2) for word in words)]) == 2
    said = capsys.readouterr().err
    assert message.format(sst2, model=classifier) in said and said.count("\n") == 1


def test_a_model_of_numbers_is_refused_for_classes(
    classifier: Path, sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(classifier, tmp_path / "values")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "id2label": {"0": "LABEL_0"}}))
    assert main(["evaluate", str(model), "--task", "sst2", "--data_dir", str(sst2)]) == 2
    assert "sst2 has classes to predict, and" in capsys.readouterr().err


def test_f1_is_of_the_tasks_class_whatever_the_order_of_the_models_labels(
    classifier: Path, sst2: Path, tmp_path: Path
) -> None:
    texts = [line.split("\t") for line in (sst2 / "dev.tsv").read_text().splitlines()[1:]]
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    # Three of four are paraphrases, so that the classes' F1 differ.
    rows = [[str(int(n % 4 > 0)), "1", "2", text, ""] for n, (text, _) in enumerate(texts)]
    write_table(tmp_path / "mrpc" / "dev.tsv", [header, *rows])
    other = shutil.copytree(classifier, tmp_path / "other")
    state = load_file(other / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name].flip(0).contiguous()
    save_file(state, other / "model.safetensors", {"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    permuted = {"id2label": {"0": "1", "1": "0"}, "label2id": {"1": 0, "0": 1}}
    (other / "config.json").write_text(json.dumps({**config, **permuted}))
    found = []
    for model in (classifier, other):
        command = ["evaluate", str(model), "--output", str(tmp_path / "evaluation.json")]
        task = ["--task", "mrpc", "--data_dir", str(tmp_path), "--speed", "false", "--use_cpu"]
        assert main([*command, *task]) == 0
        found.append(json.loads((tmp_path / "evaluation.json").read_text())["task_scores"])
    assert found[0]["scores"] == found[1]["scores"]
    assert found[0]["scores"]["f1"] > 0.5


def test_model_without_a_head_has_no_score(
    workshop: Workshop, sst2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ["--task", "sst2", "--data_dir", str(sst2)]
    assert main(["evaluate", str(workshop.teacher), *task]) == 2
    assert "needs a model with a head" in capsys.readouterr().err


def test_what_cannot_be_measured_is_left_out(workshop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    command = ["evaluate", str(workshop.teacher), "--output", str(path), "--speed", "false"]
    assert main([*command, "--use_cpu"]) == 0
    found = json.loads(path.read_text())
    assert not {"relations", "experts", "mean_length", "speed"} & set(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_relation_heads", "3"], "3 does not divide the hidden size 32"),
        (["--corpus", "nowhere"], "nowhere"),
        (["--max_length", "65"], "65 is longer than the 64 positions of source"),
        (["--repeats", "1"], "repeats"),
        (["--task", "sst2"], "together"),
        (["--task", "sst3", "--data_dir", "."], "did you mean sst2?"),
        (["--teacher", "package:nowhere"], "no installed Python package"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options_are_refused_in_one_line(
    words: list[str], message: str, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(workshop.teacher), *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_corpus_needs_a_teacher(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(workshop.teacher), "--corpus", str(workshop.train)]) == 2
    assert "without --teacher" in capsys.readouterr().err


def test_relations_of_a_fine_tuned_student_are_refused_before_anything_is_measured(
    workshop: Workshop, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = load_task_model(str(unbroken / "export" / "student"), task_of("sst2"))
    export_task_model(source, source.copy(1).state_dict(), tmp_path)
    against = ["--teacher", str(workshop.teacher), "--corpus", str(workshop.heldout)]
    assert main(["evaluate", str(tmp_path), *against]) == 2
    said = capsys.readouterr().err
    assert "--teacher: " in said and "no relation projections" in said
