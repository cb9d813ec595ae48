"""Kinds of serving projects on Kubernetes: KServe's LLMInferenceService, KubeRay's RayService, llm-d's values."""

from __future__ import annotations

from urllib.parse import quote

from configgen.deploy.blocks import Lines, Said, yaml_text
from configgen.deploy.config import flag_settings
from configgen.deploy.pod import (
    CLAIM,
    Data,
    claims,
    compute_domain,
    container_security,
    devices,
    environment,
    labels,
    metadata,
    pod_basics,
    pod_spec,
    shared_mounts,
)
from configgen.deploy.service import REGISTRY, Service, Wishes
from configgen.launch import Launch
from configgen.plan import Plan
from probe.errors import UsageError
from probe.units import count

RAY_VERSION = "2.60.0"
_MAIN = "main"
"""What KServe calls the engine's container: by this name it is joined with KServe's own."""
_OF_A_NODE = {"device-ids", "nnodes", "node-rank", "master-addr", "master-port", "headless", "port"}
"""Flags of `vllm serve` that say what Ray decides."""

_OF_EVERY_NODE = {"VLLM_PP_LAYER_PARTITION", "NCCL_P2P_DISABLE", "NCCL_MNNVL_ENABLE", "NCCL_CUMEM_ENABLE"}
"""Variables of a process that hold wherever Ray puts it."""


def llm_inference_service(service: Service, plan: Plan, wishes: Wishes) -> list[Data]:
    """A service of KServe whose pods plan for themselves, and which says how the model is cut. Raises UsageError."""
    _needs(service, "vllm", "KServe")
    if service.is_folder:
        raise UsageError(
            "KServe fetches a model by its address, and this one is a folder", cure="Use --kind deployment."
        )
    head = _called_main(pod_spec(service, wishes))
    worker = {"worker": _called_main(pod_spec(service, wishes, serves=False))} if service.nodes > 1 else {}
    spec = {
        "model": {"uri": f"hf://{quote(service.model)}", "name": service.model},
        Said("storageInitializer", "The engine fetches the model itself, by its name, into the volume 'cache'."): {
            "enabled": False
        },
        "replicas": service.replicas,
        Said(
            "parallelism", "As planned: KServe counts a group's pods by it; they start with the plan that they made."
        ): (_parallelism(plan)),
        "template": head,
        **worker,
    }
    told = {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": metadata(service, wishes),
        "spec": spec,
    }
    return [*compute_domain(service, wishes, service.name), told]


def ray_service(service: Service, plan: Plan, launch: Launch, wishes: Wishes) -> list[Data]:
    """vLLM on Ray Serve: the flags of this plan, for Ray places the ranks. Raises UsageError for what Ray can't do."""
    _needs(service, "vllm", "Ray Serve")
    if plan.parallelism.attention_dp > 1:
        raise UsageError("Ray Serve has an application of its own for attention-DP", cure="Use --kind lws.")
    if wishes.cache_host_path:
        raise UsageError("nothing measures in Ray's pods, so they keep nothing", cure="Leave --cache-host-path away.")
    image = wishes.engine_image or f"{REGISTRY}/ray-llm:{RAY_VERSION}"
    security = container_security(service, wishes)
    common = {
        "image": image,
        "env": environment(wishes),
        "securityContext": security,
        "volumeMounts": shared_mounts(service, wishes),
    }
    spec = pod_spec(service, wishes)
    pod = {**pod_basics(wishes), "volumes": [v for v in spec["volumes"] if v["name"] != "plan"]}
    head = {**pod, "containers": [{"name": "ray-head", **common, "ports": _ray_ports()}]}
    worker = {
        **pod,
        "containers": [{"name": "ray-worker", **common, "resources": devices(service, wishes)}],
        **claims(service, service.name),
    }
    group = {
        "groupName": "gpus",
        "replicas": service.replicas,
        "minReplicas": service.replicas,
        "maxReplicas": service.replicas,
        "numOfHosts": service.nodes,
        "rayStartParams": {},
        "template": {"metadata": {"labels": labels(service, "worker")}, "spec": worker},
    }
    cluster = {
        "rayVersion": RAY_VERSION,
        "headGroupSpec": {
            Said("rayStartParams", "The head places no ranks: it has no GPU."): {"num-gpus": "0"},
            "template": {"metadata": {"labels": labels(service, "head")}, "spec": head},
        },
        "workerGroupSpecs": [group],
    }
    served = {
        Said(
            "serveConfigV2", "Which GPU runs which rank is Ray's own choice; a plan made in the pods needs --kind lws."
        ): (Lines(yaml_text(_application(service, plan, launch)))),
        "rayClusterConfig": cluster,
    }
    told = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata(service, wishes), "spec": served}
    return [*compute_domain(service, wishes, service.name), told]


