"""What a run's metrics write: JSON lines, TensorBoard, progress."""

import io
import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minimoe_dist.train.metrics import Meter, Metrics
from minimoe_dist.train.step_metrics import StepMetrics, StudentMetrics


def step_metrics(loss=1.0, tokens=100, learning_rate=0.1, applied=True, names=("student",)):
    student = StudentMetrics(
        loss=loss,
        parts={"relation_loss": loss / 2},
        balance=1.25,
        gradient_norm=2.0 if applied else math.inf,
        applied=applied,
        tokens_per_expert=[[60.0, 40.0], [10.0, 90.0]],
    )
    return StepMetrics(learning_rate, 4, tokens, False, dict.fromkeys(names, student))


def open_metrics(folder, *, total_steps=10, **options):
    options.setdefault("stream", io.StringIO())
    return Metrics(folder, total_steps=total_steps, **options)


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def scalars(folder, tag):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_mean_is_weighted():
    meter = Meter()
    meter.add("loss", 1.0, weight=3)
    meter.add("loss", 5.0, weight=1)
    assert meter.mean("loss") == 2.0


def test_a_rate_counts_wall_time_without_pauses():
    clock = Clock()
    meter = Meter(clock)
    clock.now = 2.0
    meter.add("tokens", 100)
    with meter.paused():
        clock.now = 50.0
    assert meter.rates("tokens") == [50.0]


def test_a_reset_forgets_numbers_and_time():
    clock = Clock()
    meter = Meter(clock)
    meter.add("tokens", 100)
    clock.now = 5.0
    meter.reset()
    clock.now = 6.0
    meter.add("tokens", 3)
    assert meter.rates("tokens") == [3.0]


def test_a_record_has_every_number_of_the_interval(tmp_path):
    with open_metrics(tmp_path, log_interval=2, flops_per_token=1e9) as metrics:
        metrics.step(1, step_metrics())
        metrics.step(2, step_metrics(learning_rate=0.2))
    (record,) = records(tmp_path)
    rates = [record.pop(key) for key in ("sequences_per_second", "tokens_per_second", "tflops")]
    assert rates[1] == pytest.approx(rates[0] * 25)
    assert rates[2] == pytest.approx(rates[1] * 1e9 / 1e12)
    assert record == {
        "step": 2,
        "steps": 2,
        "learning_rate": 0.2,
        "students": {
            "student": {
                "loss": 1.0,
                "relation_loss": 0.5,
                "balance": 1.25,
                "gradient_norm": 2.0,
                "skipped_steps": 0,
                "tokens_per_expert": [[120, 80], [20, 180]],
            }
        },
    }


def test_losses_weigh_by_tokens(tmp_path):
    with open_metrics(tmp_path, log_interval=2) as metrics:
        metrics.step(1, step_metrics(loss=1.0, tokens=300))
        metrics.step(2, step_metrics(loss=5.0, tokens=100))
    assert records(tmp_path)[0]["students"]["student"]["loss"] == 2.0


def test_the_last_step_is_recorded_off_the_interval(tmp_path):
    with open_metrics(tmp_path, total_steps=3, log_interval=2) as metrics:
        for step in (1, 2, 3):
            metrics.step(step, step_metrics())
    assert [(r["step"], r["steps"]) for r in records(tmp_path)] == [(2, 2), (3, 1)]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    with open_metrics(tmp_path) as metrics:
        metrics.step(1, step_metrics(loss=math.nan))
        metrics.evaluation(1, {"student": math.inf})
    step, evaluation = records(tmp_path)
    assert step["students"]["student"]["loss"] is None
    assert step["tflops"] is None
    assert evaluation == {"step": 1, "heldout_loss": {"student": None}}


def test_a_skipped_step_is_counted_and_leaves_the_gradient_norm_alone(tmp_path):
    with open_metrics(tmp_path, log_interval=2) as metrics:
        metrics.step(1, step_metrics())
        metrics.step(2, step_metrics(applied=False))
    student = records(tmp_path)[0]["students"]["student"]
    assert (student["skipped_steps"], student["gradient_norm"]) == (1, 2.0)


def test_every_student_has_its_own_numbers(tmp_path):
    with open_metrics(tmp_path) as metrics:
        metrics.step(1, step_metrics(names=("small", "large")))
        metrics.evaluation(1, {"small": 0.5, "large": 0.25})
    step, evaluation = records(tmp_path)
    assert list(step["students"]) == ["small", "large"]
    assert evaluation["heldout_loss"] == {"small": 0.5, "large": 0.25}


