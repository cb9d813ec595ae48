"""A pod as data: the init container that plans for the GPUs it was given, and the engine that starts with its plan."""

from __future__ import annotations

import re
from typing import Any

from configgen.deploy.blocks import Said
from configgen.deploy.service import Service, Wishes
from probe.errors import UsageError, one_line

Data = dict[str, Any]

PLAN, CACHE, MEASURED = "/plan", "/cache", "/measured"
USER = 1000
PERIOD_S, LOADING_S = 10, 3600
"""Between two questions whether the engine is well, and until its first yes."""
CLAIM = "nvlink-domain"
CLIQUE = "nvidia.com/gpu.clique"
"""A node's label: equal on nodes that reach each other over NVLink. ComputeDomains need it themselves."""
GROUP = "leaderworkerset.sigs.k8s.io/group-index"
"""The controller's label of each pod; pods without it are told apart by their names alone."""


def pod_spec(service: Service, wishes: Wishes, *, serves: bool = True) -> Data:
    """The pod of one member of a group; `serves` is False for the members that answer no requests."""
    asked = devices(service, wishes)
    security = container_security(service, wishes)
    told = environment(wishes)
    probe: Data = {
        Said(
            "name", "A plain init container: the GPUs it held are handed on to the engine, if the counts are equal."
        ): ("probe"),
        "image": service.image,
        "command": ["wirelore", "init"],
        "args": kubernetes_words(["--folder", PLAN, *_nodes(service), *service.told]),
        "env": [*told, *measured_environment(wishes)],
        "resources": asked,
        "securityContext": security,
        Said(
            "terminationMessagePolicy", "Its summary is the termination message; its log, where it could write none."
        ): ("FallbackToLogsOnError"),
        "volumeMounts": [_mount("plan", PLAN), *shared_mounts(service, wishes), *measured_mounts(wishes)],
    }
    engine: Data = {
        "name": "engine",
        "image": service.engine_image,
        Said("command", "Checks that the GPUs are the planned ones, and becomes the engine; it is no shell's line."): [
            f"{PLAN}/start"
        ],
        **({"args": list(service.start_words)} if service.start_words else {}),
        "env": told,
        **(serving(service) if serves else {}),
        "resources": asked,
        "securityContext": security,
        "volumeMounts": [{**_mount("plan", PLAN), "readOnly": True}, *shared_mounts(service, wishes)],
    }
    return {
        **pod_basics(wishes),
        "initContainers": [probe],
        "containers": [engine],
        **claims(service, service.name),
        "volumes": volumes(service, wishes),
    }


def pod_basics(wishes: Wishes) -> Data:
    """What every pod of ours says of itself."""
    return {
        **({"runtimeClassName": wishes.runtime_class} if wishes.runtime_class else {}),
        Said("automountServiceAccountToken", "It asks the cluster for nothing."): False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            Said("fsGroup", "So that this user may write into the volumes."): USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def container_security(service: Service, wishes: Wishes) -> Data:
    capabilities: Data = {"drop": ["ALL"]}
    if service.rdma is not None:
        # Kubernetes has no ambient capabilities (kubernetes/kubernetes#56374): what is added stays with root.
        why = "RDMA pins memory. This reaches root alone: any other user needs a runtime whose memlock is unlimited."
        capabilities[Said("add", why)] = ["IPC_LOCK"]
    why = "A CDI hook of NVIDIA's toolkit writes into the root filesystem as the container starts."
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": capabilities,
        (
            "readOnlyRootFilesystem" if wishes.read_only_root else Said("readOnlyRootFilesystem", why)
        ): wishes.read_only_root,
    }


def serving(service: Service) -> Data:
    """Ports and probes of the container that answers requests."""
    health = {"httpGet": {"path": "/health", "port": service.port, "scheme": "HTTP"}, "periodSeconds": PERIOD_S}
    return {
        "ports": [{"name": "http", "containerPort": service.port}],
        Said("startupProbe", "Loading a model takes minutes: up to an hour before it counts as failed."): {
            **health,
            "failureThreshold": LOADING_S // PERIOD_S,
        },
        "readinessProbe": {**health, "failureThreshold": 3},
        Said("livenessProbe", "An engine that answered once and is silent for five minutes is restarted."): {
            **health,
            "timeoutSeconds": 10,
            "failureThreshold": 30,
        },
    }


def volumes(service: Service, wishes: Wishes) -> list[Data]:
    claim = {"persistentVolumeClaim": {"claimName": wishes.model_claim}}
    cache = {"emptyDir": {}} if service.is_folder or not wishes.model_claim else claim
    return [
        {"name": "plan", "emptyDir": {"sizeLimit": "64Mi"}},
        shared_memory(service),
        {
            Said("name", "What the model hub and the engine keep; name a claim to keep it over restarts."): "cache",
            **cache,
        },
        *([{"name": "model", **claim}] if service.is_folder else []),
        *([{"name": "tmp", "emptyDir": {}}] if wishes.read_only_root else []),
        *measured_volumes(wishes),
    ]


def measured_volumes(wishes: Wishes) -> list[Data]:
    """The node's folder of what was measured on it, for later pods and the agent; only where it was asked for."""
    if wishes.cache_host_path is None:
        return []
    folder = {"path": wishes.cache_host_path, "type": "Directory"}
    why = "The node keeps what was measured on it; wirelore/surveys in it must be there, and be user 1000's."
    return [{Said("name", why): "measured", "hostPath": folder}]


def measured_environment(wishes: Wishes) -> list[Data]:
    return [{"name": "XDG_CACHE_HOME", "value": MEASURED}] if wishes.cache_host_path else []


