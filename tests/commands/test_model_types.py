"""Every model type through the real command: two ranks, ZeRO-1, interrupted and resumed."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, BertConfig, BertModel

from minimoe_dist.checkpoints.export import export_elastic, load_student
from minimoe_dist.checkpoints.published import save_published
from minimoe_dist.models.elastic import ElasticForRelations
from minimoe_dist.models.elastic_build import elastic_config
from minimoe_dist.models.submodels import Sizes, build_sparsity_map
from tests.commands import support
from tests.commands.support import Workshop

STEPS, SAVED = 6, 3
SIZE = {"layer": 1, "hidden": 16, "heads": 2}
ONCE_FOR_ALL = {"layer": 2, "hidden": 32, "heads": 4, "ofa_layer": "2,1", "ofa_hidden": "32,16"}
BESIDE = {
    "objective": {"num_relation_heads": 4, "mlm_weight": 0.5},
    "data": {"data_type": "bert_mlm"},
}
BF16 = {"parallel": {"expert_parallel_size": 1, "precision": "bf16"}}
KINDS: dict[str, dict[str, Any]] = {
    "bert_minilm": {},
    "roberta_minilm": {"family": "roberta", **BF16},
    "megatronbert_minilm": {"family": "megatron-bert"},
    "ofabert_minilm": {"student": ONCE_FOR_ALL, **BF16},
    "bert_tinybert": {"student": {**SIZE, "heads": 4}, **BF16},
    "bert_mlm": {"training": {"learning_rate": 1e-3}, **BF16},
    "bert_minilm with masked LM": BESIDE,
    "ofabert_minilm with masked LM": {"student": ONCE_FOR_ALL, **BESIDE},
    "bert_tinybert with masked LM": {"student": {**SIZE, "heads": 4}, **BESIDE},
    "sparsebert_minilm with masked LM": {"sparsified": "50", **BESIDE},
    "sparsebert_minilm": {"sparsified": "90"},
    "sparsebert_mlm": {"sparsified": "90", "training": {"learning_rate": 1e-3}, **BF16},
    "moebert_minilm as published": {"student": {**SIZE, "moe": "2,2"}, "compat": "seed"},
    "moebert_minilm of random experts": {
        "student": {**SIZE, "moe": "2,2", "start": "random"},
        **BF16,
    },
}


@pytest.fixture(scope="module")
def teachers(workshop: Workshop) -> dict[str, Path]:
    """By family."""
    others = {
        family: support.make_teacher(workshop.folder / f"teacher-{family}", family=family)
        for family in ("roberta", "megatron-bert")
    }
    return {"bert": workshop.teacher, **others}


@pytest.fixture(scope="module")
def sparsified(workshop: Workshop) -> Path:
    """The teacher as a whole sliceable BERT with a map."""
    bert = BertModel.from_pretrained(workshop.teacher)
    sizes = Sizes(2, 4, 8, 64)
    generator = torch.Generator().manual_seed(7)
    importances = (torch.rand(2, each, generator=generator) for each in (4, 64))
    sparsity_map = build_sparsity_map(*importances, sizes, [0, 50, 90])
    config = elastic_config(bert.config, sparsity_map=sparsity_map, relation_projections=False)
    model = ElasticForRelations(config)
    model.bert.load_state_dict(bert.state_dict(), strict=False)
    folder = workshop.folder / "sparsified"
    return export_elastic(model, folder)


@dataclass(frozen=True)
class Maker:
    """Recipes by the names of ``KINDS``."""

    workshop: Workshop
    teachers: dict[str, Path]
    sparsified: Path

    def __call__(self, output_dir: Path, name: str, **more: Any) -> Path:
        """Of a few steps of a dense student of one layer, where the kind says nothing else."""
        kind = {**KINDS.get(name, {}), **more}
        student = {**kind.pop("student", {} if "sparsified" in kind else SIZE)}
        if "sparsified" in kind:
            student |= {"sparsity": kind.pop("sparsified"), "initial_weights": str(self.sparsified)}
        teacher = kind.pop("teacher", None) or self.teachers[kind.pop("family", "bert")]
        training = {"max_steps": STEPS, "save_interval": SAVED, "eval_interval": STEPS}
        return self.workshop.recipe(
            output_dir,
            model_type=name.split()[0],
            students=[student],
            teacher={"model_name_or_path": str(teacher)},
            training={**training, **kind.pop("training", {})},
            **{"parallel": {"expert_parallel_size": 1}, **kind},
        )


@pytest.fixture(scope="module")
def make(workshop: Workshop, teachers: dict[str, Path], sparsified: Path) -> Maker:
    return Maker(workshop, teachers, sparsified)


def resumed_is_unbroken(unbroken: Path, again: Path, other: Path) -> None:
    """Runs ``again``, whose folder is ``other``, from the unbroken run's first checkpoint."""
    shutil.copytree(unbroken / "checkpoints", other / "checkpoints")
    shutil.rmtree(other / "checkpoints" / f"step_{STEPS:08d}")
    assert f"at step {SAVED}" in support.finish(again)
    whole, rest = support.losses(unbroken), support.losses(other)
    assert rest == {step: whole[step] for step in range(SAVED + 1, STEPS + 1)}
    first, second = support.weights(unbroken), support.weights(other)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def finished(request: pytest.FixtureRequest, make: Maker) -> tuple[str, Path]:
    """A kind of run and the folder of one."""
    output_dir = make.workshop.folder / request.param.replace(" ", "_")
    support.finish(make(output_dir, request.param))
    return request.param, output_dir


