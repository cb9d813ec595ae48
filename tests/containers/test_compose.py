"""The emitted compose.yaml, started by podman-compose: two replicas on one machine, each with the GPUs meant for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import wirelore
from fake_nvml import fake_environment
from fake_nvml.machines import Description
from machine import INSIDE, Install, Machine, variables, words
from pods import BASE, Data, Podman

MODEL = "qwen3-32b"
PAIRS = ((0, 1), (2, 3))
PROXY = "registry.example.com/nginx:stable"
CDI = Path("/run/cdi")
"""Where podman looks for the devices that compose asks for by driver and name; nvidia-ctk writes there too."""


def l40s(*gpus: int) -> Description:
    """These of the four GPUs of one machine, as a container sees them that was given no others."""
    told = Description(len(gpus), "NVIDIA L40S", 45, "8 9")
    for here, gpu in enumerate(gpus):
        told[f"uuid {here}"] = uuid(gpu)
        told[f"pci {here}"] = told.pci(gpu)
    return told


def uuid(gpu: int) -> str:
    return f"GPU-{gpu + 1:08x}-aaaa-bbbb-cccc-{gpu:012x}"


@dataclass(frozen=True)
class Composed:
    """A folder with compose.yaml, under podman-compose."""

    podman: Podman
    command: str
    folder: Path
    name: str

    def run(self, *options: str) -> None:
        done = subprocess.run(
            [self.command, *options],
            cwd=self.folder,
            env=dict(self.podman.environ),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def ended(self, service: str) -> tuple[int, str]:
        """Its exit code and all that it said, once it has ended."""
        container = f"{self.name}_{service}_1"
        code = int(self.podman("wait", container))
        log = self.podman.ended("logs", container)
        return code, log.stdout + log.stderr

    def server(self, number: int, within_s: float = 20) -> Data:
        """What a stub engine says of itself, which then goes on as a server does."""
        ends_s = time.monotonic() + within_s
        while not (log := self.podman.ended("logs", f"{self.name}_engine-{number}_1")).stdout.endswith("\n"):
            assert time.monotonic() < ends_s, log.stderr
            time.sleep(0.05)
        return dict(json.loads(log.stdout))


@pytest.fixture
def composed(
    podman: Podman, image: str, engine_image: str, install: Install, tmp_path: Path
) -> Iterator[tuple[Composed, Machine]]:
    """A plan for the whole machine, emitted, and started with nothing else than what `emit` wrote."""
    command = shutil.which("podman-compose") or shutil.which("podman-compose", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("podman-compose not installed ('.[compose]'): the emitted compose.yaml is NOT started")
    if any("nvidia.com/gpu" in path.read_text() for path in (*CDI.glob("*"), *Path("/etc/cdi").glob("*"))):
        pytest.skip("this machine has NVIDIA's own devices for containers: the emitted compose.yaml is NOT started")
    node = install(l40s(*range(4)))
    for pair in PAIRS:
        l40s(*pair).write(node.folder / f"{pair[0]}.nvml")
    name = f"composed-{os.getpid()}"
    out = emitted(node, tmp_path, name, (image, engine_image))
    podman("build", "--quiet", "--tag", PROXY, "--file", str(proxy_image(tmp_path)), str(tmp_path / "proxy"))
    CDI.mkdir(exist_ok=True)
    spec = CDI / f"wirelore-{os.getpid()}.json"
    spec.write_text(json.dumps(devices_of(node)))
    started = Composed(podman, command, out, name)
    try:
        yield started, node
    finally:
        started.run("down", "--volumes", "--timeout", "0")
        spec.unlink()
        podman.ended("rmi", "--force", PROXY)


def proxy_image(folder: Path) -> Path:
    """Stands in for nginx: says what it was configured with."""
    (folder / "proxy").mkdir()
    file = folder / "proxy" / "Containerfile"
    file.write_text(f'FROM {BASE}\nCMD ["cat", "/etc/nginx/nginx.conf"]\n')
    return file


def devices_of(node: Machine) -> Data:
    """As nvidia-ctk describes them (CNCF's Container Device Interface 0.5.0): by UUID, with the driver's library."""

    def edits(pair: tuple[int, ...]) -> Data:
        told = {"LD_LIBRARY_PATH": INSIDE, "FAKE_NVML": f"{INSIDE}/{pair[0]}.nvml", "STAYS": "1"}
        mount = {"hostPath": str(node.folder), "containerPath": INSIDE, "options": ["ro", "bind"]}
        return {"env": [f"{key}={value}" for key, value in told.items()], "mounts": [mount]}

    named = [{"name": uuid(gpu), "containerEdits": edits(pair)} for pair in PAIRS for gpu in pair]
    return {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": named}


def emitted(node: Machine, folder: Path, name: str, images: tuple[str, str]) -> Path:
    environ = fake_environment(node.folder, node.folder / "machine.nvml")
    wirelore("plan", MODEL, "--offline", "-o", "whole.json", cwd=folder, environ=environ).data()
    options = ("--target", "compose", "--name", name, "--image", images[0], "--engine-image", images[1])
    wirelore("emit", "whole.json", *options, "-o", "composed", cwd=folder).data()
    return folder / "composed"


def expected(node: Machine, folder: Path, pair: tuple[int, ...]) -> tuple[list[str], Mapping[str, str]]:
    """What is planned for a machine of these GPUs alone."""
    node.becomes(l40s(*pair))
    (process,) = node.planned(folder, MODEL)
    return words(process)[1:], variables(process)


def test_each_replica_starts_as_planned_and_twice_the_same(composed: tuple[Composed, Machine], tmp_path: Path) -> None:
    started, node = composed
    assert json.loads((tmp_path / "whole.json").read_text())["data_parallel_size"] == len(PAIRS)
    planned = [expected(node, tmp_path, pair) for pair in PAIRS]
    plans = []
    for _ in range(2):
        started.run("up", "--detach")
        servers = [started.server(number) for number in range(len(PAIRS))]
        for number, server in enumerate(servers):
            code, log = started.ended(f"probe-{number}")
            assert code == 0, log
            argv, environment = planned[number]
            assert server["argv"] == argv
            assert environment.items() <= server["environment"].items()
            assert (server["user"], set(server["capabilities"])) == (1000, {"0000000000000000"})
            assert server["no_new_privileges"]
            assert server["refused"]["/plan/intruder"] == "Read-only file system"
        assert started.ended("proxy") == (0, (started.folder / "proxy.conf").read_text())
        plans.append([server["plan"] for server in servers])
        started.run("down", "--timeout", "5")  # the volumes stay, as after a restart of the machine
    assert plans[0] == plans[1], "to the byte"
