"""Plans: what grows with what, which layouts there are, and what is said where nothing fits."""

import math

import pytest

from minimoe_dist.config import ConfigError
from minimoe_dist.planning import view
from minimoe_dist.planning.amounts import Amount
from minimoe_dist.planning.layout import Layout, alternatives, layout_of_recipe
from minimoe_dist.planning.memory import Precision, memory_of
from minimoe_dist.planning.passes import PassMemory
from minimoe_dist.planning.plan import Corpus, Planner, nothing_fits
from minimoe_dist.planning.rates import TEACHER
from minimoe_dist.planning.traffic import traffic_of
from tests.planning.recipes import machine, run_config, write_teacher

FLOAT32 = Precision("float32", "float32")
WIDE = {"students": [{"layer": 6, "hidden": 384, "heads": 12, "moe": "1,8"}]}


class EvenPasses:
    """Passes of so many bytes a position; `tests/recipes/test_meta_passes.py` has real ones."""

    def teacher(self, batch, dtype):
        amount = Amount(small=4000 * batch.positions)
        return PassMemory((amount,), amount)

    def student(self, index, batch, dtype, teacher_dtype, keeps_gradients):
        return PassMemory((Amount(small=250_000 * batch.positions),), Amount())


def planner(**sections):
    sections = {"objective": {"num_relation_heads": 32}, **WIDE, **sections}
    corpus = sections.pop("corpus", Corpus(1_000_000, 28.0))
    return Planner(run_config("bert-base-uncased", **sections), corpus, passes=EvenPasses())


def predict(planned, layout, on=None):
    return planned.predict(layout, on or machine())


def memory(**changes):
    planned = planner()
    layout = Layout(ranks=8, zero_stage=1, micro_batch=8)
    return predict(planned, Layout(**{**layout.__dict__, **changes})).memory


def test_optimizer_state_is_shared_out_over_the_ranks_of_zero_1():
    one, eight = memory(ranks=1), memory(ranks=8)
    assert eight["optimizer state"] == pytest.approx(one["optimizer state"] / 8)


def test_experts_are_halved_by_two_expert_parallel_ranks():
    _, experts = planner().students[0].parameters()
    saved = memory()["student weights"] - memory(expert_parallel_size=2)["student weights"]
    assert saved == pytest.approx(4 * experts / 2)


def test_zero_3_holds_an_eighth_of_the_weights_on_eight_ranks():
    assert memory(zero_stage=3)["student weights"] == memory()["student weights"] / 8


def test_without_zero_a_rank_alone_reduces_its_gradients_as_one_flat_copy_too():
    found = memory(ranks=1, zero_stage=0, micro_batch=1)
    assert found["gradients"] == pytest.approx(found["student weights"], rel=0.1)
    assert found["buffers"] == found["student weights"]


@pytest.mark.parametrize("kind", ["zero3", "tensor"])
def test_a_shared_teacher_holds_its_part_of_the_weights(kind):
    shared = memory(teacher_layout=kind, teacher_parallel_size=4)
    assert shared["teacher weights"] == memory()["teacher weights"] / 4


def test_what_megatron_core_runs_is_padded_and_never_gathered(tmp_path):
    folder = write_teacher(tmp_path / "teacher", "megatron-bert")
    short = Corpus(1000, 16)  # half of the positions are padding
    by_either = [
        Planner(run_config(folder, teacher={"implementation": name}), short)
        for name in ("transformers", "megatron")
    ]
    offered = [
        {layout.teacher_layout for layout in planned._layouts(machine())} for planned in by_either
    ]
    assert offered == [{"replicated", "zero3", "tensor"}, {"replicated", "tensor"}]
    layout = Layout(ranks=8, zero_stage=1, micro_batch=8)
    packed, padded = (dict(planned.work(layout, machine()))[TEACHER] for planned in by_either)
    assert packed.operations < 0.7 * padded.operations
    assert packed.recorded and not padded.recorded


def test_what_our_own_encoder_does_not_run_is_padded_and_not_cut_by_columns(tmp_path):
    short = Corpus(1000, 16)  # half of the positions are padding
    by_type = [
        Planner(run_config(write_teacher(tmp_path / kind, kind)), short)
        for kind in ("roberta", "xlm-roberta", "mpnet")
    ]
    offered = [
        {layout.teacher_layout for layout in planned._layouts(machine())} for planned in by_type
    ]
    assert offered == [{"replicated", "zero3", "tensor"}] * 2 + [{"replicated", "zero3"}]
    layout = Layout(ranks=8, zero_stage=1, micro_batch=8)
    alike, packed, padded = (dict(planned.work(layout, machine()))[TEACHER] for planned in by_type)
    assert alike.operations == packed.operations < 0.7 * padded.operations
    assert packed.recorded and not padded.recorded


def test_a_cpu_keeps_what_torch_has_freed_and_a_gpu_counts_what_is_in_use():
    planned, layout = planner(), Layout(ranks=8, zero_stage=1, micro_batch=64)
    on_cpu, on_gpu = (predict(planned, layout, machine(device=d)).memory for d in ("cpu", "cuda"))
    assert on_cpu["allocator"] > 0 == on_gpu["allocator"]


def traffic(**changes):
    planned = planner()
    layout = Layout(**{"ranks": 8, "zero_stage": 1, "micro_batch": 8, **changes})
    batch = planned._batch(layout, machine())
    return traffic_of(planned.students, planned.teacher, layout, batch, FLOAT32, machine())


def test_an_all_reduce_sends_each_gradient_nearly_twice():
    total = sum(planner().students[0].parameters())
    assert traffic()["gradients"].sent == pytest.approx(2 * 7 / 8 * 4 * total)


