"""Two torchrun agents on this host, as two nodes of two processes each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from docs_commands import documented, with_wirelore
from ports import free_port
from started import (
    SETTINGS,
    TELL,
    Figures,
    assert_same_survey,
    clean_environment,
    figures,
    run_together,
    told,
    tool,
    typed,
)

TORCHRUN = tool("torchrun")
pytestmark = pytest.mark.skipif(TORCHRUN is None, reason="no torch here: NOTHING of torchrun is tested")


def agents(*more: str, command: Sequence[str] = (sys.executable, "-c", TELL)) -> list[list[str]]:
    assert TORCHRUN is not None
    return [[TORCHRUN, "--nnodes", "2", "--node-rank", r, *more, "--no-python", *command] for r in ("0", "1")]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_nodes_meet_at_the_store_that_torchrun_hosts(processes: int) -> None:
    port = free_port()
    words = ["--master-addr", "127.0.0.1", "--master-port", str(port), "--nproc-per-node", str(processes)]
    found = told("".join(run_together(agents(*words), clean_environment())))
    assert len(found) == 2 * processes
    assert [t.note is not None for t in found] == [True] * (2 * processes - 2) + [False, False]
    for node, process in enumerate(found[-2:]):
        assert (process.nodes, process.node, process.origin) == (2, node, "torchrun")
        assert (process.address, process.port, process.hosted) == ("127.0.0.1", port, True)
        assert process.interface == "lo"


@pytest.mark.long
def test_the_nodes_meet_wherever_a_dynamic_rendezvous_put_the_store() -> None:
    words = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1"]
    first, second = told("".join(run_together(agents(*words), clean_environment())))
    assert (first.nodes, first.node, second.node) == (2, 0, 1)
    assert first.hosted
    assert (first.address, first.port) == (second.address, second.port) == ("127.0.0.1", first.port)


def test_torchrun_measures_what_a_static_rendezvous_measures(static_figures: Figures, tmp_path: Path) -> None:
    """By the page's command on node 0, and by its like on node 1."""
    (command,) = documented("measure.md", "torchrun")
    first = command.at("10.0.0.1", "127.0.0.1")
    told = {"PATH": with_wirelore(tmp_path / "bin"), "PET_MASTER_PORT": str(free_port())}
    both = [typed(first), typed(first.at("--node-rank 0", "--node-rank 1"))]
    run_together(both, clean_environment(**told, **SETTINGS), cwd=tmp_path)
    assert_same_survey(figures(tmp_path / "survey.json"), static_figures)
