"""Exports for others: loaded by their libraries, where this package is not; cards that say so."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from minimoe_dist.cli import main
from minimoe_dist.config import load_run_config
from minimoe_dist.reporting.runs import find_saved, student_of_model
from tests.commands import support
from tests.commands.support import Workshop

ELSEWHERE = """
import sys
sys.modules["minimoe_dist"] = None  # importing it fails, as where it is not installed
import onnxruntime, torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
sentences = ["word1 word7 word3", "word2", "word9 word9 word4 word11 word5 word150"]
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = dict(tokenizer(sentences, padding=True, return_tensors="pt"))
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    session = onnxruntime.InferenceSession(folder + "/onnx/model.onnx")
    (onnx,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    print(((torch.from_numpy(onnx) - hidden) * mask).abs().max().item())
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    embedder = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    print((embedder.encode(sentences, convert_to_tensor=True) - pooled).abs().max().item())
"""


@pytest.fixture(scope="module")
def exported(unbroken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's student with experts, in every form."""
    folder = tmp_path_factory.mktemp("exported") / "moe"
    command = ["export", str(unbroken), "--output_dir", str(folder), "--onnx"]
    assert main([*command, "--sentence_transformers", "--normalize", "--language", "zh,en"]) == 0
    return folder


@pytest.fixture(scope="module")
def plain(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a plain encoder whose run is not known."""
    folder = tmp_path_factory.mktemp("plain") / "dense"
    command = ["export", str(workshop.teacher), "--output_dir", str(folder), "--onnx"]
    assert main([*command, "--sentence_transformers", "--normalize"]) == 0
    return folder


def test_others_load_every_form_without_this_package(
    exported: Path, plain: Path, tmp_path: Path
) -> None:
    environment = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", ELSEWHERE, str(exported), str(plain)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    differences = [float(word) for word in done.stdout.split()]
    assert len(differences) == 4
    assert max(differences) < 1e-4, differences


def front_matter(folder: Path) -> dict[str, object]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_card_tells_what_the_run_knows(exported: Path, unbroken: Path) -> None:
    card = (exported / "README.md").read_text()
    summary = json.loads((unbroken / "summary.json").read_text())
    loss = summary["students"]["student"]["heldout_loss_after"]
    for words in (f"{loss:.4f}", "30 steps of 8 sequences", "`train`", "MiniMoE 1L;16H 1,4E"):
        assert words in card
    assert front_matter(exported)["language"] == ["zh", "en"]


def test_card_says_what_is_not_known(plain: Path) -> None:
    card = (plain / "README.md").read_text()
    assert card.count("Not known: the folder was exported without the run") == 2
    assert "Held-out loss: not measured." in card
    assert front_matter(plain)["license"] == "unknown"
    assert "language" not in front_matter(plain)


def test_card_names_no_folder_of_this_machine(exported: Path, unbroken: Path) -> None:
    assert str(unbroken.parent) not in (exported / "README.md").read_text()


def test_card_counts_the_weights_of_the_folder(exported: Path) -> None:
    with safe_open(exported / "model.safetensors", "pt") as file:
        count = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert f"| parameters | {count:,} |" in (exported / "README.md").read_text()


def test_an_earlier_export_is_replaced_whole(
    exported: Path, unbroken: Path, tmp_path: Path
) -> None:
    target = tmp_path / "again"
    shutil.copytree(exported, target)
    assert main(["export", str(unbroken / "export" / "student"), "--output_dir", str(target)]) == 0
    assert not (target / "onnx").exists() and not (target / "modules.json").exists()
    assert "30 steps" in (target / "README.md").read_text()  # the run is found from its export too


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["export", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_folder_of_other_files_is_not_replaced(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    said = refused(capsys, str(unbroken), "--output_dir", str(tmp_path))
    assert "holds thesis.tex, which was not written by it" in said
    assert (tmp_path / "thesis.tex").read_text() == "dear"


def test_export_into_its_own_source_is_refused(
    unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = unbroken / "export" / "student" / "copy"
    assert "hold one another" in refused(capsys, str(unbroken), "--output_dir", str(inside))


def test_folder_without_a_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, str(tmp_path), "--output_dir", str(tmp_path / "out"))
    assert "not the folder of a run" in said and not (tmp_path / "out").exists()


def test_pickle_is_not_handed_on(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "pickled"
    shutil.copytree(workshop.teacher, source)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    said = refused(capsys, str(source), "--output_dir", str(tmp_path / "out"))
    assert "no model.safetensors" in said


def test_student_of_several_must_be_chosen(
    workshop: Workshop, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken, run, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(run / "export" / "student", run / "export" / "other")
    said = refused(capsys, str(run), "--output_dir", str(tmp_path / "out"))
    assert "other, student: choose one with --student" in said
    chosen = ["--student", "other", "--output_dir", str(tmp_path / "out")]
    assert main(["export", str(run), *chosen]) == 0


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("step", ["30", "newest"])
def test_a_last_checkpoint_is_the_export(step: str, unbroken: Path, tmp_path: Path) -> None:
    assert main(["export", str(unbroken), "--step", step, "--output_dir", str(tmp_path / "a")]) == 0
    assert main(["export", str(unbroken), "--output_dir", str(tmp_path / "b")]) == 0
    saved, exported = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert saved.keys() == exported.keys()
    assert all(torch.equal(saved[name], exported[name]) for name in saved)
    names = [{path.name for path in (tmp_path / one).iterdir()} for one in "ab"]
    assert names[0] == names[1]


def test_an_earlier_checkpoint_of_a_run_that_is_not_over(unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    shutil.rmtree(run / "export")
    (run / "summary.json").unlink()
    target = tmp_path / "a"
    assert main(["export", str(run), "--step", "20", "--output_dir", str(target), "--onnx"]) == 0
    last = weights_of(unbroken / "export" / "student")
    saved = weights_of(target)
    assert saved.keys() == last.keys()
    assert any(not torch.equal(saved[name], last[name]) for name in saved)
    card = (target / "README.md").read_text()
    assert "a checkpoint after step 20 of a run" in card
    assert "Held-out loss: not measured." in card and str(tmp_path) not in card
    assert main(["evaluate", str(run), "--step", "20", "--speed", "false", "--use_cpu"]) == 0
    measured = json.loads((run / "step_00000020_evaluation_student.json").read_text())
    assert measured["step"] == 20 and measured["relations"]["loss"] > 0
    assert measured["description"].endswith("after step 20")
    assert not (run / "evaluation.json").exists() and not (run / "export").exists()


def test_sub_models_of_a_checkpoint_are_exported_too(workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = workshop.recipe(
        run,
        model_type="ofabert_minilm",
        students=[
            {"layer": 2, "hidden": 32, "heads": 4, "ofa_layer": [2, 1], "ofa_hidden": [32, 16]}
        ],
        training={"max_steps": 4, "save_interval": 2},
        parallel={"expert_parallel_size": 1},
    )
    support.finish(recipe, world_size=1)
    name = "student_1l_16h"
    words = ["export", str(run), "--student", name, "--output_dir"]
    assert main([*words, str(tmp_path / "a"), "--step", "4"]) == 0
    assert main([*words, str(tmp_path / "b")]) == 0
    saved, exported = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert saved.keys() == exported.keys() and len(saved) > 10
    assert all(torch.equal(saved[key], exported[key]) for key in saved)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--step", "7"], "7 is not saved in"),
        (["--step", "0"], "step"),
        (["--step", "oldest"], "step"),
        (["--step", "20", "--student", "other"], "other is not among"),
    ],
    ids=["step", "zero", "word", "student"],
)
def test_a_checkpoint_that_is_not_there_is_refused(
    words: list[str], said: str, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, str(unbroken), *words, "--output_dir", str(tmp_path / "a"))
    assert said in line and not (tmp_path / "a").exists()


def test_a_damaged_checkpoint_is_not_exported(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    file = run / "checkpoints" / "step_00000020" / "rank_00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    line = refused(capsys, str(run), "--step", "20", "--output_dir", str(tmp_path / "a"))
    assert "SHA-256" in line and not (tmp_path / "a").exists()


def test_a_run_without_an_export_names_its_checkpoints(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    shutil.rmtree(run / "export")
    line = refused(capsys, str(run), "--output_dir", str(tmp_path / "a"))
    assert "--step newest" in line


def test_an_int8_file_tells_what_it_costs_in_scores(workshop: Workshop, tmp_path: Path) -> None:
    rows = [f"word{n % 7} word{n % 11}\t{'yes' if n % 7 > 3 else 'no'}" for n in range(80)]
    for name, part in (("train.tsv", rows[:60]), ("dev.tsv", rows[60:])):
        (tmp_path / name).write_text("\n".join(["text\tlabel", *part]) + "\n")
    tuned, target = tmp_path / "tuned", tmp_path / "published"
    words = ["--dataset", str(tmp_path), "--output_dir", str(tuned), "--num_train_epochs", "2"]
    words += ["--text_columns", "text", "--label_column", "label", "--batch_sizes", "8"]
    words += ["--max_length", "32"]
    command = [sys.executable, "-m", "minimoe_dist", "finetune", str(workshop.teacher), *words]
    subprocess.run([*command, "--use_cpu"], check=True, cwd=Path(__file__).parents[2])
    assert main(["export", str(tuned), "--output_dir", str(target), "--quantize"]) == 0
    assert (target / "onnx" / "model_int8.onnx").is_file()
    card = (target / "README.md").read_text()
    (before, after) = re.findall(r"accuracy (\S+) before, (\S+) in int8[;.]", card)[0]
    results = json.loads((tuned / "results.json").read_text())
    assert float(before) == pytest.approx(results["best"]["scores"]["accuracy"], abs=1e-4)
    assert float(after) == pytest.approx(float(before), abs=0.11)
    assert "On 20 samples of the dev set" in card
    # Where the dev set has gone, nothing is claimed.
    (tmp_path / "dev.tsv").unlink()
    (tmp_path / "train.tsv").unlink()
    moved = tmp_path / "elsewhere"
    shutil.move(tuned, moved)
    results["options"]["dataset"] = str(tmp_path / "nothing")
    (moved / "results.json").write_text(json.dumps(results))
    assert main(["export", str(moved), "--output_dir", str(target), "--quantize"]) == 0
    assert "What that costs in scores was not measured." in (target / "README.md").read_text()


def test_a_checkpoint_of_sparsifying_has_no_student(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = tmp_path / "run" / "checkpoints" / "step_00000002"
    step.mkdir(parents=True)
    recipe = load_run_config(
        str(workshop.recipe(tmp_path / "run", model_type="sparsebert_mlm", students=[{}],
                            parallel={"expert_parallel_size": 1}))
    )  # fmt: skip
    (step / "run.json").write_text(json.dumps({"step": 2, "facts": recipe.model_dump(mode="json")}))
    for words in (["export", "--output_dir", str(tmp_path / "a")], ["evaluate"]):
        assert main([words[0], str(tmp_path / "run"), "--step", "newest", *words[1:]]) == 2
        assert "is not of distill, which alone saves students" in capsys.readouterr().err


def test_a_checkpoint_is_evaluated_without_a_task(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(unbroken), "--step", "20"]
    assert main([*words, "--task", "sst2", "--data_dir", str(tmp_path)]) == 2
    assert "have no head for sst2" in capsys.readouterr().err
    assert main([*words, "--corpus", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_a_student_whose_name_begins_another_ones_is_told_from_it(unbroken: Path) -> None:
    checkpoint = unbroken / "checkpoints" / "step_00000020"
    for name, whole in (("student", "student"), ("student_1l_16h", "student"),
                        ("student_1", "student_1")):  # fmt: skip
        assert student_of_model(name, ["student", "student_1"]) == whole
    assert find_saved(str(unbroken), 20).checkpoint == checkpoint