def test_zero_3_reduces_each_gradient_once_and_gathers_each_weight_twice():
    total = sum(planner().students[0].parameters())
    found = traffic(zero_stage=3)
    assert found["gradients"].sent == pytest.approx(7 / 8 * 4 * total)
    assert found["ZeRO-3 weights"].sent == pytest.approx(2 * 7 / 8 * 4 * total)


def test_experts_send_every_token_four_times_a_layer():
    tokens = 8 * 28.0
    expected = 6 * 4 * tokens * 384 * 4 / 2
    assert traffic(expert_parallel_size=2)["experts"].sent == pytest.approx(expected)


def test_a_single_rank_sends_nothing():
    assert traffic(ranks=1) == {}


def test_steps_are_the_epochs_of_the_corpus_by_the_global_batch():
    training = {"max_steps": None, "num_train_epochs": 2.0, "per_device_train_batch_size": 8}
    plan = planner(training=training).plan(machine())
    assert plan.steps == math.ceil(2_000_000 / 64)


@pytest.mark.parametrize(("dtype", "of_token"), [("int8", 768 * 3 + 12), ("bfloat16", 768 * 6)])
def test_a_cache_is_filled_once_and_then_no_teacher_runs(dtype, of_token):
    training = {"max_steps": None, "num_train_epochs": 10.0, "per_device_train_batch_size": 8}
    plain = planner(training=training).plan(machine())
    teacher = {"model_name_or_path": "bert-base-uncased", "cache": dtype, "cache_epochs": 2}
    cached = planner(training=training, teacher=teacher).plan(machine())
    assert cached.cache_bytes == 2 * 1_000_000 * 28.0 * of_token
    assert plain.cache_bytes is None and plain.recipe.filling == 0
    assert "teacher" not in cached.recipe.seconds
    # Two epochs of ten are the teacher's, and all else is as it was.
    saved = plain.steps * plain.recipe.seconds["teacher"] / 86_400
    assert plain.days(plain.recipe) - cached.days(cached.recipe) == pytest.approx(
        0.8 * saved, rel=0.05
    )


def test_an_unknown_corpus_gives_no_days():
    plan = planner(corpus=None, training={"max_steps": None}).plan(machine())
    assert plan.days(plan.recipe) is None


def test_the_price_is_that_of_all_ranks_for_the_days():
    plan = planner().plan(machine(price_per_device_hour=3.0))
    assert plan.price(plan.recipe) == pytest.approx(plan.days(plan.recipe) * 24 * 8 * 3.0)


def test_every_alternative_trains_the_same_global_batch():
    planned, eight = planner(), machine()
    layouts = list(alternatives(planned.config, eight, planned.students, planned.teacher))
    assert {one.global_batch for one in layouts} == {64}
    assert not [one for one in layouts if one.zero_stage == 3 and one.expert_parallel_size > 1]


def test_what_is_recommended_fits_where_the_recipe_does_not():
    sections = {"data": {"max_length": 128}, "training": {"per_device_train_batch_size": 64}}
    plan = planner(corpus=Corpus(1_000_000, 128.0), **sections).plan(machine(memory_gib=2.0))
    assert not plan.recipe.fits
    assert plan.best[0].memory_total <= 2.0 * 2**30


def test_where_nothing_fits_the_smallest_machine_that_would_is_named():
    tiny, larger = machine(name="tiny", memory_gib=0.01), machine(name="larger")
    planned = planner()
    error = nothing_fits(planned, [tiny, larger], tiny)
    assert "nothing fits tiny" in str(error)
    assert str(error).endswith("is larger")


def test_ranks_that_an_expert_parallel_size_does_not_divide_are_refused():
    planned = planner(parallel={"expert_parallel_size": 4})
    with pytest.raises(ConfigError, match="4 does not divide the 6 processes"):
        layout_of_recipe(planned.config, 6)


def test_a_thousand_ranks_are_planned_on_paper():
    plan = planner().plan(machine(nodes=256))
    assert plan.recipe.layout.ranks == 2048
    assert plan.best


def test_memory_needs_no_teacher_where_none_runs():
    sections = {"objective": {"relation_weight": 0, "mlm_weight": 1, "num_relation_heads": 32}}
    planned = planner(**sections, data={"data_type": "bert_mlm"})
    layout = layout_of_recipe(planned.config, 8)
    batch = planned._batch(layout, machine())
    given = (planned.students, planned.teacher, layout, batch, FLOAT32, machine())
    found = memory_of(*given, EvenPasses())
    assert found["teacher weights"] == found["teacher pass"] == 0


def test_an_open_precision_is_what_the_machine_multiplies_fast():
    layout = Layout(ranks=8, zero_stage=1, micro_batch=8)
    narrow = machine(tflops={"float32": 10.0, "bfloat16": 100.0})
    seconds = {
        precision: predict(planner(parallel={"precision": precision}), layout, narrow).seconds
        for precision in ("auto", "bf16", "fp32")
    }
    assert seconds["auto"] == seconds["bf16"] != seconds["fp32"]
    wide = machine(tflops={"float32": 10.0})
    opened, closed = (
        predict(planner(parallel={"precision": precision}), layout, wide).memory
        for precision in ("auto", "fp32")
    )
    assert opened == closed


@pytest.mark.parametrize(
    ("days", "words"),
    [(None, "-"), (0.0104, "15.0 min"), (0.5, "12.0 h"), (1.5, "36.0 h"), (12.34, "12.3 days")],
)
def test_a_run_takes_minutes_hours_or_days(days, words):
    assert view._duration(days) == words
