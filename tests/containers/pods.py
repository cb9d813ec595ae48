"""Pods under a real podman: how they are described, started together, and what is left of them to look at."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HOME = Path(os.environ.get("CONTAINERS_HOME", ROOT / ".containers"))
BASE = "localhost/wirelore-base:bookworm"
INIT, ENGINE = "probe", "engine"
COMMAND_S = 60.0

Data = dict[str, Any]
EMPTY: Data = {"emptyDir": {}}


@dataclass(frozen=True)
class Podman:
    """podman with the settings and the storage that scripts/setup-podman made."""

    environ: Mapping[str, str]

    def ended(self, *words: str, within_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["podman", *words], env=dict(self.environ), capture_output=True, text=True, timeout=within_s, check=False
        )

    def __call__(self, *words: str, within_s: float = COMMAND_S) -> str:
        """What it prints, where it ends well."""
        done = self.ended(*words, within_s=within_s)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def build(self, tag: str, *options: str, tree: Path = ROOT, **variables: str) -> str:
        """The identity of the image that scripts/build-image makes of a tree."""
        mounts = [f"--volume={path}:{path}:ro" for path in ("/etc/resolv.conf", "/etc/ssl/certs")]
        secret = f"--secret=id=pip.conf,src={HOME / 'pip.conf'}"
        script = str(tree / "scripts/build-image")
        done = subprocess.run(
            [script, tag, "--quiet", "--network=host", f"--build-arg=BASE={BASE}", *mounts, secret, *options],
            env={**self.environ, "SOURCE_DATE_EPOCH": "1700000000", **variables},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1]

    def inspected(self, kind: str, name: str) -> Data:
        (told,) = json.loads(self(kind, "inspect", name))
        return dict(told)


def pod(name: str, image: str, engine: str, arguments: Sequence[str], *, plan: Data, more: Sequence[Data] = ()) -> Data:
    """One pod: the init container with these arguments, and the engine that starts what it wrote into `plan`.

    Each of `more` is a volume with the mountPath it has in both containers.
    """
    volumes = [{"name": f"{name}-plan", **plan}]
    mounts = [{"name": f"{name}-plan", "mountPath": "/plan"}]
    for number, volume in enumerate(more):
        at = volume.pop("mountPath")
        volumes.append({"name": f"{name}-{number}", **volume})
        mounts.append({"name": f"{name}-{number}", "mountPath": at})
    common = {
        "imagePullPolicy": "Never",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    probe = {**common, "name": INIT, "image": image, "args": ["init", *arguments], "volumeMounts": mounts}
    main = {**common, "name": ENGINE, "image": engine, "command": ["/plan/start"]}
    main["volumeMounts"] = [{**mounts[0], "readOnly": True}, *mounts[1:]]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532},
            "initContainers": [probe],
            "containers": [main],
            "volumes": volumes,
        },
    }


def with_environment(described: Data, **variables: str) -> Data:
    """The same pod, whose containers are told these as a launcher tells them."""
    spec = described["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        told = [*container.get("env", []), *({"name": name, "value": value} for name, value in variables.items())]
        container["env"] = told
    return described


@dataclass(frozen=True)
class Ended:
    """What is left of a pod: the init container's end, and what each server of the stub engine recorded."""

    code: int
    log: str
    seconds: float
    engines: list[Data]
    engine_log: str
    engine_code: int | None

    @property
    def engine(self) -> Data:
        """The only server."""
        assert self.code == 0, self.log
        assert len(self.engines) == 1, self.engine_log
        return self.engines[0]


class Pod:
    """A pod that is starting, from the moment on at which podman was asked to."""

    def __init__(self, podman: Podman, described: Data, folder: Path, network: str = "none") -> None:
        self.podman, self.name = podman, described["metadata"]["name"]
        self._file = folder / f"{self.name}.json"
        # So that podman keeps the init container's log and exit code.
        described["metadata"].setdefault("annotations", {})["io.podman.annotations.init.container.type"] = "always"
        self._file.write_text(json.dumps(described))
        self._play = subprocess.Popen(
            ["podman", "play", "kube", "--network", network, str(self._file)],
            env=dict(podman.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ended(self, within_s: float = COMMAND_S) -> Ended:
        """Waits for the init container, and where that went well for the engine."""
        said, _ = self._play.communicate(timeout=within_s)
        return self._left(said, within_s)

    def again(self, within_s: float = COMMAND_S) -> Ended:
        """Both containers once more over the same volumes, as after a restart of the node."""
        self.podman.ended("pod", "stop", self.name)
        return self._left(self.podman.ended("pod", "start", self.name, within_s=within_s).stderr, within_s)

    def await_init(self, within_s: float = COMMAND_S) -> None:
        """Until its process runs."""
        ends_s = time.monotonic() + within_s
        while not (self._state(INIT) or {}).get("Running"):
            assert time.monotonic() < ends_s, "the init container never ran"
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends the init container as a node's end would."""
        self.await_init()
        self.podman("kill", f"{self.name}-{INIT}")

    def file(self, name: str) -> bytes:
        """Of the plan's volume."""
        volume = self.podman.inspected("volume", f"{self.name}-plan")
        return (Path(volume["Mountpoint"]) / name).read_bytes()

    def remove(self) -> None:
        with self._play:
            self._play.kill()
        self.podman.ended("pod", "rm", "--force", "--time", "0", self.name)
        for volume in json.loads(self._file.read_text())["spec"]["volumes"]:
            if "emptyDir" in volume:
                self.podman.ended("volume", "rm", "--force", volume["name"])

    def _left(self, said: str, within_s: float) -> Ended:
        state = self._state(INIT)
        assert state is not None, said
        code, seconds = int(state["ExitCode"]), _seconds(state["StartedAt"], state["FinishedAt"])
        log = self._log(INIT, state["StartedAt"])
        if code != 0:
            return Ended(code, log, seconds, [], "", None)
        self.podman("wait", f"{self.name}-{ENGINE}", within_s=within_s)
        state = self._state(ENGINE)
        assert state is not None
        output = self.podman.ended("logs", "--since", state["StartedAt"], f"{self.name}-{ENGINE}")
        engines = sorted(map(json.loads, output.stdout.splitlines()), key=lambda told: str(told["argv"]))
        return Ended(code, log, seconds, engines, output.stderr, int(state["ExitCode"]))

    def _state(self, container: str) -> Data | None:
        done = self.podman.ended("container", "inspect", f"{self.name}-{container}")
        return dict(json.loads(done.stdout)[0]["State"]) if done.returncode == 0 else None

    def _log(self, container: str, since: str) -> str:
        done = self.podman.ended("logs", "--since", since, f"{self.name}-{container}")
        return done.stdout + done.stderr


def _seconds(start: str, end: str) -> float:
    """Between two of podman's times, which have nanoseconds and one zone."""
    a, b = (datetime.fromisoformat(time[:26]) for time in (start, end))
    return (b - a).total_seconds()
