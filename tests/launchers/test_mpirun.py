"""Open MPI's mpirun, with a remote shell that stays on this host but under another host name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs_commands import documented, program, settings, with_wirelore
from ports import free_port
from started import (
    ROOT,
    SETTINGS,
    START_S,
    TELL,
    Figures,
    assert_same_survey,
    clean_environment,
    figures,
    run_together,
    told,
    typed,
)

MPIRUN = shutil.which("mpirun")


def is_open_mpi() -> bool:
    if MPIRUN is None:
        return False
    return "Open MPI" in subprocess.run([MPIRUN, "--version"], capture_output=True, text=True, check=False).stdout


pytestmark = [
    pytest.mark.skipif(not is_open_mpi(), reason="no Open MPI here: NOTHING of mpirun is tested"),
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="no root: NOTHING of mpirun is tested"),
]

AGENT = """#!/bin/sh
# In place of ssh: the same machine under the name of the other.
host=$1; shift
exec unshare --uts sh -c 'hostname "$0"; exec sh -c "$1"' "$host" "$*"
"""


def reaching(folder: Path, **more: str) -> dict[str, str]:
    """The environment in which mpirun comes from one name of this host to the other."""
    agent = program(folder, "agent", AGENT)
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return clean_environment(OMPI_MCA_plm_rsh_agent=str(agent), **as_root, **more)


def mpirun(folder: Path, *words: str) -> str:
    assert MPIRUN is not None
    done = subprocess.run(
        [MPIRUN, *words, sys.executable, "-c", TELL],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_S,
        check=False,
        env=reaching(folder),
        cwd=ROOT,
    )
    return done.stdout


def test_one_process_per_node_meets_at_the_address_that_was_exported(tmp_path: Path) -> None:
    where = ["-x", "MASTER_ADDR=127.0.0.1", "-x", "MASTER_PORT=29777"]
    output = mpirun(tmp_path, "--host", "node-a,node-b", "--map-by", "ppr:1:node", *where)
    found = told(output)
    assert [(t.nodes, t.node, t.address, t.port, t.origin) for t in found] == [
        (2, 0, "127.0.0.1", 29777, "mpirun"),
        (2, 1, "127.0.0.1", 29777, "mpirun"),
    ], output


def test_without_an_address_the_cure_is_told(tmp_path: Path) -> None:
    found = told(mpirun(tmp_path, "--host", "node-a,node-b", "--map-by", "ppr:1:node"))
    assert [t.error is not None and "mpirun -x MASTER_ADDR" in t.error for t in found] == [True, True]


def test_several_processes_on_one_node_leave_one_to_measure(tmp_path: Path) -> None:
    first, second = sorted(told(mpirun(tmp_path, "--oversubscribe", "-np", "2")), key=lambda t: t.note is not None)
    assert (first.nodes, first.address, first.interface) == (1, "127.0.0.1", "lo")
    assert second.note is not None
    assert "OMPI_COMM_WORLD_LOCAL_RANK=1" in second.note


def test_several_processes_on_several_nodes_are_refused_with_the_cure(tmp_path: Path) -> None:
    where = ["-x", "MASTER_ADDR=127.0.0.1"]
    found = told(mpirun(tmp_path, "--host", "node-a:2,node-b:2", "--map-by", "ppr:2:node", *where))
    assert len(found) == 4
    assert sum(t.note is not None for t in found) == 2
    assert sum("ppr:1:node" in t.error for t in found if t.error) == 2


def test_mpirun_measures_what_a_static_rendezvous_measures(static_figures: Figures, tmp_path: Path) -> None:
    """By the page's command, which has its hosts from the resource manager: here from a file."""
    (command,) = documented("measure.md", "mpirun")
    hosts = tmp_path / "hosts"
    hosts.write_text("node-a\nnode-b\n")
    told = {"PATH": with_wirelore(tmp_path / "bin"), "OMPI_MCA_orte_default_hostfile": str(hosts)}
    at = settings("measure", port=str(free_port()))
    run_together(
        [typed(command.at("10.0.0.1", "127.0.0.1"))], reaching(tmp_path, **told, **at, **SETTINGS), cwd=tmp_path
    )
    assert_same_survey(figures(tmp_path / "survey.json"), static_figures)
