"""Slurm: a controller and two slurmd, each in a network namespace of its own; only addresses lead to them."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import Lab
from started import ROOT, START_S, clean_environment

TOOLS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "sinfo", "scontrol")
ABSENT = [tool for tool in TOOLS if shutil.which(tool) is None]

CONFIGURATION = """
ClusterName=lab
SlurmctldHost={control.hostname}({control.address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
PartitionName=gpu Nodes=ALL State=UP
"""
READY_S = 20.0
GPUS = 8


@dataclass(frozen=True)
class Cluster:
    lab: Lab
    environ: dict[str, str]

    def srun(self, *words: str, on: int = 0) -> str:
        """What the tasks and srun print, srun itself typed on that node."""
        return self.run("srun", *words, on=on)

    def run(self, *words: str, on: int = 0) -> str:
        code, output = self.ended(*words, on=on)
        assert code == 0, output
        return output

    def ended(self, *words: str, on: int = 0) -> tuple[int, str]:
        """Exit code and output of a command on that node."""
        done = subprocess.run(
            self.lab.nodes[on].inside(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_S,
            check=False,
            env=self.environ,
            cwd=ROOT,
        )
        return done.returncode, done.stdout


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Two nodes, each with GPUs that Slurm counts and nobody has."""
    for name in ("state", "munge"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    environ = clean_environment(SLURM_CONF=str(folder / "slurm.conf"))
    with Lab(2, rate_bits_s=None) as lab, ExitStack() as stack:
        nodes = [
            f"NodeName=gpu{i} NodeHostname={node.hostname} NodeAddr={node.address} CPUs=2 Gres=gpu:{GPUS}"
            for i, node in enumerate(lab.nodes)
        ]
        text = CONFIGURATION.format(control=lab.nodes[0], folder=folder, nodes="\n".join(nodes))
        (folder / "slurm.conf").write_text(text)
        for i in range(GPUS):
            (folder / f"gpu{i}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
        # slurmd 22.05 wants a plugin, though nothing here uses cgroups; v2's needs systemd.
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        munge = [f"--{what}-file={folder}/munge/{what}" for what in ("key", "pid", "log", "seed")]

        def start(command: list[str]) -> None:
            with (folder / "daemons.txt").open("ab") as log:
                daemon = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environ)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)

        start(["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge])
        wait_for((folder / "munge.socket").exists, "munged", folder)
        start(lab.nodes[0].inside("slurmctld", "-D"))
        for i, node in enumerate(lab.nodes):
            start(node.inside("slurmd", "-D", "-N", f"gpu{i}"))
        idle = lab.nodes[0].inside("sinfo", "--noheader", "--partition=all", "--format=%T %D")

        def is_ready() -> bool:
            answer = subprocess.run(idle, capture_output=True, text=True, check=False, env=environ, timeout=START_S)
            return answer.stdout.split() == ["idle", "2"]

        wait_for(is_ready, "Slurm's two nodes", folder)
        yield Cluster(lab, environ)


def wait_for(is_ready: Callable[[], bool], what: str, folder: Path) -> None:
    ends_s = time.monotonic() + READY_S
    while not is_ready():
        if time.monotonic() > ends_s:
            logs = "\n".join(path.read_text(errors="replace")[-1500:] for path in folder.glob("*.[tl]*"))
            pytest.fail(f"{what} did not come up within {READY_S:g} s:\n{logs}")
        time.sleep(0.1)
