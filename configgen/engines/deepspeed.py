"""DeepSpeed: a Plan in the flags of DeepSpeed-MII's OpenAI server on DeepSpeed-FastGen, one server per node.

Read in DeepSpeed-MII 0.3.3 (mii/entrypoints/openai_api_server.py: --model, --deployment-name, --tensor-parallel,
--replica-num, --max-length, --port; mii/config.py; mii/backend/server.py) and DeepSpeed 0.19.8 (deepspeed/launcher/
runner.py; deepspeed/inference/v2). The server starts each replica itself, as `deepspeed -i HOST:GPUS`, on the first
tensor_parallel GPUs of the host that earlier replicas left: no flag takes an order, and its launcher ignores
CUDA_VISIBLE_DEVICES. So replicas of a node are one command with --replica-num and MII's own load balancer; several
nodes are several servers. There is no configuration file, and step size and KV reserve have no flag: they are
DeepSpeed's own.

One line is all flags but the model's, fit for `python -m mii.entrypoints.openai_api_server --model MODEL $(...)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from configgen.engines.ranks import CUDA_INDICES, broken_p2p, longest_sequence, stage_reason
from configgen.launch import Flag, Launch, Process
from configgen.plan import Plan
from probe.errors import NoPlanError
from probe.topology import GpuRef

PORT = 8000
"""--port by default."""


def deepspeed_launch(plan: Plan) -> Launch:
    """The plan as a server per node. Raises NoPlanError where its replicas would not lie as planned."""
    p = plan.parallelism
    if p.pp > 1 or p.ep > 1 or p.attention_dp > 1:
        raise NoPlanError(f"{p.label}: DeepSpeed-FastGen has tensor parallelism and replicas alone", cure=_CURE)
    _check_places(plan)
    because = _not_one_line(plan)
    return Launch(
        "deepspeed",
        plan.engine.version,
        tuple(_processes(plan)),
        notes=tuple(_notes(plan)),
        one_line=None if because else tuple(word for flag in _flags(plan, p.dp) for word in flag.words),
        not_one_line_because=because,
    )


_CURE = "Plan again with --engine deepspeed."


def _check_places(plan: Plan) -> None:
    """Replica after replica on GPUs 0, 1, 2 ... of its node, as MII places them (_allocate_devices)."""
    used: Counter[int] = Counter()
    for replica in plan.replicas:
        node, first = replica.nodes[0], used[replica.nodes[0]]
        if plan.uses_mig or replica.gpus != tuple(GpuRef(node, first + i) for i in range(len(replica.gpus))):
            chosen = ", ".join(str(ref.gpu) for ref in replica.gpus)
            raise NoPlanError(f"DeepSpeed takes a node's GPUs from 0 on, the plan takes {chosen}", cure=_CURE)
        used[node] += len(replica.gpus)


def _not_one_line(plan: Plan) -> str | None:
    if len({replica.nodes[0] for replica in plan.replicas}) > 1:
        return "the plan spans several nodes"
    if not plan.p2p:
        return "broken P2P needs NCCL_P2P_DISABLE in the environment"
    if plan.mixed_gpus:
        return "GPUs of different models need CUDA_DEVICE_ORDER=PCI_BUS_ID in the environment"
    return None


def _processes(plan: Plan) -> Iterator[Process]:
    replicas = Counter(replica.nodes[0] for replica in plan.replicas)
    number = 0
    for node, count in sorted(replicas.items()):
        command = ("python", "-m", "mii.entrypoints.openai_api_server", "--model", plan.model.name)
        flags, environment = tuple(_flags(plan, count)), (CUDA_INDICES, *broken_p2p(plan))
        yield Process(node, plan.hostnames[node], number, command, flags, environment, PORT)
        number += count


def _flags(plan: Plan, replicas: int) -> Iterator[Flag]:
    yield Flag(("--tensor-parallel", str(plan.parallelism.tp)), stage_reason(plan.replicas[0]))
    if replicas > 1:
        gpus = replicas * plan.parallelism.tp
        yield Flag(("--replica-num", str(replicas)), f"replicas share nothing; they lie on GPUs 0..{gpus - 1}")
    most = plan.engine.max_context or plan.workload.tokens
    fits = longest_sequence(plan) or (plan.model.max_context or most, "as long as the model allows")
    length, why = min(fits, (most, "DeepSpeed's max_context, which no flag changes"))
    yield Flag(("--max-length", str(length)), why)


def _notes(plan: Plan) -> Iterator[str]:
    servers = len({replica.nodes[0] for replica in plan.replicas})
    if servers > 1:
        yield f"{servers:,} independent servers: put a load balancer before them (proxy.conf)."
    yield "A file /job/hostfile would make MII place replicas by itself on the hosts it names: it must not exist."
