"""Slurm on this machine: munge, slurmctld and slurmd, with files and ports of their own."""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
SECONDS = 60.0  # for the machine to be ready
# A requeued job waits until its credential has expired, by default two minutes.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_no_slurm() -> str | None:
    """Why Slurm cannot be started here; None if it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root to start Slurm"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"needs {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
    return None


@contextlib.contextmanager
def running_slurm(unshared: Path | None = None) -> Iterator[dict[str, str]]:
    """Slurm with two processors; yields what its programs need in the environment.

    Args:
        unshared: a folder in whose place the jobs see one of their own.
    """
    # Not the folder of the test: the path of a socket has at most 108 characters.
    with tempfile.TemporaryDirectory(prefix="slurm") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        text = CONF.format(host=host, ports=free_ports(), folder=folder)
        (folder / "slurm.conf").write_text(text)
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        munge = [
            f"--{part}={folder}/munge.{part.partition('-')[0]}"
            for part in ("key-file", "socket", "pid-file", "log-file", "seed-file")
        ]
        slurmd = ["slurmd", "-D", "-N", host]
        if unshared is not None:
            mount = f"mount -t tmpfs none {shlex.quote(str(unshared))}"
            slurmd = ["unshare", "--mount", "sh", "-c", f"{mount} && exec {shlex.join(slurmd)}"]
        for words in (
            ["munged", "--foreground", "--force", *munge],
            ["slurmctld", "-D"],
            slurmd,
        ):
            stack.enter_context(daemon(words, environment, folder))
        wait_until_idle(environment, folder)
        yield {"SLURM_CONF": environment["SLURM_CONF"]}


@contextlib.contextmanager
def daemon(words: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    """A program that runs until the block ends."""
    with (folder / f"{words[0]}.out").open("wb") as out:
        process = subprocess.Popen(words, env=environment, stdout=out, stderr=out)
    try:
        time.sleep(0.5)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    """Return when the machine takes jobs."""
    words = ["sinfo", "--noheader", "--format=%T"]
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    logs = "".join(
        f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}\n"
        for path in sorted([*folder.glob("*.log"), *folder.glob("*.out")])
    )
    raise AssertionError(f"Slurm did not start: {done.stdout}{done.stderr}\n{logs}")


def free_ports() -> list[int]:
    """Two ports that nothing listens on."""
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        return [one.getsockname()[1], two.getsockname()[1]]
