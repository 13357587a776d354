"""Models with a task's head: read from any encoder's folder, exported, and read again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMaskedLM,
    PreTrainedModel,
)

from minimoe_dist.checkpoints.export import export_elastic, export_student
from minimoe_dist.checkpoints.published import save_published
from minimoe_dist.checkpoints.tasks import export_task_model, load_task_model
from minimoe_dist.data.tasks import Task
from tests.checkpoints.test_export import make_inputs, make_student, run_elsewhere
from tests.commands.support import FAMILIES
from tests.models.elastic_models import SPARSE_MAP, elastic

TEXTS = Task("t", "classification", ("accuracy",), ("no", "maybe", "yes"))
VALUES = Task("v", "regression", ("spearman",))
TAGS = Task("n", "tagging", ("chunk_f1",), ("O", "B-X"))
AUTO = {"classification": AutoModelForSequenceClassification,
        "regression": AutoModelForSequenceClassification,
        "tagging": AutoModelForTokenClassification}  # fmt: skip


def plain(folder: Path, family: str) -> Path:
    config_class, model_class, changes = FAMILIES[family]
    sizes = {"vocab_size": 15, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = config_class(
        **sizes, intermediate_size=48, max_position_embeddings=24, initializer_range=0.3, **changes
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model_class(config).save_pretrained(folder)
    return folder


def student_folder(folder: Path, kind: str) -> Path:
    """An encoder's folder of one of the kinds that can be fine-tuned."""
    if kind in FAMILIES:
        return plain(folder, kind)
    if kind in ("dense", "moe"):
        student = make_student((1, 1) if kind == "dense" else (2, 4))
        return export_student(student.config, student.state_dict(), folder)
    if kind == "published":
        save_published(make_student((1, 4)), folder)
        return folder
    return export_elastic(elastic(sparsity_map=SPARSE_MAP), folder, sparsity="50")


KINDS = (*FAMILIES, "dense", "moe", "published", "sparse")
INPUTS = make_inputs()


def logits(model: PreTrainedModel) -> Tensor:
    # RoBERTa has one segment.
    segments = INPUTS["token_type_ids"] * (model.config.type_vocab_size > 1)
    with torch.no_grad():
        result: Tensor = model.eval()(**{**INPUTS, "token_type_ids": segments}).logits
    mask = INPUTS["attention_mask"].bool()
    return result[mask] if result.dim() == 3 else result


@pytest.mark.parametrize("task", [TEXTS, VALUES, TAGS], ids=lambda task: task.kind)
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_loads_and_predicts_the_same(kind: str, task: Task, tmp_path: Path) -> None:
    source = load_task_model(str(student_folder(tmp_path / "student", kind)), task)
    trained = source.copy(seed=3)
    export_task_model(source, trained.state_dict(), tmp_path / "out")
    loaded = AUTO[task.kind].from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(loaded), logits(trained), atol=1e-5)
    assert list(loaded.config.id2label.values()) == list(task.labels or ("LABEL_0",))
    assert ("transformers" in type(loaded).__module__) == (kind in (*FAMILIES, "dense"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fine_tuned_export_is_read_with_its_head(kind: str, tmp_path: Path) -> None:
    source = load_task_model(str(student_folder(tmp_path / "student", kind)), TEXTS)
    trained = source.copy(seed=3)
    export_task_model(source, trained.state_dict(), tmp_path / "out")
    again = load_task_model(str(tmp_path / "out"), TEXTS)
    assert again.fresh == frozenset()
    assert torch.equal(logits(again.copy(seed=4)), logits(trained))


def test_other_labels_get_a_new_head(tmp_path: Path) -> None:
    source = load_task_model(str(plain(tmp_path / "bert", "bert")), TEXTS)
    export_task_model(source, source.copy(seed=3).state_dict(), tmp_path / "out")
    others = Task("t", "classification", ("accuracy",), (*TEXTS.labels[1:], "another"))
    again = load_task_model(str(tmp_path / "out"), others)
    assert again.fresh == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("task", [TEXTS, TAGS], ids=lambda task: task.kind)
def test_a_head_of_the_same_labels_is_read_in_the_tasks_order(task: Task, tmp_path: Path) -> None:
    source = load_task_model(str(plain(tmp_path / "bert", "bert")), task)
    trained = source.copy(seed=3)
    export_task_model(source, trained.state_dict(), tmp_path / "out")
    labels = tuple(label.lower() for label in (*task.labels[1:], task.labels[0]))
    again = load_task_model(str(tmp_path / "out"), replace(task, labels=labels))
    assert again.fresh == frozenset()
    assert torch.equal(logits(again.copy(seed=4)), logits(trained).roll(-1, dims=-1))


def test_a_fresh_head_is_a_function_of_the_seed(tmp_path: Path) -> None:
    source = load_task_model(str(plain(tmp_path / "bert", "bert")), TEXTS)
    one, same, other = (source.copy(seed).classifier.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_a_masked_lm_checkpoint_can_be_fine_tuned(tmp_path: Path) -> None:
    config = FAMILIES["bert"][0].from_pretrained(plain(tmp_path / "bert", "bert"))
    BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    source = load_task_model(str(tmp_path / "mlm"), TEXTS)
    assert source.fresh >= {"classifier.weight", "bert.pooler.dense.weight"}


def test_a_folder_without_a_layers_weights_is_refused(tmp_path: Path) -> None:
    model = FAMILIES["bert"][1].from_pretrained(plain(tmp_path / "bert", "bert"))
    state: dict[str, Any] = model.state_dict()
    del state["encoder.layer.1.output.dense.weight"]
    model.save_pretrained(tmp_path / "broken", state_dict=state)
    with pytest.raises(ValueError, match=r"1 weights of its encoder are missing.*layer.1.output"):
        load_task_model(str(tmp_path / "broken"), TEXTS)


def test_an_export_with_experts_predicts_by_its_own_code(tmp_path: Path) -> None:
    source = load_task_model(str(student_folder(tmp_path / "student", "moe")), TEXTS)
    trained = source.copy(seed=3)
    export_task_model(source, trained.state_dict(), tmp_path / "out")
    code = (
        "import sys; sys.modules['minimoe_dist'] = None\n"
        "import torch\nfrom transformers import AutoModelForSequenceClassification as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(model(torch.tensor([[2, 5, 7, 3]])).logits[0].tolist())"
    )
    said = run_elsewhere(code, tmp_path, tmp_path / "out").stdout
    with torch.no_grad():
        wanted = trained(torch.tensor([[2, 5, 7, 3]])).logits[0]
    assert torch.allclose(torch.tensor(eval(said)), wanted, atol=1e-5)
