"""Slurm: a controller and two slurmd, each in a network namespace of its own; only addresses lead to them."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import Lab, missing
from started import MEASURE, ROOT, START_S, TELL, Figures, assert_same_survey, clean_environment, figures, told

TOOLS = ("munged", "slurmctld", "slurmd", "srun", "sinfo", "scontrol")
ABSENT = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}: NOTHING of Slurm is tested"),
]

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
SelectType=select/linear
SchedulerType=sched/builtin
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""
READY_S = 20.0


@dataclass(frozen=True)
class Cluster:
    lab: Lab
    environ: dict[str, str]

    def srun(self, *words: str, on: int = 0) -> str:
        """What the tasks and srun print, srun itself typed on that node."""
        done = subprocess.run(
            self.lab.nodes[on].inside("srun", *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_S,
            check=False,
            env=self.environ,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = missing()
    if reason:
        pytest.skip(f"{reason}: NOTHING of Slurm is tested")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "munge"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    environ = clean_environment(SLURM_CONF=str(folder / "slurm.conf"))
    with Lab(2, rate_bits_s=None) as lab, ExitStack() as stack:
        nodes = [
            f"NodeName=gpu{i} NodeHostname={node.hostname} NodeAddr={node.address} CPUs=1"
            for i, node in enumerate(lab.nodes)
        ]
        text = CONFIGURATION.format(control=lab.nodes[0], folder=folder, nodes="\n".join(nodes))
        (folder / "slurm.conf").write_text(text)
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
        idle = lab.nodes[0].inside("sinfo", "--noheader", "--format=%T %D")

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


@pytest.mark.parametrize("typed_on", [0, 1])
def test_the_nodes_meet_at_the_first_node_of_the_step_wherever_srun_was_typed(cluster: Cluster, typed_on: int) -> None:
    output = cluster.srun("-N2", "--ntasks-per-node=1", sys.executable, "-c", TELL, on=typed_on)
    found = told(output)
    assert [(t.nodes, t.node, t.origin, t.interface) for t in found] == [
        (2, 0, "srun", "eth0"),
        (2, 1, "srun", "eth0"),
    ], output
    assert {t.address for t in found} == {cluster.lab.nodes[0].address}, (
        "gpu0 resolves nowhere: Slurm knows its address"
    )
    assert len({t.port for t in found}) == 1


def test_one_task_per_node_measures(cluster: Cluster) -> None:
    output = cluster.srun("-N2", "--ntasks-per-node=2", "--overcommit", sys.executable, "-c", TELL)
    found = told(output)
    assert len(found) == 4, output
    assert [t.node for t in found if t.note is None] == [0, 1]


def test_a_part_of_a_job_is_a_group_of_its_own(cluster: Cluster) -> None:
    (alone,) = told(cluster.srun("-N1", "-w", "gpu1", sys.executable, "-c", TELL))
    assert (alone.nodes, alone.node, alone.interface) == (1, 0, "lo")


def test_torchrun_inside_srun_decides(cluster: Cluster) -> None:
    torchrun = Path(sys.executable).parent / "torchrun"
    if not torchrun.exists():
        pytest.skip("no torch here: NOTHING of torchrun is tested")
    shell = (
        f"exec {torchrun} --nnodes=$SLURM_NNODES --node-rank=$SLURM_NODEID --nproc-per-node=1 "
        f'--master-addr={cluster.lab.nodes[0].address} --master-port=29555 --no-python {sys.executable} -c "$TELL"'
    )
    with_script = Cluster(cluster.lab, {**cluster.environ, "TELL": TELL})
    found = told(with_script.srun("-N2", "--ntasks-per-node=1", "sh", "-c", shell))
    assert [(t.node, t.origin, t.port, t.hosted) for t in found] == [
        (0, "torchrun", 29555, True),
        (1, "torchrun", 29555, True),
    ]


def test_srun_measures_what_a_static_rendezvous_measures(
    cluster: Cluster, static_figures: Figures, tmp_path: Path
) -> None:
    survey = tmp_path / "survey.json"
    cluster.srun("-N2", "--ntasks-per-node=1", *MEASURE, "-o", str(survey), on=1)
    assert_same_survey(figures(survey), static_figures)


def test_nothing_stays_behind(cluster: Cluster) -> None:
    running = [Path(f"/proc/{pid}/exe").readlink().name for node in cluster.lab.nodes for pid in node.processes()]
    assert not [name for name in running if name.startswith("python")]
