"""What is wrong with a manifest: its schema's word, and the laws that no schema knows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import kubernetes_validate
from cluster_plans import Manifest, pods
from crd_shapes import SPECS, own_shape, published
from kubernetes_validate import utils

utils.schema_contents = lru_cache(maxsize=None)(utils.schema_contents)  # else each file is read anew for each document
VERSIONS = sorted(set(utils.all_versions()), key=lambda version: [int(part) for part in version.split(".")])[-4:]
"""The last four that it ships; it lists each twice, once for its strict schemas."""


def faults(manifest: Manifest) -> list[str]:
    """Everything that is wrong with one document, in words."""
    of_pods = (fault for pod in pods(manifest) for fault in _of_pod(pod))
    return [*schema_faults(manifest), *_of_group(manifest), *of_pods]


def schema_faults(manifest: Manifest) -> Iterator[str]:
    """What the schemas say of one document: Kubernetes' own of four versions, or the custom kind's."""
    kind = manifest.get("kind", "llm-d")
    if kind != "llm-d" and kind not in SPECS:
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"Kubernetes {version}: {error.message[:200]}"
        return
    for version in VERSIONS:
        yield from (f"{kind} with {version}: {e.message[:200]}" for e in own_shape(kind, version).iter_errors(manifest))
    own = published(kind) if kind in SPECS else None
    if own is not None:
        yield from (f"{kind} as published: {e.message[:200]}" for e in own.iter_errors(manifest))


def _of_group(manifest: Manifest) -> Iterator[str]:
    """What is started together must be as many as init waits for."""
    spec = manifest.get("spec", {})
    size = {
        "LeaderWorkerSet": lambda: spec.get("leaderWorkerTemplate", {}).get("size"),
        "LLMInferenceService": lambda: _members(spec.get("parallelism", {})) if "worker" in spec else 1,
    }.get(manifest.get("kind", ""))
    if size is None:
        return
    for pod in pods(manifest):
        words = pod["initContainers"][0].get("args", [])
        waits = int(words[words.index("--nodes") + 1]) if "--nodes" in words else 1
        if size() != waits:
            yield f"{size()} pods are a group, and each waits for {waits}"


def _members(parallelism: Manifest) -> object:
    """As KServe counts them (kserve/kserve pkg/apis/serving/v1alpha2: ParallelismSpec.GetSize)."""
    if "data" in parallelism:
        return parallelism["data"] // parallelism.get("dataLocal", 1)
    return parallelism.get("pipeline")


def _of_pod(pod: Manifest) -> Iterator[str]:
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    asked = [c.get("resources", {}) for c in containers]
    if len(asked) > 1 and any(other != asked[0] for other in asked):
        yield "the init container asks for other devices than the engine"
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield f"{name} opens the node"
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    if any("hostPath" in volume for volume in volumes.values()):
        yield "a folder of the node is mounted"
    if (pod.get("securityContext") or pod.get("podSecurityContext", {})).get("runAsNonRoot") is not True:
        yield "may run as root"
    token = pod.get("automountServiceAccountToken", pod.get("extraConfig", {}).get("automountServiceAccountToken"))
    if token is not False:
        yield "gets a token of the service account"
    claims = {claim["name"] for claim in pod.get("resourceClaims", [])}
    for container in containers:
        yield from (f"{container['name']} {fault}" for fault in _of_container(container, volumes, claims))


def _of_container(container: Manifest, volumes: dict[str, Manifest], claims: set[str]) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "may gain privileges"
    capabilities = security.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or not set(capabilities.get("add", [])) <= {"IPC_LOCK"}:
        yield "has capabilities"
    if "restartPolicy" in container:
        yield "is a sidecar, which keeps its GPUs"
    mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
    if unknown := {mount["name"] for mount in mounts.values()} - volumes.keys():
        yield f"mounts {unknown}, which the pod lacks"
    if security.get("readOnlyRootFilesystem") and "/tmp" not in mounts:
        yield "has no place for what it writes into /tmp"
    shared = volumes.get(mounts.get("/dev/shm", {}).get("name", ""), {})
    if shared.get("emptyDir", {}).get("medium") != "Memory":
        yield "has 64 MB of shared memory"
    if container.get("command") == ["/plan/start"] and mounts.get("/plan", {}).get("readOnly") is not True:
        yield "may write into the plan"
    if {claim["name"] for claim in container.get("resources", {}).get("claims", [])} != claims:
        yield "is outside the pod's NVLink domain"
