"""``minimoe-dist doctor``: planted faults are found and named, healthy nodes pass."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.support import free_port
from tests.slurm_cluster import slurm_cluster


def command(report: Path, output_dir: Path) -> list[str]:
    # How full the disk of the machine that tests is, is not what these tests are about.
    return [
        sys.executable, "-m", "minimoe_dist", "doctor", "--use_cpu", "--megabytes", "1",
        "--least_free_gib", "0",
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
