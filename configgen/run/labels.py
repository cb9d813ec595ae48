"""Puts labels on this node's object in the Kubernetes API; the one door of its client.

The client costs more memory than the whole agent, so it lives in a child process for the moment of a change.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec

from configgen.run.agent import NODE_VARIABLE
from configgen.run.features import NAMES, PREFIX
from probe.errors import UsageError, WireloreError, one_line

_DEADLINE_S = 20.0
_REQUEST_S = 5.0
"""For each of the client's tries."""
_WORDS_BYTES = 4096

_CURES = {
    401: "Check the service account's token.",
    403: "Bind the agent's service account to a ClusterRole that may `patch` `nodes`.",
    404: f"Set {NODE_VARIABLE} to the node's name in the cluster (fieldRef: spec.nodeName).",
}
"""By the status that the API answered with."""


def require_labelling(environ: Mapping[str, str]) -> str:
    """The name of this node. Raises UsageError where it is not told, or the client is absent."""
    if find_spec("kubernetes") is None:
        raise UsageError("--node-labels needs the Kubernetes client", cure="pip install 'wirelore[k8s]'")
    if not environ.get(NODE_VARIABLE):
        raise UsageError(
            f"--node-labels: {NODE_VARIABLE} is not set, so nobody says which node this is",
            cure=f"Set {NODE_VARIABLE} from the downward API (fieldRef: spec.nodeName).",
        )
    return environ[NODE_VARIABLE]


def patch_of(told: Mapping[str, str]) -> dict[str, object]:
    """A merge patch that sets these labels and takes off all others of ours; nobody else's are touched."""
    return {"metadata": {"labels": {name: told.get(name) for name in (PREFIX + n for n in NAMES)}}}


def put_labels(node: str, told: Mapping[str, str], *, deadline_s: float = _DEADLINE_S) -> None:
    """Raises UsageError where the API does not take them, or not in time."""
    task = json.dumps({"node": node, "patch": patch_of(told)}).encode()
    command = [sys.executable, "-W", "ignore", "-m", "configgen.run.labels"]
    try:
        child = subprocess.run(command, input=task, capture_output=True, timeout=deadline_s, check=False)
    except subprocess.TimeoutExpired as error:
        cure = "Check the network policy and the API server."
        raise UsageError(f"the Kubernetes API gave no answer in {deadline_s:g} s", cure=cure) from error
    except OSError as error:
        cure = "Check memory and process limits."
        raise UsageError(f"no process can be started for the Kubernetes API: {error.strerror}", cure=cure) from error
    if child.returncode:
        words = child.stderr[-_WORDS_BYTES:].decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        status, _, problem = words[-1].rpartition("|")
        cure = _CURES.get(int(status) if status.isdecimal() else 0, "Check the cluster's address and credentials.")
        raise UsageError(f"the labels of node {one_line(node, 80)} cannot be set: {one_line(problem, 200)}", cure=cure)


def main() -> int:
    """In the child: one PATCH; what is wrong is the last line of standard error, 'STATUS|words'."""
    task = json.load(sys.stdin)
    try:
        _patch(task["node"], task["patch"])
    except WireloreError as error:
        sys.stderr.write(f"{error.problem}\n")
        return 1
    return 0


def _patch(node: str, patch: dict[str, object]) -> None:
    from kubernetes import client, config

    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST") and "KUBECONFIG" not in os.environ:
            config.load_incluster_config()
        else:
            config.load_kube_config()
        client.CoreV1Api().patch_node(node, patch, _request_timeout=_REQUEST_S, _preload_content=False)
    except client.ApiException as error:
        raise UsageError(f"{error.status or ''}|{error.status or ''} {error.reason}", cure="") from error
    except Exception as error:  # certificates, files, names, sockets: the client passes on whatever it meets
        raise UsageError(f"|{type(error).__name__}: {error}", cure="") from error


if __name__ == "__main__":
    raise SystemExit(main())
