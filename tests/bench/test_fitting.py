"""Machines of measurements: what they say again, and how plans meet the step that was measured."""

import pytest

from minimoe_dist.bench.device import DeviceRates, MeasuredProduct
from minimoe_dist.bench.fitting import fit_machine, machine_of_rates
from minimoe_dist.planning.layout import layout_of_recipe
from minimoe_dist.planning.machine import load_machine, machine_yaml
from minimoe_dist.planning.plan import Corpus, Planner
from minimoe_dist.planning.rates import BACKWARD, FORWARD, TEACHER, UPDATE, ProductRate
from tests.planning.recipes import run_config

STEP = {"placing": 0.001, TEACHER: 0.5, FORWARD: 0.4, BACKWARD: 0.7, UPDATE: 0.2, "metrics": 0.002}


def rates(**changes):
    """Of a device whose products follow a law, and whose bfloat16 is converted."""
    laws = {
        "float32": ProductRate(tflops=0.1, half_size=50.0),
        "bfloat16": ProductRate(tflops=0.01, half_size=50.0),
    }
    products = []
    for dtype, law in laws.items():
        for rows, inner, outer in ((128, 64, 256), (1024, 768, 3072)):
            one = MeasuredProduct(dtype, rows, inner, outer, 1.0)
            products.append(one._replace(seconds=one.rate / law.of(one.size)))
    given = {"products": products, "memory": 1e10, "launch": 3e-6, "recorded_launch": None}
    return DeviceRates(**(given | changes))


def measured_machine(**changes):
    known = {
        "device": "cpu",
        "ranks_per_node": 1,
        "memory_gib": 10,
        "link_gb_per_second": 1.0,
        "network_gb_per_second": 1.0,
    }
    return machine_of_rates(known | changes, rates())


def planner(**sections):
    return Planner(run_config("bert-base-uncased", **sections), Corpus(1000, 30.0))


def test_rates_of_products_are_found_again():
    found = measured_machine().products["float32"]
    assert (found.tflops, found.half_size) == (pytest.approx(0.1), pytest.approx(50.0))


def test_a_type_that_is_only_converted_is_none_to_choose():
    assert set(measured_machine().tflops) == {"float32"}


def test_launches_of_graphs_are_what_was_measured_of_them():
    known = {**measured_machine().model_dump(), "device": "cuda"}
    found = machine_of_rates(known, rates(recorded_launch=1e-6))
    assert (found.launch_microseconds, found.recorded_launch_microseconds) == (3.0, 1.0)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model_type": "bert_minilm", "students": [{"layer": 3, "moe": "1,1"}]},
        {"model_type": "bert_tinybert", "students": [{"layer": 3, "heads": 12, "moe": "1,1"}]},
        {"objective": {"mlm_weight": 1.0}, "data": {"data_type": "bert_mlm"}},
        {"training": {"num_grad_accum_steps": 4}},
    ],
    ids=["experts", "plain", "tinybert", "masked", "accumulation"],
)
def test_the_written_machine_plans_the_step_that_was_measured(sections, tmp_path):
    planned = planner(**sections)
    layout = layout_of_recipe(planned.config, 1)
    path = tmp_path / "mine.yaml"
    path.write_text(machine_yaml(fit_machine(measured_machine(), planned, layout, STEP)))
    prediction = planned.predict(layout, load_machine(str(path), []))
    assert prediction.step_seconds == pytest.approx(sum(STEP.values()), rel=0.001)
    assert prediction.seconds[UPDATE] == pytest.approx(0.203, rel=0.001)  # with what is no part


def test_exchanges_are_planned_apart_from_the_parts_that_they_were_measured_in():
    planned = planner(parallel={"zero_stage": 2})
    machine = measured_machine(ranks_per_node=2, link_gb_per_second=0.02)
    layout = layout_of_recipe(planned.config, 2)
    found = planned.predict(layout, fit_machine(machine, planned, layout, STEP))
    exchanged = (
        found.seconds["exchange of gradients"] + found.seconds["exchange of updated weights"]
    )
    assert exchanged > 0.05
    assert found.step_seconds == pytest.approx(sum(STEP.values()), rel=0.001)


def test_without_a_teacher_its_part_is_the_updates():
    sections = {"objective": {"relation_weight": 0, "mlm_weight": 1}}
    planned = planner(**sections, data={"data_type": "bert_mlm"})
    layout = layout_of_recipe(planned.config, 1)
    found = planned.predict(layout, fit_machine(measured_machine(), planned, layout, STEP))
    assert found.step_seconds == pytest.approx(sum(STEP.values()), rel=0.001)
