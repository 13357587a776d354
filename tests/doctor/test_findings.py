"""What facts of all ranks mean: planted faults are found and named."""

from minimoe_dist.doctor.findings import findings_of
from tests.doctor.healthy import facts


def problems(*ranks, least_free_gib=5.0):
    return {one.check: one for one in findings_of(ranks, least_free_gib) if one.state == "problem"}


def test_healthy_nodes_have_no_problem():
    assert problems(facts(), facts(1, "n2")) == {}


def test_another_version_on_one_node_is_named_with_both_nodes():
    other = {"python": "3.11.7", "numpy": "1.26.0", "code": "abc"}
    found = problems(facts(), facts(1, "n2", versions=other))
    assert found["version: numpy"].words == "2.4.6 on n1; 1.26.0 on n2"


def test_the_unrelated_apex_is_a_problem():
    assert "pip uninstall apex" in problems(facts(apex="other"))["apex"].remedy


def test_an_interface_that_is_not_there_is_a_problem():
    network = {**facts()["network"], "asked": {"NCCL_SOCKET_IFNAME": "ib0"}}
    assert "ib0 is none of eth0, lo" in problems(facts(network=network))["NCCL_SOCKET_IFNAME"].words


def test_loopback_between_nodes_is_a_problem():
    network = {**facts()["network"], "interface": "lo", "address": "127.0.0.1"}
    found = problems(facts(network=network), facts(1, "n2"))
    assert "MASTER_ADDR" in found["interface to rank 0"].remedy


def test_a_full_disk_is_a_problem():
    disk = {**facts()["disk"], "free_gib": 0.5}
    found = problems(facts(disk=disk))["disk of output_dir"]
    assert found.remedy.startswith("5 GiB are wanted")


def test_a_small_disk_is_enough_where_little_is_asked_for():
    disk = {**facts()["disk"], "free_gib": 0.5}
    assert problems(facts(disk=disk), least_free_gib=0.25) == {}


def test_a_check_that_gave_up_names_its_node():
    found = problems(facts(failed={"disk": "no answer within 60 s"}))
    assert found["disk"].words == "n1 (rank 0): no answer within 60 s"
