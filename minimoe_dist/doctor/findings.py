"""What facts of all ranks mean: findings, each with what is wrong and how to mend it."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

_SKEW_SECONDS = 1.0  # beyond it, logs of nodes are out of order and make-like tools go wrong
_LEAST_FREE_GIB = 5.0
_LOOPBACK = "lo"

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        check: what was looked at.
        state: ``problem`` decides the exit status, a ``note`` is only worth knowing.
        words: what was found.
        remedy: how to mend it; empty where nothing is to be done.
    """

    check: str
    state: Literal["ok", "note", "problem"]
    words: str
    remedy: str = ""


def findings_of(facts: Sequence[Facts]) -> list[Finding]:
    """What the ranks said of themselves, compared.

    Args:
        facts: of every rank, from ``doctor.node.facts``.
    """
    return [
        *_failures(facts),
        *_versions(facts),
        *_apex(facts),
        *_gpus(facts),
        *_networks(facts),
        *_disks(facts),
        *_operators(facts),
    ]


def _failures(facts: Sequence[Facts]) -> Iterator[Finding]:
    for one in facts:
        for check, words in one["failed"].items():
            remedy = "look at that node: its disk or driver may hang, or a package is broken"
            yield Finding(check, "problem", f"{_where(one)}: {words}", remedy)


def _where(one: Facts) -> str:
    return f"{one['node']} (rank {one['rank']})"


def _groups(facts: Sequence[Facts], values: Mapping[int, str]) -> str:
    """Which nodes say what: ``2.13.0 on n1; 2.12.0 on n2``."""
    nodes: dict[str, list[str]] = defaultdict(list)
    for one in facts:
        value = values.get(one["rank"])
        if value is not None and one["node"] not in nodes[value]:
            nodes[value].append(one["node"])
    return "; ".join(f"{value} on {', '.join(where)}" for value, where in nodes.items())


def _versions(facts: Sequence[Facts]) -> Iterator[Finding]:
    with_versions = [one for one in facts if "versions" in one]
    for name in with_versions[0]["versions"] if with_versions else ():
        values = {one["rank"]: str(one["versions"][name]) for one in with_versions}
        words = _groups(with_versions, values)
        if len(set(values.values())) > 1:
            what = "this package's own code" if name == "code" else name
            remedy = f"install the same {what} on all nodes, or one environment that they share"
            yield Finding(f"version: {name}", "problem", words, remedy)
        elif "not installed" in values.values():
            yield Finding(f"version: {name}", "problem", words, f"install {name}")
        else:
            yield Finding(f"version: {name}", "ok", next(iter(values.values())))


def _apex(facts: Sequence[Facts]) -> Iterator[Finding]:
    kinds = {one["rank"]: str(one["apex"]) for one in facts if "apex" in one}
    if "other" in kinds.values():
        words = f"{_groups(facts, kinds)}: 'other' is the unrelated web toolkit of that name"
        remedy = "pip uninstall apex; nothing here needs NVIDIA's"
        yield Finding("apex", "problem", words, remedy)
    elif len(set(kinds.values())) > 1:
        remedy = "install it on all nodes, or on none; nothing needs it"
        yield Finding("apex", "note", _groups(facts, kinds), remedy)
    else:
        yield Finding("apex", "ok", next(iter(kinds.values()), "none"))


def _gpus(facts: Sequence[Facts]) -> Iterator[Finding]:
    there = [one for one in facts if "gpus" in one]
    for one in there:
        unusable = one["gpus"]["seen"] and not one["gpus"]["devices"]
        if unusable and one["local_rank"] == 0:
            words = f"{one['node']} has {one['gpus']['seen']} that torch cannot use"
            remedy = "install a torch built for CUDA and a driver for it, or give --use_cpu"
            yield Finding("GPUs", "note", words, remedy)
    for name in ("devices", "driver", "nccl"):
        values = {one["rank"]: _device_words(one["gpus"][name]) for one in there}
        state: Literal["ok", "problem"] = "ok" if len(set(values.values())) < 2 else "problem"
        label = "GPUs" if name == "devices" else "NCCL" if name == "nccl" else name
        if state == "ok":
            yield Finding(label, "ok", next(iter(values.values()), "none"))
        else:
            remedy = "ask for nodes of one kind with one driver (Slurm: --constraint)"
            yield Finding(label, "problem", _groups(there, values), remedy)


