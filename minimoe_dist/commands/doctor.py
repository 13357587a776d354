"""``minimoe-dist doctor``: finds what is wrong with the nodes of a job, and how to mend it."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from ..config.commands import DoctorOptions
from ..doctor.findings import Finding, clock_findings, findings_of, shared_finding
from ..doctor.node import facts as facts_of_node
from ..doctor.node import port_is_free
from ..doctor.ranks import bandwidths, clock_offsets, sees_file
from ..durable import write_json
from ..exit_status import ExitStatus
from ..foreign import is_whole_number
from ..process_group import LaunchError
from ..runtime import Launch
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
    own_facts = facts_of_node(launch, options.output_dir, options.megabytes, seconds)
    if launch.world_size == 1:
        findings = [*findings_of([own_facts], options.least_free_gib), _port_finding(launch)]
        return _report(options, [own_facts], findings, {})
    try:
        with open_scope(
            launch, use_cpu=options.use_cpu, timeout_seconds=options.timeout_seconds
        ) as scope:
            return _check_together(options, launch, own_facts, scope)
    except LaunchError as error:
        remedy = "see that every rank was started, and that the port is free and open"
        finding = Finding("rendezvous", "problem", str(error), remedy)
        findings = [*findings_of([own_facts], options.least_free_gib), finding]
        return _report(options, [own_facts], findings, {})


def _port_finding(launch: Launch) -> Finding:
    """Checks the port that a run from here would take; a process alone opens none."""
    variable = os.environ.get("MASTER_PORT", "")
    port = int(variable) if is_whole_number(variable) else launch.master_port
    if port_is_free(port):
        return Finding("rendezvous port", "ok", f"{port} is free")
    remedy = "set MASTER_PORT to a free port, or stop what listens there"
    return Finding("rendezvous port", "problem", f"{port} is taken", remedy)


def _check_together(
    options: DoctorOptions, launch: Launch, own_facts: dict[str, Any], scope: Scope
) -> int:
    # Facts travel on CPUs, so that a broken NCCL cannot hold them up.
    group = dist.new_group(backend="gloo")
    facts: list[Any] = [None] * launch.world_size
    dist.all_gather_object(facts, own_facts, group=group)
    leaders = [
        report["rank"] for report in facts if report["local_rank"] == 0 and report["rank"] != 0
    ]
    offsets = clock_offsets(leaders, group)
    visible: list[Any] = [None] * launch.world_size
    dist.all_gather_object(visible, sees_file(Path(options.output_dir), group), group=group)
    speeds = bandwidths(scope.device)
    findings = [
        *findings_of(facts, options.least_free_gib),
        *clock_findings(offsets, facts),
        shared_finding(visible, facts, options.output_dir),
        Finding("rendezvous", "ok", f"{launch.master_addr}:{launch.master_port}"),
        *_speed_findings(speeds),
    ]
    # Rank 0 alone knows the clocks' offsets, so all ranks end with its status.
    return decided_by_rank_0(lambda: _report(options, facts, findings, speeds), group)


def _speed_findings(speeds: dict[str, dict[str, float]]) -> Iterator[Finding]:
    for kind, by_size in speeds.items():
        text = ", ".join(f"{size} {speed:.3g} GB/s" for size, speed in by_size.items())
        yield Finding(kind, "ok", f"{text} a rank")


def _report(
    options: DoctorOptions, facts: list[Any], findings: list[Finding], speeds: dict[str, Any]
) -> int:
    problems = sum(finding.state == "problem" for finding in findings)
    nodes = len({report["node"] for report in facts})
    table = Table("check", "", "found", "what to do", title=f"{len(facts)} ranks on {nodes} nodes")
    for finding in sorted(
        findings, key=lambda finding: ("problem", "note", "ok").index(finding.state)
    ):
        style = _STYLES[finding.state]
        table.add_row(finding.check, f"[{style}]{finding.state}[/]", finding.words, finding.remedy)
    console = Console()
    console.print(table)
    console.print(f"{problems or 'no'} problem{'s' * (problems != 1)} found")
    if options.output is not None:
        content = {
            "problems": problems,
            "findings": [asdict(finding) for finding in findings],
            "bandwidth": speeds,
            "ranks": facts,
        }
        path = Path(options.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    return ExitStatus.FAILED if problems else ExitStatus.DONE
