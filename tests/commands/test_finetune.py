"""``minimoe-dist finetune`` on tasks of made-up words, which tiny models learn in seconds."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    MPNetConfig,
    MPNetModel,
)

from minimoe_dist.cli import main
from minimoe_dist.config.commands import FinetuneOptions
from minimoe_dist.exit_status import ExitStatus
from tests.commands import support
from tests.commands.support import Workshop, wait_for
from tests.commands.test_full_disks import fill, small_disk
from tests.data.tasks.files import write_columns, write_table

GOOD, BAD = "word1", "word2"


def sentences(count: int, seed: int) -> Iterator[tuple[str, int]]:
    """Texts, and whether the good word is in them rather than the bad one."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        words = [f"word{index}" for index in generator.integers(10, 14, 2)]
        words[generator.integers(2)] = GOOD if number % 2 else BAD
        yield " ".join(words), number % 2


@pytest.fixture(scope="module")
def tasks(workshop: Workshop) -> Path:
    """A folder with SST-2 in its own layout, tags, and a regression table."""
    folder = workshop.folder / "tasks"
    for split, count, seed in (("train", 128, 1), ("dev", 20, 2)):
        rows = [(text, str(label)) for text, label in sentences(count, seed)]
        write_table(folder / "SST-2" / f"{split}.tsv", [("sentence", "label"), *rows])
        values = [(text, str(2.5 * int(label))) for text, label in rows]
        write_table(folder / "values" / f"{split}.tsv", [("text", "value"), *values])
        tagged = [
            [f"{word} {'B-G' if word == GOOD else 'O'}" for word in text.split()]
            for text, _ in rows
        ]
        write_columns(folder / "ner" / f"{split}.txt", tagged)
    return folder


def options(workshop: Workshop, tasks: Path, output_dir: Path, **changes: Any) -> Path:
    """A file of options beside the output folder."""
    values = {
        "model_name_or_path": str(workshop.teacher),
        "output_dir": str(output_dir),
        "task": "sst2",
        "data_dir": str(tasks),
        "max_length": 32,
        "batch_sizes": [8],
        "learning_rates": [3e-3],
        "num_train_epochs": 4,
        "use_cpu": True,
        "timeout_seconds": 60,
        **changes,
    }
    path = output_dir.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({key: one for key, one in values.items() if one is not None}))
    return path


def finetune(path: Path, *overrides: str, world_size: int = 1) -> str:
    return support.finish(path, *overrides, world_size=world_size, command="finetune")


def refused(path: Path, *overrides: str) -> str:
    statuses, said = support.run(path, *overrides, world_size=1, command="finetune")
    assert statuses == [2], said
    assert "Traceback" not in said
    return said


def results(output_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output_dir / "results.json").read_text())
    return found


def learnt(found: dict[str, Any]) -> list[Any]:
    """What every epoch of every cell gave, bit for bit."""
    return [
        [(epoch["train_loss"], epoch["scores"]) for epoch in cell["epochs"]]
        for cell in found["cells"]
    ]


@pytest.fixture(scope="module")
def finished(workshop: Workshop, tasks: Path) -> Path:
    """A grid of two seeds."""
    output_dir = workshop.folder / "finetuned"
    finetune(options(workshop, tasks, output_dir, seeds=[1, 2]))
    return output_dir


