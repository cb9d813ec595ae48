"""Everything here runs real containers: the image is built once, and what a test started is gone after it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_nvml.machines import Description
from machine import Install, Machine
from pods import BASE, HOME, Data, Play, Pod, Podman


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.containers)


@pytest.fixture(scope="session")
def podman() -> Podman:
    settings = {"CONTAINERS_CONF": HOME / "containers.conf", "CONTAINERS_STORAGE_CONF": HOME / "storage.conf"}
    command = Podman({**os.environ, **{name: str(path) for name, path in settings.items()}})
    absent = shutil.which("podman") is None or not all(path.is_file() for path in settings.values())
    if absent or command.ended("run", "--rm", "--network", "none", BASE, "true").returncode != 0:
        pytest.skip(
            "no container runs here (scripts/setup-podman says why): NOTHING of the image and its pods is tested"
        )
    return command


@pytest.fixture(scope="session")
def engine_image(podman: Podman) -> str:
    """A stand-in for an engine's image."""
    tag = "localhost/wirelore-stub-engine"
    podman("build", "--quiet", "--build-arg", f"BASE={BASE}", "--tag", tag, str(Path(__file__).parent / "engine"))
    return tag


@pytest.fixture(scope="session")
def image(podman: Podman) -> str:
    """Of this tree."""
    tag = "localhost/wirelore-test"
    podman.build(tag, "--no-cache=false")
    return tag


@pytest.fixture
def play(podman: Podman, tmp_path: Path) -> Iterator[Play]:
    """Starts a pod."""
    started: list[Pod] = []

    def start(described: Data, network: str = "none") -> Pod:
        started.append(Pod(podman, described, tmp_path, network))
        return started[-1]

    yield start
    for pod in started:
        pod.remove()


@pytest.fixture
def network(podman: Podman) -> Iterator[str]:
    """In which pods find each other by their names."""
    name = f"wirelore-{os.getpid()}"
    podman("network", "create", name)
    yield name
    podman.ended("network", "rm", "--force", name)


@pytest.fixture
def install(fake_nvml: Path, tmp_path: Path) -> Install:
    """A machine of this description, for pods to run on."""

    def installed(description: Description, name: str = "node") -> Machine:
        return Machine.made(tmp_path / name, fake_nvml, description)

    return installed


@pytest.fixture
def small_volume(podman: Podman) -> Iterator[Data]:
    """With room for four pages: less than any plan needs."""
    name = f"wirelore-small-{os.getpid()}"
    podman("volume", "create", "--opt=type=tmpfs", "--opt=device=tmpfs", "--opt=o=nr_blocks=4,mode=1777", name)
    yield {"persistentVolumeClaim": {"claimName": name}}
    podman.ended("volume", "rm", "--force", name)
