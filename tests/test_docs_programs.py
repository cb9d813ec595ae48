"""The documents' commands for one machine: systemd takes the unit that they copy, and the agent stays on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from agent_run import Running
from command import environment
from docs_commands import Terminal, documented, follow, program, run_in_bash, settings
from fake_nvml import FakeMachine
from fake_nvml.machines import hgx_h100
from ports import free_port

pytestmark = pytest.mark.long

ENABLE = """#!/bin/sh
[ "$1 $2" = "enable --now" ] || exit 64
shift 2
exec {systemctl} --root={root} enable "$@"
"""


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader at the end of docs/kubernetes.md, where these commands stand."""
    folder = tmp_path_factory.mktemp("kubernetes")
    follow("kubernetes.md", folder)
    return folder


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
    environ = environment(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    run_in_bash(command.at("/etc/systemd/system/", f"{units}/"), followed, environ)
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


def test_the_agent_stays_on_its_node(terminal: Terminal, fake_machine: FakeMachine) -> None:
    (stay,) = documented("agent.md", "wirelore agent")
    features, port = terminal.folder / "features", free_port()
    features.mkdir()
    here = stay.at("/etc/kubernetes/node-feature-discovery/features.d", features).at("/run/wirelore", terminal.folder)
    told = settings("agent", http_port=str(port), address="127.0.0.1")
    environ = {**terminal.environ, **fake_machine(hgx_h100()), **told}
    with (terminal.folder / "log").open("wb") as log:
        process = subprocess.Popen(["bash", "-c", f"exec {here.text}"], env=environ, stdout=log, stderr=log)
    running = Running(process, terminal.folder, port)
    try:
        assert running.until(lambda: running.labels)["wirelore.io/gpus"] == "8"
        running.until(lambda: (terminal.folder / "survey.json").exists() and running.get("/healthz")[0] == 200)
        assert running.end()[0] == 0
    finally:
        process.kill()
        process.wait()
