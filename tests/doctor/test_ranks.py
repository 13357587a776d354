"""What ranks find out together, and what it means."""

import time
from pathlib import Path

import torch
import torch.distributed as dist

from minimoe_dist.doctor.findings import clock_findings, shared_finding
from minimoe_dist.doctor.ranks import bandwidths, clock_offsets, sees_file
from tests.distributed import run_distributed
from tests.doctor.healthy import facts


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
    finding = shared_finding(seen, [facts(), facts(1, "n2")], "runs")
    assert (finding.state, finding.words[-2:]) == ("problem", "n2")


def test_a_shared_folder_is_seen_by_all_and_left_empty(tmp_path):
    assert run_distributed(_one_folder, 2, str(tmp_path)) == [True, True]
    assert list(tmp_path.iterdir()) == []


def _speeds():
    return bandwidths(torch.device("cpu"))


def test_bandwidths_are_measured_for_both_collectives():
    found = run_distributed(_speeds, 2)[0]
    assert {kind: all(v > 0 for v in sizes.values()) for kind, sizes in found.items()} == {
        "all-reduce": True,
        "all-to-all": True,
    }
