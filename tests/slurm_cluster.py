"""A real Slurm of two nodes on this host, for tests: munged, slurmctld and two slurmd.

Everything is its own: keys, ports, sockets and state lie in a short-named temporary folder, so a
Slurm of the machine is not touched and several clusters may run at once. Each node offers the CPUs
that are asked for, whatever the machine has. Its nodes' names do not resolve, as on no real one.

    with slurm_cluster() as cluster:
        cluster.execute(["srun", "--nodes=2", "hostname"])
"""

import contextlib
import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
AuthInfo=socket={folder}/munge.socket,cred_expire=5
FirstJobId={first_job}
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
SlurmdTimeout={slurmd_timeout}
KillWait=30
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster; `folder` holds its configuration and logs."""

    folder: Path
    nodes: tuple[str, ...]
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

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

    def submit(self, *words: str, **environment: str) -> str:
        """Submits a job with sbatch and returns its number."""
        done = self.execute(["sbatch", "--parsable", *words], **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job, by name; nothing of one that is forgotten."""
        shown = self.execute(["scontrol", "--oneliner", "show", "job", number]).stdout
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def wait_for_job(self, number: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """Waits until a job is in one of some states; fails when it takes longer."""
        deadline = time.monotonic() + seconds
        while (found := self.job(number)).get("JobState") not in states:
            assert time.monotonic() < deadline, f"job {number} is not {states}: {found}"
            time.sleep(0.2)
        return found

    def lose(self, node: str) -> None:
        """Kills a node's slurmd at once, as a node's death would."""
        self._daemons[node].kill()
        self._daemons[node].wait()

    def bring_back(self, node: str) -> None:
        """Starts a node's slurmd."""
        self._daemons[node] = self.start("slurmd", "-D", "-N", node)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Starts a daemon."""
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            command, env=self.environment, stdin=quiet, stdout=quiet, stderr=quiet
        )
        self._daemons.setdefault(command[0], process)
        return process

    def stop_daemons(self) -> None:
        """Ends all, the newest first; who does not want to is killed."""
        for process in reversed(self._daemons.values()):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def skip_without_slurm() -> None:
    """Skips the test where Slurm is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [program for program in _PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        names = ", ".join(missing)
        pytest.skip(f"Slurm is not installed (no {names}): slurm-wlm and munge on Debian")
    os.environ["PATH"] = path


@contextlib.contextmanager
def slurm_cluster(
    nodes: tuple[str, ...] = NODES, *, cpus: int = 2, gpus: int = 0, slurmd_timeout: int = 30
) -> Iterator[SlurmCluster]:
    """Starts a cluster and stops it at the end; skips the test where there is no Slurm.

    Args:
        nodes: their names.
        cpus: that each offers.
        gpus: that each offers, of the type a100: names without devices.
        slurmd_timeout: seconds until a silent node counts as lost.
    """
    skip_without_slurm()
    # Sockets' paths may have some hundred characters only, less than pytest's folders take.
    folder = Path(tempfile.mkdtemp(prefix="slurm."))
    cluster = SlurmCluster(folder, nodes)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_cleaned(folder))
        _configure(cluster, cpus, gpus, slurmd_timeout)
        cluster.start(*_munged(folder))
        stack.callback(cluster.stop_daemons)
        _wait(lambda: (folder / "munge.socket").exists(), cluster)
        cluster.start("slurmctld", "-D")
        for node in nodes:
            cluster.bring_back(node)
        stack.callback(cluster.execute, ["scancel", "--user", getpass.getuser(), "--signal=KILL"])
        _wait(lambda: _idle_nodes(cluster) == set(nodes), cluster)
        yield cluster


def _configure(cluster: SlurmCluster, cpus: int, gpus: int, slurmd_timeout: int) -> None:
    folder = cluster.folder
    ports = _free_ports(1 + len(cluster.nodes))
    host = socket.gethostname()
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus}"
        + (f" Gres=gpu:a100:{gpus}" if gpus else "")
        for name, port in zip(cluster.nodes, ports[1:], strict=True)
    )
    text = _CONFIGURATION.format(
        folder=folder,
        host=host,
        controller_port=ports[0],
        # The ports of rendezvous follow from the jobs' numbers, and clusters share this host.
        first_job=1 + secrets.randbelow(1_000_000),
        slurmd_timeout=slurmd_timeout,
        user=getpass.getuser(),
        nodes=nodes,
        names=",".join(cluster.nodes),
    )
    if gpus:
        text += "GresTypes=gpu\n"
        for number in range(gpus):
            (folder / f"gpu{number}").touch()
        files = f"{folder}/gpu[0-{gpus - 1}]"
        (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu Type=a100 File={files}\n")
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (folder / "state").mkdir()
    for node in cluster.nodes:
        (folder / f"spool.{node}").mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))


def _munged(folder: Path) -> list[str]:
    files = ("socket", "pid-file", "log-file", "seed-file")
    options = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in files]
    return ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", *options]


# Waits for the end of its input, which comes however the tests end; then kills every process that
# belongs to the cluster (those of a lost node too, which no daemon watches) and its folder.
_CLEANER = """
read -r _
for environ in /proc/[0-9]*/environ; do
    if grep -qsz "^SLURM_CONF=$1/slurm.conf$" "$environ"; then
        pid=${environ#/proc/}
        kill -KILL "${pid%/environ}"
    fi
done
rm -rf "$1"
"""


@contextlib.contextmanager
def _cleaned(folder: Path) -> Iterator[None]:
    process = subprocess.Popen(
        ["/bin/sh", "-c", _CLEANER, "cleaner", str(folder)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


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
