"""Exports for others: loaded by their libraries, where this package is not; cards that say so."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from minimoe_dist.cli import main
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
