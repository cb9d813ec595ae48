"""What srun starts: where its tasks meet, and what they measure."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import pytest
from slurm_cluster import ABSENT, Cluster
from started import MEASURE, TELL, Figures, assert_same_survey, figures, told

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}: NOTHING of Slurm is tested"),
]


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
    running = []
    for pid in [pid for node in cluster.lab.nodes for pid in node.processes()]:
        with suppress(FileNotFoundError):  # ended since it was listed
            running.append(Path(f"/proc/{pid}/exe").readlink().name)
    assert not [name for name in running if name.startswith("python")]
