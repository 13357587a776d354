"""``minimoe-dist sparsify`` on two ranks: importances, map, export, and a start after a stop."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from minimoe_dist.checkpoints.export import load_student
from minimoe_dist.models.elastic import ElasticForRelations
from minimoe_dist.models.elastic_build import sparse_student
from tests.commands import support
from tests.commands.support import Workshop


@pytest.fixture(scope="module")
def masked_lm(workshop: Workshop) -> Path:
    """A random BERT with its head, and the teacher's tokenizer."""
    folder = support.make_teacher(workshop.folder / "masked_lm")
    config = BertConfig.from_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        BertForMaskedLM(config).save_pretrained(folder)
    return folder


def recipe(workshop: Workshop, output_dir: Path, model: Path, **training: int) -> Path:
    return workshop.recipe(
        output_dir,
        model_type="sparsebert_mlm",
        teacher={"model_name_or_path": str(model)},
        students=[{}],
        objective={"num_relation_heads": 32},
        training={"max_steps": 8, "save_interval": 2, **training},
        parallel={"expert_parallel_size": 1},
        sparsify={"sparsities": "0,50,90"},
    )


def counted(output_dir: Path) -> dict[str, torch.Tensor]:
    """The sums and the number of batches of the newest checkpoint."""
    newest = max((output_dir / "checkpoints").glob("step_*"))
    return load_file(newest / "tensors.safetensors")


@pytest.fixture(scope="module")
def finished(workshop: Workshop, masked_lm: Path) -> Path:
    output_dir = workshop.folder / "sparsify"
    support.finish(recipe(workshop, output_dir, masked_lm), command="sparsify")
    return output_dir


def test_the_reordered_model_computes_what_it_did(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["batches"] == 8
    assert summary["difference_after_reordering"] < 1e-5


def test_there_is_a_picture(finished: Path) -> None:
    assert (finished / "sub_models.png").stat().st_size > 1000


def test_its_export_starts_a_sparse_student(finished: Path) -> None:
    folder = finished / "export" / "sparsified"
    student = sparse_student(
        load_student(folder), "90", num_relation_heads=4, seed=0, model_class=ElasticForRelations
    )
    assert list(student.config.sparsity_map) == ["0", "50", "90"]
    assert student.config.recover_indices is not None


def test_one_process_finds_the_same_importances(
    workshop: Workshop, masked_lm: Path, finished: Path, tmp_path: Path
) -> None:
    path = recipe(workshop, tmp_path / "alone", masked_lm, per_device_train_batch_size=8)
    support.finish(path, command="sparsify", world_size=1)
    one, two = (counted(folder)["sums"] for folder in (tmp_path / "alone", finished))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def longer(workshop: Workshop, masked_lm: Path) -> Path:
    """The folder of a run that nothing happened to."""
    output_dir = workshop.folder / "sparsify_longer"
    path = recipe(workshop, output_dir, masked_lm, max_steps=100, save_interval=10)
    support.finish(path, command="sparsify")
    return output_dir


@pytest.mark.parametrize(
    ("number", "receivers", "status"),
    [(signal.SIGTERM, [1], 75), (signal.SIGKILL, [0, 1], -signal.SIGKILL)],
    ids=["stopped", "killed"],
)
def test_a_run_that_was_broken_off_goes_on_to_the_same_importances(
    number: signal.Signals,
    receivers: list[int],
    status: int,
    workshop: Workshop,
    masked_lm: Path,
    longer: Path,
    tmp_path: Path,
) -> None:
    path = recipe(workshop, tmp_path / "run", masked_lm, max_steps=100, save_interval=10)
    with support.start(path, command="sparsify") as ranks:
        support.wait_for((tmp_path / "run" / "checkpoints" / "latest").exists, ranks.said)
        ranks.signal(number, *receivers)
        assert ranks.wait() == [status, status], ranks.said()
    assert 0 < support.checkpoints(tmp_path / "run")[-1] < 100
    assert "resumed from" in support.finish(path, command="sparsify")
    found, expected = counted(tmp_path / "run"), counted(longer)
    assert found["batches"] == expected["batches"] == 100
    assert torch.equal(found["sums"], expected["sums"])


def test_gradients_that_stay_bad_end_the_run(
    workshop: Workshop, masked_lm: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(masked_lm, model)
    weights = load_file(model / "model.safetensors")
    weights["cls.predictions.transform.dense.bias"][0] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    path = recipe(workshop, tmp_path / "run", model, max_bad_steps=2)
    statuses, said = support.run(path, command="sparsify", world_size=1)
    assert statuses == [1], said
    assert said.count("step 2: 2 steps in a row without a finite loss and gradient") == 1


def test_a_model_without_a_head_is_refused_with_the_command_that_trains_one(
    workshop: Workshop, tmp_path: Path
) -> None:
    path = recipe(workshop, tmp_path / "run", workshop.teacher)
    statuses, said = support.run(path, command="sparsify", world_size=1)
    assert statuses == [2] and said.count("\n") == 1
    assert f"{workshop.teacher}: has no masked-LM head" in said
    command = said.partition("(minimoe-dist distill ")[2].partition(")")[0]
    first = workshop.recipe(
        tmp_path / "head",
        students=[{}],
        training={"max_steps": 1},
        parallel={"expert_parallel_size": 1},
    )
    support.finish(first, *command.split(), world_size=1)
    second = recipe(workshop, tmp_path / "again", tmp_path / "head" / "export" / "student")
    support.finish(second, "--max_steps", "1", command="sparsify", world_size=1)


def test_distill_names_the_command_for_it(
    workshop: Workshop, masked_lm: Path, tmp_path: Path
) -> None:
    path = recipe(workshop, tmp_path / "run", masked_lm)
    statuses, said = support.run(path, world_size=1)
    assert statuses == [2] and "(minimoe-dist sparsify makes the map)" in said
