"""What manifests of custom kinds are checked against: the projects' own CRDs where `scripts/setup-crds` has them, and
everywhere the part of them that we write, around Kubernetes' own schema of a pod.

Both with unknown keys forbidden. Our part was compared key by key (types, enums, bounds, required keys, CEL rules) with
the CRDs at the very commits that `scripts/setup-crds` names: kubernetes-sigs/lws 17b781c, kubernetes-sigs/jobset
0a2be5c, kserve/kserve 01b1241, ray-project/kuberay 02a80a6 (but for what its headGroupSpec requires),
NVIDIA/k8s-dra-driver-gpu 5a0112c. What KServe's webhook
refuses and its CRD does not is in its pkg/apis/serving/v1alpha2/llm_inference_service_validation.go at 00bd5d0; llm-d's
values are those of llm-d-incubation/llm-d-modelservice. What we always write is required here, also where the project
has a default.
"""

from __future__ import annotations

import json
import os
from functools import cache
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

Schema = dict[str, Any]

FOLDER = Path(os.environ.get("CRDS_HOME") or Path(__file__).resolve().parent.parent / ".crds")
INTEGER: Schema = {"type": "integer", "minimum": 0}
GROUPS: Schema = {**INTEGER, "maximum": 1_000_000}
COUNT: Schema = {"type": "integer", "minimum": 1}
TEXT: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
API = "#/$defs/io.k8s.api."
POD: Schema = {"$ref": f"{API}core.v1.PodSpec"}
POD_TEMPLATE: Schema = {"$ref": f"{API}core.v1.PodTemplateSpec"}
JOB_TEMPLATE: Schema = {"$ref": f"{API}batch.v1.JobTemplateSpec"}


def closed(required: str = "", /, **properties: Schema) -> Schema:
    """An object with these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def one_of(*words: str) -> Schema:
    return {"enum": [*words]}


# The last two are the webhook's: data with its share of a node, and never beside pipeline.
PARALLELISM = {
    **closed("tensor", tensor=COUNT, pipeline=COUNT, data=COUNT, dataLocal=COUNT, expert=FLAG),
    "dependentRequired": {"data": ["dataLocal"], "dataLocal": ["data"]},
    "not": {"required": ["pipeline", "data"]},
}
# The webhook takes workers only where parallelism says over how many pods a group lies.
WORKERS_COUNTED: Schema = {
    "if": {"required": ["worker"]},
    "then": {"properties": {"parallelism": {"anyOf": [{"required": ["pipeline"]}, {"required": ["data"]}]}}},
}
WORKERS = closed(
    "groupName minReplicas maxReplicas rayStartParams template",
    groupName=TEXT,
    replicas=INTEGER,
    minReplicas=INTEGER,
    maxReplicas=INTEGER,
    numOfHosts=COUNT,
    rayStartParams=TEXTS,
    template=POD_TEMPLATE,
)
SPECS: dict[str, tuple[str, Schema]] = {
    "LeaderWorkerSet": (
        "leaderworkerset.x-k8s.io/v1",
        closed(
            "leaderWorkerTemplate",
            replicas=GROUPS,
            startupPolicy=one_of("LeaderCreated", "LeaderReady"),
            leaderWorkerTemplate=closed(
                "workerTemplate",
                size=COUNT,
                restartPolicy=one_of("Default", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"),
                leaderTemplate=POD_TEMPLATE,
                workerTemplate=POD_TEMPLATE,
            ),
        ),
    ),
    "JobSet": (
        "jobset.x-k8s.io/v1alpha2",
        closed(
            "replicatedJobs",
            network=closed(enableDNSHostnames=FLAG, publishNotReadyAddresses=FLAG, subdomain=TEXT),
            replicatedJobs=listed(closed("name template", name=TEXT, replicas=COUNT, template=JOB_TEMPLATE)),
        ),
    ),
    "LLMInferenceService": (
        "serving.kserve.io/v1alpha2",
        {
            **closed(
                "model parallelism",
                model=closed("uri", uri={"type": "string", "format": "uri"}, name=TEXT),
                storageInitializer=closed(enabled=FLAG),
                replicas=INTEGER,
                parallelism=PARALLELISM,
                template=POD,
                worker=POD,
            ),
            **WORKERS_COUNTED,
        },
    ),
    "RayService": (
        "ray.io/v1",
        closed(
            serveConfigV2=TEXT,
            rayClusterConfig=closed(
                "headGroupSpec",
                rayVersion=TEXT,
                headGroupSpec=closed("rayStartParams template", rayStartParams=TEXTS, template=POD_TEMPLATE),
                workerGroupSpecs=listed(WORKERS),
            ),
        ),
    ),
    "ComputeDomain": (
        "resource.nvidia.com/v1beta1",
        closed(
            "channel numNodes",
            numNodes=INTEGER,
            channel=closed(
                "resourceClaimTemplate",
                resourceClaimTemplate=closed("name", name=TEXT),
                allocationMode=one_of("All", "Single"),
            ),
        ),
    ),
}
CONTAINER = {"$ref": f"{API}core.v1.Container"}
LLM_D_CONTAINER: Schema = {
    "type": "object",
    "required": ["name", "image", "modelCommand", "command"],
    "properties": {"modelCommand": one_of("vllmServe", "imageDefault", "custom"), "mountModelVolume": FLAG},
}
LLM_D_VALUES = closed(
    "modelArtifacts decode prefill",
    fullnameOverride=TEXT,
    modelArtifacts=closed(
        "name uri", name=TEXT, uri=TEXT, size=TEXT, labels=TEXTS, authSecretName=TEXT, mountPath=TEXT
    ),
    multinode=FLAG,
    accelerator=closed("type", type=one_of("nvidia")),
    routing=closed("servicePort", servicePort=COUNT, proxy=closed("enabled", enabled=FLAG)),
    decode=closed(
        "replicas parallelism containers",
        create=FLAG,
        replicas=INTEGER,
        parallelism=closed("tensor", tensor=COUNT, data=COUNT, dataLocal=COUNT, workers=COUNT),
        podSecurityContext={"$ref": f"{API}core.v1.PodSecurityContext"},
        extraConfig=closed(automountServiceAccountToken=FLAG, runtimeClassName=TEXT),
        initContainers=listed(CONTAINER),
        containers=listed(LLM_D_CONTAINER),
        volumes=listed({"$ref": f"{API}core.v1.Volume"}),
        resourceClaims=listed(closed("name resourceClaimTemplateName", name=TEXT, resourceClaimTemplateName=TEXT)),
    ),
    prefill=closed("create", create=FLAG),
)


@cache
def pod_definitions(version: str) -> dict[str, Any]:
    """Kubernetes' own definitions of that version, unknown keys forbidden."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}-local-strict"
    told: dict[str, Any] = json.loads((folder / "_definitions.json").read_text())["$defs"]
    return told


