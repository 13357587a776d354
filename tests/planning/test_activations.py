"""Memory of a student's pass, as it is predicted and as torch's own allocations count it."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig

from minimoe_dist.models.build import build_student, student_config
from minimoe_dist.objectives.relations import relation_loss_sum
from minimoe_dist.planning.activations import Batch, Student, tile_elements
from minimoe_dist.planning.amounts import peak
from minimoe_dist.planning.sizes import student_sizes
from tests.planning.recipes import run_config, write_teacher

BATCH, LENGTH = 16, 128


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


@pytest.mark.parametrize("moe", ["1,1", "1,4", "4,4"])
def test_a_pass_holds_at_most_what_is_predicted(tmp_path, moe):
    folder = write_teacher(tmp_path / "teacher", max_position_embeddings=LENGTH)
    student = {"layer": 4, "hidden": 96, "heads": 6, "moe": moe}
    kind = "bert_minilm" if moe == "1,1" else "moebert_minilm"
    config = run_config(folder, kind, students=[student], objective={"num_relation_heads": 12})
    sizes = student_sizes(config, config.students[0], {})
    experts = (config.students[0].attention_experts, config.students[0].feedforward_experts)
    base = BertConfig(vocab_size=200, max_position_embeddings=LENGTH)
    model = build_student(
        student_config(base, layers=4, hidden=96, heads=6, experts=experts, num_relation_heads=12),
        1,
    ).train()
    ids = torch.randint(5, 200, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    given = tuple(torch.zeros(BATCH, LENGTH, 96) for _ in range(3))

    def step():
        signals = model(ids, sample_ids=torch.arange(BATCH)).signals
        relation_loss_sum(signals, given, torch.ones_like(ids), 12)[0].backward()

    walked = Student(sizes, 4, 1.0, tile_elements(on_gpu=False))
    predicted = peak(list(walked.moments(Batch(BATCH, LENGTH), keeps_gradients=True)))
    assert sum(predicted.parts.values()) == pytest.approx(allocated_at_most(step), rel=0.1)
