"""The agent's chart, rendered by Helm's own engine, and its base, rendered by kubectl: valid, and the same pod."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate not installed: the agent's manifests are NOT checked"
)

import click
import yaml
from cluster_plans import Manifest, pods
from manifest_faults import schema_faults

from configgen.cli.root import wirelore as root
from configgen.templates import templates_folder
from probe import __version__

AGENT = templates_folder() / "agent"
LABELLING = {"nodeLabels": {"enabled": True}, "features": {"enabled": False}}
ODD = {"runtimeClassName": "", "podAnnotations": {}, "nodeSelector": {}, "tolerations": [], "interval": '5s"\n#'}
MEASURED = {"cache": {"hostPath": "/var/cache/wirelore"}}
VALUES: dict[str, dict[str, Any]] = {"as-shipped": {}, "labelling": LABELLING, "odd": ODD}

pytestmark = pytest.mark.long


def chart(values: dict[str, Any], release: str = "wirelore-agent") -> list[Manifest]:
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk not installed: the chart is NOT rendered")
    with helm.Chart.load(str(AGENT / "chart")) as loaded:
        rendered = loaded.render(values, name=release, namespace="gpu")
    documents = [d for text in rendered.values() for d in yaml.safe_load_all(text) if d]
    return sorted(documents, key=lambda d: d["kind"])


def base(folder: Path = AGENT / "kustomize") -> list[Manifest]:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl: the kustomize base is NOT rendered")
    command = ["kubectl", "kustomize", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 0, ended.stderr
    return list(yaml.safe_load_all(ended.stdout))


@pytest.mark.parametrize("values", VALUES)
def test_the_chart_is_valid(values: str) -> None:
    documents = chart(VALUES[values], release="x" * 53)
    assert documents
    for document in documents:
        assert list(schema_faults(document)) == []


def test_the_base_is_valid() -> None:
    for document in base():
        assert list(schema_faults(document)) == []


def test_a_mistake_in_the_chart_is_caught() -> None:
    (daemons,) = chart({"nodeSelector": {"a": 1}})
    assert list(schema_faults(daemons)) != []


def test_chart_and_base_are_the_same_pod() -> None:
    (one,) = (pod for pod in pods(chart({})))
    (other,) = (pod for pod in pods(base()))
    assert one == other
    assert one["containers"][0]["image"] == f"registry.example.com/wirelore:{__version__}"


def by_name(pod: Manifest) -> Manifest:
    """Kustomize puts what it adds first, where the order says nothing."""
    (container,) = pod["containers"]
    lists = ("env", "volumeMounts")
    ordered = {key: sorted(container[key], key=lambda item: item["name"]) for key in lists}
    volumes = sorted(pod["volumes"], key=lambda volume: volume["name"])
    return {**pod, "containers": [{**container, **ordered}], "volumes": volumes}


def test_the_component_of_the_base_is_the_value_of_the_chart(tmp_path: Path) -> None:
    kustomize = Path(shutil.copytree(AGENT / "kustomize", tmp_path / "base"))
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    told = {"resources": ["../base"], "components": ["../base/measured"]}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(told))
    assert kustomize.is_dir()
    documents = base(overlay)
    assert [fault for document in documents for fault in schema_faults(document)] == []
    (one,) = (pod for pod in pods(documents))
    (other,) = (pod for pod in pods(chart(MEASURED)))
    assert by_name(one) == by_name(other)


@pytest.mark.parametrize("values", VALUES)
def test_the_agent_takes_no_gpu_and_opens_nothing(values: str) -> None:
    (pod,) = pods(chart(VALUES[values]))
    (container,) = pod["containers"]
    assert not [name for limits in container["resources"].values() for name in limits if "/" in name]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    folders = [v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v]
    features = values != "labelling"
    assert folders == (["/etc/kubernetes/node-feature-discovery/features.d"] if features else [])
    assert pod["automountServiceAccountToken"] is (values == "labelling")
    assert pod["securityContext"].get("runAsNonRoot") is (None if features else True)


def test_it_may_change_nodes_only_where_it_was_asked_to_label_them() -> None:
    assert [d["kind"] for d in chart({})] == ["DaemonSet"]
    documents = {d["kind"]: d for d in chart(LABELLING)}
    assert set(documents) == {"ClusterRole", "ClusterRoleBinding", "DaemonSet", "ServiceAccount"}
    assert documents["ClusterRole"]["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"]}]
    account = documents["DaemonSet"]["spec"]["template"]["spec"]["serviceAccountName"]
    (subject,) = documents["ClusterRoleBinding"]["subjects"]
    assert (subject["name"], subject["namespace"]) == (account, "gpu")


@pytest.mark.parametrize("values", VALUES)
def test_it_reads_what_was_measured_on_the_node(values: str) -> None:
    (daemons,) = (d for d in chart({**VALUES[values], **MEASURED}) if d["kind"] == "DaemonSet")
    assert list(schema_faults(daemons)) == []
    (pod,) = pods(daemons)
    (container,) = pod["containers"]
    assert {"name": "XDG_CACHE_HOME", "value": "/cache"} in container["env"]
    assert {"name": "cache", "mountPath": "/cache", "readOnly": True} in container["volumeMounts"]
    folder = {"path": "/var/cache/wirelore", "type": "DirectoryOrCreate"}
    assert {"name": "cache", "hostPath": folder} in pod["volumes"]


def test_it_is_scraped_at_the_port_that_it_was_given() -> None:
    (daemons,) = chart({"port": 9000})
    assert daemons["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == "9000"
    (pod,) = pods(daemons)
    assert pod["containers"][0]["ports"][0]["containerPort"] == 9000


@pytest.mark.parametrize("values", ["as-shipped", "labelling"])
def test_the_agent_takes_the_words_of_the_chart(values: str) -> None:
    (pod,) = pods(chart(VALUES[values]))
    command = root.get_command(click.Context(root), "agent")
    if command is None:
        pytest.skip("there is no `wirelore agent`: its words are NOT checked")
    command.make_context("agent", list(pod["containers"][0]["args"]))
