"""Checkpoints of a run: exact, read by any topology, and whole ones found behind broken ones."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file

from minimoe_dist.checkpoints.run import (
    CheckpointError,
    load_checkpoint,
    newest_whole_checkpoint,
    read_progress,
    set_aside_checkpoints,
    verify_checkpoint,
)
from minimoe_dist.runs.checkpoints import list_checkpoints
from tests.checkpoints import states
from tests.checkpoints.states import (
    MemoryState,
    loads_exactly,
    names,
    newest_step,
    save,
    save_checkpoint,
    save_with_ranks,
)


@pytest.fixture
def warnings():
    """The messages that choosing a checkpoint logs."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("minimoe_dist.checkpoints.run")
    log.addHandler(handler)
    log.setLevel(logging.WARNING)
    yield messages
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


@pytest.fixture
def three(tmp_path):
    """A folder with the checkpoints of steps 1, 2 and 3."""
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    return tmp_path


def test_a_save_is_loaded_exactly(tmp_path) -> None:
    checkpoint = save(tmp_path / "checkpoints", 3)
    assert checkpoint.name == "step_00000003"
    assert loads_exactly(checkpoint, 3)
    assert read_progress(checkpoint)["consumed_samples"] == 21


def test_several_students_are_kept_apart(tmp_path) -> None:
    first, second = MemoryState(1, name="a"), MemoryState(2, name="b")
    save_checkpoint(tmp_path, [first, second], {"step": 1}, states.alone())
    loaded = [MemoryState(name="b"), MemoryState(name="a")]
    load_checkpoint(newest_whole_checkpoint(tmp_path), loaded)
    assert loaded == [second, first]


