"""Docker compose: a probe and an engine per replica of one machine, and a proxy in front of several."""

from __future__ import annotations

from typing import Any

from configgen.deploy.blocks import Said, yaml_documents
from configgen.deploy.service import REGISTRY, Service, Wishes, heading, service_of
from configgen.launch import Launch
from configgen.plan import Plan, Replica
from configgen.templates import fill
from probe.errors import UsageError

Data = dict[str, Any]

_PROXY_PORT = 8080


def compose_files(plan: Plan, launch: Launch, wishes: Wishes) -> dict[str, str]:
    """'compose.yaml' -> its text, and the proxy's configuration. Raises UsageError for what needs several machines."""
    nodes = {ref.node for replica in plan.replicas for ref in replica.gpus}
    if len(nodes) > 1:
        raise UsageError(
            f"the plan uses {len(nodes)} machines, and compose knows one",
            cure="Use --target kubernetes, slurm or shell.",
        )
    service = service_of(plan, launch, wishes)
    services: Data = {}
    for number, replica in enumerate(plan.replicas):
        services |= _replica(service, plan, replica, number)
    files = {}
    several = len(plan.replicas) > 1
    if several:
        addresses = [f"engine-{number}:{service.port}" for number in range(len(plan.replicas))]
        files["proxy.conf"] = fill("proxy.conf.j2", launch=launch, addresses=addresses, port=_PROXY_PORT)
        services["proxy"] = _proxy(addresses)
    plans: Data = {f"plan-{number}": {} for number in range(len(plan.replicas))}
    document = {"name": service.name, "services": services, "volumes": {**plans, "cache": {}}}
    return {"compose.yaml": yaml_documents(heading(service, images=True), [document])} | files


def _replica(service: Service, plan: Plan, replica: Replica, number: int) -> Data:
    common: Data = {
        "user": "1000:1000",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        Said("shm_size", "NCCL shares memory between ranks here; the usual 64 MB are too few."): (
            f"{max(2, 2 * service.gpus)}gb"
        ),
        Said("deploy", "The same GPUs in both containers."): {
            "resources": {"reservations": {"devices": [_gpus(plan, replica)]}}
        },
        "environment": {"HOME": "/cache", "HF_HOME": "/cache/huggingface", "USER": "engine"},
    }
    folder = [_volume("bind", service.model, service.model)] if service.is_folder else []
    probe = {
        "image": service.image,
        "entrypoint": ["wirelore", "init"],
        "command": compose_words(["--folder", "/plan", *service.told]),
        Said("hostname", "A plan names its machine, and a container's own name is another each time it is made."): (
            f"{service.name}-{number}"
        ),
        **common,
        "volumes": [_volume("volume", f"plan-{number}", "/plan", write=True), _cache(), *folder],
    }
    engine = {
        "image": service.engine_image,
        Said("depends_on", "The engine starts once a plan is there."): {
            f"probe-{number}": {"condition": "service_completed_successfully"}
        },
        "entrypoint": ["/plan/start"],
        "command": list(service.start_words),
        **common,
        "restart": "on-failure",
        **({} if len(plan.replicas) > 1 else {"ports": [f"127.0.0.1:{service.port}:{service.port}"]}),
        "volumes": [_volume("volume", f"plan-{number}", "/plan"), _cache(), *folder],
    }
    return {f"probe-{number}": probe, f"engine-{number}": engine}


def compose_words(words: list[str]) -> list[str]:
    """Words as compose leaves them: it reads $NAME as a variable and $$ as one $."""
    return [word.replace("$", "$$") for word in words]


def _gpus(plan: Plan, replica: Replica) -> Data:
    names = []
    for ref in replica.gpus:
        uuid = plan.gpu_uuids[ref.node][plan.gpu_order[ref.node].index(ref.gpu)]
        names.append(uuid or str(ref.gpu))
    return {"driver": "nvidia", "device_ids": compose_words(names), "capabilities": ["gpu"]}


def _proxy(addresses: list[str]) -> Data:
    return {
        "image": f"{REGISTRY}/nginx:stable",
        "depends_on": [address.partition(":")[0] for address in addresses],
        Said("ports", "Only this machine; name another address to be asked from elsewhere."): [
            f"127.0.0.1:{_PROXY_PORT}:{_PROXY_PORT}"
        ],
        "volumes": [_volume("bind", "./proxy.conf", "/etc/nginx/nginx.conf")],
        "restart": "on-failure",
    }


def _volume(kind: str, source: str, target: str, *, write: bool = False) -> Data:
    words = compose_words([source, target])
    return {"type": kind, "source": words[0], "target": words[1], "read_only": not write}


def _cache() -> Data:
    return _volume("volume", "cache", "/cache", write=True)