@pytest.mark.parametrize("finished", KINDS, indirect=True)
def test_it_learns(finished: tuple[str, Path]) -> None:
    student = json.loads((finished[1] / "summary.json").read_text())["students"]["student"]
    assert student["heldout_loss_after"] < student["heldout_loss_before"]


@pytest.mark.parametrize("finished", KINDS, indirect=True)
def test_a_resumed_run_is_the_unbroken_one(
    finished: tuple[str, Path], make: Maker, tmp_path: Path
) -> None:
    name, unbroken = finished
    resumed_is_unbroken(unbroken, make(tmp_path / "run", name), tmp_path / "run")


@pytest.mark.parametrize(
    "finished",
    [
        "bert_tinybert with masked LM",
        "ofabert_minilm with masked LM",
        "sparsebert_minilm with masked LM",
    ],
    indirect=True,
)
def test_one_process_takes_the_same_steps_as_two(
    finished: tuple[str, Path], make: Maker, tmp_path: Path
) -> None:
    name, on_two = finished
    path = make(tmp_path / "alone", name)
    # As many samples a step, in micro-batches of other sizes.
    options = ("--per_device_train_batch_size", "2", "--num_grad_accum_steps", "4")
    support.finish(path, *options, "--max_grad_norm", "1", world_size=1)
    found, expected = support.losses(tmp_path / "alone"), support.losses(on_two)
    first, wanted = (losses[1]["student"]["loss"] for losses in (found, expected))
    assert first == pytest.approx(wanted, rel=1e-6)
    # Rounding differs and grows, so early steps are compared.
    for step in (1, 2, 3):
        for part in ("loss", "gradient_norm"):
            assert found[step]["student"][part] == pytest.approx(
                expected[step]["student"][part], rel=1e-4
            )


@pytest.mark.parametrize("finished", ["moebert_minilm as published"], indirect=True)
def test_published_dropout_and_routed_padding_are_the_same_on_any_number_of_ranks(
    finished: tuple[str, Path], make: Maker, tmp_path: Path
) -> None:
    name, on_two = finished
    path = make(tmp_path / "alone", name)
    # The balance is a micro-batch's, so that must be the same one.
    support.finish(path, "--per_device_train_batch_size", "8", "--max_steps", "1", world_size=1)
    found, expected = (support.losses(one)[1]["student"] for one in (tmp_path / "alone", on_two))
    for part in ("loss", "relation_loss", "balance"):
        assert found[part] == pytest.approx(expected[part], rel=1e-6)
    assert found["tokens_per_expert"] == expected["tokens_per_expert"]


@pytest.mark.parametrize(
    "finished",
    [
        "bert_tinybert with masked LM",
        "ofabert_minilm with masked LM",
        "sparsebert_minilm",
    ],
    indirect=True,
)
def test_zero_3_takes_the_same_steps_as_zero_1(
    finished: tuple[str, Path], make: Maker, tmp_path: Path
) -> None:
    name, on_stage_1 = finished
    support.finish(make(tmp_path / "run", name), "--zero_stage", "3")
    found, expected = support.losses(tmp_path / "run"), support.losses(on_stage_1)
    for step in (1, 2, 3):
        assert found[step]["student"]["loss"] == pytest.approx(
            expected[step]["student"]["loss"], rel=1e-4
        )


@pytest.mark.parametrize(
    ("finished", "class_name"),
    [
        ("roberta_minilm", "RobertaModel"),
        ("megatronbert_minilm", "MegatronBertModel"),
        ("bert_tinybert", "BertModel"),
    ],
    indirect=["finished"],
)
def test_its_export_is_transformers_own_class(finished: tuple[str, Path], class_name: str) -> None:
    model, report = AutoModel.from_pretrained(
        finished[1] / "export" / "student", add_pooling_layer=False, output_loading_info=True
    )
    assert type(model).__name__ == class_name
    assert not report["missing_keys"] and not report["unexpected_keys"]