def test_a_dry_run_tells_data_cells_and_options_and_writes_nothing(
    workshop: Workshop, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = options(
        workshop, tasks, tmp_path / "run", task="sst2,ner", seeds=[1, 2], batch_sizes=[8, 50],
        num_train_epochs=None,
    )  # fmt: skip
    assert main(["finetune", "--config", str(path), "--dry_run"]) == 0
    said = capsys.readouterr().out
    rows = "128 rows to learn from, 20 to score on, 0 left out"
    assert said.splitlines()[:4] == [
        f"# sst2: {rows}, 2 labels (0,1), scored by accuracy",
        f"# sst2: 4 cells of at most 10 epochs of 16 or 3 steps, in {tmp_path / 'run' / 'sst2'}",
        f"# ner: {rows}, 2 labels (O,B-G), scored by chunk_f1",
        f"# ner: 4 cells of at most 3 epochs of 16 or 3 steps, in {tmp_path / 'run' / 'ner'}",
    ]
    assert yaml.safe_load(said)["batch_sizes"] == [8, 50]
    assert not (tmp_path / "run").exists()
    path = options(workshop, tasks, tmp_path / "run", data_dir=str(tmp_path / "none"))
    assert main(["finetune", "--config", str(path), "--dry_run"]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_the_task_is_learnt_and_told(finished: Path) -> None:
    found = results(finished)
    assert found["best"]["scores"] == {"accuracy": 1.0}
    assert [cell["seed"] for cell in found["cells"]] == [1, 2]
    assert found["settings"][0]["mean"] > 0.9
    assert (finished / "curves.png").stat().st_size > 1000


def test_a_stranger_can_read_what_is_said(workshop: Workshop, tasks: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("a_folder_whose_name_is_longer_than_a_table_is_wide" * 2)
    text = "".join(f"word1 {'书 ' * number}word2\t{number % 2}\n" for number in range(40))
    for split in ("train", "dev"):
        write_table(tmp_path / "table" / f"{split}.tsv", [("text", "label")])
        with (tmp_path / "table" / f"{split}.tsv").open("a", encoding="utf-8") as file:
            file.write(text)
    folder.symlink_to(workshop.teacher)
    table = {"dataset": str(tmp_path / "table"), "text_columns": "text", "label_column": "label"}
    changes = {"model_name_or_path": str(folder), "task": None, "data_dir": None}
    path = options(workshop, tasks, tmp_path / "run", **changes, **table, num_train_epochs=1)
    said = finetune(path)
    assert f"{folder} has no trained classifier: these start at random" in said
    assert "samples are longer than 32 tokens and lose their end" in said
    assert "of its tokens are [UNK]: the vocabulary does not know this text" in said
    assert f"table: {folder}\n" in said


def test_the_best_model_loads_with_its_labels(finished: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(finished / "export")
    assert model.config.id2label == {0: "0", 1: "1"}
    with torch.no_grad():
        ids = torch.tensor([[2, 5 + 1, 5 + 11, 3], [2, 5 + 2, 5 + 11, 3]])
        assert model(ids).logits.argmax(-1).tolist() == [1, 0]


def test_finished_cells_are_skipped_and_a_grown_grid_goes_on(
    workshop: Workshop, tasks: Path, finished: Path
) -> None:
    before = results(finished)
    path = options(workshop, tasks, finished, seeds=[1, 2])
    assert "finished before" in finetune(path)
    finetune(path, "--seeds", "1,2,3")
    assert learnt(results(finished))[:2] == learnt(before)
    assert (finished / "export" / "config.json").is_file()


def exported(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "export" / "model.safetensors")


def test_the_export_is_of_the_best_cell_of_a_grid_that_changed(
    workshop: Workshop, tasks: Path, tmp_path: Path
) -> None:
    alone = {}
    for seed in (1, 2):
        finetune(options(workshop, tasks, tmp_path / f"seed{seed}", seeds=[seed]))
        alone[seed] = exported(tmp_path / f"seed{seed}")
    # All of them score 1.0, so the first one of a grid is its best.
    path = options(workshop, tasks, tmp_path / "seed2", seeds=[1, 2])
    for seeds, best in (("1,2", 1), ("2", 2)):
        said = finetune(path, "--seeds", seeds)
        assert results(tmp_path / "seed2")["best"]["seed"] == best, said
        found = exported(tmp_path / "seed2")
        assert all(torch.equal(found[name], value) for name, value in alone[best].items())


def test_a_finished_cell_of_other_options_is_refused(
    workshop: Workshop, tasks: Path, finished: Path
) -> None:
    said = refused(options(workshop, tasks, finished, seeds=[1]), "--weight_decay", "0.1")
    assert "trained with other options (weight_decay: 0.01 -> 0.1)" in said


def test_a_finished_cell_of_another_model_under_the_same_path_is_refused(
    workshop: Workshop, tasks: Path, finished: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(workshop.teacher, model)
    shutil.copytree(finished, tmp_path / "run")
    path = options(workshop, tasks, tmp_path / "run", seeds=[1])
    assert "finished before" in finetune(path, "--model_name_or_path", str(model))
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    save_file({**weights, name: 2 * weights[name]}, model / "model.safetensors", {"format": "pt"})
    said = refused(path, "--model_name_or_path", str(model))
    assert "trained with other options (model_contents: " in said


def test_two_ranks_learn_what_one_does(
    workshop: Workshop, tasks: Path, tmp_path: Path, finished: Path
) -> None:
    finetune(options(workshop, tasks, tmp_path / "two", seeds=[1]), world_size=2)
    one, two = (results(folder)["cells"][0]["epochs"][0] for folder in (finished, tmp_path / "two"))
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["stopped", "killed"],
)
def test_a_run_that_was_broken_off_goes_on_to_the_same_scores_and_weights(
    number: signal.Signals,
    status: int,
    workshop: Workshop,
    tasks: Path,
    tmp_path: Path,
    finished: Path,
) -> None:
    path = options(workshop, tasks, tmp_path / "run", seeds=[1, 2], save_interval=1)
    break_off(path, number, status)
    assert "resumed from" in finetune(path)
    assert learnt(results(tmp_path / "run")) == learnt(results(finished))[:2]
    found = exported(tmp_path / "run")
    assert all(torch.equal(found[name], value) for name, value in exported(finished).items())


def break_off(path: Path, number: signal.Signals, status: int) -> Path:
    """Ends a run by a signal behind the first checkpoint of seed 1; returns its checkpoints."""
    folder = path.with_suffix("") / "cells" / "seed1_lr0.003_batch8" / "checkpoints"
    with support.start(path, world_size=1, command="finetune") as ranks:
        wait_for((folder / "latest").exists, ranks.said)
        ranks.signal(number)
        assert ranks.wait() == [status], ranks.said()
    return folder


def test_a_damaged_checkpoint_of_a_cell_gives_way_to_the_one_before(
    workshop: Workshop, tasks: Path, tmp_path: Path, finished: Path
) -> None:
    path = options(workshop, tasks, tmp_path / "run", seeds=[1, 2], save_interval=1)
    newest = max(break_off(path, signal.SIGTERM, 75).glob("step_*"))
    best = newest / "tensors.safetensors"
    best.write_bytes(best.read_bytes()[:-1])
    said = finetune(path)
    assert f"checkpoint skipped: {best}" in said and "at step 16" in said
    assert learnt(results(tmp_path / "run")) == learnt(results(finished))[:2]


def test_a_cell_under_way_of_other_options_is_refused(
    workshop: Workshop, tasks: Path, tmp_path: Path
) -> None:
    path = options(workshop, tasks, tmp_path / "run", save_interval=1, seeds=[1])
    break_off(path, signal.SIGTERM, 75)
    said = refused(path, "--weight_decay", "0.1")
    assert "options changed since (weight_decay: 0.01 -> 0.1): give the former ones" in said


def test_a_loss_that_stays_bad_is_not_the_teachers_where_one_of_its_samples_is(
    workshop: Workshop, tasks: Path, tmp_path: Path, finished: Path
) -> None:
    teacher = shutil.copytree(finished / "export", tmp_path / "teacher")
    weights = load_file(teacher / "model.safetensors")
    weights["bert.embeddings.position_embeddings.weight"][12] = torch.nan
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    # One text is that long; it is far from the steps at which the rate is given up.
    texts = tmp_path / "texts.txt"
    texts.write_text("word10 " * 14 + "\n" + "word11\n" * 300)
    taught = {"teacher": str(teacher), "unlabelled": str(texts), "learning_rates": [1e30]}
    path = options(workshop, tasks, tmp_path / "run", **taught)
    statuses, said = support.run(path, world_size=1, command="finetune")
    assert statuses == [1], said
    assert "the predictions of the teacher" in said and "are not finite for 0.2" in said
    assert "10 steps in a row without a finite loss and gradient" in said
    assert "the teacher gives numbers that are not finite" not in said


def test_a_loss_that_stays_bad_ends_its_cell(
    workshop: Workshop, tasks: Path, tmp_path: Path
) -> None:
    path = options(workshop, tasks, tmp_path / "run", learning_rates=[1e30])
    statuses, said = support.run(path, world_size=1, command="finetune")
    assert statuses == [1], said
    assert "10 steps in a row without a finite loss and gradient" in said
    assert results(tmp_path / "run")["cells"][0]["diverged"]


def test_a_run_goes_on_where_a_checkpoint_cannot_be_written(
    workshop: Workshop, tasks: Path, tmp_path: Path, finished: Path
) -> None:
    output_dir = tmp_path / "full"
    cell = output_dir / "cells" / "seed1_lr0.003_batch8"
    with small_disk(cell / "checkpoints", "64k"):
        with pytest.raises(OSError, match="No space left"):
            fill(cell / "checkpoints")
        said = finetune(options(workshop, tasks, output_dir, seeds=[1], save_interval=1))
    assert said.count("was not saved") == 3  # behind the last epoch comes the result
    assert learnt(results(output_dir)) == learnt(results(finished))[:1]


def test_a_killed_grid_goes_on_at_the_cell_that_was_not_done(
    workshop: Workshop, tasks: Path, tmp_path: Path, finished: Path
) -> None:
    output_dir = tmp_path / "killed"
    path = options(workshop, tasks, output_dir, seeds=[1, 2])
    with support.start(path, world_size=1, command="finetune") as ranks:
        done = output_dir / "cells" / "seed1_lr0.003_batch8" / "result.json"
        wait_for(done.exists, ranks.said)
        ranks.signal(signal.SIGKILL)
        ranks.wait()
    assert "cell 1 of 1: seed 2" in finetune(path)
    assert learnt(results(output_dir)) == learnt(results(finished))[:2]


def test_early_stopping_waits_for_its_patience(
    workshop: Workshop, tasks: Path, tmp_path: Path
) -> None:
    changes = {"num_train_epochs": 9, "patience": 2}
    finetune(options(workshop, tasks, tmp_path / "run", **changes))
    cell = results(tmp_path / "run")["cells"][0]
    assert cell["best_epoch"] <= 6
    assert len(cell["epochs"]) == cell["best_epoch"] + 2


def test_tags_of_words_are_learnt(workshop: Workshop, tasks: Path, tmp_path: Path) -> None:
    changes = {"task": "ner", "data_dir": str(tasks / "ner")}
    finetune(options(workshop, tasks, tmp_path / "run", **changes))
    assert results(tmp_path / "run")["best"]["scores"]["chunk_f1"] > 0.9
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "run" / "export")
    assert model.config.id2label == {0: "O", 1: "B-G"}


def test_values_of_a_table_are_learnt_in_bf16(
    workshop: Workshop, tasks: Path, tmp_path: Path
) -> None:
    table = {"dataset": str(tasks / "values"), "text_columns": "text", "label_column": "value"}
    changes = {"task": None, "data_dir": None, "regression": True}
    path = options(workshop, tasks, tmp_path / "run", **table, **changes, precision="bf16")
    finetune(path)
    assert results(tmp_path / "run")["best"]["scores"]["spearman"] > 0.8


def test_a_student_learns_from_a_teachers_predictions_and_relations(
    workshop: Workshop, tasks: Path, tmp_path: Path, finished: Path
) -> None:
    # Labels do not count, so all it knows is the teacher's.
    from_teacher = {"teacher": str(finished / "export"), "teacher_weight": 1.0}
    relations = {"relation_weight": 0.1, "num_relation_heads": 4}
    finetune(options(workshop, tasks, tmp_path / "run", **from_teacher, **relations))
    assert results(tmp_path / "run")["best"]["scores"]["accuracy"] > 0.9


@pytest.mark.parametrize("task", ["sst2", "ner"])
def test_a_teacher_that_is_asked_once_teaches_as_one_that_is_asked_at_every_step(
    task: str, workshop: Workshop, tasks: Path, tmp_path: Path
) -> None:
    # A student's own relations: the teacher's are compared at every step.
    changes = {"task": task, "num_train_epochs": 2}
    finetune(options(workshop, tasks, tmp_path / "teacher", **changes))
    changes["teacher"] = str(tmp_path / "teacher" / "export")
    every_step = {**changes, "relation_weight": 1e-9, "num_relation_heads": 4}
    said = finetune(options(workshop, tasks, tmp_path / "every", **every_step))
    assert "asking the teacher" not in said and "teacher: step" not in said
    for ranks in (1, 2):
        name = f"once_{ranks}"
        said = finetune(options(workshop, tasks, tmp_path / name, **changes), world_size=ranks)
        assert "teacher: step 1/1" in said, said
        for one, other in zip(
            *(learnt(results(tmp_path / folder))[0] for folder in (name, "every")), strict=True
        ):
            assert one[0] == pytest.approx(other[0], rel=1e-3)
            assert one[1] == pytest.approx(other[1], abs=0.1)


_ASKED_TO_STOP = """
import sys
from minimoe_dist.cli import main
from minimoe_dist.runtime import StopRequest
from minimoe_dist.train import known_predictions

def asked_to_stop(stop):
    stop.requested, stop.signal_name, stop._previous = True, "SIGTERM", {}

known_predictions._LOOK_SECONDS = -1.0
StopRequest.__init__ = asked_to_stop
sys.exit(main(["finetune", "--config", sys.argv[1]]))
"""


def test_a_stop_while_the_teacher_is_asked_is_told_and_the_next_start_goes_on(
    workshop: Workshop, tasks: Path, tmp_path: Path, finished: Path
) -> None:
    taught = {"teacher": str(finished / "export"), "num_train_epochs": 1}
    path = options(workshop, tasks, tmp_path / "run", **taught)
    done = subprocess.run(
        [sys.executable, "-c", _ASKED_TO_STOP, str(path)], capture_output=True, text=True
    )
    assert done.returncode == ExitStatus.STOPPED, done.stderr
    assert "stopped: the next start asks the teacher from the beginning" in done.stderr
    assert not list((tmp_path / "run").glob("cells/*/result.json"))
    finetune(path)
    assert results(tmp_path / "run")["best"]["scores"]["accuracy"] > 0.9


@pytest.fixture(scope="module")
def mpnet(workshop: Workshop) -> Path:
    """A random MPNet, which no student is built like, with the workshop's tokenizer."""
    folder = workshop.folder / "mpnet"
    config = MPNetConfig(
        vocab_size=support.VOCABULARY, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=64, max_position_embeddings=66,
        initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        MPNetModel(config).save_pretrained(folder)
    for path in workshop.teacher.glob("*"):
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, folder)
    return folder


def test_an_encoder_that_no_student_is_built_like_is_tuned_scores_predicts_and_teaches(
    mpnet: Path, workshop: Workshop, tasks: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    changes = {"model_name_or_path": str(mpnet), "num_train_epochs": 8}
    finetune(options(workshop, tasks, tmp_path / "run", **changes))
    found = results(tmp_path / "run")
    assert found["best"]["scores"]["accuracy"] > 0.9
    folder = tmp_path / "run" / "export"
    AutoModelForSequenceClassification.from_pretrained(folder)
    assert main(["predict", str(tmp_path / "run"), "--text", f"word10 {GOOD}", "--use_cpu"]) == 0
    assert capsys.readouterr().out.startswith("1\t")
    evaluated = ["evaluate", str(tmp_path / "run"), "--task", "sst2", "--data_dir", str(tasks)]
    assert main([*evaluated, "--use_cpu"]) == 0
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["task_scores"]["scores"] == found["best"]["scores"]
    # All that a student of another kind knows of the task is what it predicts.
    taught = {"teacher": str(folder), "teacher_weight": 1.0}
    finetune(options(workshop, tasks, tmp_path / "taught", **taught))
    assert results(tmp_path / "taught")["best"]["scores"]["accuracy"] > 0.9


def test_such_an_encoder_tags_predicts_and_goes_on_bit_for_bit(
    mpnet: Path, workshop: Workshop, tasks: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    changes = {"model_name_or_path": str(mpnet), "task": "ner", "save_interval": 1}
    path = options(workshop, tasks, tmp_path / "run", **changes)
    finetune(path, world_size=2)
    whole = results(tmp_path / "run")
    assert whole["best"]["scores"]["chunk_f1"] > 0.9
    assert main(["predict", str(tmp_path / "run"), "--text", f"word10 {GOOD}", "--use_cpu"]) == 0
    assert [line.split("\t")[:2] for line in capsys.readouterr().out.splitlines() if line] == [
        ["word10", "O"],
        [GOOD, "B-G"],
    ]
    again = options(workshop, tasks, tmp_path / "again", **changes)
    with support.start(again, command="finetune") as ranks:
        wait_for(lambda: bool(list((tmp_path / "again").rglob("step_*/run.json"))), ranks.said)
        ranks.signal(signal.SIGKILL)
        ranks.wait()
    finetune(again, world_size=2)
    assert learnt(results(tmp_path / "again")) == learnt(whole)


def test_relations_of_such_an_encoder_are_for_distill_alone(
    mpnet: Path, workshop: Workshop, tasks: Path, tmp_path: Path, finished: Path
) -> None:
    changes = {"teacher": str(finished / "export"), "relation_weight": 1.0}
    path = options(workshop, tasks, tmp_path / "r", model_name_or_path=str(mpnet), **changes)
    said = refused(path, "--num_relation_heads=4")
    assert f"relation_weight: model_name_or_path {mpnet} is of type mpnet, whose relations" in said


@pytest.mark.parametrize(
    ("kind", "given", "weight", "temperature"),
    [
        ("classification", {}, 0.9, 2.0), ("regression", {}, 0.9, 2.0), ("tagging", {}, 0.5, 1.0),
        ("tagging", {"teacher_weight": 0, "temperature": 3}, 0.0, 3.0),
    ],
)  # fmt: skip
def test_texts_are_learnt_from_the_teacher_and_tags_from_labels_too(
    kind: str, given: dict[str, Any], weight: float, temperature: float
) -> None:
    values = {"model_name_or_path": "m", "output_dir": "o", "teacher": "t", **given}
    assert FinetuneOptions.model_validate(values).of_teacher(kind) == (weight, temperature)


def test_results_name_what_predictions_counted_and_older_ones_without_a_teacher_stay(
    workshop: Workshop, tasks: Path, tmp_path: Path, finished: Path
) -> None:
    (path, *_) = finished.glob("cells/*/result.json")
    facts = json.loads(path.read_text())["facts"]
    assert (facts["teacher_weight"], facts["temperature"]) == (0.5, 1.0)
    finetune(
        options(
            workshop, tasks, tmp_path / "run", teacher=str(finished / "export"), num_train_epochs=1
        )
    )
    (path,) = (tmp_path / "run").glob("cells/*/result.json")
    facts = json.loads(path.read_text())["facts"]
    assert (facts["teacher_weight"], facts["temperature"]) == (0.9, 2.0)


def test_a_teacher_of_other_labels_is_refused(
    workshop: Workshop, tasks: Path, tmp_path: Path
) -> None:
    said = refused(options(workshop, tasks, tmp_path / "run", teacher=str(workshop.teacher)))
    assert "names no labels in its config.json; give a model that was fine-tuned on sst2" in said
    other = shutil.copytree(workshop.teacher, tmp_path / "other")
    config = json.loads((workshop.teacher / "config.json").read_text())
    renamed = {"0": "negative", "1": "positive"}
    (other / "config.json").write_text(json.dumps({**config, "id2label": renamed}))
    said = refused(options(workshop, tasks, tmp_path / "run", teacher=str(other)))
    assert "has the labels negative,positive, sst2 has 0,1; give a teacher that was fine-t" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "sst3"}, "task: 'sst3' is not known; did you mean sst2?"),
        ({"task": None}, "task: give --task NAME with --data_dir FOLDER, or --dataset PATH"),
        ({"data_dir": "/nowhere"}, "data_dir: /nowhere: no such folder"),
        ({"task": "rte"}, "no train.tsv (rte's train file) in it"),
        ({"max_length": 512}, "max_length: 512 is longer than the 64 positions"),
        ({"learning_rates": [0.0]}, "learning_rates: must be above 0, not 0.0"),
        ({"relation_weight": 1.0}, "relation_weight: needs a teacher"),
        ({"model_name_or_path": "/nowhere"}, "/nowhere: no such model folder"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], words: str, workshop: Workshop, tasks: Path, tmp_path: Path
) -> None:
    assert words in refused(options(workshop, tasks, tmp_path / "run", **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": None, "dev": "dev.tsv"}, "dev: dev.tsv is for --dataset FILE; leave it out"),
        ({"task": None, "word_column": 3}, "word_column: 3 is for --task ner or conll2003; leave"),
        ({"task": None, "data_dir": "."}, "data_dir: . is for --task; leave it out"),
        ({"tag_column": 2}, "tag_column: 2 is for --task ner or conll2003; leave it out"),
        ({"regression": True}, "regression: True is for --dataset; leave it out"),
        ({"text_columns": "foo,bar"}, "text_columns: foo,bar is for --dataset; leave it out"),
        ({"label_column": "bar"}, "label_column: bar is for --dataset; leave it out"),
        ({"dev": "nonexist"}, "dev: nonexist is for --dataset FILE; leave it out"),
        ({"teacher_weight": 0.9}, "teacher_weight: needs a teacher; give --teacher FOLDER"),
        ({"temperature": 3.0}, "temperature: needs a teacher; give --teacher FOLDER"),
        ({"num_relation_heads": 4}, "num_relation_heads: needs a teacher; give --teacher FOLDER"),
        ({"task": None, "label_column": "text"}, "label_column: 'text' is a column of text too"),
        ({"task": None, "text_columns": "text,text"}, "text_columns: text,text: give each colu"),
    ],
)
def test_what_nothing_would_read_is_refused(
    changes: dict[str, Any],
    words: str,
    workshop: Workshop,
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = {"dataset": str(tasks / "values"), "text_columns": "text", "label_column": "value"}
    if "task" in changes:
        changes = {"data_dir": None, **table, **changes}
    path = options(workshop, tasks, tmp_path / "run", **changes)
    assert main(["finetune", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_labels_that_look_alike_are_told(workshop: Workshop, tasks: Path, tmp_path: Path) -> None:
    for split in ("train", "dev"):
        rows = [(text, "Good" if label else "good") for text, label in sentences(16, 1)]
        write_table(tmp_path / "table" / f"{split}.tsv", [("text", "class"), *rows])
    table = {"dataset": str(tmp_path / "table"), "text_columns": "text", "label_column": "class"}
    changes = {"task": None, "data_dir": None, "num_train_epochs": 1, **table}
    said = finetune(options(workshop, tasks, tmp_path / "run", **changes))
    assert "train.tsv: 'Good', 'good' are classes of their own" in said


def test_an_export_that_is_somebody_elses_is_refused_before_it_is_trained(
    workshop: Workshop, tasks: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "run" / "export" / "notes"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    said = refused(options(workshop, tasks, tmp_path / "run"))
    assert "is to be replaced, and holds notes" in said
    assert theirs.read_text() == "theirs"
    assert not (tmp_path / "run" / "cells").exists()


@pytest.mark.parametrize("flags", [(), ("--do_lower_case", "false")])
def test_capitals_are_what_the_option_says(
    flags: tuple[str, ...], workshop: Workshop, tasks: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        shutil.copy(workshop.teacher / name, model)
    changes = {"model_name_or_path": str(model), "num_train_epochs": 1}
    finetune(options(workshop, tasks, tmp_path / "run", **changes), *flags)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "export")
    assert tokenizer.tokenize("Word1 word1") == ["[UNK]" if flags else "word1", "word1"]


def test_a_label_column_of_texts_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    for split, count in (("train", 60), ("dev", 4)):
        rows = [(f"word{number}", str(number % 2)) for number in range(count)]
        write_table(tmp_path / "table" / f"{split}.tsv", [("text", "class"), *rows])
    swapped = {"dataset": str(tmp_path / "table"), "text_columns": "class", "label_column": "text"}
    path = options(workshop, tmp_path, tmp_path / "run", task=None, data_dir=None, **swapped)
    assert "'text' has 60 different values in 60 rows, so it is no column of classes" in refused(
        path
    )


def test_labels_that_are_spelt_otherwise_are_told_and_count_as_wrong(
    workshop: Workshop, tmp_path: Path
) -> None:
    rows = {split: list(sentences(count, 3)) for split, count in (("train", 128), ("dev", 20))}
    for split, texts in rows.items():
        good = "good" if split == "train" else "goood"
        # A third class, so that most labels are known.
        labelled = [(text, good if label else "bad") for text, label in texts]
        labelled += [("word9 word9", "none")] * 40
        write_table(tmp_path / "table" / f"{split}.tsv", [("text", "class"), *labelled])
    table = {"dataset": str(tmp_path / "table"), "text_columns": "text", "label_column": "class"}
    said = finetune(
        options(workshop, tmp_path, tmp_path / "run", task=None, data_dir=None, **table)
    )
    assert "'goood' (10 rows; did you mean 'good'?) is none of bad, good, none: they cou" in said
    assert "10 of 60 dev rows have labels that the training file lacks" in said
    found = results(tmp_path / "run")
    assert found["rows_of_unknown_labels"] == 10
    assert found["best"]["scores"]["accuracy"] == pytest.approx(50 / 60)


def test_a_training_file_that_spells_a_label_otherwise_is_refused(
    workshop: Workshop, tmp_path: Path
) -> None:
    pairs = [("a", "b", label) for label in ("entailment", "neutral", "contradictory")]
    for name in ("train", "dev_matched"):
        rows = [("sentence1", "sentence2", "gold_label"), *pairs]
        write_table(tmp_path / "MNLI" / f"{name}.tsv", rows)
    said = refused(options(workshop, tmp_path, tmp_path / "run", task="mnli"))
    assert "'contradictory' (1 row; did you mean 'contradiction'?) is none of entailment" in said
    assert "and no row has contradiction; correct the labels" in said


def test_a_column_of_words_without_one_of_tags_is_refused(
    workshop: Workshop, tasks: Path, tmp_path: Path
) -> None:
    path = options(workshop, tasks, tmp_path / "run", task="ner", word_column=2)
    assert "tag_column: is missing beside word_column 2; give the column of the tags" in refused(
        path
    )


def test_a_bad_row_is_told_and_ends_a_strict_run(
    workshop: Workshop, tasks: Path, tmp_path: Path
) -> None:
    for split in ("train", "dev"):
        rows = (tasks / "SST-2" / f"{split}.tsv").read_text()
        (tmp_path / f"{split}.tsv").write_text(rows + "torn\n")
    path = options(workshop, tasks, tmp_path / "run", data_dir=str(tmp_path), strict=True)
    assert f"{tmp_path / 'train.tsv'}:130: has 1 column, not 2" in refused(path)


def test_what_a_dry_run_prints_is_a_file_of_options(
    tasks: Path, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "sst2", "--data_dir", str(tasks), "--max_length", "16"]
    words += ["--output_dir", str(tmp_path / "run"), "--dry_run"]
    assert main(["finetune", str(workshop.teacher), *words]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "options.yaml").write_text(printed)
    assert main(["finetune", "--config", str(tmp_path / "options.yaml"), "--dry_run"]) == 0
    assert capsys.readouterr().out == printed


def few_rows(tasks: Path, folder: Path, task: str) -> dict[str, Any]:
    """Options of a copy of a task of which only four rows have labels."""
    name, file = {"sst2": ("SST-2", "train.tsv"), "ner": ("ner", "train.txt")}.get(
        task, ("values", "train.tsv")
    )
    shutil.copytree(tasks / name, folder / name)
    path = folder / name / file
    if task == "ner":
        path.write_text("\n\n".join(path.read_text().split("\n\n")[:4]) + "\n")
    else:
        path.write_text("\n".join(path.read_text().splitlines()[:5]) + "\n")
    if task in ("sst2", "ner"):
        return {"task": task, "data_dir": str(folder)}
    table = {"text_columns": ["text"], "label_column": "value", "regression": True}
    return {"task": None, "data_dir": None, "dataset": str(folder / name), **table}


@pytest.mark.parametrize("task", ["sst2", "ner", "values"])
def test_texts_without_labels_are_learnt_from_the_teacher(
    task: str, workshop: Workshop, tasks: Path, finished: Path, tmp_path: Path
) -> None:
    teacher = finished / "export"
    few = few_rows(tasks, tmp_path, task)
    if task != "sst2":
        all_rows = {**few}
        if task == "ner":
            all_rows["data_dir"] = str(tasks)
        else:
            all_rows["dataset"] = str(tasks / "values")
        finetune(options(workshop, tasks, tmp_path / "teacher", **all_rows))
        teacher = tmp_path / "teacher" / "export"
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{text}\n\n" for text, _ in sentences(160, seed=7)))
    taught = {**few, "teacher": str(teacher), "num_train_epochs": 6}
    finetune(options(workshop, tasks, tmp_path / "few", **taught))
    said = finetune(options(workshop, tasks, tmp_path / "more", **taught, unlabelled=str(texts)))
    assert "Traceback" not in said
    found, without = results(tmp_path / "more"), results(tmp_path / "few")
    assert (found["train_samples"], found["unlabelled_samples"]) == (4, 160)
    assert without["unlabelled_samples"] == 0
    assert found["best"]["score"] > 0.8
    assert found["best"]["score"] > without["best"]["score"] + 0.05


def test_ranks_and_resumes_learn_the_same_of_texts_without_labels(
    workshop: Workshop, tasks: Path, finished: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    rows = ({"text": text} for text, _ in sentences(60, seed=7))
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {"task": None, "data_dir": None, "dataset": str(tasks / "values")}
    columns = {"text_columns": ["text"], "label_column": "value"}  # two classes, 0.0 and 2.5
    finetune(options(workshop, tasks, tmp_path / "teacher", **table, **columns))
    taught = {
        **table, **columns, "teacher": str(tmp_path / "teacher" / "export"),
        "unlabelled": str(texts), "save_interval": 1,
    }  # fmt: skip
    finetune(options(workshop, tasks, tmp_path / "one", **taught))
    finetune(options(workshop, tasks, tmp_path / "two", **taught), world_size=2)
    one, two = (results(tmp_path / name)["cells"][0]["epochs"] for name in ("one", "two"))
    assert [each["train_loss"] for each in one] == pytest.approx(
        [each["train_loss"] for each in two], rel=1e-3
    )
    halved = options(workshop, tasks, tmp_path / "halved", **taught)
    with support.start(halved, world_size=1, command="finetune") as ranks:
        wait_for(lambda: "epoch 2" in ranks.said(), ranks.said)
        ranks.signal(signal.SIGKILL)
        ranks.wait()
    finetune(halved)
    assert learnt(results(tmp_path / "halved")) == learnt(results(tmp_path / "one"))
    texts.write_text(texts.read_text().replace("word10", "word11"))
    assert "was trained with other options (unlabelled_sha256: " in refused(halved)


@pytest.mark.parametrize(
    ("given", "content", "reason"),
    [
        ({"teacher": None}, "word1\n", "unlabelled: needs a teacher; give --teacher FOLDER"),
        ({"teacher_weight": 0.0}, "word1\n", "teaches nothing with teacher_weight 0"),
        ({}, "\n \n", "has no text; give another file, or leave it out"),
        ({}, b"word1\n\xff\n", "texts.txt:2: is not UTF-8"),
        ({"unlabelled": "missing.txt"}, "", "missing.txt"),
        ({"unlabelled": "-"}, "", "unlabelled: -: is read more than once; give a file"),
        ({"unlabelled": "texts.tsv"}, "text\nword1\n", "sst2 has no text_columns; give a file"),
    ],
)
def test_texts_without_labels_are_refused_where_nothing_can_be_learnt_of_them(
    given: dict[str, Any],
    content: str | bytes,
    reason: str,
    workshop: Workshop,
    tasks: Path,
    finished: Path,
    tmp_path: Path,
) -> None:
    changes = {"teacher": str(finished / "export"), "unlabelled": "texts.txt", **given}
    name = changes["unlabelled"]
    if name != "-":
        changes["unlabelled"] = str(tmp_path / name)
    if name not in ("missing.txt", "-"):
        raw = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(raw)
    said = refused(options(workshop, tasks, tmp_path / "run", **changes))
    assert reason in said


@pytest.mark.parametrize("name", ["words.txt", "words.json"])
def test_tags_want_sentences_without_columns(
    name: str, workshop: Workshop, tasks: Path, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("word1\tB-G\nword2\tO\n" if name == "words.txt" else "{}\n")
    labels = ["O", "B-G"]
    teacher = shutil.copytree(finished / "export", tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    config["id2label"] = dict(enumerate(sorted(labels)))
    (teacher / "config.json").write_text(json.dumps(config))
    changes = {"task": "ner", "teacher": str(teacher), "unlabelled": str(tmp_path / name)}
    said = refused(options(workshop, tasks, tmp_path / "run", **changes))
    assert f"{name} has columns; of tags give a sentence a line, words between blanks" in said
