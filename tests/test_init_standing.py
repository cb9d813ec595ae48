"""Which member of which group `wirelore init` is, told in words that its user has."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from command import wirelore
from members import OF_LAUNCHERS, PLAIN

from configgen.cli.init import _standing, init_command
from probe.bench.rendezvous import DEFAULT_PORT, GROUP_PORT
from probe.errors import UsageError

OPTIONS = {option for parameter in init_command.params for option in parameter.opts} | {"--map-by"}
"""The last is mpirun's."""

MASTER = {"MASTER_ADDR": "10.0.0.1"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
TRAINER = {"PET_NNODES": "1:2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29400"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name in PLAIN or name.startswith(OF_LAUNCHERS):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("environ", "nodes", "problem", "cure"),
    [
        ({}, 2, "which of the 2 nodes this is", "Set RANK (0 to N-1), WORLD_SIZE (N) and MASTER_ADDR"),
        ({"JOB_COMPLETION_INDEX": "1"}, 2, "where node 0 of 2 is", "Set MASTER_ADDR"),
        ({"RANK": "1", "WORLD_SIZE": "2", **MASTER}, 4, "--nodes says 4, RANK and WORLD_SIZE 2", "Leave --nodes away"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MASTER}, None, "on a node is not told", "LOCAL_WORLD"),
        ({"TORCHELASTIC_RUN_ID": "x"}, None, "not GROUP_WORLD_SIZE", "unset"),
        ({"LWS_LEADER_ADDRESS": "a", "LWS_GROUP_SIZE": "2"}, None, "not LWS_WORKER_INDEX", "Set LWS_WORKER_INDEX"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, None, "2 of 4 processes", "ppr:1:node"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, None, "where node 0 of 4 is", "-x MASTER_ADDR"),
        (TRAINER, None, "Kubeflow Trainer may start 1:2 nodes", "--nodes N"),
    ],
)
def test_a_cure_names_what_this_command_has(
    told: pytest.MonkeyPatch, environ: Mapping[str, str], nodes: int | None, problem: str, cure: str
) -> None:
    for name, value in environ.items():
        told.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        _standing(nodes, GROUP_PORT)
    assert problem in caught.value.problem
    assert cure in caught.value.cure
    assert set(re.findall(r"--[a-z][a-z-]*", str(caught.value))) <= OPTIONS


def test_who_told_it_is_said_in_its_own_words(told: pytest.MonkeyPatch) -> None:
    for name, value in {"JOB_COMPLETION_INDEX": "1", **MASTER}.items():
        told.setenv(name, value)
    assert _standing(2, GROUP_PORT).launcher == "Kubernetes job, --nodes"
    assert _standing(None, GROUP_PORT).nodes == 1, "most indexed jobs are no group"


def test_the_cures_for_a_range_of_nodes_cure(told: pytest.MonkeyPatch) -> None:
    for name, value in TRAINER.items():
        told.setenv(name, value)
    standing = _standing(2, GROUP_PORT)
    assert (standing.node, standing.nodes, standing.address) == (1, 2, "job-node-0-0.job")
    assert _standing(1, GROUP_PORT).nodes == 1
    told.setenv("PET_NNODES", "2")
    assert _standing(None, GROUP_PORT).nodes == 2


def test_a_range_of_nodes_plans_nothing(tmp_path: Path) -> None:
    """Else each member would take itself for alone, and start on a plan of its own."""
    words = ("llama-3.1-8b", "--folder", "plan", "--from", "machine:l4-2", "--deadline", "100ms")
    ended = wirelore("init", *words, cwd=tmp_path, environ=TRAINER)
    assert ended.code == 2
    assert "nobody says how many there are" in ended.err
    assert not (tmp_path / "plan").exists()


def test_a_group_meets_where_its_own_measurement_does_not() -> None:
    """Under srun that takes a port of the job, one of a thousand."""
    assert GROUP_PORT not in range(DEFAULT_PORT, DEFAULT_PORT + 1000)