@pytest.mark.parametrize("finished", ["bert_mlm"], indirect=True)
def test_masked_lm_is_exported_with_its_head(finished: tuple[str, Path]) -> None:
    folder = finished[1] / "export" / "student"
    model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "BertForMaskedLM"
    assert not report["missing_keys"]


SUB_MODELS = ["student_2l_32h", "student_2l_16h", "student_1l_32h", "student_1l_16h"]


@pytest.mark.parametrize("finished", ["ofabert_minilm"], indirect=True)
def test_every_sub_model_is_exported_as_a_bert_of_its_size(finished: tuple[str, Path]) -> None:
    summary = json.loads((finished[1] / "summary.json").read_text())
    sub_models = summary["students"]["student"]["sub_models"]
    assert list(sub_models) == SUB_MODELS
    for name, sub_model in sub_models.items():
        assert Path(sub_model["export"]).name == name
        config = AutoConfig.from_pretrained(sub_model["export"])
        assert config.model_type == "bert"
        assert f"{config.num_hidden_layers},{config.hidden_size}" == sub_model["sub_model"]
        AutoModel.from_pretrained(sub_model["export"])


@pytest.mark.parametrize("finished", ["ofabert_minilm with masked LM"], indirect=True)
def test_every_sub_model_has_a_held_out_loss_of_its_own(finished: tuple[str, Path]) -> None:
    losses = support.heldout(finished[1])
    assert list(losses[STEPS]) == ["student", *SUB_MODELS]
    mean = sum(losses[STEPS][name] for name in SUB_MODELS) / len(SUB_MODELS)
    assert losses[STEPS]["student"] == pytest.approx(mean, rel=1e-6)
    assert len({losses[STEPS][name] for name in SUB_MODELS}) == len(SUB_MODELS)
    summary = json.loads((finished[1] / "summary.json").read_text())["students"]["student"]
    for name, sub_model in summary["sub_models"].items():
        assert sub_model["heldout_loss_before"] == losses[0][name]
        assert sub_model["heldout_loss_after"] == losses[STEPS][name]


@pytest.mark.parametrize("finished", ["sparsebert_minilm"], indirect=True)
def test_a_sparse_student_is_exported_as_its_sub_model(finished: tuple[str, Path]) -> None:
    folder = finished[1] / "export" / "student"
    config = AutoConfig.from_pretrained(folder)
    assert config.sparsity == "90"
    assert AutoModel.from_pretrained(folder).embeddings.word_embeddings.embedding_dim < 32


@pytest.mark.parametrize("finished", ["bert_minilm with masked LM"], indirect=True)
def test_both_losses_of_two_objectives_are_recorded(finished: tuple[str, Path]) -> None:
    step = support.losses(finished[1])[1]["student"]
    assert step["loss"] == pytest.approx(step["relation_loss"] + 0.5 * step["mlm_loss"])


@pytest.mark.parametrize("finished", ["moebert_minilm of random experts"], indirect=True)
def test_an_assistant_with_experts_teaches_a_student(
    finished: tuple[str, Path], make: Maker, tmp_path: Path
) -> None:
    assistant = finished[1] / "export" / "student"
    path = make(tmp_path / "second", "bert_minilm", teacher=assistant, iteration=2)
    support.finish(path)
    assert support.heldout(tmp_path / "second")[STEPS]["student"] > 0


@pytest.mark.parametrize("finished", ["moebert_minilm of random experts"], indirect=True)
def test_a_published_student_teaches_as_its_export_does(
    finished: tuple[str, Path], make: Maker, tmp_path: Path
) -> None:
    export, published = finished[1] / "export" / "student", tmp_path / "published"
    shutil.copytree(export, published)
    save_published(load_student(export), published)
    for name, teacher in (("one", export), ("other", published)):
        path = make(tmp_path / name, "bert_minilm", teacher=teacher, iteration=2)
        support.finish(path, "--max_steps", "2", world_size=1)
    first, second = (support.losses(tmp_path / name)[2]["student"] for name in ("one", "other"))
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-3)


def test_a_published_sparsified_model_starts_a_sparse_student(make: Maker, tmp_path: Path) -> None:
    save_published(load_student(make.sparsified), tmp_path / "published")
    student = {"sparsity": "50", "initial_weights": str(tmp_path / "published")}
    options = ("--max_steps", "1")
    path = make(tmp_path / "run", "sparsebert_minilm again", student=student)
    support.finish(path, *options, world_size=1)
    own = make(tmp_path / "own", "sparsebert_minilm again", sparsified="50")
    support.finish(own, *options, world_size=1)
    first, second = (support.losses(tmp_path / name)[1] for name in ("run", "own"))
    assert first["student"]["loss"] == pytest.approx(second["student"]["loss"], rel=1e-6)


