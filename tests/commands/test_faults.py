"""What a run survives, and what it refuses: killed, stopped and signalled ranks, broken files."""

import contextlib
import fcntl
import os
import pty
import resource
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minimoe_dist.runs.launches import LOST, read_starts
from minimoe_dist.runs.locks import locked
from tests.commands import support
from tests.commands.support import Workshop
from tests.distributed import _context


def assert_continues_as_if_unbroken(recipe: Path, output_dir: Path, unbroken: Path) -> str:
    """Starts a run again; its steps and weights must be an unbroken run's."""
    said = support.finish(recipe)
    assert "resumed from" in said
    support.assert_same_run(output_dir, unbroken)
    steps = [one["step"] for one in support.records(output_dir) if "students" in one]
    assert steps == list(range(1, 31))
    return said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_takes_the_others_along_and_the_run_resumes_bitwise(
    victim: int, workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    with support.start(recipe) as ranks:
        ranks.until_step(12)
        ranks.until_saved()
        killed = ranks.signal(signal.SIGKILL, victim)
        assert ranks.wait(1 - victim) == [1]
        assert time.monotonic() - killed < 2
        assert ranks.said().count(f"rank {victim} has died") == 1
        assert "Traceback" not in ranks.said()
    assert_continues_as_if_unbroken(recipe, tmp_path / "run", unbroken)


def ends(output_dir: Path) -> list[tuple[str, int | None]]:
    """Why each start of a run ended, and with which status."""
    starts = read_starts(output_dir)
    assert all(start.leave for start in starts)
    return [(start.leave.reason, start.leave.status) for start in starts if start.leave]


def test_every_start_stands_in_the_folder_with_its_end(workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = workshop.recipe(run)
    with support.start(recipe) as ranks:  # killed before its first step
        support.wait_for(lambda: len(read_starts(run)) == 1, ranks.said)
        ranks.signal(signal.SIGKILL)
        ranks.wait()
    with support.start(recipe) as ranks:
        ranks.until_step(3)
        ranks.signal(signal.SIGKILL, 1)
        ranks.wait()
    with support.start(recipe) as ranks:
        support.wait_for(lambda: "step 3/30" in ranks.said(), ranks.said)
        ranks.signal(signal.SIGTERM, 0)
        assert ranks.wait() == [75, 75]
    support.run(recipe, "--learning_rate=0.5")  # refused, so no start
    support.finish(recipe)
    lost, died, stopped, finished = ends(run)
    assert lost == (LOST, None)
    assert died[0].startswith("failed: rank 1 has died on ") and died[1] == 1
    assert stopped == ("stopped by SIGTERM", 75)
    assert finished == ("finished", 0)
    last = read_starts(run)[-1]
    assert last.launch.command[:2] == ["distill", "--config"]
    assert (last.launch.world_size, list(last.hosts)) == (2, [socket.gethostname()])
    assert last.launch.packages["torch"] and last.launch.code["version"]
    assert last.leave is not None and last.leave.step == 30


@pytest.mark.slow
def test_a_rank_killed_under_torchrun_leaves_no_process(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    with a_rank_killed(support.torchrun(recipe), tmp_path / "run") as (agent, ranks):
        killed = time.monotonic()
        support.wait_for(lambda: not any(map(alive, ranks)), lambda: "ranks are left")
        assert len(ranks) == 2 and time.monotonic() - killed < 2
        assert agent.wait() == 1
    assert_continues_as_if_unbroken(recipe, tmp_path / "run", unbroken)


@pytest.mark.slow
def test_torchrun_starts_a_run_again_whose_rank_was_lost(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    """As on a machine of a cloud, without Slurm: the launcher restarts, the run goes on."""
    recipe = workshop.recipe(tmp_path / "run")
    command = support.torchrun(recipe)
    command.insert(command.index("--standalone"), "--max-restarts=2")
    with a_rank_killed(command, tmp_path / "run") as (agent, _):
        assert agent.wait(support.DEADLINE) == 0
    support.assert_same_run(tmp_path / "run", unbroken)
    assert len(read_starts(tmp_path / "run")) == 2


@contextlib.contextmanager
def a_rank_killed(
    command: list[str], run: Path
) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A launcher one of whose ranks has just been killed, behind step 12, and these ranks."""
    with subprocess.Popen(
        command, env=support.clean_environment(), stderr=subprocess.DEVNULL
    ) as agent:
        support.wait_for(lambda: 12 in support.losses(run), lambda: "no step 12")
        # Written while steps go on, and on a busy disk for longer than two of them.
        support.wait_for(lambda: bool(support.checkpoints(run)), lambda: "no checkpoint")
        ranks = children(agent.pid)
        subprocess.run(["kill", "-KILL", str(ranks[1])], check=True)
        yield agent, ranks


def children(pid: int) -> list[int]:
    """Child processes that run a rank, by rank."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True)
    lines = found.stdout.decode().splitlines()
    return sorted(int(line.split()[0]) for line in lines if "minimoe_dist" in line)


def alive(pid: int) -> bool:
    """Whether a process runs still, and does not only wait for its parent to notice its end."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


@pytest.mark.parametrize(
    ("number", "receivers"),
    [(signal.SIGUSR1, [1]), (signal.SIGTERM, [0, 1])],
    ids=["SIGUSR1-to-one", "SIGTERM-to-all"],
)
def test_a_signal_to_any_rank_saves_at_one_step_and_repeats_none(
    number: signal.Signals,
    receivers: list[int],
    workshop: Workshop,
    unbroken: Path,
    tmp_path: Path,
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    with support.start(recipe) as ranks:
        ranks.until_step(11)
        ranks.signal(number, *receivers)
        assert ranks.wait() == [75, 75]
    stopped_at = max(support.losses(tmp_path / "run"))
    assert stopped_at < 30
    assert support.checkpoints(tmp_path / "run")[-1] == stopped_at
    said = assert_continues_as_if_unbroken(recipe, tmp_path / "run", unbroken)
    steps = [int(line.split("/")[0][5:]) for line in said.splitlines() if ", sequences/s" in line]
    assert steps == list(range(stopped_at + 1, 31))


def _in_a_terminal(arguments: list[str], path: str) -> None:
    """The main program of a process whose terminal is the one at ``path``."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    descriptor = os.open(path, os.O_RDWR)
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
    for stream in range(3):
        os.dup2(descriptor, stream)
    from minimoe_dist import cli

    # At once: what stands in a stream of a closed terminal cannot be flushed.
    os._exit(cli.main(arguments))


def test_a_closed_terminal_saves_and_repeats_no_step(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    output_dir = tmp_path / "run"
    arguments = [
        "distill",
        "--config",
        str(workshop.recipe(output_dir)),
        "--expert_parallel_size=1",
    ]
    master, slave = pty.openpty()
    process = _context().Process(target=_in_a_terminal, args=(arguments, os.ttyname(slave)))
    process.start()
    os.close(slave)
    os.set_blocking(master, False)
    shown = b""
    while 11 not in support.losses(output_dir):
        with contextlib.suppress(OSError):
            shown += os.read(master, 4096)
        assert process.is_alive(), shown.decode()
    os.close(master)
    process.join(support.DEADLINE)
    assert process.exitcode == 75
    stopped_at = max(support.losses(output_dir))
    assert stopped_at < 30
    assert support.checkpoints(output_dir)[-1] == stopped_at


def test_signals_without_end_do_not_disturb_the_save(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    with support.start(recipe) as ranks:
        ranks.until_step(11)
        while any(process.is_alive() for process in ranks.processes):
            for rank, process in enumerate(ranks.processes):
                # It may end between the question and the signal.
                with contextlib.suppress(ProcessLookupError):
                    if process.is_alive():
                        ranks.signal(signal.SIGTERM, rank)
                    ranks.signal(signal.SIGUSR1, rank)
            time.sleep(0.001)
        assert ranks.wait() == [75, 75]
    assert_continues_as_if_unbroken(recipe, tmp_path / "run", unbroken)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_ends_the_others_after_the_time_out(
    victim: int, workshop: Workshop, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run", parallel={"timeout_seconds": 4})
    with support.start(recipe) as ranks:
        ranks.until_step(3)
        stopped = ranks.signal(signal.SIGSTOP, victim)
        assert ranks.wait(1 - victim) == [1]
        assert 3 < time.monotonic() - stopped < 4 + 5
        assert f"rank {victim} has given no sign of life for 4 s" in ranks.said()
        assert "Traceback" not in ranks.said()


@pytest.mark.parametrize("deleted", [False, True])
def test_a_second_run_in_a_folder_is_refused_until_the_first_is_dead(
    deleted: bool, workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    with support.start(recipe) as first:
        first.until_step(2)
        first.signal(signal.SIGSTOP)
        if deleted:
            (tmp_path / "run" / "run.lock").unlink()
        words = f"output_dir: {tmp_path / 'run'} is used by another run"
        assert_refused(*support.run(recipe), words)
        first.signal(signal.SIGKILL)
        first.wait()
    support.finish(recipe)
    support.assert_same_run(tmp_path / "run", unbroken)


@pytest.fixture
def finished(workshop: Workshop, unbroken: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A copy of the unbroken run's folder without its export, and its recipe."""
    output_dir = tmp_path / "run"
    shutil.copytree(unbroken, output_dir)
    shutil.rmtree(output_dir / "export")
    yield workshop.recipe(output_dir), output_dir


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    finished: tuple[Path, Path], unbroken: Path
) -> None:
    recipe, output_dir = finished
    piece = output_dir / "checkpoints" / "step_00000030" / "rank_00001.safetensors"
    damaged = bytearray(piece.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    piece.write_bytes(damaged)
    said = assert_continues_as_if_unbroken(recipe, output_dir, unbroken)
    assert f"WARNING rank 0 minimoe_dist.checkpoints.run: checkpoint skipped: {piece}" in said
    assert "at step 20" in said


def test_damaged_metrics_are_set_aside_and_told(
    finished: tuple[Path, Path], unbroken: Path
) -> None:
    recipe, output_dir = finished
    path = output_dir / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\n" + path.read_bytes())
    said = assert_continues_as_if_unbroken(recipe, output_dir, unbroken)
    assert f"{path}: had lines that cannot be read; now in {path}.damaged" in said
    assert Path(f"{path}.damaged").read_bytes() == b"\xff\xfe\n"


def test_a_missing_latest_does_not_start_anew(finished: tuple[Path, Path], unbroken: Path) -> None:
    recipe, output_dir = finished
    (output_dir / "checkpoints" / "latest").unlink()
    said = assert_continues_as_if_unbroken(recipe, output_dir, unbroken)
    assert "at step 30" in said


def test_broken_checkpoints_only_are_refused(finished: tuple[Path, Path]) -> None:
    recipe, output_dir = finished
    for manifest in output_dir.glob("checkpoints/step_*/manifest.json"):
        manifest.write_text("{")
    statuses, said = support.run(recipe)
    assert statuses == [2, 2]
    assert "none of its 2 checkpoints is whole" in said.splitlines()[-1]


@pytest.fixture(scope="module")
def poisoned(workshop: Workshop) -> dict[str, dict[str, str]]:
    """Sections of a run in which few pairs hold a token that the teacher has no numbers for."""
    teacher = support.make_teacher(workshop.folder / "poisoned", poisoned=True)
    corpus = workshop.folder / "with_poison"
    support.make_corpus(corpus, teacher, poison=8)
    return {
        "teacher": {"model_name_or_path": str(teacher)},
        "data": {"record_path_or_regex": str(corpus)},
    }


@pytest.mark.parametrize(
    "parallel",
    [
        {"zero_stage": 0},
        {"zero_stage": 1},
        {"zero_stage": 2, "precision": "bf16"},
        {"zero_stage": 3, "expert_parallel_size": 1},
    ],
    ids=str,
)
def test_a_loss_that_is_not_a_number_is_left_out_and_told(
    parallel: dict[str, object],
    workshop: Workshop,
    poisoned: dict[str, dict[str, str]],
    tmp_path: Path,
) -> None:
    recipe = workshop.recipe(tmp_path / "run", **poisoned, parallel=parallel)
    said = support.finish(recipe)
    rows = {step: row["student"] for step, row in support.losses(tmp_path / "run").items()}
    bad = [step for step, row in rows.items() if row["skipped_steps"]]
    assert 0 < len(bad) < 15
    assert bad == [step for step, row in rows.items() if row["loss"] is None]
    assert all(f"step {step}: student: loss nan: update left out" in said for step in bad)
    assert support.heldout(tmp_path / "run")[30]["student"] < 1.4


def test_losses_that_stay_bad_stop_the_run_at_its_last_good_checkpoint(
    workshop: Workshop, poisoned: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    training = {"max_bad_steps": 1, "save_interval": 1}
    recipe = workshop.recipe(tmp_path / "run", **poisoned, training=training)
    statuses, said = support.run(recipe)
    assert statuses == [1, 1]
    assert said.count("ERROR") == said.count("1 steps in a row without a finite loss") == 1
    assert "Traceback" not in said
    bad_step = max(support.losses(tmp_path / "run"))
    assert support.checkpoints(tmp_path / "run")[-1] == bad_step - 1


def assert_refused(statuses: list[int], said: str, words: str) -> None:
    """By one line that has some words in it."""
    assert set(statuses) == {2}, said
    assert said.count("\n") == 1, said
    assert words in said


def misspell_recipe(recipe: Path, folder: Path) -> None:
    recipe.write_text(recipe.read_text().replace("max_steps", "max_stesp"))


def misspell_deepspeed_json(recipe: Path, folder: Path) -> str:
    (folder / "ds.json").write_text('{"zero_optimization": {"stage": 1, "overlap_com": true}}')
    return f"--deepspeed={folder / 'ds.json'}"


def truncate_corpus(recipe: Path, folder: Path) -> str:
    support.make_corpus(folder / "short", recipe.parent / "teacher", documents=9)
    binary = folder / "short.bin"
    binary.write_bytes(binary.read_bytes()[:-2])
    return f"--record_path_or_regex={folder / 'short'}"


def build_with_another_vocabulary(recipe: Path, folder: Path) -> str:
    other = support.make_teacher(folder / "other", words="piece")
    return f"--record_path_or_regex={support.make_corpus(folder / 'foreign', other)}"


def start_from_another_size(recipe: Path, folder: Path) -> str:
    return f"--initial_weights={folder / 'teacher'}"


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (misspell_recipe, "max_steps"),
        (misspell_deepspeed_json, "overlap_comm"),
        ("--max_stesp=3", "did you mean --max_steps?"),
        ("--record_path_or_regex=/no/corpus", "/no/corpus"),
        (truncate_corpus, "short.bin"),
        (build_with_another_vocabulary, "foreign: was built with the vocabulary of other"),
        ("--num_relation_heads=3", "num_relation_heads 3"),
        ("--relation_layer=3", "teacher.relation_layer: 3"),
        (start_from_another_size, "students.student.layer: 1, but"),
        ("--max_length=65", "data.max_length: 65"),
        ("--expert_parallel_size=4", "4 does not divide the 1 processes"),
        ("--output_dir=/proc/runs", "output_dir: /proc/runs"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_bad_start_is_refused_in_seconds_before_torch_is_imported(
    cause: object, words: str, workshop: Workshop, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run", parallel={"expert_parallel_size": 1})
    (tmp_path / "teacher").symlink_to(workshop.teacher)
    option = cause(recipe, tmp_path) if callable(cause) else cause
    command = [sys.executable, "-X", "importtime", "-m", "minimoe_dist", "distill"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = support.execute([*command, "--config", str(recipe), *([option] if option else [])])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor, which what else runs on a machine changes little.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    imported, said = [], []
    for line in done.stderr.splitlines(keepends=True):
        (imported if line.startswith("import time:") else said).append(line)
    assert_refused([done.returncode], "".join(said), words)
    assert {"torch", "deepspeed"} & {line.split("|")[-1].strip() for line in imported} == set()
    assert not (tmp_path / "run").exists()


def test_changed_options_and_a_live_run_are_refused_before_torch_is_imported(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, output_dir = finished
    command = [sys.executable, "-X", "importtime", "-m", "minimoe_dist", "distill", str(recipe)]
    changed = [*command, "--expert_parallel_size=1", "--per_device_train_batch_size=8", "--seed=5"]
    with locked(output_dir):
        taken = support.execute([*changed, "--allow_changed_options"])
    for done, words in (
        (
            support.execute(changed),
            "the run's options changed since (seed: 776 -> 5): give --allow",
        ),
        (taken, f"output_dir: {output_dir} is used by another run that is alive"),
    ):
        lines = done.stderr.splitlines()
        (said,) = [line for line in lines if not line.startswith("import time:")]
        assert done.returncode == 2 and words in said
        assert "torch" not in {line.split("|")[-1].strip() for line in lines}


def build_with_a_larger_vocabulary(folder: Path) -> str:
    """Which might be the teacher's with what transformers adds: only loading it tells."""
    other = support.make_teacher(folder / "other", words="piece", unused=1)
    return f"--record_path_or_regex={support.make_corpus(folder / 'foreign', other)}"


def test_another_vocabulary_is_refused_also_after_the_start(
    workshop: Workshop, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    option = build_with_a_larger_vocabulary(tmp_path)
    assert_refused(*support.run(recipe, option), "foreign: was built with the vocabulary of other")


def test_what_one_rank_alone_finds_ends_all_with_its_words(
    workshop: Workshop, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    option = build_with_a_larger_vocabulary(tmp_path)
    with support.start(recipe, own={1: option}) as ranks:
        assert ranks.wait() == [1, 2]
        assert ranks.said().count("\n") == 1
        assert "rank 1 failed: UserError: " in ranks.said()
        assert "foreign: was built with the vocabulary of other" in ranks.said()
