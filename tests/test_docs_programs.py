"""The documents' commands for one machine: pip installs what they name, and systemd takes the unit that they copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from command import environment
from docs_commands import ROOT, documented, follow, program, run_in_bash

from probe import __version__

pytestmark = pytest.mark.long

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
ENABLE = """#!/bin/sh
[ "$1 $2" = "enable --now" ] || exit 64
shift 2
exec {systemctl} --root={root} enable "$@"
"""


def empty_wheel(folder: Path, name: str) -> None:
    """Of a distribution that is a name and nothing else."""
    with zipfile.ZipFile(folder / f"{name}-0-py3-none-any.whl", "w") as archive:
        for file, text in (("METADATA", METADATA.format(name=name)), ("WHEEL", WHEEL), ("RECORD", "")):
            archive.writestr(f"{name}-0.dist-info/{file}", text)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader at the end of docs/kubernetes.md, where these commands stand."""
    folder = tmp_path_factory.mktemp("kubernetes")
    follow("kubernetes.md", folder)
    return folder


def test_pip_installs_both_into_one_environment(tmp_path: Path) -> None:
    """Out of a folder in place of PyPI, with this tree's wheel and an empty one for vLLM; without what they need."""
    missing = [name for name in ("build", "hatchling") if find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: `pip install wirelore vllm` is NOT tested")
    (command,) = documented("slurm.md", "python3 -m venv")
    index = tmp_path / "index"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(index)]
    subprocess.run(build, cwd=ROOT, env=environment(), capture_output=True, timeout=100, check=True)
    empty_wheel(index, "vllm")
    shared = tmp_path / "shared"
    shared.mkdir()
    offline = environment(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(index), PIP_NO_DEPS="1", PYTHONPATH="")
    assert "/shared/" in command.text
    run_in_bash(command.text.replace("/shared/", f"{shared}/"), tmp_path, offline)
    (program_there,) = shared.glob("*/bin/wirelore")
    listed = [str(program_there.with_name("pip")), "list", "--format=freeze"]
    told = subprocess.run(listed, env=offline, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {f"wirelore=={__version__}", "vllm==0"} <= {*told}


def test_systemd_takes_the_unit_and_enables_it(tmp_path: Path, followed: Path) -> None:
    """In a folder in place of /, where no manager runs: `--now` alone is left out."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        pytest.skip("no systemd here: its unit is NOT verified, and `systemctl enable` is NOT tested")
    (command,) = documented("kubernetes.md", "sudo cp units/")
    units = tmp_path / "root/etc/systemd/system"
    units.mkdir(parents=True)
    program(tmp_path / "bin", "sudo", '#!/bin/sh\nexec "$@"\n')
    program(tmp_path / "bin", "systemctl", ENABLE.format(systemctl=systemctl, root=tmp_path / "root"))
    assert "/etc/systemd/system/" in command.text
    environ = environment(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    run_in_bash(command.text.replace("/etc/systemd/system/", f"{units}/"), followed, environ)
    (unit,) = units.glob("*.service")
    assert (units / "multi-user.target.wants" / unit.name).is_symlink()
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=20, check=False
    )
    assert (verified.returncode, unit.name in verified.stderr) == (0, False), verified.stderr


def test_a_nodes_folder_is_made_for_the_pods_user(tmp_path: Path) -> None:
    """In a folder in place of /var/cache, of this user's own where only root could give it away."""
    (command,) = documented("kubernetes.md", "install -d")
    assert "/var/cache/" in command.text
    text = command.text.replace("/var/cache/", f"{tmp_path}/")
    if os.geteuid():
        text = text.replace("-o 1000 -g 1000", f"-o {os.getuid()} -g {os.getgid()}")
    run_in_bash(text, tmp_path, environment())
    made = (tmp_path / "wirelore/wirelore/surveys").stat()
    assert (made.st_uid, made.st_mode & 0o777) == (os.getuid() or 1000, 0o755)


def test_compose_finds_its_file(followed: Path) -> None:
    """No daemon of Docker's is asked: only that the file is there, by the name that the command gives it."""
    (command,) = documented("kubernetes.md", "docker compose")
    assert command.words[2] == "-f"
    assert (followed / command.words[3]).is_file()
