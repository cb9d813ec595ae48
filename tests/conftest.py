"""Fixtures that several rooms' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import environment
from docs_commands import Terminal, with_wirelore
from fake_nvml import FakeMachine, build_fake_nvml, compiler, fake_environment
from fake_nvml.machines import Description
from hypothesis import HealthCheck, settings

# A busy machine fails no test: examples are the same everywhere, and their time belongs to the benchmarks.
settings.register_profile("wirelore", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wirelore")


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fake libnvidia-ml.so.1, for LD_LIBRARY_PATH."""
    if compiler() is None:
        pytest.skip("no C compiler here: NOTHING of NVML is tested over its real bindings")
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake_machine(fake_nvml: Path, tmp_path: Path) -> FakeMachine:
    """Writes a description and gives the environment in which it is this machine."""

    def environment(description: Description, **more: str) -> dict[str, str]:
        return fake_environment(fake_nvml, description.write(tmp_path / "machine.nvml"), **more)

    return environment


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """Of a reader of the documents, in an empty folder of a machine without a driver."""
    return Terminal(tmp_path, environment(HOME=str(tmp_path), PATH=with_wirelore(tmp_path / "bin")))