def llm_d_values(service: Service, plan: Plan, wishes: Wishes) -> Data:
    """Values of the chart llm-d-modelservice, whose decode pods plan for themselves. Raises UsageError."""
    _needs(service, "vllm", "llm-d")
    pod = pod_spec(service, wishes)
    (engine,) = pod["containers"]
    p = plan.parallelism
    parallelism = {"tensor": p.attention_tp, "data": p.attention_dp, "dataLocal": 1, "workers": service.nodes}
    if p.attention_dp > 1:
        parallelism["dataLocal"] = max(1, p.attention_dp // service.nodes)
    container = {
        "name": "vllm",
        Said("modelCommand", "The command below, not the chart's own `vllm serve`."): "custom",
        **{key: value for key, value in engine.items() if key != "name"},
        "mountModelVolume": False,
    }
    decode: Data = {
        "create": True,
        "replicas": service.replicas,
        Said("parallelism", "What was planned; the GPUs of a pod are those named under resources."): parallelism,
        "podSecurityContext": pod["securityContext"],
        Said("extraConfig", "It asks the cluster for nothing."): {
            "automountServiceAccountToken": False,
            **({"runtimeClassName": wishes.runtime_class} if wishes.runtime_class else {}),
        },
        "initContainers": pod["initContainers"],
        "containers": [container],
        "volumes": pod["volumes"],
    }
    if service.nvlink_domain:
        decode[Said("resourceClaims", "Needs the ComputeDomain that --kind lws writes.")] = [
            {"name": CLAIM, "resourceClaimTemplateName": f"{service.name}-{CLAIM}"}
        ]
    return {
        "fullnameOverride": service.name,
        "modelArtifacts": {
            # The chart fills templates inside these two, so what its templates are made of is spelled otherwise.
            "name": service.model.replace("{", "%7B").replace("}", "%7D"),
            "uri": f"pvc://{wishes.model_claim}/" if service.is_folder else f"hf://{quote(service.model)}",
            "size": "0",
            "labels": {"llm-d.ai/inferenceServing": "true", "llm-d.ai/model": service.name},
        },
        "multinode": service.nodes > 1,
        "accelerator": {"type": "nvidia"},
        "routing": {
            "servicePort": service.port,
            Said("proxy", "Needed only where prompts and answers are computed by different pods."): {"enabled": False},
        },
        "decode": decode,
        "prefill": {"create": False},
    }


def _parallelism(plan: Plan) -> Data:
    """Raises UsageError where KServe would start another number of pods than a replica has nodes, or refuse it.

    It takes pipeline stages for pods, or data over dataLocal, and not both (kserve/kserve pkg/apis/serving/v1alpha2:
    ParallelismSpec.GetSize, validateWorkloadParallelism).
    """
    p, nodes = plan.parallelism, len(plan.replicas[0].nodes)
    told: Data = {"tensor": p.attention_tp}
    pods = p.pp
    if p.pp > 1:
        told["pipeline"] = p.pp
    if p.attention_dp > 1:
        told |= {"data": p.attention_dp, "dataLocal": max(1, p.attention_dp // nodes)}
        pods = p.attention_dp // told["dataLocal"]
    if (p.pp > 1 and p.attention_dp > 1) or (nodes > 1 and pods != nodes):
        raise UsageError(
            f"KServe counts the pods of a group by pipeline stages or by data parallelism, and {p.label} lies on "
            f"{count(nodes, 'node')}",
            cure="Use --kind lws.",
        )
    return told | ({"expert": True} if p.ep > 1 else {})


def _application(service: Service, plan: Plan, launch: Launch) -> Data:
    process = launch.processes[0]
    settings = {s.key.replace("-", "_"): s.value for s in flag_settings(process) if s.key not in _OF_A_NODE}
    settings.pop("model", None)
    variables = {v.name: v.value for v in process.environment if v.name in _OF_EVERY_NODE}
    model = {
        "model_loading_config": {"model_id": service.model, "model_source": service.model},
        "deployment_config": {"num_replicas": service.replicas},
        "engine_kwargs": {**settings, "distributed_executor_backend": "ray"},
        **({"runtime_env": {"env_vars": variables}} if variables else {}),
    }
    application = {
        "name": "llm",
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [model]},
    }
    return {"applications": [application]}


def _called_main(pod: Data) -> Data:
    (engine,) = pod["containers"]
    return {**pod, "containers": [{**engine, "name": _MAIN}]}


def _ray_ports() -> list[Data]:
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}
    return [{"name": name, "containerPort": port} for name, port in ports.items()]


def _needs(service: Service, engine: str, project: str) -> None:
    if service.engine != engine:
        raise UsageError(
            f"{project} is written for {engine}, and the plan is for {service.engine}",
            cure=f"Plan with --engine {engine}, or use --kind deployment or lws.",
        )
