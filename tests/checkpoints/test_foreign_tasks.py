"""Encoders that students are not built like, with a task's head: read, trained, written, read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from minimoe_dist.checkpoints.tasks import TaskModel, export_task_model, load_task_model
from minimoe_dist.data.tasks import Task
from minimoe_dist.errors import UserError
from minimoe_dist.model_description import TEACHERS
from tests.models.test_encoder_families import batch_of, make_model

TEXTS = Task("t", "classification", ("accuracy",), ("no", "maybe", "yes"))
VALUES = Task("v", "regression", ("spearman",))
TAGS = Task("n", "tagging", ("chunk_f1",), ("O", "B-X"))
LOADERS: dict[str, Any] = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "tagging": AutoModelForTokenClassification,
}


@pytest.fixture(scope="module", params=TEACHERS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of a family, named after it."""
    folder = tmp_path_factory.mktemp("encoders") / request.param
    make_model(request.param).save_pretrained(folder)
    return folder


def inputs_of(encoder: Path) -> dict[str, Tensor]:
    """A student's inputs: with segments, whether or not the family reads them."""
    batch = batch_of(encoder.name)
    mask = batch["attention_mask"].bool()
    segments = batch.get("token_type_ids", torch.zeros_like(batch["input_ids"]))
    return {"input_ids": batch["input_ids"], "attention_mask": mask, "token_type_ids": segments}


def logits(model: Any, encoder: Path, **more: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs_of(encoder), **more).logits
    return found


def exported(source: TaskModel, model: Any, folder: Path) -> Path:
    return export_task_model(source, model.state_dict(), folder)


@pytest.mark.parametrize("task", [TEXTS, VALUES, TAGS], ids=lambda task: task.kind)
def test_what_leaves_is_transformers_own_and_comes_back_as_it_was(
    task: Task, encoder: Path, tmp_path: Path
) -> None:
    source = load_task_model(str(encoder), task)
    assert source.fresh and all("encoder" not in name for name in source.fresh)
    model = source.copy(1).eval()
    wanted = logits(model, encoder)
    assert wanted.shape[-1] == len(task.labels or "1") and wanted.isfinite().all()
    folder = exported(source, model, tmp_path / "export")
    loaded, report = LOADERS[task.kind].from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(logits(load_task_model(str(folder), task).copy(2).eval(), encoder), wanted)
    batch = batch_of(encoder.name)
    with torch.no_grad():
        assert torch.allclose(loaded.eval()(**batch).logits, wanted, atol=1e-6)
    if task.labels:
        assert loaded.config.id2label == dict(enumerate(task.labels))
    assert not hasattr(loaded.config, "sub_models")


def test_heads_are_a_function_of_the_seed_and_the_encoder_is_not(encoder: Path) -> None:
    source = load_task_model(str(encoder), TEXTS)
    one, again, other = source.copy(1), source.copy(1), source.copy(2)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
        is_drawn = name in source.fresh and parameter.ndim > 1
        assert torch.equal(parameter, other.get_parameter(name)) != is_drawn, name


def test_dropout_is_a_function_of_seed_and_sample(encoder: Path) -> None:
    model = load_task_model(str(encoder), TEXTS).copy(1).train()
    samples = torch.tensor([4, 5, 6])
    state = torch.get_rng_state()
    one = logits(model, encoder, sample_ids=samples, noise_seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(logits(model, encoder, sample_ids=samples, noise_seed=3), one)
    if encoder.name not in ("modernbert", "eurobert", "nomic_bert"):  # which have none
        assert not torch.equal(logits(model, encoder, sample_ids=samples + 1, noise_seed=3), one)
        assert not torch.equal(logits(model, encoder, sample_ids=samples, noise_seed=4), one)


def test_rows_of_a_head_come_in_the_order_of_the_tasks_labels(
    encoder: Path, tmp_path: Path
) -> None:
    source = load_task_model(str(encoder), TEXTS)
    model = source.copy(1).eval()
    folder = exported(source, model, tmp_path / "export")
    turned = Task("t", "classification", ("accuracy",), ("yes", "no", "maybe"))
    found = load_task_model(str(folder), turned)
    assert not found.fresh
    assert torch.allclose(logits(found.model, encoder), logits(model, encoder)[:, [2, 0, 1]])
    others = Task("t", "classification", ("accuracy",), ("a", "b", "c"))
    assert {name.rpartition(".")[2] for name in load_task_model(str(folder), others).fresh} == {
        "weight",
        "bias",
    }


def test_weights_that_are_missing_are_refused(encoder: Path, tmp_path: Path) -> None:
    model = make_model(encoder.name)
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith(
            ("q.weight", "query.weight", "q_lin.weight", "query_proj.weight", "q_proj.weight")
        )
        and "Wqkv" not in name
    }
    model.save_pretrained(tmp_path / "model", state_dict=state)
    with pytest.raises(UserError, match="weights of its encoder are missing or of another shape"):
        load_task_model(str(tmp_path / "model"), TEXTS)
