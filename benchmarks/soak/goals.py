"""The goals, and what a trial's figures say of each: rows of the page, as pure functions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["met", "missed", "not tried", "too short to say"]
Figures = Mapping[str, Any]

DEAD_SECONDS, STOPPED_SECONDS = 2.0, 5.0
RESTART_SECONDS, RESTART_RATIO = 15.0, 3.0
LAYOUT_DIFFERENCE = 1e-6
SAVE_SHARE, WALL_SHARE, DEFAULT_INTERVAL = 0.10, 0.03, 1000
USEFUL_SHARE = 0.90
GROWTH = 0.01
REFUSAL_SECONDS = 5.0
KILLS, STEPS, SAVES, INPUTS = 200, 10_000, 200, 60


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    goal: str
    measured: str
    verdict: Verdict


def verdict(is_met: bool) -> Verdict:
    return "met" if is_met else "missed"


def rows(results: Figures) -> list[Row]:
    """All rows, in the order of the page.

    Args:
        results: figures by trial; a trial that is not there was not tried.
    """
    return [row for judge, trial in _JUDGES for row in judge(results.get(trial) or {})]


def is_missed(results: Figures) -> bool:
    return any(row.verdict == "missed" for row in rows(results))


def _dead(figures: Figures) -> Iterator[Row]:
    goal = f"≤ {DEAD_SECONDS:.0f} s"
    for name, what in (
        ("others_gone", "a dead rank → all others gone"),
        ("others_gone_at_start", "a rank that dies at its start → all others gone"),
    ):
        seconds = figures.get(name, [])
        if not seconds:
            yield Row(what, goal, "", "not tried")
            continue
        yield Row(
            what,
            goal,
            f"{_spread(seconds)} (kill -9 of one of two ranks, {len(seconds)} times)",
            verdict(max(seconds) <= DEAD_SECONDS),
        )


def _stopped(figures: Figures) -> Iterator[Row]:
    what = "a stopped rank (SIGSTOP) → all others gone, rank named"
    goal = f"≤ time-out + {STOPPED_SECONDS:.0f} s"
    seconds, named = figures.get("seconds", []), figures.get("named", 0)
    if not seconds:
        yield Row(what, goal, "", "not tried")
        return
    over = [one - figures["timeout"] for one in seconds]
    yield Row(
        what,
        goal,
        f"time-out of {figures['timeout']} s + {_spread(over)}; named {named} of {len(seconds)}",
        verdict(max(over) <= STOPPED_SECONDS and named == len(seconds)),
    )


def _restart(figures: Figures) -> Iterator[Row]:
    what = "restart from nothing → first new step, two ranks"
    goal = f"≤ {RESTART_SECONDS:.0f} s and ≤ {RESTART_RATIO:.0f} × a clean start"
    clean, again = figures.get("clean", []), figures.get("restart", [])
    if not clean or not again:
        yield Row(what, goal, "", "not tried")
        return
    ratio = _median(again) / _median(clean)
    measured = f"{_spread(again)}, {ratio:.2f} × a clean start ({_spread(clean)})"
    if figures.get("imports"):
        measured += f"; of it {_spread(figures['imports'])} of importing, two at a time"
    if figures.get("forked"):
        measured += f"; with everything imported {_spread(figures['forked'])}"
    is_met = max(again) <= RESTART_SECONDS and ratio <= RESTART_RATIO
    yield Row(what, goal, measured, verdict(is_met))


def _repeats(figures: Figures) -> Iterator[Row]:
    for name, what, goal, most in (
        ("repeated_after_signal", "steps repeated after a signal", "0", 0),
        (
            "repeated_after_crash",
            "steps repeated after a crash",
            "≤ the save interval",
            figures.get("save_interval", 0),
        ),
    ):
        steps = figures.get(name, [])
        if not steps:
            yield Row(what, goal, "", "not tried")
            continue
        measured = f"at most {max(steps)}, {sum(steps) / len(steps):.1f} on average"
        if most:
            measured += f", saved every {most}"
        measured += f" ({len(steps)} {'crashes' if most else 'signals'})"
        yield Row(what, goal, measured, verdict(max(steps) <= most))


def _kills(figures: Figures) -> Iterator[Row]:
    what = f"checkpoints or samples lost or doubled over {KILLS} random kills of training"
    kinds = figures.get("kinds", {})
    kills = sum(kinds.values())
    if not kills:
        yield Row(what, "0", "", "not tried")
    else:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        lost = figures["lost"] + figures["doubled"]
        yield Row(what, "0", f"{lost} in {kills} kills ({told})", verdict(lost == 0))
    what = "losses and weights after resumes, same layout"
    lives, differing = figures.get("lives", 0), figures.get("differing", 0)
    if not lives:
        yield Row(what, "bitwise equal", "", "not tried")
        return
    measured = f"{lives - differing} of {lives} killed runs equal an unbroken one bit for bit"
    yield Row(what, "bitwise equal", measured, verdict(differing == 0))


def _corpora(figures: Figures) -> Iterator[Row]:
    what = "bytes lost or doubled over random kills of preprocessing"
    if not figures.get("kills"):
        yield Row(what, "0", "", "not tried")
        return
    measured = (
        f"{figures['differing']} of {figures['lives']} corpora differ from an unbroken one "
        f"({figures['kills']} kills); {figures['early_names']} files under a final name too early"
    )
    hung = figures.get("left_behind", 0)
    if hung:
        measured += f"; {hung} hung behind the kill of a part of it"
    is_met = figures["differing"] == figures["early_names"] == hung == 0
    yield Row(what, "0", measured, verdict(is_met))


def _layouts(figures: Figures) -> Iterator[Row]:
    what = "losses after a change of ranks, ZeRO stage, expert-parallel size"
    goal = f"≤ {_power(LAYOUT_DIFFERENCE)} relative"
    changes = figures.get("changes", [])
    if not changes:
        yield Row(what, goal, "", "not tried")
        return
    worst = max(changes, key=lambda one: one["difference"])
    measured = f"at most {_power(worst['difference'])} ({worst['to']}; {len(changes)} changes)"
    yield Row(what, goal, measured, verdict(worst["difference"] <= LAYOUT_DIFFERENCE))


def _saves(figures: Figures) -> Iterator[Row]:
    share, wall = f"≤ {SAVE_SHARE:.0%} of the save", f"≤ {WALL_SHARE:.0%} of wall time"
    what = "a step waits for a save"
    waits, writes = figures.get("waits", []), figures.get("writes", [])
    if not waits or not writes:
        yield Row(what, share, "", "not tried")
        yield Row(f"{what}, every {DEFAULT_INTERVAL} steps", wall, "", "not tried")
        return
    later = _median(waits)
    # On few cores the step behind a save is slower too, as the writing takes part of one.
    wait = _median(figures["recorded"]) if figures.get("recorded") else later
    ratio = wait / _median(writes)
    measured = (
        f"{wait * 1000:.0f} ms of {_median(writes) * 1000:.0f} ms ({ratio:.0%}), "
        f"{figures['megabytes']:.0f} MB, {len(waits)} saves; the next record comes "
        f"{later * 1000:.0f} ms later than others"
    )
    yield Row(what, share, measured, verdict(ratio <= SAVE_SHARE))
    lost = wait / (DEFAULT_INTERVAL * figures["step"] + wait)
    measured = f"{lost:.2%} with steps of {figures['step'] * 1000:.0f} ms"
    what = f"{what}, every {DEFAULT_INTERVAL} steps"
    yield Row(what, wall, measured, verdict(lost <= WALL_SHARE))


def break_even(restart: float, repeated: float, between: int) -> float | None:
    """The shortest step with which the useful share is reached.

    Args:
        restart: seconds from a kill to the first new step, repeated ones left out.
        repeated: steps that are done again after a kill.
        between: steps between kills.

    Returns:
        Seconds; None where no step is long enough.
    """
    left = between / USEFUL_SHARE - between - repeated
    return restart / left if left > 0 else None


def _useful(figures: Figures) -> Iterator[Row]:
    what, goal = "useful time with a kill every 100 steps of 2 s", f"≥ {USEFUL_SHARE:.0%}"
    if not figures.get("cycles"):
        yield Row(what, goal, "", "not tried")
        return
    share = figures["useful"] / figures["wall"]
    least = break_even(figures["restart"], figures["repeated"], figures["between"])
    measured = (
        f"{share:.1%} with steps of {figures['step']:.2f} s: a kill costs {figures['restart']:.1f} "
        f"s and {figures['repeated']:.1f} repeated steps ({figures['cycles']} kills)"
    )
    if least is not None:
        measured += f"; {USEFUL_SHARE:.0%} from steps of {least:.2f} s on"
    # A kill costs as much however long steps are: of shorter ones than the goal's, more.
    is_short = figures["step"] < 0.8 * figures["step_of_goal"] and share < USEFUL_SHARE
    is_met = verdict(share >= USEFUL_SHARE)
    yield Row(what, goal, measured, "too short to say" if is_short else is_met)


def _endurance(figures: Figures) -> Iterator[Row]:
    what = f"memory, descriptors, threads over {STEPS:,} steps and {SAVES} saves"
    goal = f"≤ {GROWTH:.0%}, +0, +0"
    ranks = figures.get("ranks", [])
    if not ranks:
        yield Row(what, goal, "", "not tried")
        return
    memory, files, threads = (
        max(rank[name] for rank in ranks) for name in ("memory", "descriptors", "threads")
    )
    measured = (
        f"{memory:+.2%}, {files:+d}, {threads:+d} over {figures['steps']:,} steps and "
        f"{figures['saves']} saves"
    )
    is_met = memory <= GROWTH and files <= 0 and threads <= 0
    yield Row(what, goal, measured, verdict(is_met))


def growth(samples: Sequence[float]) -> float:
    """Relative growth from the second tenth, behind the warm-up, to the last one."""
    tenth = max(1, len(samples) // 10)
    first = _median(samples[tenth : 2 * tenth] or samples[:1])
    return _median(samples[-tenth:]) / first - 1


def _inputs(figures: Figures) -> Iterator[Row]:
    what = f"bad inputs rejected clearly, of {INPUTS} at least"
    goal = f"100 %, ≤ {REFUSAL_SECONDS:.0f} s, before step 0"
    tried = figures.get("inputs", [])
    if not tried:
        yield Row(what, goal, "", "not tried")
        return
    wrong = [one for one in tried if one["problem"]]
    seconds = [one["seconds"] for one in tried]
    measured = f"{len(tried) - len(wrong)} of {len(tried)}; {_spread(seconds)}"
    if wrong:
        measured += "; not " + ", ".join(one["name"] for one in wrong)
    yield Row(what, goal, measured, verdict(not wrong))


def refusal_problem(
    status: int | None, said: str, words: str, seconds: float, expected: int = 2
) -> str:
    """What is wrong with how an input was refused; empty for a clear refusal.

    Args:
        status: the exit status; None where the command was still running and was killed.
        said: on standard output and standard error.
        words: that name the file or option.
        seconds: by the clock.
        expected: the status of a refusal.
    """
    if status is None:
        return "still running"
    if status != expected:
        return f"status {status}"
    if "Traceback" in said:
        return "a traceback"
    if said.count("\n") != 1:
        return f"{said.count(chr(10))} lines"
    if words not in said:
        return f"does not say {words!r}"
    if seconds > REFUSAL_SECONDS:
        return f"took {seconds:.1f} s"
    return ""


def _fuzz(figures: Figures) -> Iterator[Row]:
    what, goal = "damaged files of others: crashes, hangs, more memory", "0"
    if not figures.get("cases"):
        yield Row(what, goal, "", "not tried")
        return
    faults = len(figures["faults"])
    yield Row(what, goal, f"{faults} in {figures['cases']:,} files", verdict(not faults))


_JUDGES = (
    (_dead, "kills"),
    (_stopped, "stopped"),
    (_restart, "starts"),
    (_repeats, "kills"),
    (_kills, "kills"),
    (_corpora, "corpora"),
    (_layouts, "layouts"),
    (_saves, "saves"),
    (_useful, "useful"),
    (_endurance, "endurance"),
    (_inputs, "inputs"),
    (_fuzz, "fuzz"),
)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _spread(seconds: Sequence[float]) -> str:
    middle, most = _median(seconds), max(seconds)
    if len(seconds) == 1:
        return f"{most:.2f} s"
    return f"{middle:.2f} s, at most {most:.2f} s"


def _power(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-") if value else "0"
