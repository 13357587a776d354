"""Machines from files and flags, and how wrong ones are refused."""

from pathlib import Path

import pytest

from minimoe_dist.config import ConfigError
from minimoe_dist.planning.machine import load_machine, machine_yaml
from minimoe_dist.planning.rates import ProductRate
from tests.planning.recipes import machine

SHIPPED = Path(__file__).parents[2] / "configs" / "machines"


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_a_shipped_machine_loads_by_name(name):
    assert load_machine(name, [SHIPPED]).name == name


def test_flags_stand_instead_of_the_file():
    found = load_machine("8xh100", [SHIPPED], {"nodes": 128, "memory_gib": 40})
    assert (found.ranks, found.memory_gib) == (1024, 40)


def test_a_written_machine_reads_back_equal(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(machine_yaml(machine()))
    assert load_machine(str(path), []) == machine()


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(ConfigError, match=r"8xh10 is not described; did you mean 8xh100"):
        load_machine("8xh10", [SHIPPED])


def test_a_misspelt_key_is_named_with_its_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(machine_yaml(machine()) + "memory: 3\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: memory: is not an option here"):
        load_machine(str(path), [])


def test_a_rate_of_an_unknown_type_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(machine_yaml(machine()).replace("bfloat16", "fp8"))
    with pytest.raises(ConfigError, match="must name float32 and may name bfloat16, float16"):
        load_machine(str(path), [])


def test_a_group_within_a_node_uses_its_links_and_a_wider_one_the_network():
    two_nodes = machine(nodes=2)
    assert two_nodes.bandwidth(8) == 400e9
    assert two_nodes.bandwidth(16) == 50e9
    assert two_nodes.bandwidth(4, stride=4) == 50e9


def test_a_part_that_no_step_has_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(machine_yaml(machine(parts={"teacher": 2.0})).replace("teacher: 2", "learn: 2"))
    with pytest.raises(ConfigError, match=r"parts.*may name teacher, student forward"):
        load_machine(str(path), [])


def test_narrow_types_that_were_not_measured_are_as_fast_as_the_one_that_was():
    slow = ProductRate(tflops=0.1, half_size=100.0)
    fast = ProductRate(tflops=0.5, half_size=0.0)
    on = machine(products={"float32": slow, "bfloat16": fast})
    assert on.product_rate("float8", 100.0) == on.product_rate("float16", 100.0) == 0.5e12
    assert on.product_rate("float32", 100.0) == pytest.approx(0.05e12)