@cache
def own_shape(kind: str, version: str) -> Draft202012Validator:
    """Our part of a custom kind's schema; 'llm-d' for the values of its chart."""
    if kind == "llm-d":
        schema = dict(LLM_D_VALUES)
    else:
        api_version, spec = SPECS[kind]
        metadata = closed("name", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
        top = {"apiVersion": {"const": api_version}, "kind": {"const": kind}}
        schema = closed("apiVersion kind metadata spec", **top, metadata=metadata, spec=spec)
    return Draft202012Validator({**schema, "$defs": pod_definitions(version)})


@cache
def published(kind: str, folder: Path = FOLDER) -> Draft202012Validator | None:
    """The project's own schema, where `scripts/setup-crds` brought it, unknown keys forbidden."""
    api_version, _ = SPECS[kind]
    group, _, version = api_version.partition("/")
    for path in sorted(folder.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            spec = (document or {}).get("spec", {})
            if spec.get("group") == group and spec.get("names", {}).get("kind") == kind:
                served = {v["name"]: v["schema"]["openAPIV3Schema"] for v in spec["versions"] if v["served"]}
                assert version in served, f"{path.name} has {kind} as {sorted(served)}, and we write {version}"
                return Draft202012Validator(_closed_throughout(served[version]))
    return _from_models() if kind == "JobSet" else None


def _from_models() -> Draft202012Validator | None:
    """JobSet's schema by the models that Kubeflow Trainer, which writes JobSets, publishes of its API."""
    if find_spec("kubeflow_trainer_api") is None:
        return None
    module = import_module("kubeflow_trainer_api.models.jobset_v1alpha2_job_set")
    schema = module.JobsetV1alpha2JobSet.model_json_schema(by_alias=True)
    loose = {"IoK8sApimachineryPkgUtilIntstrIntOrString": {"type": ["integer", "string"]}}
    loose["IoK8sApimachineryPkgApiResourceQuantity"] = {"type": ["integer", "string"]}
    kept = {name: loose.get(name, part) for name, part in schema["$defs"].items()}
    return Draft202012Validator(_closed_throughout({**schema, "$defs": kept}))


def _closed_throughout(schema: Any) -> Any:
    """The schema with unknown keys forbidden wherever it names some; metadata is Kubernetes' own."""
    if isinstance(schema, list):
        return [_closed_throughout(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {key: _closed_throughout(value) for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if "properties" in schema and isinstance(schema["properties"], dict) and schema.get("type") == "object":
        loose = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        return kept if loose else {**kept, "additionalProperties": False}
    return kept