@pytest.mark.parametrize("finished", ["bert_minilm"], indirect=True)
def test_experts_start_as_copies_of_a_plain_student(
    finished: tuple[str, Path], make: Maker, tmp_path: Path
) -> None:
    plain = finished[1] / "export" / "student"
    student = {**SIZE, "moe": "1,4", "start": "copies", "initial_weights": str(plain)}
    copies = make(tmp_path / "copies", "moebert_minilm", student=student)
    split = make(tmp_path / "split", "moebert_minilm", student={**SIZE, "moe": "1,4"})
    for path in (copies, split):
        support.finish(path, "--max_steps", "1", world_size=1)
    first, second = (support.heldout(tmp_path / name)[0]["student"] for name in ("copies", "split"))
    assert first < second


def once_for_all(**changes: Any) -> dict[str, Any]:
    return {"student": {**ONCE_FOR_ALL, **changes}}


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("roberta_minilm", {"family": "bert"}, "is of bert; give model_type bert_minilm"),
        ("bert_minilm", {"family": "roberta"}, "is of roberta; give model_type roberta_minilm"),
        ("bert_minilm", {"iteration": 2}, "was not distilled; run iteration 1 first"),
        ("sparsebert_minilm", {"sparsified": "91"}, "91 is not in the map of"),
        ("sparsebert_mlm alone", {}, "minimoe-dist sparsify makes the map"),
        ("bert_tinybert", {"objective": {"relation_weight": 0}}, "0 leaves nothing of TinyBERT"),
        ("ofabert_minilm", once_for_all(ofa_layer="3"), "3 is not in a student of layer 2"),
        ("ofabert_minilm", once_for_all(ofa_hidden="30"), "no whole number of heads"),
        ("bert_tinybert", {"objective": {"state_weight": 1}}, "1 has no place in a bert_tinybert"),
        ("ofabert_minilm", {"objective": {"state_weight": 1}}, "no place in a ofabert_minilm run"),
        ("bert_mlm", {"objective": {"state_weight": 2}}, "2 is learnt beside relations; give a"),
        ("bert_tinybert", {"student": SIZE}, "TinyBERT compares attention head by head"),
        ("bert_mlm", {"data": {"data_type": "bert_nil"}}, "'bert_nil' masks nothing to predict"),
        ("moebert_minilm", {"student": {"moe": "1,4", "start": "copies"}}, "a plain student"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    name: str, more: dict[str, Any], words: str, make: Maker, tmp_path: Path
) -> None:
    statuses, said = support.run(make(tmp_path / "run", name, **more), world_size=1)
    assert statuses == [2]
    assert said.count("\n") == 1 and words in said


def test_another_vocabulary_is_refused(make: Maker, tmp_path: Path) -> None:
    other = tmp_path / "other"
    BertModel(BertConfig(vocab_size=100, hidden_size=16, num_attention_heads=2)).save_pretrained(
        other
    )
    student = {**SIZE, "model_name_or_path": str(other)}
    statuses, said = support.run(
        make(tmp_path / "run", "bert_minilm", student=student), world_size=1
    )
    assert statuses == [2]
    assert f"{other} has a vocabulary of 100, the teacher" in said and "of 200; give two" in said


def test_a_chain_goes_on_from_the_candidate_with_the_best_tradeoff(
    make: Maker, sparsified: Path, tmp_path: Path
) -> None:
    sparse = {"initial_weights": str(sparsified)}
    candidates = [{"name": f"s{each}", "sparsity": each, **sparse} for each in ("50", "90")]
    stages = [
        # So large a weight that the smallest one is chosen, whatever it has learnt.
        {"name": "candidates", "students": candidates, "tradeoff_lambda": 9, "teaches": "best"},
        {"name": "student", "students": [{"sparsity": "90", **sparse}]},
    ]
    support.finish(make(tmp_path / "run", "sparsebert_minilm", sparsified="90", stages=stages))
    first, second = (
        json.loads((tmp_path / "run" / name / "summary.json").read_text())
        for name in ("candidates", "student")
    )
    assert first["tradeoff"]["best"] == "s90"
    assert set(first["tradeoff"]["candidates"]) == {"s50", "s90"}
    assert second["teacher"] == str(tmp_path / "run" / "candidates" / "export" / "best")
