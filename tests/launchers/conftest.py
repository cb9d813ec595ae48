"""Everything here starts real launchers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "lab"))

from lab import missing
from ports import free_port
from slurm_cluster import Cluster, running_cluster
from started import MEASURE, Figures, clean_environment, figures, run_together


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.launcher)


@pytest.fixture(scope="session")
def static_figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """What two nodes measure that no launcher started: the yardstick for those that one did."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("no torch here: NOTHING is measured through a launcher")
    survey = tmp_path_factory.mktemp("static") / "survey.json"
    common = [*MEASURE, "-o", str(survey), "--nnodes", "2", "--master", f"127.0.0.1:{free_port()}"]
    run_together([[*common, "--node-rank", str(rank)] for rank in range(2)], clean_environment())
    found = figures(survey)
    assert found
    return found


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = missing()
    if reason:
        pytest.skip(f"{reason}: NOTHING of Slurm is tested")
    with running_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running