def measured_mounts(wishes: Wishes) -> list[Data]:
    return [_mount("measured", MEASURED)] if wishes.cache_host_path else []


def kubernetes_words(words: list[str]) -> list[str]:
    """Words as a kubelet leaves them: it reads $(NAME) as a variable and $$ as one $ in commands and arguments."""
    return [re.sub(r"\$(?=[$(])", "$$", word) for word in words]


def labels(service: Service, component: str | None = None) -> Data:
    return {
        **chosen(service, component),
        "app.kubernetes.io/managed-by": "wirelore",
    }


def chosen(service: Service, component: str | None = None) -> Data:
    """The labels by which these pods are told from all others."""
    return {
        "app.kubernetes.io/name": service.name,
        **({"app.kubernetes.io/component": component} if component else {}),
    }


def claims(service: Service, owner: str, component: str | None = None) -> Data:
    """The pod's part in the NVLink domain of `owner`, where the plan counts on one.

    A ComputeDomain alone lets the scheduler spread a group over racks (kubernetes-sigs/dra-driver-nvidia-gpu#804).
    """
    if not service.nvlink_domain:
        return {}
    near = {
        "labelSelector": {"matchLabels": chosen(service, component)},
        Said("matchLabelKeys", "Each group by itself; two may be in two domains."): [GROUP],
        "topologyKey": CLIQUE,
    }
    why = "NVLink ends at a rack's domain. Required, a group would wait for ever where its first pods fill one up."
    affinity = {
        "podAffinity": {
            Said("preferredDuringSchedulingIgnoredDuringExecution", why): [{"weight": 100, "podAffinityTerm": near}]
        }
    }
    claimed = [{"name": CLAIM, "resourceClaimTemplateName": f"{owner}-{CLAIM}"}]
    return {"affinity": affinity, "resourceClaims": claimed}


def shared_memory(service: Service) -> Data:
    return {
        Said("name", "NCCL shares memory between ranks here; a container's own 64 MB are too few."): "shm",
        "emptyDir": {"medium": "Memory", "sizeLimit": f"{max(2, 2 * service.gpus)}Gi"},
    }


def metadata(service: Service, wishes: Wishes, *, name: str | None = None, **more: Any) -> Data:
    return {
        "name": name or service.name,
        **({"namespace": wishes.namespace} if wishes.namespace else {}),
        "labels": labels(service),
        **more,
    }


def devices(service: Service, wishes: Wishes) -> Data:
    """The devices of one container; all containers of a pod ask for the same."""
    limits: Data = {wishes.gpu_resource: service.gpus}
    if service.rdma is not None:
        limits[
            Said(service.rdma[0], "Your RDMA device plugin's name; --rdma NAME writes it, --rdma none leaves it out.")
        ] = service.rdma[1]
    claimed: Data = {
        Said("claims", "Claims are per container: without it here NVLink ends at the node."): [{"name": CLAIM}]
    }
    return {"limits": limits, **(claimed if service.nvlink_domain else {})}


def _nodes(service: Service) -> list[str]:
    return ["--nodes", str(service.nodes)] if service.nodes > 1 else []


def environment(wishes: Wishes) -> list[Data]:
    """What init and engine are told: where to keep files, and whose token to take."""
    user = {Said("name", "The image may not know this number, and PyTorch asks for a name."): "USER", "value": "engine"}
    named = [{"name": "HOME", "value": CACHE}, user, {"name": "HF_HOME", "value": f"{CACHE}/huggingface"}]
    if wishes.token_secret is None:
        return named
    secret = {"secretKeyRef": {"name": wishes.token_secret, "key": "token"}}
    return [
        *named,
        {
            Said("name", "Read from the secret's key 'token'; it is never written here."): "HF_TOKEN",
            "valueFrom": secret,
        },
    ]


def shared_mounts(service: Service, wishes: Wishes) -> list[Data]:
    """The volumes that every container has, whether it plans or serves."""
    mounts = [_mount("shm", "/dev/shm"), _mount("cache", CACHE)]  # noqa: S108 - a mount point
    if service.is_folder:
        mounts.append({**_mount("model", _folder(service, wishes)), "readOnly": True})
    return mounts + ([_mount("tmp", "/tmp")] if wishes.read_only_root else [])  # noqa: S108 - a mount point


def _folder(service: Service, wishes: Wishes) -> str:
    """The model's folder as a mount point, which the claim's root is. Raises UsageError where it can't be one."""
    shown = one_line(service.model, 80)
    if wishes.model_claim is None:
        cure = "Name the claim whose root is that folder with --model-claim."
        raise UsageError(f"the model is a folder, {shown}, and pods see none of this machine's", cure=cure)
    if ":" in service.model or not service.model.isprintable():
        raise UsageError(f"{shown} can't be a mount point in a pod", cure="Plan for a folder without ':' in its name.")
    return service.model


def _mount(name: str, path: str) -> Data:
    return {"name": name, "mountPath": path}


def compute_domain(service: Service, wishes: Wishes, owner: str) -> list[Data]:
    """The NVLink domain that the nodes of a group share, where the plan counts on one."""
    if not service.nvlink_domain:
        return []
    spec = {
        Said("numNodes", "Which nodes take part is told by the pods that hold a claim."): 0,
        "channel": {"resourceClaimTemplate": {"name": f"{owner}-{CLAIM}"}},
    }
    return [
        {
            "apiVersion": "resource.nvidia.com/v1beta1",
            "kind": "ComputeDomain",
            "metadata": metadata(service, wishes, name=owner),
            "spec": spec,
        }
    ]
