"""Labels of a node, set by the real Kubernetes client in a server that keeps what it is told."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from agent_run import agent
from command import wirelore
from fake_nvml import FakeMachine
from fake_nvml.machines import LOST, Description, healthy, hgx_h100

pytestmark = pytest.mark.long

NODE = "gpu-node-7"
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: here, user: agent}}}}]
clusters: [{{name: here, cluster: {{server: "{url}"}}}}]
users: [{{name: agent, user: {{token: "a-token"}}}}]
"""
BEFORE = {"kubernetes.io/os": "linux", "nvidia.com/gpu.count": "8", "wirelore.io/measured-gbps": "400"}


@dataclass
class Cluster:
    """A Kubernetes API with one node that was labelled before."""

    api: Any
    url: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"KUBECONFIG": str(self.folder / "kubeconfig"), "NODE_NAME": NODE}

    @property
    def labels(self) -> dict[str, str]:
        with urllib.request.urlopen(f"{self.url}/api/v1/nodes/{NODE}", timeout=10) as answer:
            return dict(json.load(answer)["metadata"]["labels"])

    @property
    def own(self) -> dict[str, str]:
        return {n.removeprefix("wirelore.io/"): v for n, v in self.labels.items() if n.startswith("wirelore.io/")}

    def refuse(self, status: int) -> None:
        self.api["patch"] << status

    def asked(self, *but: str) -> list[str]:
        """The methods of all requests, but those of the tests' own GET."""
        return [request.method.value for request in list(self.api) if request.method.value not in but]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    absent = [name for name in ("kubernetes", "kmock") if find_spec(name) is None]
    if absent:
        pytest.skip(f"{' and '.join(absent)} not installed: NOTHING is labelled through the Kubernetes API")
    import kmock

    told: list[tuple[Any, str]] = []
    is_up, ending = threading.Event(), threading.Event()

    async def serve() -> None:
        async with kmock.KubernetesEmulator() as api, kmock.Server(api) as server:
            told.append((api, str(server.url).rstrip("/")))
            is_up.set()
            await asyncio.to_thread(ending.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert is_up.wait(20)
        ((api, url),) = told
        body = json.dumps({"metadata": {"name": NODE, "labels": BEFORE}}).encode()
        created = urllib.request.Request(f"{url}/api/v1/nodes", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(created, timeout=10).close()
        (tmp_path / "kubeconfig").write_text(KUBECONFIG.format(url=url))
        yield Cluster(api, url, tmp_path)
    finally:
        ending.set()
        thread.join(20)


def with_gpu_lost(description: Description) -> Description:
    description["memory 5"] = LOST
    return description


def test_labels_are_set_and_those_that_no_longer_hold_are_taken_off(
    cluster: Cluster, fake_machine: FakeMachine
) -> None:
    told = fake_machine(healthy(hgx_h100()), **cluster.environment)
    ended = wirelore("agent", "--once", "--node-labels", environ=told)
    assert ended.data().splitlines() == [f"wirelore.io/{name}={value}" for name, value in cluster.own.items()]
    assert cluster.own["island-size"] == "8"
    assert "measured-gbps" not in cluster.own
    assert {n: v for n, v in cluster.labels.items() if not n.startswith("wirelore.io/")} == {
        "kubernetes.io/os": "linux", "nvidia.com/gpu.count": "8",
    }  # fmt: skip
    assert cluster.asked("GET") == ["POST", "PATCH"], "no other verb is needed, not even get"


def test_a_change_is_patched_once_and_no_change_never(cluster: Cluster, fake_nvml: Path) -> None:
    with agent(cluster.folder, fake_nvml, healthy(hgx_h100()), "--node-labels", **cluster.environment) as run:
        run.until(lambda: cluster.own.get("gpus") == "8")
        run.until(lambda: (run.metric("wirelore_probes_total", result="ok") or 0) >= 4)
        assert cluster.asked("GET", "POST") == ["PATCH"]
        run.become(with_gpu_lost(healthy(hgx_h100())))
        run.until(lambda: cluster.own.get("gpus") == "7")
        run.lose_driver()
        run.until(lambda: cluster.own == {"probe": "failed"})
        assert cluster.asked("GET", "POST") == ["PATCH"] * 3
        assert run.rss_mib() < 50, "the client's memory is not the agent's"
        assert run.end()[1] < 1


@pytest.mark.parametrize(
    ("hinder", "told"),
    [
        (lambda cluster: cluster.refuse(403), "403 Forbidden. Bind the agent's service account"),
        (lambda cluster: cluster.refuse(404), "404 Not Found. Set NODE_NAME"),
        (lambda cluster: (cluster.folder / "kubeconfig").unlink(), "Check the cluster's address"),
        (lambda cluster: (cluster.folder / "kubeconfig").write_text("{"), "Check the cluster's address"),
    ],
)
def test_what_keeps_labels_off_is_one_line_with_its_cure(
    cluster: Cluster, fake_machine: FakeMachine, hinder: Callable[[Cluster], object], told: str
) -> None:
    hinder(cluster)
    ended = wirelore(
        "agent", "--once", "--node-labels", environ=fake_machine(healthy(hgx_h100()), **cluster.environment)
    )
    assert ended.code == 2
    assert told in ended.err
    assert "Traceback" not in ended.err
    assert "a-token" not in ended.err


def test_an_agent_that_may_not_label_tries_again(cluster: Cluster, fake_nvml: Path) -> None:
    config = cluster.folder / "kubeconfig"
    good = config.read_text()
    config.write_text("{")
    with agent(cluster.folder, fake_nvml, healthy(hgx_h100()), "--node-labels", **cluster.environment) as run:
        run.until(lambda: run.metric("wirelore_published", to="labels") == 0)
        run.until(lambda: (run.metric("wirelore_probes_total", result="ok") or 0) >= 3)
        assert run.log.count("labels not published") == 1
        assert run.metric("wirelore_published", to="features") == 1
        config.write_text(good)
        run.until(lambda: cluster.own.get("gpus") == "8")


def test_a_node_without_a_name_is_said(cluster: Cluster) -> None:
    ended = wirelore("agent", "--node-labels", environ={"KUBECONFIG": cluster.environment["KUBECONFIG"]})
    assert ended.code == 2
    assert "NODE_NAME is not set" in ended.err
