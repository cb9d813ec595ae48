"""Pods under a real podman: how they are described, started together, and what is left of them to look at."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
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


def pod(name: str, emitted: Data, *, plan: Data = EMPTY, more: Sequence[Data] = (), **variables: str) -> Data:
    """A pod of this emitted spec, as far as podman plays one, on a node with these volumes and variables.

    Each of `more` is a volume with the mountPath that it has in both containers.
    """
    spec: Data = json.loads(json.dumps(emitted))
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    volumes["plan"] = {"name": "plan", **plan}
    told = [{"name": key, "value": value} for key, value in variables.items()]
    containers = [*spec["initContainers"], *spec["containers"]]
    for container in containers:
        container["imagePullPolicy"] = "Never"
        container["env"] = [*container.get("env", []), *told]
        for key in ("ports", "startupProbe", "readinessProbe", "livenessProbe"):  # of a server; the stub is none
            container.pop(key, None)
    for number, volume in enumerate(more):
        key = f"node{number}"
        volumes[key] = {"name": key, **{word: said for word, said in volume.items() if word != "mountPath"}}
        for container in containers:
            container["volumeMounts"].append({"name": key, "mountPath": volume["mountPath"]})
    for mount in [mount for container in containers for mount in container["volumeMounts"]]:
        mount["name"] = f"{name}-{mount['name']}"  # podman has one room of names for the volumes of all pods
    spec["volumes"] = [{**volume, "name": f"{name}-{volume['name']}"} for volume in volumes.values()]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        # The annotation has podman keep the init container's log and exit code.
        "metadata": {"name": name, "annotations": {"io.podman.annotations.init.container.type": "always"}},
        "spec": {**spec, "restartPolicy": "Never"},
    }


def with_words(emitted: Data, *, model: str | None = None, **options: str) -> Data:
    """The same spec, whose init container is asked for another model, or has other values of its options."""
    spec: Data = json.loads(json.dumps(emitted))
    (probe,) = spec["initContainers"]
    words: list[str] = probe["args"]
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words[0:0] = [option, value]
    if model is not None:
        words[-1] = model
    return spec


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
        self._file.write_text(json.dumps(described))
        empty = {v["name"]: v["emptyDir"] for v in described["spec"]["volumes"] if "emptyDir" in v}
        self._volumes = list(empty)
        for volume in [name for name, told in empty.items() if told.get("medium") == "Memory"]:
            # For all to write into, as a kubelet makes it; podman's own would be root's.
            podman("volume", "create", "--opt=type=tmpfs", "--opt=device=tmpfs", "--opt=o=mode=1777", volume)
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
        return (Path(self.podman.inspected("volume", f"{self.name}-plan")["Mountpoint"]) / name).read_bytes()

    def remove(self) -> None:
        with self._play:
            self._play.kill()
        self.podman.ended("pod", "rm", "--force", "--time", "0", self.name)
        self.podman.ended("volume", "rm", "--force", *self._volumes)

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


Play = Callable[..., Pod]
"""A described pod, and its network: starts it, and removes it after the test."""


def _seconds(start: str, end: str) -> float:
    """Between two of podman's times, which have nanoseconds and one zone."""
    a, b = (datetime.fromisoformat(time[:26]) for time in (start, end))
    return (b - a).total_seconds()
