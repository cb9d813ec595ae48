"""The node that a pod finds itself on: a folder with the fake NVML and a description, mounted like a driver."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from command import wirelore
from fake_nvml import fake_environment
from fake_nvml.machines import Description
from pods import Data

MODEL = "qwen3-32b"
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

    def planned(self, folder: Path, *arguments: str) -> tuple[Data, list[Data]]:
        """What `wirelore plan` says on this machine without a container, and its processes."""
        environ = fake_environment(self.folder, self.folder / "machine.nvml")
        wirelore("plan", *arguments, "-o", "plan.json", cwd=folder, environ=environ).data()
        listing = json.loads(wirelore("emit", "plan.json", "--target", "json", cwd=folder).data())
        return json.loads((folder / "plan.json").read_text()), list(listing["processes"])


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
