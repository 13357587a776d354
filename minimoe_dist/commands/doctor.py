"""``minimoe-dist doctor``: what is wrong with the nodes of a job, and how to mend it."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from ..config.commands import DoctorOptions
from ..doctor.findings import Finding, clock_findings, findings_of, shared_findings
from ..doctor.node import facts as facts_of_node
from ..doctor.node import port_is_free
from ..doctor.ranks import bandwidths, clock_offsets, sees_file
from ..durable import write_json
from ..exit_status import ExitStatus
from ..runtime import Launch, LaunchError
from ..train.agreement import decided_by_rank_0
from ..train.scope import Scope, open_scope

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def run(options: DoctorOptions, launch: Launch) -> int:
    """Looks at this node, or at all nodes of the ranks that it was started on.

    Returns:
        0 where nothing is wrong, 1 where something is; the same on every rank.
    """
    # Half of the time, so that a node that has to give up a check still meets the others.
    seconds = options.timeout_seconds / 2
    own = facts_of_node(launch, options.output_dir, options.megabytes, seconds)
    if launch.world_size == 1:
        return _report(options, [own], [*findings_of([own]), _port(launch)], {})
    try:
        with open_scope(
            launch, use_cpu=options.use_cpu, timeout_seconds=options.timeout_seconds
        ) as scope:
            return _together(options, launch, own, scope)
    except LaunchError as error:
        remedy = "see that every rank was started, and that the port is free and open"
        finding = Finding("rendezvous", "problem", str(error), remedy)
        return _report(options, [own], [*findings_of([own]), finding], {})


def _port(launch: Launch) -> Finding:
    """The port that a run from here would take: a process alone has none of its own."""
    given = os.environ.get("MASTER_PORT", "")
    port = int(given) if given.isdigit() else launch.master_port
    if port_is_free(port):
        return Finding("rendezvous port", "ok", f"{port} is free")
    remedy = "set MASTER_PORT to a free port, or stop what listens there"
    return Finding("rendezvous port", "problem", f"{port} is taken", remedy)


def _together(options: DoctorOptions, launch: Launch, own: dict[str, Any], scope: Scope) -> int:
    # Words travel on CPUs, so that a broken NCCL cannot keep them.
    group = dist.new_group(backend="gloo")
    facts: list[Any] = [None] * launch.world_size
    dist.all_gather_object(facts, own, group=group)
    leaders = [one["rank"] for one in facts if one["local_rank"] == 0 and one["rank"] != 0]
    offsets = clock_offsets(leaders, group)
    seen: list[Any] = [None] * launch.world_size
    dist.all_gather_object(seen, sees_file(Path(options.output_dir), group), group=group)
    speeds = bandwidths(scope.device)
    found = [
        *findings_of(facts),
        *clock_findings(offsets, facts),
        shared_findings(seen, facts, options.output_dir),
        Finding("rendezvous", "ok", f"{launch.master_addr}:{launch.master_port}"),
        *_speed_findings(speeds),
    ]
    # Rank 0 alone knows the clocks, so its judgement is everyone's.
    return decided_by_rank_0(lambda: _report(options, facts, found, speeds), group)


def _speed_findings(speeds: dict[str, dict[str, float]]) -> Iterator[Finding]:
    for kind, by_size in speeds.items():
        words = ", ".join(f"{size} {speed:.3g} GB/s" for size, speed in by_size.items())
        yield Finding(kind, "ok", f"{words} a rank")


def _report(
    options: DoctorOptions, facts: list[Any], found: list[Finding], speeds: dict[str, Any]
) -> int:
    problems = sum(one.state == "problem" for one in found)
    nodes = len({one["node"] for one in facts})
    table = Table("check", "", "found", "what to do", title=f"{len(facts)} ranks on {nodes} nodes")
    for one in sorted(found, key=lambda one: ("problem", "note", "ok").index(one.state)):
        style = _STYLES[one.state]
        table.add_row(one.check, f"[{style}]{one.state}[/]", one.words, one.remedy)
    console = Console()
    console.print(table)
    console.print(f"{problems or 'no'} problem{'s' * (problems != 1)} found")
    if options.output is not None:
        content = {
            "problems": problems,
            "findings": [asdict(one) for one in found],
            "bandwidth": speeds,
            "ranks": facts,
        }
        path = Path(options.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    return ExitStatus.FAILED if problems else ExitStatus.DONE
