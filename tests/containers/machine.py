"""The node that a pod finds itself on: a folder with the fake NVML and a description, mounted like a driver."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from command import wirelore
from fake_nvml import fake_environment
from fake_nvml.machines import Description
from pods import Data

INSIDE = "/driver"


@dataclass(frozen=True)
class Machine:
    folder: Path

    @classmethod
    def made(cls, folder: Path, library: Path, description: Description) -> Machine:
        """Readable for the user of a container, which pytest's own folders are not."""
        folder.mkdir(mode=0o755)
        shutil.copy(library / "libnvidia-ml.so.1", folder)
        (folder / "termination-log").touch()
        (folder / "termination-log").chmod(0o666)
        machine = cls(folder)
        machine.becomes(description)
        return machine

    def becomes(self, description: Description) -> None:
        description.write(self.folder / "machine.nvml")

    @property
    def volumes(self) -> list[Data]:
        """The driver, and the file that a kubelet mounts for last words."""
        log = {"path": str(self.folder / "termination-log"), "type": "File"}
        return [
            {"hostPath": {"path": str(self.folder), "type": "Directory"}, "mountPath": INSIDE},
            {"hostPath": log, "mountPath": "/dev/termination-log"},
        ]

    @property
    def environment(self) -> dict[str, str]:
        """Inside a container."""
        return {"LD_LIBRARY_PATH": INSIDE, "FAKE_NVML": f"{INSIDE}/machine.nvml"}

    @property
    def last_words(self) -> str:
        return (self.folder / "termination-log").read_text()

    def planned(self, folder: Path, model: str) -> list[Data]:
        """The processes that `wirelore plan` and `emit` say on this machine without a container."""
        environ = fake_environment(self.folder, self.folder / "machine.nvml")
        wirelore("plan", model, "--offline", "-o", "plan.json", cwd=folder, environ=environ).data()
        return listed(folder)


Install = Callable[..., Machine]
"""A description, and the name of one of several nodes: the machine, for pods to run on."""


def listed(folder: Path) -> list[Data]:
    """The processes of plan.json there."""
    return list(json.loads(wirelore("emit", "plan.json", "--target", "json", cwd=folder).data())["processes"])


def emitted(folder: Path, model: str, machine: str, images: tuple[str, str]) -> list[Data]:
    """The pods' specs that `wirelore emit --target kubernetes` writes for a plan made elsewhere, as on a laptop."""
    folder.mkdir()
    wirelore("plan", model, "--offline", "--from", f"machine:{machine}", "-o", "plan.json", cwd=folder).data()
    named = [
        word for option, image in zip(("--image", "--engine-image"), images, strict=True) for word in (option, image)
    ]
    to = ("-o", "manifests", "--read-only-root")
    wirelore("emit", "plan.json", "--target", "kubernetes", *named, *to, cwd=folder).data()
    files = [path for path in (folder / "manifests").iterdir() if path.name != "probe.yaml"]
    documents = [document for path in files for document in yaml.safe_load_all(path.read_text())]
    (workload,) = [document for document in documents if document["kind"] != "Service"]
    if workload["kind"] == "Deployment":
        return [workload["spec"]["template"]["spec"]]
    group = workload["spec"]["leaderWorkerTemplate"]
    return [group["leaderTemplate"]["spec"], group["workerTemplate"]["spec"]]


def words(process: Data, address: str = "") -> list[str]:
    """The argv of a listed process; the only word that its start tells is the first node's address."""

    def word(told: str | Mapping[str, str]) -> str:
        if isinstance(told, str):
            return told
        assert told["from_environment"] == "MASTER_ADDR"
        return address + told["then"]

    return [word(told) for told in (*process["command"], *(w for flag in process["flags"] for w in flag["words"]))]


def variables(process: Data) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in process["environment"]}
