"""What a plan asks of a cluster: how many pods or nodes, GPUs in each, and what `wirelore init` is told in them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from configgen.deploy.shell import given
from configgen.launch import HERE, MASTER_ADDRESS, Launch
from configgen.plan import Objective, Plan, Workload
from probe import __version__
from probe.errors import UsageError, one_line
from probe.topology import PathKind
from probe.units import count

REGISTRY = "registry.example.com"
"""Of image names that nobody gave: no such host exists, so that a forgotten option is noticed and never pulled."""

GPU = "nvidia.com/gpu"
RDMA = "rdma/ib"
"""What examples of RDMA device plugins call their devices; a cluster's own name is in its plugin's configuration."""
BUDGET_S, DEADLINE_S = 20, 60
"""What `wirelore init` may take for its measurements, and for everything."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SERVICE = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_RESOURCE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_RDMA = re.compile(f"{_RESOURCE.pattern}(=[1-9][0-9]{{0,2}})?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}")
_FOLDER = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._-]{1,255}){1,16}")
_SERVERS = ("vllm", "sglang", "trtllm")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person says of the target beyond the plan; None where the plan or a placeholder tells."""

    name: str | None = None
    namespace: str | None = None
    image: str | None = None
    engine_image: str | None = None
    model_claim: str | None = None
    token_secret: str | None = None
    runtime_class: str | None = None
    gpu_resource: str = GPU
    rdma: str | None = None
    read_only_root: bool = False
    cache_host_path: str | None = None

    def __post_init__(self) -> None:
        _check("--name", self.name, _SERVICE, "lower-case letters, digits and dashes, a letter first, 40 at most")
        for option, label in (("--namespace", self.namespace), ("--token-secret", self.token_secret)):
            _check(option, label, _LABEL, "lower-case letters, digits and dashes")
        for option, name in (("--model-claim", self.model_claim), ("--runtime-class", self.runtime_class)):
            _check(option, name, _SUBDOMAIN, "lower-case letters, digits, dots and dashes")
        for option, image in (("--image", self.image), ("--engine-image", self.engine_image)):
            _check(option, image, _IMAGE, "REGISTRY/NAME:TAG")
        _check("--cache-host-path", self.cache_host_path, _FOLDER, "a folder of the nodes, from / on")
        _check("--gpu-resource", self.gpu_resource, _RESOURCE, f"DOMAIN/NAME, like {GPU}")
        if self.rdma not in (None, "none"):
            _check("--rdma", self.rdma, _RDMA, f"DOMAIN/NAME or DOMAIN/NAME=N, like {RDMA}=8, or none")


@dataclass(frozen=True, slots=True)
class Service:
    """A plan's replicas as equal groups of equal pods: `replicas` groups of `nodes` pods with `gpus` GPUs each."""

    name: str
    model: str
    is_folder: bool
    """Whether the model is a folder, which pods have only where a volume holds it."""
    engine: str
    engine_version: str
    replicas: int
    nodes: int
    gpus: int
    port: int
    told: tuple[str, ...]
    """Options of `wirelore init` beside its folder, the model last."""
    start_words: tuple[str, ...]
    """What the engine is told beside its plan: to listen where a pod is asked from."""
    image: str
    engine_image: str
    rdma: tuple[str, int] | None
    nvlink_domain: bool
    """Whether the nodes of a group must share a multi-node NVLink domain."""
    image_note: str | None
    degraded: tuple[str, ...]


def service_of(plan: Plan, launch: Launch, wishes: Wishes) -> Service:
    """The plan as groups of pods. Raises UsageError for unequal groups and engines that serve nothing themselves."""
    engine = plan.engine.engine
    unknown = given(list(launch.processes)) - {HERE, MASTER_ADDRESS.name}
    if engine not in _SERVERS or unknown:
        raise UsageError(
            f"{engine} is started with what only its user knows: no pod can be written for it",
            cure="Use --target shell, or plan with --engine vllm, sglang or trtllm.",
        )
    shapes = {tuple(sum(ref.node == node for ref in r.gpus) for node in r.nodes) for r in plan.replicas}
    if len(shapes) > 1 or len(set(next(iter(shapes)))) > 1:
        raise UsageError(
            "the plan's nodes use different numbers of GPUs, and a cluster's groups are of equal pods",
            cure="Use --target shell, or plan with --gpus for equal parts.",
        )
    counts = next(iter(shapes))
    if engine == "trtllm" and len(counts) > 1:
        raise UsageError(
            "TensorRT-LLM starts its ranks on other nodes with mpirun, and nobody listens for it in a pod",
            cure="Use --target shell, or plan with --engine vllm or sglang.",
        )
    if plan.uses_mig and wishes.gpu_resource == GPU:
        raise UsageError(
            "the plan uses MIG instances", cure="Name their resource: --gpu-resource nvidia.com/mig-1g.10gb."
        )
    wires = {wire for replica in plan.replicas for wire in (replica.tp_path, *replica.hops)}
    image, engine_image = f"{REGISTRY}/wirelore:{__version__}", f"{REGISTRY}/{engine}:{plan.engine.version}"
    port = next(process.port for process in launch.processes if process.port is not None)
    return Service(
        wishes.name or name_of(plan.model.name),
        plan.model.name,
        plan.model.name.startswith("/"),
        engine,
        plan.engine.version,
        len(plan.replicas),
        len(counts),
        counts[0],
        port,
        tuple(init_options(plan, None if plan.uses_mig else counts[0], sharers=len(plan.replicas))),
        () if engine == "vllm" else ("--host", "0.0.0.0"),  # noqa: S104 - inside the pod's own network
        wishes.image or image,
        wishes.engine_image or engine_image,
        _rdma(plan, wishes, len(counts), wires),
        PathKind.MNNVL.value in wires,
        _image_note(wishes),
        plan.degraded,
    )