def _device_words(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} × {value[0]}" if value else "none"
    return str(value) if value else "none"


def _networks(facts: Sequence[Facts]) -> Iterator[Finding]:
    there = [one for one in facts if "network" in one]
    several = len({one["node"] for one in facts}) > 1
    leading = {one["rank"]: str(one["network"]["interface"]) for one in there}
    addresses = {one["network"]["address"] for one in there}
    words = _groups(there, leading)
    # Nodes that share an address are one host under several names, where loopback is right.
    if several and len(addresses) > 1 and _LOOPBACK in leading.values():
        remedy = "set MASTER_ADDR to an address of rank 0's node that the others reach"
        yield Finding("interface to rank 0", "problem", words, remedy)
    else:
        yield Finding("interface to rank 0", "ok", words)
    for one in there:
        for variable, value in one["network"]["asked"].items():
            names = [part.lstrip("^=").split(":")[0] for part in value.split(",")]
            excludes = value.startswith("^")
            there_are = one["network"]["there"]
            known = any(each.startswith(name) for name in names for each in there_are)
            if not known and not excludes:
                words = f"{_where(one)}: {value} is none of {', '.join(there_are)}"
                yield Finding(variable, "problem", words, "name an interface that is there")


def _disks(facts: Sequence[Facts]) -> Iterator[Finding]:
    for one in facts:
        if "disk" not in one:
            continue
        found = one["disk"]
        words = (
            f"{one['node']}: {found['free_gib']:.0f} GiB free, writes "
            f"{found['write_mb_per_second']:.0f} MB/s, reads {found['read_mb_per_second']:.0f} MB/s"
        )
        if found["free_gib"] < _LEAST_FREE_GIB:
            remedy = "free some space, or give another output_dir"
            yield Finding("disk of output_dir", "problem", words, remedy)
        else:
            yield Finding("disk of output_dir", "ok", words)


def _operators(facts: Sequence[Facts]) -> Iterator[Finding]:
    there = {one["rank"]: one["operators"] for one in facts if "operators" in one}
    if not there:
        return
    words = {
        rank: "; ".join(
            f"{state}: {', '.join(names)}"
            for state in ("built", "can be built", "cannot be built")
            if (names := [name for name, found in operators.items() if found == state])
        )
        for rank, operators in there.items()
    }
    if len(set(words.values())) > 1:
        remedy = "give all nodes one compiler and one CUDA toolkit; nothing here needs an operator"
        yield Finding("DeepSpeed operators", "note", _groups(facts, words), remedy)
    else:
        yield Finding("DeepSpeed operators", "ok", next(iter(words.values())))
    tools: Mapping[str, Any] = next((one["compilers"] for one in facts if "compilers" in one), {})
    missing = [name for name in ("c++", "ninja") if not tools.get(name)]
    if missing:
        yield Finding("compiler", "note", f"no {' and no '.join(missing)}", "needed only to build")


def clock_findings(
    offsets: Mapping[int, tuple[float, float]], facts: Sequence[Facts]
) -> Iterator[Finding]:
    """Of ``doctor.ranks.clock_offsets``."""
    names = {one["rank"]: one["node"] for one in facts}
    for rank, (ahead, error) in offsets.items():
        words = f"{names[rank]} is {ahead:+.3f} s from rank 0's node (± {error:.3f})"
        if abs(ahead) - error > _SKEW_SECONDS:
            remedy = "let all nodes ask one time server (chrony, ntpd)"
            yield Finding("clock", "problem", words, remedy)
        else:
            yield Finding("clock", "ok", words)


def shared_findings(seen: Sequence[bool], facts: Sequence[Facts], folder: str) -> Finding:
    """Of ``doctor.ranks.sees_file`` on every rank."""
    blind = sorted({one["node"] for one, sees in zip(facts, seen, strict=True) if not sees})
    if not blind:
        return Finding("shared output_dir", "ok", f"{folder} is seen by all nodes")
    words = f"{folder}: what rank 0 writes there is not seen by {', '.join(blind)}"
    remedy = "give an output_dir on a file system that all nodes mount"
    return Finding("shared output_dir", "problem", words, remedy)
