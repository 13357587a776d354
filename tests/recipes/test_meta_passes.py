"""Memory of passes that are run without numbers, against what torch allocates in real ones."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_map_only

from minimoe_dist.models.auto import AutoConfig
from minimoe_dist.planning.passes import Batch
from minimoe_dist.recipes.meta_passes import MetaPasses
from minimoe_dist.recipes.model_types import Lesson, make_student
from minimoe_dist.recipes.random_batches import make_micro_batches
from minimoe_dist.train.objectives import inputs_of, measure
from tests.planning.recipes import run_config, write_teacher

LENGTH, WIDTH = 64, 48
SLICED = {"ofa_layer": "3,2", "ofa_hidden": "48,24"}
RUNS = {
    "plain": ("bert_minilm", "bert", {}, "bert_nil", {}),
    "experts": ("moebert_minilm", "bert", {"moe": "2,4"}, "bert_nil", {}),
    "roberta": ("roberta_minilm", "roberta", {}, "roberta_nil", {}),
    "megatron": ("megatronbert_minilm", "megatron-bert", {}, "bert_nil", {}),
    "last states": ("bert_minilm", "bert", {}, "bert_nil", {"state_weight": 1.0}),
    "experts' last states": (
        "moebert_minilm",
        "bert",
        {"moe": "1,4"},
        "bert_nil",
        {"state_weight": 1.0},
    ),
    "tinybert": ("bert_tinybert", "bert", {}, "bert_nil", {}),
    "masked words": ("bert_minilm", "bert", {}, "bert_mlm", {"mlm_weight": 1.0}),
    "once for all": ("ofabert_minilm", "bert", SLICED, "bert_nil", {}),
}


def config_of(folder, name):
    kind, family, student, data_type, objective = RUNS[name]
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 6, "max_position_embeddings": 80}
    return run_config(
        write_teacher(folder / "teacher", family, **sizes),
        kind,
        students=[{"layer": 3, "hidden": WIDTH, "heads": 6, "moe": "1,1", **student}],
        data={"data_type": data_type, "max_length": LENGTH},
        objective={"num_relation_heads": 6, **objective},
    )


def allocated_at_most(action):
    """Bytes of torch's tensors at the highest, those there before left out."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        action()
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


@pytest.mark.parametrize("filled", [1.0, 0.6])
@pytest.mark.parametrize("name", RUNS)
def test_a_students_pass_holds_at_most_what_a_real_one_does(tmp_path, name, filled):
    config, batch = config_of(tmp_path, name), Batch(8, LENGTH, filled)
    passes = MetaPasses(config, {})
    found = passes.student(0, batch, "float32", "float32", keeps_gradients=True)

    teacher = AutoConfig.from_pretrained(config.teacher.model_name_or_path)
    student = make_student(config, 0, Lesson(None, teacher, None)).train()
    micro = make_micro_batches(
        samples=8, length=LENGTH, filled=filled, accumulation=1, vocabulary=teacher.vocab_size,
        masked=bool(config.objective.mlm_weight),
    )[0]  # fmt: skip
    objective, given, _ = passes._teach_once(batch, "float32")
    given = tree_map_only(torch.Tensor, lambda one: torch.zeros_like(one, device="cpu"), given)

    def step():
        inputs = inputs_of(micro) | {"sample_ids": micro.sample_ids, "noise_seed": 1}
        measured = measure(objective, student, student.config.sub_models, inputs, micro, given)
        measured.sums.sum().backward()

    highest = max(amount.total for amount in found.peaks)
    assert highest == pytest.approx(allocated_at_most(step), rel=0.03)


def test_a_teacher_leaves_its_signals(tmp_path):
    passes = MetaPasses(config_of(tmp_path, "plain"), {})
    found = passes.teacher(Batch(8, LENGTH), "bfloat16")
    assert found.result.total == 3 * 8 * LENGTH * WIDTH * torch.bfloat16.itemsize


def test_a_packed_pass_holds_less_than_a_padded_one(tmp_path):
    passes = MetaPasses(config_of(tmp_path, "experts"), {})
    packed, padded = (
        passes.student(0, Batch(8, LENGTH, 0.5, packed), "bfloat16", "bfloat16", False)
        for packed in (True, False)
    )
    assert max(a.total for a in packed.peaks) < max(a.total for a in padded.peaks)


def test_gradients_that_are_not_kept_leave_nothing(tmp_path):
    passes, batch = MetaPasses(config_of(tmp_path, "experts"), {}), Batch(8, LENGTH)
    kept, gone = (
        passes.student(0, batch, "float32", "float32", keeps_gradients=keeps).result.total
        for keeps in (True, False)
    )
    assert gone < 0.01 * kept


def test_an_assistant_that_is_not_there_yet_teaches(tmp_path):
    assistant = {
        "model_type": "minimoe",
        "family": "bert",
        "vocab_size": 200,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "feedforward_experts": 2,
        "relation_projections": True,
    }
    config = run_config("runs/first/export/student", objective={"num_relation_heads": 4})
    found = MetaPasses(config, {"runs/first/export/student": assistant}).teacher(
        Batch(2, 16), "float32"
    )
    assert found.result.total == 3 * 2 * 16 * 24 * 4