def init_options(plan: Plan, gpus: int | None = None, *, sharers: int = 1) -> list[str]:
    """What `wirelore init` must be told to decide as this plan did; the model last, whatever its name begins with.

    `gpus` is what each node asked its scheduler for; `sharers` is how many such groups share the replicas and the load.
    Where nobody told the load, each assumes it anew, unless what it would assume is the whole of it.
    """
    load, usual = plan.workload, Workload()
    assumed = set(load.assumed)
    if sharers > 1 and load.objective is Objective.LATENCY:
        assumed.discard("concurrency")
    words = ["--engine", f"{plan.engine.engine}@{plan.engine.version}"]
    for option, told in (
        ("objective", load.objective.value),
        ("input_tokens", load.input_tokens),
        ("output_tokens", load.output_tokens),
        ("concurrency", -(-load.concurrency // sharers)),
    ):
        if option not in assumed and (option != "objective" or load.objective is not usual.objective):
            words += [f"--{option.replace('_', '-')}", str(told)]
    for option, limit in (("--max-ttft", load.max_ttft_s), ("--max-tpot", load.max_tpot_s)):
        if limit is not None:
            words += [option, repr(limit)]
    if gpus is not None:
        words += ["--gpus-per-node", str(gpus)]
    words += ["--replicas", str(-(-len(plan.replicas) // sharers))]
    words += ["--budget", f"{BUDGET_S}s", "--deadline", f"{DEADLINE_S}s"]
    if plan.model.source.startswith("built-in"):
        words.append("--offline")
    return [*words, "--", plan.model.name]


def name_of(model: str) -> str:
    """A name that Kubernetes takes for all its objects: 'Qwen/Qwen3-32B' -> 'qwen3-32b'."""
    last = model.rstrip("/").rpartition("/")[2].lower()
    plain = re.sub(r"[^a-z0-9]+", "-", last[:200].replace(".", "-")).strip("-")
    named = plain if plain[:1].isalpha() else f"model-{plain}"
    return named[:40].strip("-")


def heading(service: Service, *, images: bool = False) -> list[str]:
    """What stands on top of every file; `images` where it names any."""
    group = f"{count(service.nodes, 'node')} with {count(service.gpus, 'GPU')} each"
    engine = f"{service.engine} {service.engine_version}"
    return [
        f"{service.model} on {engine}: {count(service.replicas, 'replica')} of {group}, written by wirelore",
        "The plan itself is made where it runs, for the GPUs that are there.",
        *([service.image_note] if images and service.image_note else []),
        *(f"The plan is degraded: {reason}" for reason in service.degraded),
    ]


def _image_note(wishes: Wishes) -> str | None:
    missing = [
        name for name, image in (("--image", wishes.image), ("--engine-image", wishes.engine_image)) if not image
    ]
    return f"{REGISTRY} stands for your registry: name the images with {' and '.join(missing)}." if missing else None


def _rdma(plan: Plan, wishes: Wishes, nodes: int, wires: set[str | None]) -> tuple[str, int] | None:
    """RDMA devices for the replicas that cross nodes through NICs: as many as were told, or stand nearest to its GPUs.

    Raises UsageError where nobody knows how many: with one for all its GPUs a node would be slow, and not say why.
    """
    most = max((len(site.nics) for site in plan.sites), default=0)
    if wishes.rdma == "none" or nodes == 1 or (wishes.rdma is None and (not most or PathKind.NET.value not in wires)):
        return None
    name, _, told = (wishes.rdma or RDMA).partition("=")
    if not (told or most):
        raise UsageError(
            f"the plan knows of no NICs, and so not how many {name} a node needs", cure=f"Write --rdma {name}=N."
        )
    return (name, int(told or most))


def _check(option: str, told: str | None, pattern: re.Pattern[str], form: str) -> None:
    if told is not None and pattern.fullmatch(told) is None:
        raise UsageError(f"{option} {one_line(told, 80)!r} is none that a cluster takes", cure=f"Write {form}.")
