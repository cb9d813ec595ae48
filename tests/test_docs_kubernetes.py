"""docs/kubernetes.md as an operator follows it: the real kubectl, and Helm's own engine, at a cluster's stand-in."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from docs_commands import ROOT, Command, documented, follow, program, run_in_bash

pytest.importorskip("kubernetes_validate", reason="kubernetes-validate not installed: NO command of kubectl is tested")

from api_stand_in import StandIn, stand_in
from command import environment, wirelore
from crd_shapes import own_shape
from manifest_faults import VERSIONS

PAGE = "kubernetes.md"
SAID = "4 GPUs found, TP2 PP2 planned\n"
LLM_D = """
apiVersion: v1
kind: Service
metadata: {name: {{ .Values.fullnameOverride }}}
spec: {ports: [{port: {{ .Values.routing.servicePort }}}]}
"""
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl: NO command of it in the docs is tested"),
]


@dataclass
class Operator:
    """Somebody at a terminal, in a clone, who has done all that the page said so far."""

    folder: Path
    cluster: StandIn
    environ: dict[str, str]

    def follows(self, *commands: Command) -> None:
        follow(PAGE, self.folder, commands[-1])

    def runs(self, command: Command) -> str:
        return run_in_bash(command, self.folder, self.environ).stdout

    def refused(self, command: Command, word: str, other: str) -> str:
        """What the same command says, with one word changed for another."""
        text = command.text.replace(word, other)
        assert text != command.text
        with pytest.raises(AssertionError) as told:
            run_in_bash(text, self.folder, self.environ)
        return str(told.value)


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    (tmp_path / "templates").symlink_to(ROOT / "templates")
    with stand_in() as cluster:
        config = tmp_path / "kubeconfig"
        config.write_text(cluster.kubeconfig)
        helm = f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/helm_command.py "$@"\n'
        program(tmp_path / "bin", "helm", helm)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        yield Operator(tmp_path, cluster, environment(KUBECONFIG=str(config), HOME=str(tmp_path), PATH=path))


def test_the_manifests_are_applied_and_the_pods_own_words_read(operator: Operator) -> None:
    asked, apply, logs = documented(
        "kubernetes.md", "kubectl apply --dry-run", "kubectl apply -f manifests/d", "kubectl logs dep"
    )
    operator.follows(apply)
    assert "job.batch/qwen3-32b-probe created (server dry run)" in operator.runs(asked)
    assert operator.cluster.held == {}, "nothing was kept"
    operator.runs(apply)
    operator.cluster.logs["probe"] = SAID
    assert operator.runs(logs) == SAID
    assert "not found" in operator.refused(logs, "qwen3-32b", "qwen3")
    assert "is not valid for pod" in operator.refused(logs, "-c probe", "-c prob")


def test_the_secret_has_the_key_that_the_pods_ask_for(operator: Operator) -> None:
    (create,) = documented("kubernetes.md", "kubectl create secret")
    token = operator.folder / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.write_text("hf_planted")
    operator.runs(create)
    follow(PAGE, operator.folder)
    asked = json.dumps(list(yaml.safe_load_all((operator.folder / "two" / "leaderworkerset.yaml").read_text())))
    (name,) = set(re.findall(r'"secretKeyRef": {"name": "([^"]*)", "key": "token"}', asked))
    assert list(operator.cluster.held["Secret", "default", name]["data"]) == ["token"]


def test_a_port_leads_through_the_service_to_the_engines(operator: Operator) -> None:
    """As far as kubectl's own resolving goes, and the tunnel's opening: no byte is carried to an engine here."""
    (forward,) = documented("kubernetes.md", "kubectl port-forward")
    (port,) = re.findall(r" (\d+):80$", forward.text)
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", int(port))) == 0:
            pytest.skip(f"something listens at port {port} here: `{forward.text}` is NOT tested")
    operator.follows(forward)
    run_in_bash("kubectl apply -f manifests/deployment.yaml", operator.folder, operator.environ)
    process = subprocess.Popen(
        ["bash", "-c", f"exec {forward.text}"], cwd=operator.folder, env=operator.environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"Forwarding from 127.0.0.1:{port} -> 8000\n", "vLLM's own port"
        socket.create_connection(("127.0.0.1", int(port)), timeout=5).close()
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert operator.cluster.forwarded == ["qwen3-32b-0"]


def surveyed(source: str) -> str:
    """What the measuring pods would print: the facts of that machine."""
    return wirelore("probe", "--from", source, "--format", "json").data()


def test_the_survey_of_one_node_is_in_its_jobs_log_and_is_planned_from(operator: Operator) -> None:
    apply, wait, logs = documented(
        "kubernetes.md",
        "kubectl apply -f manifests/probe.yaml",
        "kubectl wait --for=condition=complete job/qwen3-32b-probe ",
        "kubectl logs job/",
    )
    operator.follows(logs)
    operator.cluster.logs["measure"] = surveyed("machine:3090-bridges-4")
    job = operator.folder / "manifests/probe.yaml"
    good = job.read_text()
    job.write_text(good.replace("backoffLimit", "backOffLimit"))
    with pytest.raises(AssertionError, match="'backOffLimit' was unexpected"):
        operator.runs(apply)
    job.write_text(good)
    operator.runs(apply)
    assert operator.runs(wait) == "job.batch/qwen3-32b-probe condition met\n"
    assert operator.runs(logs) == ""
    assert logs.comment.startswith("then: wirelore ")
    assert "TP2" in wirelore(*logs.comment.split()[2:], cwd=operator.folder).data()


def test_the_survey_of_several_nodes_is_in_the_log_of_the_first_pod(operator: Operator) -> None:
    """Of the page's own plan for two nodes, by the name that these commands take it to have."""
    wait, logs = documented(
        "kubernetes.md", "kubectl wait --for=condition=complete job/qwen3-32b-probe-", "kubectl logs -l"
    )
    (name,) = re.findall(r"job/(\S+)-probe-nodes-0", wait.text)
    follow(PAGE, operator.folder)
    operator.cluster.logs["measure"] = surveyed("machine:2xhgx-h100")
    wirelore("emit", "two.json", "--target", "kubernetes", "--name", name, "-o", "named", cwd=operator.folder).data()
    run_in_bash("kubectl apply -f named/probe.yaml", operator.folder, operator.environ)
    assert operator.cluster.named("Job") == [f"{name}-probe-nodes-0"]
    assert operator.cluster.named("Pod") == [f"{name}-probe-nodes-0-0", f"{name}-probe-nodes-0-1"]
    operator.runs(wait)
    operator.runs(logs)
    (asked,) = [line for line in operator.cluster.asked if "/log?" in line]
    assert f"/{name}-probe-nodes-0-0/" in asked
    assert (operator.folder / "survey.json").read_text() == surveyed("machine:2xhgx-h100"), "all of it"


