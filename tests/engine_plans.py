"""Plans for the engines' tests, and their emitted scripts run with a stub in the engine's place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from builders import cluster_of, dense, node_of
from stub_engine import RECORDED, STUB, emitted, run_script

from configgen.decide import plan
from configgen.launch import Given, Launch, Process
from configgen.model import ModelSpec
from configgen.model_config import spec_from_config
from configgen.plan import EngineTraits, Limits, Objective, Plan, Workload
from probe.measurement import Survey
from probe.sources.machines import machine
from probe.topology import Node

LATENCY = Workload(objective=Objective.LATENCY)
FULL = Workload(objective=Objective.THROUGHPUT, concurrency=512)


def planned(
    traits: EngineTraits, model: ModelSpec, *nodes: Node, workload: Workload = LATENCY, gpus: int | None = None
) -> Plan:
    return plan(Survey(cluster_of(*nodes)), model, workload, traits, Limits(gpus=gpus))


def uneven(traits: EngineTraits) -> Plan:
    """Two GPUs of different memory, so that the stages carry different layers."""
    node = node_of(2, (30, 50))
    return planned(traits, qwen_32b(), node)


def qwen_32b() -> ModelSpec:
    return dense(layers=64, hidden=5120, heads=40, kv_heads=8, intermediate=25600, vocab=151936)


def pairs() -> Node:
    """Bridges join 0 with 2 and 1 with 3."""
    return machine("3090-bridges-4").nodes[0]


def deepseek(layers: int = 30, experts: int = 64) -> ModelSpec:
    """Latent attention and experts in bfloat16."""
    sizes = {"q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    config: dict[str, object] = {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "num_hidden_layers": layers,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 12288,
        "v_head_dim": 128,
        "n_routed_experts": experts,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1536,
        "first_k_dense_replace": 1,
        "vocab_size": 102400,
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 16384,
        **sizes,
    }
    return spec_from_config(config, name="test/latent-experts", source="a test")


def named(decided: Plan, name: str) -> Plan:
    """The plan with a model, and nodes, that are called so."""
    hostnames = tuple(f"{name}\n{node}" for node in range(len(decided.hostnames)))
    return replace(decided, model=replace(decided.model, name=name), hostnames=hostnames)


def started(decided: Plan, launch: Launch, folder: Path, program: str, **more: str) -> list[dict[str, Any]]:
    """Runs all scripts with a stub called `program`; asserts that each process got exactly the launch's words."""
    stub = folder / "bin" / program
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(STUB)
    stub.chmod(0o755)
    found: list[dict[str, Any]] = []
    for script in emitted(decided, folder):
        own = [p for p in launch.processes if script.stem == f"node{p.node}"]
        records = run_script(script, stub.parent, shell="bash", ends=0, SERVERS=str(len(own)), **more)
        told = [{"argv": _words(p, script.parent, more), "environment": _environment(p, more)} for p in own]
        assert records == sorted(told, key=lambda record: str(record["argv"]))
        found += records
    return found


def _environment(process: Process, more: dict[str, str]) -> dict[str, str]:
    kept = {v.name: v.value for v in process.environment if v.name in RECORDED}
    return kept | {name: value for name, value in more.items() if name == "MASTER_ADDR"}


def _words(process: Process, folder: Path, more: dict[str, str]) -> list[str]:
    known = {"HERE": str(folder.resolve()), **more}
    return [known[w.name] + w.rest if isinstance(w, Given) else w for w in process.argv[1:]]
