"""Kubernetes' own kinds, and those of its batch projects: Deployment, LeaderWorkerSet, the probe's job."""

from __future__ import annotations

from collections.abc import Callable

from configgen.deploy.blocks import Said, yaml_documents
from configgen.deploy.pod import (
    CACHE,
    LOADING_S,
    Data,
    chosen,
    claims,
    compute_domain,
    container_security,
    devices,
    kubernetes_words,
    labels,
    measured_environment,
    measured_mounts,
    measured_volumes,
    metadata,
    pod_basics,
    pod_spec,
    shared_memory,
)
from configgen.deploy.service import Service, Wishes, heading, service_of
from configgen.launch import Launch
from configgen.plan import Plan
from probe.bench.rendezvous import DEFAULT_PORT
from probe.errors import UsageError

KINDS = ("deployment", "lws", "jobset", "kserve", "rayservice", "llm-d")


def kubernetes_files(plan: Plan, launch: Launch, wishes: Wishes, kind: str | None = None) -> dict[str, str]:
    """File name -> text of the manifests; without a kind what the plan needs, and beside it the job that measures."""
    service = service_of(plan, launch, wishes)
    if kind is None:
        serving = "deployment" if service.nodes == 1 else "lws"
        return kubernetes_files(plan, launch, wishes, serving) | {
            "probe.yaml": _text(service, probe_job(service, wishes))
        }
    if kind in ("kserve", "rayservice", "llm-d"):
        from configgen.deploy import operators

        if kind == "llm-d":
            return {"llm-d-values.yaml": _text(service, [operators.llm_d_values(service, plan, wishes)])}
        if kind == "rayservice":
            return {"rayservice.yaml": _text(service, operators.ray_service(service, plan, launch, wishes))}
        return {"llminferenceservice.yaml": _text(service, operators.llm_inference_service(service, plan, wishes))}
    write: Callable[[Service, Wishes], list[Data]]
    name, write = {
        "deployment": ("deployment.yaml", deployment),
        "lws": ("leaderworkerset.yaml", leader_worker_set),
        "jobset": ("probe.yaml", probe_jobset),
    }[kind]
    return {name: _text(service, write(service, wishes))}


def deployment(service: Service, wishes: Wishes) -> list[Data]:
    """A Deployment of a pod per replica, and the Service in front of it. Raises UsageError for more than one node."""
    if service.nodes > 1:
        raise UsageError(
            f"a replica lies on {service.nodes} nodes, and a Deployment's pods know nothing of each other",
            cure="Use --kind lws.",
        )
    spec = {
        "replicas": service.replicas,
        "selector": {"matchLabels": chosen(service, "server")},
        Said("strategy", "A second pod would wait for GPUs that the first still holds."): {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
        },
        Said("progressDeadlineSeconds", "Longer than an engine may load: else the rollout counts as failed before."): (
            LOADING_S + 300
        ),
        "template": _template(service, "server", pod_spec(service, wishes)),
    }
    pods = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(service, wishes), "spec": spec}
    return [pods, _front(service, wishes, "server")]


def leader_worker_set(service: Service, wishes: Wishes) -> list[Data]:
    """A group of pods per replica: the leader answers requests, all plan together before the engine starts."""
    leader = _template(service, "leader", pod_spec(service, wishes))
    worker = _template(service, "worker", pod_spec(service, wishes, serves=False))
    spec = {
        "replicas": service.replicas,
        Said(
            "startupPolicy", "The pods of a group meet before the leader is ready: LeaderReady would wait for ever."
        ): ("LeaderCreated"),
        "leaderWorkerTemplate": {
            "size": service.nodes,
            Said("restartPolicy", "A member that comes late while the group starts doesn't start all of it anew."): (
                "RecreateGroupAfterStart"
            ),
            "leaderTemplate": leader,
            "workerTemplate": worker,
        },
    }
    group = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": metadata(service, wishes),
        "spec": spec,
    }
    return [*compute_domain(service, wishes, service.name), group, _front(service, wishes, "leader")]


def probe_job(service: Service, wishes: Wishes) -> list[Data]:
    """The job that measures as many nodes as a replica has: `kubectl logs` of its first pod is the survey."""
    return _single_job(service, wishes) if service.nodes == 1 else probe_jobset(service, wishes)


def probe_jobset(service: Service, wishes: Wishes) -> list[Data]:
    """An indexed job inside a JobSet, so that the pods find node 0 by its name."""
    name = f"{service.name}-probe"
    master = f"{name}-nodes-0-0.{name}:{DEFAULT_PORT}"
    words = ["--nnodes", str(service.nodes), "--master", master] if service.nodes > 1 else []
    template = {"spec": _job_spec(service, wishes, words)}
    spec = {
        Said("network", "Pods find each other by name while they start, not only once they are ready."): {
            "enableDNSHostnames": True,
            "publishNotReadyAddresses": True,
        },
        "replicatedJobs": [{"name": "nodes", "replicas": 1, "template": template}],
    }
    jobs = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata(service, wishes, name=name),
        "spec": spec,
    }
    return [*compute_domain(service, wishes, name), jobs]


def _single_job(service: Service, wishes: Wishes) -> list[Data]:
    named = metadata(service, wishes, name=f"{service.name}-probe")
    return [{"apiVersion": "batch/v1", "kind": "Job", "metadata": named, "spec": _job_spec(service, wishes, [])}]


def _job_spec(service: Service, wishes: Wishes, words: list[str]) -> Data:
    container: Data = {
        "name": "measure",
        Said(
            "image", "It measures with torch and NCCL: wirelore inside the engine's own image, not the one for init."
        ): (service.engine_image),
        "command": ["wirelore", "measure"],
        "args": kubernetes_words([*words, "--budget", "60s", "--format", "json"]),
        "env": [
            {"name": "HOME", "value": CACHE},
            {"name": "USER", "value": "engine"},
            *measured_environment(wishes),
        ],
        "resources": devices(service, wishes),
        "securityContext": container_security(service, wishes),
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - a mount point
            {"name": "cache", "mountPath": CACHE},
            *([{"name": "tmp", "mountPath": "/tmp"}] if wishes.read_only_root else []),  # noqa: S108 - a mount point
            *measured_mounts(wishes),
        ],
    }
    pod = {
        **pod_basics(wishes),
        "restartPolicy": "Never",
        "containers": [container],
        **claims(service, f"{service.name}-probe", "probe"),
        "volumes": [
            shared_memory(service),
            {"name": "cache", "emptyDir": {}},
            *([{"name": "tmp", "emptyDir": {}}] if wishes.read_only_root else []),
            *measured_volumes(wishes),
        ],
    }
    return {
        "completionMode": "Indexed",
        "completions": service.nodes,
        "parallelism": service.nodes,
        Said("backoffLimit", "A measurement that failed says why; a second one would only hide it."): 0,
        "activeDeadlineSeconds": 600,
        "template": _template(service, "probe", pod),
    }


def _template(service: Service, component: str, spec: Data) -> Data:
    return {"metadata": {"labels": labels(service, component)}, "spec": spec}


def _front(service: Service, wishes: Wishes, component: str) -> Data:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(service, wishes, name=f"{service.name}-http"),
        "spec": {"selector": chosen(service, component), "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }


def _text(service: Service, documents: list[Data]) -> str:
    return yaml_documents(heading(service, images=True), documents)
