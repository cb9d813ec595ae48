"""The documents' installations: pip finds what they name, in a folder in place of PyPI, and all that it needs."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from command import environment
from docs_commands import ROOT, Command, Terminal, documented, run_in_bash

from probe import __version__

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
NEWEST = "99999999"
"""As new as any of our requirements can want."""


def empty_wheel(folder: Path, name: str) -> None:
    """Of a distribution that is a name and nothing else."""
    stem = f"{re.sub('[-.]', '_', name)}-{NEWEST}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        told = METADATA.format(name=name, version=NEWEST)
        for file, text in (("METADATA", told), ("WHEEL", WHEEL), ("RECORD", "")):
            archive.writestr(f"{stem}.dist-info/{file}", text)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree's wheel, and an empty one of each distribution that it names, and of vLLM."""
    missing = [name for name in ("build", "hatchling", "pip") if find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: NO `pip install` of the docs is tested")
    folder = tmp_path_factory.mktemp("index")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run(build, cwd=ROOT, env=environment(), capture_output=True, timeout=100, check=True)
    (wheel,) = folder.glob("wirelore-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"wirelore-{__version__}.dist-info/METADATA").decode()
    for name in {"vllm", *re.findall(r"^Requires-Dist: ([\w.-]+)", metadata, re.MULTILINE)} - {"wirelore"}:
        empty_wheel(folder, name)
    return folder


def offline(index: Path) -> dict[str, str]:
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPATH": ""}


def installed(command: Command, terminal: Terminal, index: Path, cwd: Path) -> set[str]:
    """The distributions that it brings, into a folder of their own instead of the environment of these tests."""
    target = terminal.folder / f"installed-{command.line}"
    # In pip's environment this 0 means what the option --no-build-isolation does.
    told = {**terminal.environ, **offline(index), "PIP_TARGET": str(target), "PIP_NO_BUILD_ISOLATION": "0"}
    run_in_bash(command, cwd, told)
    return {path.name.partition("-")[0] for path in target.glob("*.dist-info")}


def test_a_clone_is_installed(terminal: Terminal, index: Path) -> None:
    plain, measure = documented("README.md", "pip install .", "pip install '.[measure]'")
    without = installed(plain, terminal, index, ROOT)
    assert {"wirelore", "nvidia_ml_py"} <= without
    assert installed(measure, terminal, index, ROOT) - without == {"torch"}


def test_the_agent_is_installed(terminal: Terminal, index: Path) -> None:
    (agent,) = documented("agent.md", "pip install")
    assert {"wirelore", "prometheus_client"} <= installed(agent, terminal, index, terminal.folder)


@pytest.mark.long
def test_both_are_installed_into_one_environment(terminal: Terminal, index: Path) -> None:
    (command,) = documented("slurm.md", "python3 -m venv")
    shared = terminal.folder / "shared"
    shared.mkdir()
    run_in_bash(command.at("/shared/", f"{shared}/"), terminal.folder, {**terminal.environ, **offline(index)})
    (program_there,) = shared.glob("*/bin/wirelore")
    listed = [str(program_there.with_name("pip")), "list", "--format=freeze"]
    told = subprocess.run(listed, env=environment(PYTHONPATH=""), capture_output=True, text=True, check=True)
    assert {f"wirelore=={__version__}", f"vllm=={NEWEST}"} <= {*told.stdout.splitlines()}
