"""Derives findings from the facts of all ranks: what is wrong, and how to mend it."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

_SKEW_SECONDS = 1.0  # beyond it, logs of nodes are out of order and make-like tools go wrong
_LOOPBACK = "lo"

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        check: name of what was checked.
        state: ``problem`` decides the exit status, a ``note`` is only worth knowing.
        words: what was found.
        remedy: how to mend it; empty where nothing is to be done.
    """

    check: str
    state: Literal["ok", "note", "problem"]
    words: str
    remedy: str = ""


def findings_of(facts: Sequence[Facts], least_free_gib: float) -> list[Finding]:
    """Compares the facts of all ranks.

    Args:
        facts: facts of every rank, from ``doctor.node.facts``.
        least_free_gib: GiB that the disk of ``output_dir`` must have left.
    """
    return [
        *_failures(facts),
        *_versions(facts),
        *_apex(facts),
        *_gpus(facts),
        *_networks(facts),
        *_disks(facts, least_free_gib),
        *_operators(facts),
    ]


def _failures(facts: Sequence[Facts]) -> Iterator[Finding]:
    for report in facts:
        for check, text in report["failed"].items():
            remedy = "look at that node: its disk or driver may hang, or a package is broken"
            yield Finding(check, "problem", f"{_place(report)}: {text}", remedy)


def _place(report: Facts) -> str:
    return f"{report['node']} (rank {report['rank']})"


def _groups(facts: Sequence[Facts], values: Mapping[int, str]) -> str:
    """Groups nodes by value: ``2.13.0 on n1; 2.12.0 on n2``."""
    nodes: dict[str, list[str]] = defaultdict(list)
    for report in facts:
        value = values.get(report["rank"])
        if value is not None and report["node"] not in nodes[value]:
            nodes[value].append(report["node"])
    return "; ".join(f"{value} on {', '.join(names)}" for value, names in nodes.items())


def _versions(facts: Sequence[Facts]) -> Iterator[Finding]:
    with_versions = [report for report in facts if "versions" in report]
    for name in with_versions[0]["versions"] if with_versions else ():
        values = {report["rank"]: str(report["versions"][name]) for report in with_versions}
        text = _groups(with_versions, values)
        if len(set(values.values())) > 1:
            component = "this package's own code" if name == "code" else name
            remedy = (
                f"install the same {component} on all nodes, or one environment that they share"
            )
            yield Finding(f"version: {name}", "problem", text, remedy)
        elif "not installed" in values.values():
            yield Finding(f"version: {name}", "problem", text, f"install {name}")
        else:
            yield Finding(f"version: {name}", "ok", next(iter(values.values())))


def _apex(facts: Sequence[Facts]) -> Iterator[Finding]:
    kinds = {report["rank"]: str(report["apex"]) for report in facts if "apex" in report}
    if "other" in kinds.values():
        text = f"{_groups(facts, kinds)}: 'other' is the unrelated web toolkit of that name"
        remedy = "pip uninstall apex; nothing here needs NVIDIA's"
        yield Finding("apex", "problem", text, remedy)
    elif len(set(kinds.values())) > 1:
        remedy = "install it on all nodes, or on none; nothing needs it"
        yield Finding("apex", "note", _groups(facts, kinds), remedy)
    else:
        yield Finding("apex", "ok", next(iter(kinds.values()), "none"))


def _gpus(facts: Sequence[Facts]) -> Iterator[Finding]:
    with_gpus = [report for report in facts if "gpus" in report]
    for report in with_gpus:
        unusable = report["gpus"]["seen"] and not report["gpus"]["devices"]
        if unusable and report["local_rank"] == 0:
            text = f"{report['node']} has {report['gpus']['seen']} that torch cannot use"
            remedy = "install a torch built for CUDA and a driver for it, or give --use_cpu"
            yield Finding("GPUs", "note", text, remedy)
    for name in ("devices", "driver", "nccl"):
        values = {report["rank"]: _device_words(report["gpus"][name]) for report in with_gpus}
        state: Literal["ok", "problem"] = "ok" if len(set(values.values())) < 2 else "problem"
        label = "GPUs" if name == "devices" else "NCCL" if name == "nccl" else name
        if state == "ok":
            yield Finding(label, "ok", next(iter(values.values()), "none"))
        else:
            remedy = "ask for nodes of one kind with one driver (Slurm: --constraint)"
            yield Finding(label, "problem", _groups(with_gpus, values), remedy)