def test_latest_names_the_newest(tmp_path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        assert (tmp_path / "latest").read_text() == f"step_0000000{step}\n"


def test_a_folder_that_never_had_a_checkpoint_has_no_newest(tmp_path) -> None:
    (tmp_path / "step_00000001.partial").mkdir()
    (tmp_path / "step_notes.txt").touch()
    assert newest_whole_checkpoint(tmp_path) is None
    assert newest_whole_checkpoint(tmp_path / "missing") is None


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_number_is_stored_once_and_each_rank_writes(world_size, tmp_path) -> None:
    assert save_with_ranks(tmp_path, 1, world_size, min(2, world_size)) == [None] * world_size
    pieces: dict = {}
    for path in (tmp_path / "step_00000001").glob("*.safetensors"):
        piece = load_file(path)
        assert piece and not pieces.keys() & piece.keys()
        pieces |= piece
    whole = MemoryState(1)
    for (name, kind), tensor in whole.tensors.items():
        prefix = f"student/{kind}/{name}@"
        starts = sorted(int(key.removeprefix(prefix)) for key in pieces if key.startswith(prefix))
        joined = torch.cat([pieces.pop(f"{prefix}{start}") for start in starts])
        assert torch.equal(joined, tensor.flatten())
    assert not pieces


def test_a_state_with_a_gap_is_never_written(tmp_path) -> None:
    class Gap(MemoryState):
        def state_slices(self):
            return (part for part in super().state_slices() if part.name != "dense.bias")

    with pytest.raises(AssertionError, match=r"dense.bias, master: 0 elements of \(3,\)"):
        save_checkpoint(tmp_path, [Gap(1)], {"step": 1}, states.alone())
    assert newest_whole_checkpoint(tmp_path) is None


def test_checkpoints_of_the_first_format_are_read(tmp_path) -> None:
    from safetensors.torch import save_file

    from minimoe_dist.durable import hash_file, hash_json, write_json

    folder = tmp_path / "step_00000003"
    folder.mkdir()
    tensors = {}
    for (name, kind), tensor in MemoryState(3).tensors.items():
        if name.startswith("experts"):
            parts = {f"student/{kind}/{name}#{i}": part.clone() for i, part in enumerate(tensor)}
            tensors |= parts
        else:
            tensors[f"student/{kind}/{name}"] = tensor
    save_file(tensors, folder / "rank_00000.safetensors")
    write_json(folder / "run.json", {"step": 3, "counters": {"student": {"adam_steps": 3}}})
    files = {path.name: hash_file(path) for path in folder.iterdir()}
    keys = dict.fromkeys(tensors, "rank_00000.safetensors")
    manifest = {"format": 1, "files": files, "keys": keys}
    write_json(folder / "manifest.json", {**manifest, "sha256": hash_json(manifest)})
    assert newest_step(tmp_path) == 3
    for rank in range(2):
        state = MemoryState(0, rank, 2)
        load_checkpoint(folder, [state])
        assert state == MemoryState(3, rank, 2)
    with pytest.raises(CheckpointError, match=r"experts.weight is \[4, 2, 3\], the student's is"):
        load_checkpoint(
            folder, [MemoryState(shapes={**states.SHAPES, "experts.weight": (5, 2, 3)})]
        )


@pytest.mark.parametrize("saved_size", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_other_expert_parallel_sizes_read_their_experts(saved_size, size, tmp_path) -> None:
    save_with_ranks(tmp_path, 1, saved_size, saved_size)
    for rank in range(size):
        state = MemoryState(0, rank, size)
        load_checkpoint(newest_whole_checkpoint(tmp_path), [state])
        assert state == MemoryState(1, rank, size)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path, position=-3):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(bytes(content))


def prolong(path):
    path.write_bytes(path.read_bytes() + b"\0")


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = [
    ("rank_00000.safetensors", truncate, "bytes, not"),
    ("rank_00000.safetensors", prolong, "bytes, not"),
    ("rank_00000.safetensors", flip, "SHA-256 differs"),
    ("rank_00000.safetensors", lambda path: path.unlink(), "unreadable (No such file"),
    ("rank_00000.safetensors", replace_by_a_folder, "unreadable (Is a directory"),
    ("run.json", flip, "SHA-256 differs"),
    ("run.json", lambda path: path.unlink(), "unreadable (No such file"),
    ("manifest.json", lambda path: truncate_to(path, 100), "unreadable"),
    ("manifest.json", lambda path: truncate_to(path, 0), "unreadable"),
    ("manifest.json", lambda path: path.unlink(), "unreadable"),
    ("manifest.json", lambda path: path.write_text("[]"), "unreadable"),
    ("manifest.json", lambda path: path.write_bytes(b"\xff\xfe"), "unreadable"),
]


def truncate_to(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    name, damage, words, three, warnings
) -> None:
    path = three / "step_00000003" / name
    damage(path)
    assert newest_step(three) == 2
    assert len(warnings) == 1 and str(path) in warnings[0] and words in warnings[0]


def test_any_flipped_bit_of_the_manifest_is_noticed(tmp_path) -> None:
    checkpoint = save(tmp_path, 1)
    path = checkpoint / "manifest.json"
    content, meaning = path.read_bytes(), json.loads(path.read_text())
    unnoticed = 0
    for position in range(len(content)):
        flip(path, position)
        try:
            verify_checkpoint(checkpoint)
        except CheckpointError:
            pass
        else:
            assert json.loads(path.read_text()) == meaning, position
            unnoticed += 1
        path.write_bytes(content)
    assert unnoticed < len(content) / 2  # blanks, whose change changes nothing


def test_two_damaged_checkpoints_leave_the_third(three, warnings) -> None:
    for step in (2, 3):
        flip(three / f"step_0000000{step}" / "rank_00000.safetensors")
    assert newest_step(three) == 1
    assert len(warnings) == 2


def test_where_all_are_damaged_the_run_does_not_start_anew(three) -> None:
    for checkpoint in list_checkpoints(three).values():
        flip(checkpoint / "rank_00000.safetensors")
    with pytest.raises(
        CheckpointError, match=r"none of its 3 checkpoints is whole: move"
    ) as caught:
        newest_whole_checkpoint(three)
    assert "\n" not in str(caught.value) and str(three) in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "step_00000001\n", "step_00000009\n", "nonsense"])
