"""``minimoe-dist sparsify`` on two ranks: importances, map, export, and a start after a stop."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
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
    one, two = (load_file(folder / "importances.safetensors")["sums"] for folder in
                (tmp_path / "alone", finished))  # fmt: skip
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_a_stopped_run_goes_on_to_the_same_importances(
    workshop: Workshop, masked_lm: Path, tmp_path: Path
) -> None:
    whole = recipe(workshop, tmp_path / "whole", masked_lm, max_steps=100)
    support.finish(whole, command="sparsify")
    path = recipe(workshop, tmp_path / "stopped", masked_lm, max_steps=100)
    state = tmp_path / "stopped" / "importances.safetensors"
    with support.start(path, command="sparsify") as ranks:
        support.wait_for(state.exists, ranks.said)
        ranks.signal(signal.SIGTERM, 1)
        assert ranks.wait() == [75, 75], ranks.said()
    assert "resumed from" in support.finish(path, command="sparsify")
    first, second = load_file(state), load_file(tmp_path / "whole" / "importances.safetensors")
    assert first["batches"] == second["batches"] == 100
    assert torch.equal(first["sums"], second["sums"])


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