def test_a_resumed_run_drops_later_records_and_appends(tmp_path):
    with open_metrics(tmp_path) as metrics:
        for step in range(1, 6):
            metrics.step(step, step_metrics())
    with open_metrics(tmp_path, first_step=3) as metrics:
        metrics.step(4, step_metrics(loss=7.0))
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4]
    assert records(tmp_path)[-1]["students"]["student"]["loss"] == 7.0


def test_an_evaluation_that_will_be_done_again_is_dropped(tmp_path):
    with open_metrics(tmp_path) as metrics:
        for step in (1, 2):
            metrics.step(step, step_metrics())
            metrics.evaluation(step, {"student": 0.5})
    with open_metrics(tmp_path, first_step=2) as metrics:
        metrics.evaluation(2, {"student": 0.5})
    found = [(one["step"], "heldout_loss" in one) for one in records(tmp_path)]
    assert found == [(1, False), (1, True), (2, False), (2, True)]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    with open_metrics(tmp_path) as metrics:
        metrics.step(1, step_metrics())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "los')
    with open_metrics(tmp_path, first_step=2) as metrics:
        metrics.step(3, step_metrics())
    assert [record["step"] for record in records(tmp_path)] == [1, 3]


def test_tensorboard_has_the_same_numbers(tmp_path):
    with open_metrics(tmp_path) as metrics:
        metrics.step(1, step_metrics(loss=0.5))
        metrics.evaluation(1, {"student": 0.75})
    assert scalars(tmp_path, "student/loss") == [(1, 0.5)]
    assert scalars(tmp_path, "student/heldout_loss") == [(1, 0.75)]
    assert scalars(tmp_path, "student/largest_expert_share/1") == [(1, pytest.approx(0.9))]


def test_tensorboard_purges_what_a_resumed_run_does_again(tmp_path):
    with open_metrics(tmp_path) as metrics:
        for step in (1, 2, 3):
            metrics.step(step, step_metrics(loss=1.0))
    with open_metrics(tmp_path, first_step=1) as metrics:
        metrics.step(2, step_metrics(loss=3.0))
    assert scalars(tmp_path, "student/loss") == [(1, 1.0), (2, 3.0)]


def test_a_rank_that_does_not_write_leaves_no_trace(tmp_path):
    stream = io.StringIO()
    with open_metrics(tmp_path, is_writer=False, stream=stream) as metrics:
        metrics.step(1, step_metrics())
        metrics.evaluation(1, {"student": 1.0})
        with metrics.paused():
            pass
    assert not list(tmp_path.iterdir())
    assert not stream.getvalue()


def test_without_a_terminal_progress_is_a_line_per_record(tmp_path):
    stream = io.StringIO()
    with open_metrics(tmp_path, log_interval=2, stream=stream) as metrics:
        for step in range(1, 5):
            metrics.step(step, step_metrics())
    first, second = stream.getvalue().splitlines()
    assert first.startswith("step 2/10  loss 1, sequences/s ")
    assert second.startswith("step 4/10") and second.endswith(" left")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_progress_is_a_bar_with_loss_and_speed(tmp_path):
    stream = Terminal()
    with open_metrics(tmp_path, log_interval=1, stream=stream) as metrics:
        for step in range(1, 11):
            metrics.step(step, step_metrics(loss=0.125))
    shown = stream.getvalue()
    assert "10/10" in shown and "loss 0.125" in shown and "sequences/s" in shown
    assert " left" not in shown  # the bar's own: no lines beside it


def test_a_phase_before_the_first_step_is_shown_until_that_steps_numbers_come(tmp_path):
    terminal, lines = Terminal(), io.StringIO()
    for stream in (terminal, lines):
        with open_metrics(tmp_path / stream.__class__.__name__, stream=stream) as metrics:
            metrics.phase("compiling passes")
            metrics.step(1, step_metrics())
    assert "compiling passes:" in terminal.getvalue()
    assert terminal.getvalue().rpartition("distilling:")[1]
    assert lines.getvalue().startswith("compiling passes\n")


def test_lines_of_one_stage_of_several_name_it(tmp_path):
    stream = io.StringIO()
    with open_metrics(tmp_path, stream=stream, label="assistant") as metrics:
        metrics.phase("compiling")
        metrics.step(1, step_metrics())
        metrics.evaluation(1, {"student": 0.5})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 and all(line.startswith("assistant: ") for line in lines)
    assert lines[1].startswith("assistant: step 1/10")
