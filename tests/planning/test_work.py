"""What is counted of the parts of a step: products, bytes, launches."""

import pytest

from minimoe_dist.planning.passes import Batch
from minimoe_dist.planning.sizes import student_sizes, teacher_sizes
from minimoe_dist.planning.work import student_work, teacher_work
from tests.planning.recipes import run_config

TYPES = {
    "experts": ("moebert_minilm", {"moe": "1,4"}),
    "all experts": ("moebert_minilm", {"moe": "2,4"}),
    "plain": ("bert_minilm", {"moe": "1,1"}),
    "once for all": ("ofabert_minilm", {"moe": "1,1", "ofa_layer": [3, 2], "ofa_hidden": [384]}),
    "tinybert": ("bert_tinybert", {"moe": "1,1"}),
}


def config_of(kind):
    model_type, changes = TYPES[kind]
    student = {"layer": 3, "hidden": 384, "heads": 12, **changes}
    return run_config("bert-base-uncased", model_type, students=[student])


def work_of(batch, kind="experts", parallel=1):
    config = config_of(kind)
    return student_work(student_sizes(config, config.students[0], {}), batch, "float32", parallel)


@pytest.mark.parametrize("kind", TYPES)
def test_products_are_those_that_computations_count(kind):
    config, batch = config_of(kind), Batch(8, 128)
    sizes = student_sizes(config, config.students[0], {})
    forward, backward = student_work(sizes, batch, "float32")
    expected = sum(2 * path.macs_per_token(128) * batch.tokens for path in sizes.paths())
    assert forward.operations == pytest.approx(expected, rel=0.01)
    assert backward.operations == pytest.approx(2 * forward.operations)
    teacher = teacher_sizes(config, {})
    expected = 2 * teacher.paths()[0].macs_per_token(128) * batch.tokens
    assert teacher_work(teacher, batch, "float32").operations == pytest.approx(expected, rel=0.01)


def test_packed_batches_compute_no_padding():
    whole, half = (work_of(Batch(128, 128, filled, packed=True))[0] for filled in (1.0, 0.5))
    assert half.operations < 0.5 * whole.operations
    assert half.moved_bytes < 0.5 * whole.moved_bytes
    assert half.launches == whole.launches


def test_a_padded_teacher_computes_padding():
    teacher = teacher_sizes(config_of("experts"), {})
    whole, half = (teacher_work(teacher, Batch(8, 128, filled), "float32") for filled in (1.0, 0.5))
    assert half == whole


def test_ranks_that_share_experts_compute_as_much_in_larger_products():
    (alone, _), (shared, _) = (
        work_of(Batch(8, 128, packed=True), parallel=size) for size in (1, 4)
    )
    assert shared.operations == pytest.approx(alone.operations)
    assert sum(one.size for one in shared.products) > sum(one.size for one in alone.products)
