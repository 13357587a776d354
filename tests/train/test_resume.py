"""Checkpoints of engines: bitwise on the same topology, exact across topologies."""

from pathlib import Path

import pytest
import torch

from minimoe_dist.checkpoints.run import load_checkpoint, newest_whole_checkpoint
from minimoe_dist.train.optimizer_state import KINDS
from tests.distributed import run_distributed
from tests.train import runs
from tests.train.runs import Layout

TOTAL = 6


def _train_and_save(configs, layout: Layout, steps: int, folder: str):
    """Trains without a break, saving after ``steps``; returns every step's numbers."""
    distiller = runs.make_distiller(configs, layout)
    rows = runs.run_steps(distiller, layout, 0, steps)
    runs.save(folder, distiller.students, steps)
    rows += runs.run_steps(distiller, layout, steps, TOTAL)
    return rows, _whole_state(distiller)


def _load_and_train(configs, layout: Layout, folder: str):
    distiller = runs.make_distiller(configs, layout)
    step = load_checkpoint(newest_whole_checkpoint(Path(folder)), distiller.students)["step"]
    return runs.run_steps(distiller, layout, step, TOTAL), _whole_state(distiller)


def _load_and_save(configs, layout: Layout, folder: str, target: str):
    distiller = runs.make_distiller(configs, layout)
    progress = load_checkpoint(newest_whole_checkpoint(Path(folder)), distiller.students)
    runs.save(target, distiller.students, progress["step"])
    return runs.run_steps(distiller, layout, progress["step"], TOTAL)


def _whole_state(distiller):
    """Every tensor of every student on this rank, and the weights that the forward pass uses."""
    state = {}
    for student in distiller.students:
        for name in student.state_shapes():
            for kind in KINDS:
                state[f"{student.name}/{kind}/{name}"] = student.read_state(name, kind)
        state[f"{student.name}/steps"] = torch.tensor(student.counters()["adam_steps"])
    return state


def _saved_tensors(folder: str) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, flat, whatever pieces they are in."""
    from safetensors.torch import load_file

    checkpoint = newest_whole_checkpoint(Path(folder))
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        for key, piece in load_file(path).items():
            name, _, start = key.rpartition("@")
            pieces.setdefault(name, {})[int(start)] = piece
    return {
        name: torch.cat([parts[start] for start in sorted(parts)]) for name, parts in pieces.items()
    }


@pytest.mark.parametrize(
    ("moe", "layout", "ranks"),
    [
        ((1, 1), Layout(0, 1), 1),
        ((1, 4), Layout(1, 2), 2),
        ((4, 4), Layout(2, 2, "bf16"), 2),
        ((1, 4), Layout(3, 1), 2),
        ((1, 4), Layout(1, 1, "bf16"), 2),
        ((1, 4), Layout(3, 1, "bf16"), 2),
    ],
)
def test_resume_on_the_same_topology_is_bitwise(moe, layout, ranks, tmp_path) -> None:
    configs = [runs.student_options(moe, dropout=0.1)]
    unbroken = run_distributed(_train_and_save, ranks, configs, layout, 3, str(tmp_path))
    resumed = run_distributed(_load_and_train, ranks, configs, layout, str(tmp_path))
    for (rows, state), (resumed_rows, resumed_state) in zip(unbroken, resumed, strict=True):
        assert resumed_rows == rows[3:]
        assert state.keys() == resumed_state.keys()
        for name in state:
            assert torch.equal(state[name], resumed_state[name]), name


def test_topology_changes_keep_weights_and_moments_exactly(tmp_path) -> None:
    configs = [runs.student_options((4, 4)), runs.student_options((1, 1))]
    folders = [str(tmp_path / name) for name in ("first", "second", "third")]
    first, second, third = Layout(1, 2), Layout(0, 1), Layout(2, 2)
    unbroken = run_distributed(_train_and_save, 2, configs, first, 3, folders[0])[0][0]
    losses = [run_distributed(_load_and_save, 1, configs, second, *folders[0:2])[0]]
    losses.append(run_distributed(_load_and_save, 2, configs, third, *folders[1:3])[0])
    saved = [_saved_tensors(folder) for folder in folders]
    for later in saved[1:]:
        assert later.keys() == saved[0].keys()
        for key in later:
            assert torch.equal(later[key], saved[0][key]), key
    for rows in losses:
        assert torch.allclose(torch.tensor(rows), torch.tensor(unbroken[3:]), atol=1e-6, rtol=1e-5)


def test_several_students_get_what_each_would_have_got_alone(tmp_path) -> None:
    configs = [runs.student_options((1, 4), dropout=0.1), runs.student_options((1, 1), dropout=0.1)]
    layout = Layout(1, 2)
    together = run_distributed(_train_and_save, 2, configs, layout, 3, str(tmp_path / "both"))[0]
    alone = run_distributed(_train_and_save, 2, configs[:1], layout, 3, str(tmp_path / "one"))[0]
    assert [row[:2] for row in together[0]] == alone[0]
    for name, value in alone[1].items():
        assert torch.equal(together[1][name], value), name