def test_the_agent_is_installed_on_every_node_by_its_chart(operator: Operator) -> None:
    pytest.importorskip(
        "helm_python", reason="helm-python-sdk not installed: `helm install` of the agent is NOT tested"
    )
    install, labels = documented("kubernetes.md", "helm install wirelore-agent", "kubectl get nodes")
    operator.runs(install)
    agent = operator.cluster.held["DaemonSet", "wirelore", "wirelore-agent"]
    image = agent["spec"]["template"]["spec"]["containers"][0]["image"]
    repository = install.text.partition("image.repository=")[2]
    assert image.startswith(f"{repository}:")
    assert "no chart" in operator.refused(install, "agent/chart", "agent")
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu-7", "labels": {"wirelore.io/gpus": "8"}}}
    operator.cluster.keep(node, "")
    assert "wirelore.io/gpus=8" in operator.runs(labels)


def test_the_agent_gets_the_right_to_label(operator: Operator) -> None:
    pytest.importorskip("helm_python", reason="helm-python-sdk not installed: the labelling agent is NOT tested")
    (upgrade,) = documented("kubernetes.md", "helm upgrade")
    operator.runs(upgrade)
    agent = operator.cluster.held["DaemonSet", "wirelore", "wirelore-agent"]
    assert "--node-labels" in agent["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [kind for kind, _, _ in operator.cluster.held if kind.startswith("ClusterRole")]


def test_the_agent_is_installed_without_helm(operator: Operator) -> None:
    (apply,) = documented("kubernetes.md", "kubectl apply -k")
    operator.runs(apply)
    assert operator.cluster.named("DaemonSet", "wirelore") == ["wirelore-agent"], "in a namespace that it brings along"


def test_the_values_for_llm_d_go_through_helm(operator: Operator) -> None:
    """llm-d's own chart cannot be had here: a chart of its name stands in, which takes those values and no others."""
    pytest.importorskip("helm_python", reason="helm-python-sdk not installed: `helm install` of llm-d is NOT tested")
    add, install = documented("kubernetes.md", "helm repo add", "helm install llama")
    operator.follows(install)
    chart = operator.folder / next(word for word in install.words if "/" in word)
    assert chart.parts[-2] == add.words[3], "the repository that was added"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text(f"apiVersion: v2\nname: {chart.name}\nversion: 0.0.0\n")
    (chart / "values.schema.json").write_text(json.dumps(own_shape("llm-d", VERSIONS[-1]).schema))
    (chart / "templates" / "service.yaml").write_text(LLM_D)
    operator.runs(add)
    operator.runs(install)
    assert operator.cluster.named("Service") == ["llama-3-1-405b"]
    values = operator.folder / install.words[-1]
    values.write_text(values.read_text().replace("replicas:", "copies:"))
    with pytest.raises(AssertionError, match="copies"):
        operator.runs(install)
