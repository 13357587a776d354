"""``minimoe-dist doctor``: planted faults are found and named, healthy nodes pass."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from minimoe_dist.commands import doctor_node
from minimoe_dist.commands.doctor_findings import (
    clock_findings,
    findings_of,
    shared_findings,
)
from minimoe_dist.commands.doctor_ranks import bandwidths, clock_offsets, sees_file
from tests.commands.support import free_port
from tests.distributed import run_distributed
from tests.slurm_cluster import slurm_cluster


def facts(rank=0, node="n1", **changes):
    """What a healthy rank says of itself."""
    healthy = {
        "rank": rank,
        "local_rank": 0,
        "node": node,
        "failed": {},
        "versions": {"python": "3.11.7", "numpy": "2.4.6", "code": "abc"},
        "apex": "none",
        "gpus": {"devices": [], "driver": None, "nccl": None, "seen": 0},
        "network": {
            "interface": "eth0",
            "address": f"10.0.0.{rank}",
            "there": ["eth0", "lo"],
            "asked": {},
        },
        "disk": {"free_gib": 100.0, "write_mb_per_second": 500.0, "read_mb_per_second": 900.0},
        "operators": {"fused_adam": "can be built"},
        "compilers": {"c++": "/usr/bin/c++", "ninja": "/usr/bin/ninja", "nvcc": None},
    }
    return {**healthy, **changes}


def problems(*ranks):
    return {one.check: one for one in findings_of(ranks) if one.state == "problem"}


def test_healthy_nodes_have_no_problem():
    assert problems(facts(), facts(1, "n2")) == {}


def test_another_version_on_one_node_is_named_with_both_nodes():
    other = {"python": "3.11.7", "numpy": "1.26.0", "code": "abc"}
    found = problems(facts(), facts(1, "n2", versions=other))
    assert found["version: numpy"].words == "2.4.6 on n1; 1.26.0 on n2"


def test_the_unrelated_apex_is_told_from_the_real_one(tmp_path, monkeypatch):
    package = tmp_path / "apex"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor_node.apex() == "other"
    for part in ("normalization", "optimizers"):
        (package / part).mkdir()
    assert doctor_node.apex() == "real"


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
    assert "disk of output_dir" in problems(facts(disk=disk))


def test_a_check_that_gave_up_names_its_node():
    found = problems(facts(failed={"disk": "no answer within 60 s"}))
    assert found["disk"].words == "n1 (rank 0): no answer within 60 s"


def test_a_check_that_hangs_is_given_up():
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        doctor_node.within(0.1, lambda: time.sleep(5))
    assert time.monotonic() - started < 4


def test_a_port_that_is_taken_is_seen():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not doctor_node.port_is_free(taken.getsockname()[1])


def _skewed():
    ahead = 5.0 * dist.get_rank()
    return clock_offsets([1], dist.group.WORLD, lambda: time.time() + ahead)


def test_a_clock_that_is_ahead_is_measured():
    (ahead, error) = run_distributed(_skewed, 2)[0][1]
    assert abs(ahead - 5.0) <= error
    (finding,) = clock_findings({1: (ahead, error)}, [facts(), facts(1, "n2")])
    assert (finding.state, finding.words[:2]) == ("problem", "n2")


def _own_folders(folder):
    return sees_file(Path(folder) / str(dist.get_rank()), dist.group.WORLD, 0.2)


def _one_folder(folder):
    return sees_file(Path(folder), dist.group.WORLD)


def test_a_folder_that_is_not_shared_names_the_node(tmp_path):
    seen = run_distributed(_own_folders, 2, str(tmp_path))
    finding = shared_findings(seen, [facts(), facts(1, "n2")], "runs")
    assert (finding.state, finding.words[-2:]) == ("problem", "n2")


def test_a_shared_folder_is_seen_by_all_and_left_empty(tmp_path):
    assert run_distributed(_one_folder, 2, str(tmp_path)) == [True, True]
    assert list(tmp_path.iterdir()) == []


def _speeds():
    import torch

    return bandwidths(torch.device("cpu"))


def test_bandwidths_are_measured_for_both_collectives():
    found = run_distributed(_speeds, 2)[0]
    assert {kind: all(v > 0 for v in sizes.values()) for kind, sizes in found.items()} == {
        "all-reduce": True,
        "all-to-all": True,
    }


def command(report: Path, output_dir: Path) -> list[str]:
    return [
        sys.executable, "-m", "minimoe_dist", "doctor", "--use_cpu", "--megabytes", "1",
        "--output_dir", str(output_dir), "--output", str(report),
    ]  # fmt: skip


def test_a_login_node_is_looked_at_alone(tmp_path):
    report = tmp_path / "report.json"
    port = str(free_port())
    found = subprocess.run(
        command(report, tmp_path / "runs"),
        env={**os.environ, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    said = json.loads(report.read_text())
    assert (found.returncode, said["problems"]) == (0, 0), found.stdout + found.stderr
    ports = [one["words"] for one in said["findings"] if one["check"] == "rendezvous port"]
    assert ports == [f"{port} is free"]


@pytest.fixture(scope="module")
def cluster():
    with slurm_cluster() as running:
        yield running


def on_two_nodes(cluster, tmp_path, before=""):
    """The doctor as a job step; `before` runs on n2 only."""
    script = tmp_path / "doctor.sh"
    report = tmp_path / "report.json"
    line = " ".join(command(report, tmp_path / "runs"))
    script.write_text(f'if [ "$SLURMD_NODENAME" = n2 ]; then {before or ":"}; fi\nexec {line}\n')
    found = cluster.execute(
        ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=0", "bash", str(script)],
        OMP_NUM_THREADS="1",
        PYTHONPATH=str(Path(__file__).parents[2]),
    )
    assert report.is_file(), found.stdout + found.stderr
    return found, json.loads(report.read_text())


def test_two_healthy_nodes_of_slurm_pass(cluster, tmp_path):
    found, said = on_two_nodes(cluster, tmp_path)
    assert (found.returncode, said["problems"]) == (0, 0), found.stdout + found.stderr
    assert {one["node"] for one in said["ranks"]} == {"n1", "n2"}


def test_a_node_of_slurm_with_another_version_is_named(cluster, tmp_path):
    shim = tmp_path / "shim" / "megatron_core-0.0.1.dist-info"
    shim.mkdir(parents=True)
    (shim / "METADATA").write_text("Metadata-Version: 2.1\nName: megatron-core\nVersion: 0.0.1\n")
    before = f"export PYTHONPATH={shim.parent}:$PYTHONPATH"
    found, said = on_two_nodes(cluster, tmp_path, before)
    wrong = [one for one in said["findings"] if one["state"] == "problem"]
    assert found.returncode != 0
    assert [one["check"] for one in wrong] == ["version: megatron-core"]
    assert "0.0.1 on n2" in wrong[0]["words"]