def _device_words(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} × {value[0]}" if value else "none"
    return str(value) if value else "none"


def _networks(facts: Sequence[Facts]) -> Iterator[Finding]:
    with_network = [report for report in facts if "network" in report]
    several = len({report["node"] for report in facts}) > 1
    leading = {report["rank"]: str(report["network"]["interface"]) for report in with_network}
    addresses = {report["network"]["address"] for report in with_network}
    text = _groups(with_network, leading)
    # Nodes that share an address are one host under several names, where loopback is right.
    if several and len(addresses) > 1 and _LOOPBACK in leading.values():
        remedy = "set MASTER_ADDR to an address of rank 0's node that the others reach"
        yield Finding("interface to rank 0", "problem", text, remedy)
    else:
        yield Finding("interface to rank 0", "ok", text)
    for report in with_network:
        for variable, value in report["network"]["asked"].items():
            names = [part.lstrip("^=").split(":")[0] for part in value.split(",")]
            excludes = value.startswith("^")
            interfaces = report["network"]["there"]
            exists = any(each.startswith(name) for name in names for each in interfaces)
            if not exists and not excludes:
                text = f"{_place(report)}: {value} is none of {', '.join(interfaces)}"
                yield Finding(variable, "problem", text, "name an interface that is there")


def _disks(facts: Sequence[Facts], least_free_gib: float) -> Iterator[Finding]:
    for report in facts:
        if "disk" not in report:
            continue
        disk = report["disk"]
        text = (
            f"{report['node']}: {disk['free_gib']:.0f} GiB free, writes "
            f"{disk['write_mb_per_second']:.0f} MB/s, reads {disk['read_mb_per_second']:.0f} MB/s"
        )
        if disk["free_gib"] < least_free_gib:
            remedy = (
                f"{least_free_gib:g} GiB are wanted: free some space, or give another output_dir"
            )
            yield Finding("disk of output_dir", "problem", text, remedy)
        else:
            yield Finding("disk of output_dir", "ok", text)


def _operators(facts: Sequence[Facts]) -> Iterator[Finding]:
    by_rank = {report["rank"]: report["operators"] for report in facts if "operators" in report}
    if not by_rank:
        return
    by_state = {
        rank: "; ".join(
            f"{state}: {', '.join(names)}"
            for state in ("built", "can be built", "cannot be built")
            if (
                names := [
                    name for name, operator_state in operators.items() if operator_state == state
                ]
            )
        )
        for rank, operators in by_rank.items()
    }
    if len(set(by_state.values())) > 1:
        remedy = "give all nodes one compiler and one CUDA toolkit; nothing here needs an operator"
        yield Finding("DeepSpeed operators", "note", _groups(facts, by_state), remedy)
    else:
        yield Finding("DeepSpeed operators", "ok", next(iter(by_state.values())))
    tools: Mapping[str, Any] = next(
        (report["compilers"] for report in facts if "compilers" in report), {}
    )
    missing = [name for name in ("c++", "ninja") if not tools.get(name)]
    if missing:
        yield Finding("compiler", "note", f"no {' and no '.join(missing)}", "needed only to build")


def clock_findings(
    offsets: Mapping[int, tuple[float, float]], facts: Sequence[Facts]
) -> Iterator[Finding]:
    """Yields findings about the clocks, from the result of ``doctor.ranks.clock_offsets``."""
    names = {report["rank"]: report["node"] for report in facts}
    for rank, (ahead, error) in offsets.items():
        text = f"{names[rank]} is {ahead:+.3f} s from rank 0's node (± {error:.3f})"
        if abs(ahead) - error > _SKEW_SECONDS:
            remedy = "let all nodes ask one time server (chrony, ntpd)"
            yield Finding("clock", "problem", text, remedy)
        else:
            yield Finding("clock", "ok", text)


def shared_finding(visible: Sequence[bool], facts: Sequence[Facts], folder: str) -> Finding:
    """Returns the finding about a shared folder, from ``doctor.ranks.sees_file`` on every rank."""
    blind = sorted(
        {report["node"] for report, sees in zip(facts, visible, strict=True) if not sees}
    )
    if not blind:
        return Finding("shared output_dir", "ok", f"{folder} is seen by all nodes")
    text = f"{folder}: what rank 0 writes there is not seen by {', '.join(blind)}"
    remedy = "give an output_dir on a file system that all nodes mount"
    return Finding("shared output_dir", "problem", text, remedy)