def test_latest_does_not_decide(content, three) -> None:
    (three / "latest").unlink()
    if content is not None:
        (three / "latest").write_text(content)
    assert newest_step(three) == 3


def test_where_latest_alone_is_left_the_run_does_not_start_anew(tmp_path) -> None:
    save(tmp_path, 1).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="none of its 0 checkpoints is whole"):
        newest_whole_checkpoint(tmp_path)


def test_steps_are_ordered_as_numbers(tmp_path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert newest_step(tmp_path) == 100_000_000


@pytest.mark.parametrize(("keep", "left"), [(0, 2), (1, 2), (2, 2), (3, 3), (9, 5)])
def test_at_least_two_checkpoints_are_kept(keep, left, tmp_path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, keep)
    assert [path.name for path in list_checkpoints(tmp_path).values()] == [
        f"step_0000000{step}" for step in range(6 - left, 6)
    ]


def test_of_two_kept_checkpoints_both_are_whole(three) -> None:
    flip(three / "step_00000003" / "rank_00000.safetensors")
    save(three, 4, keep=2)
    verify_checkpoint(three / "step_00000002")
    assert newest_step(three) == 4


def test_a_damaged_checkpoint_goes_when_two_newer_ones_are_whole(three) -> None:
    flip(three / "step_00000003" / "rank_00000.safetensors")
    for step in (4, 5):
        save(three, step)
    assert names(three) == ["latest", "step_00000004", "step_00000005"]


def test_a_run_that_fell_back_does_not_keep_the_later_checkpoints(three) -> None:
    for step in (2, 3):
        flip(three / f"step_0000000{step}" / "rank_00000.safetensors")
    save(three, 2)
    assert names(three) == ["latest", "step_00000001", "step_00000002"]
    assert newest_step(three) == 2


def test_a_new_beginning_sets_the_checkpoints_aside(three) -> None:
    folder = three.parent / "checkpoints"
    three.rename(folder)
    assert set_aside_checkpoints(folder) == three.parent / "checkpoints.1"
    assert newest_whole_checkpoint(folder) is None
    save(folder, 1)
    assert set_aside_checkpoints(folder) == three.parent / "checkpoints.2"
    assert newest_step(three.parent / "checkpoints.1") == 3
    assert set_aside_checkpoints(folder) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dense.bias": (4,)}, r"student/dense.bias is \[3\], the student's is \[4\]"),
        ({"dense.bias": (1,)}, r"dense.bias is \[3\], the student's is \[1\]"),
        ({"experts.weight": (4, 3, 2)}, r"weight is \[4, 2, 3\], the student's is \[4, 3, 2\]"),
        ({"other.weight": (2,)}, "no student/exp_avg/other.weight"),
        (
            {"experts.weight": (5, 2, 3)},
            r"experts.weight is \[4, 2, 3\], the student's is \[5, 2, 3\]",
        ),
        (
            {"experts.weight": (2, 2, 3)},
            r"experts.weight is \[4, 2, 3\], the student's is \[2, 2, 3\]",
        ),
        ({"dense.bias": None}, "dense.bias, which this student lacks"),
    ],
)
def test_another_students_checkpoint_is_refused(changes, words, tmp_path) -> None:
    checkpoint = save(tmp_path, 1)
    shapes = {n: s for n, s in {**states.SHAPES, **changes}.items() if s is not None}
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(checkpoint, [MemoryState(shapes=shapes)])
    assert "\n" not in str(caught.value) and str(checkpoint) in str(caught.value)


def test_a_student_of_another_name_is_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"no other/exp_avg/dense.bias: saved from another"):
        load_checkpoint(save(tmp_path, 1), [MemoryState(name="other")])


def test_a_checkpoint_of_another_format_is_refused(tmp_path) -> None:
    from minimoe_dist.durable import hash_json, write_json

    path = save(tmp_path, 1) / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format": 99}
    del manifest["sha256"]
    write_json(path, {**manifest, "sha256": hash_json(manifest)})
    with pytest.raises(CheckpointError, match="format 99, this version reads 1 to 2"):
        verify_checkpoint(path.parent)
