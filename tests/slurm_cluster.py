"""A real Slurm of two nodes on this host, for tests: munged, slurmctld and two slurmd.

Everything is its own: keys, ports, sockets and state lie in a short-named temporary folder, so a
Slurm of the machine is not touched and several clusters may run at once. Each node offers two CPUs,
whatever the machine has. The nodes' names do not resolve, as on no real cluster.

    with slurm_cluster() as cluster:
        cluster.execute(["srun", "--nodes=2", "hostname"])
"""

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

NODES = ("n1", "n2")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sinfo")
_START_SECONDS = 20.0
_CONFIGURATION = """\
ClusterName=minimoe
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
SlurmdTimeout=30
KillWait=10
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster; `folder` holds its configuration and logs."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, pointed at the cluster."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def execute(
        self, command: Sequence[str], timeout: float = 240, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs one of Slurm's commands to its end."""
        return subprocess.run(
            command,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )


def skip_without_slurm() -> None:
    """Skips the test where Slurm is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [program for program in _PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        names = ", ".join(missing)
        pytest.skip(f"Slurm is not installed (no {names}): slurm-wlm and munge on Debian")
    os.environ["PATH"] = path


@contextlib.contextmanager
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Starts a cluster and stops it at the end; skips the test where there is no Slurm."""
    skip_without_slurm()
    # Sockets' paths may have some hundred characters only, less than pytest's folders take.
    folder = Path(tempfile.mkdtemp(prefix="slurm."))
    cluster = SlurmCluster(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _configure(folder)
        stack.enter_context(_daemon(_munged(folder)))
        _wait(lambda: (folder / "munge.socket").exists(), cluster)
        configuration = str(folder / "slurm.conf")
        stack.enter_context(_daemon(["slurmctld", "-D", "-f", configuration]))
        for node in NODES:
            stack.enter_context(_daemon(["slurmd", "-D", "-N", node, "-f", configuration]))
        stack.callback(cluster.execute, ["scancel", "--user", getpass.getuser(), "--signal=KILL"])
        _wait(lambda: _idle_nodes(cluster) == set(NODES), cluster)
        yield cluster


def _configure(folder: Path) -> None:
    ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs=2"
        for name, port in zip(NODES, ports[1:], strict=True)
    )
    text = _CONFIGURATION.format(
        folder=folder,
        host=socket.gethostname(),
        controller_port=ports[0],
        user=getpass.getuser(),
        nodes=nodes,
        names=",".join(NODES),
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (folder / "state").mkdir()
    for node in NODES:
        (folder / f"spool.{node}").mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))


def _munged(folder: Path) -> list[str]:
    files = ("socket", "pid-file", "log-file", "seed-file")
    options = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in files]
    return ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", *options]


@contextlib.contextmanager
def _daemon(command: Sequence[str]) -> Iterator[None]:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _idle_nodes(cluster: SlurmCluster) -> set[str]:
    shown = cluster.execute(["sinfo", "--noheader", "--Node", "--format=%N %T"]).stdout
    return {line.split()[0] for line in shown.splitlines() if line.endswith(" idle")}


def _wait(condition: Callable[[], bool], cluster: SlurmCluster) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            files = sorted(cluster.folder.glob("*.log"))
            logs = "".join(path.read_text()[-2000:] for path in files)
            pytest.fail(f"Slurm did not start within {_START_SECONDS:g} s:\n{logs}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
