"""Plans for the tests of what `wirelore emit` writes for clusters, and the manifests made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import yaml
from engine_plans import LATENCY

from configgen.decide import plan
from configgen.deploy.kubernetes import kubernetes_files
from configgen.deploy.service import Wishes
from configgen.engines.launcher import launch_of
from configgen.engines.rules import engine_traits
from configgen.hub import load_model
from configgen.plan import Objective, Plan, Workload
from probe.measurement import Survey
from probe.sources.machines import machine

Manifest = dict[str, Any]

FULL = Workload(objective=Objective.THROUGHPUT, concurrency=512, assumed=("input_tokens", "output_tokens"))
ASSUMED = replace(LATENCY, assumed=("input_tokens", "output_tokens", "concurrency"))
CASES = {
    "pairs": ("3090-bridges-4", "qwen3-32b", ASSUMED, "vllm"),
    "servers": ("hgx-h100", "mixtral-8x7b", FULL, "vllm"),
    "sglang": ("l40s-8", "llama-3.1-70b", ASSUMED, "sglang"),
    "trtllm": ("hgx-h100", "llama-3.1-70b", ASSUMED, "trtllm"),
    "nodes": ("2xhgx-h100", "llama-3.1-405b", ASSUMED, "vllm"),
    "nodes-sglang": ("4xhgx-h100", "llama-3.1-405b", ASSUMED, "sglang"),
    "nvlink-domain": ("gb200-nvl72", "deepseek-v3", FULL, "vllm"),
}
EVERYTHING = Wishes(
    name="own-name",
    namespace="serving",
    image="registry.example.org/tools/wirelore:1.2@sha256:" + "0" * 64,
    engine_image="registry.example.org/vllm:9",
    model_claim="models",
    token_secret="hub",
    runtime_class="nvidia",
    rdma="nvidia.com/rdma_shared=1",
    read_only_root=True,
)


@cache
def decided_case(case: str) -> Plan:
    name, model, workload, engine = CASES[case]
    return plan(Survey(machine(name)), load_model(model, offline=True), workload, engine_traits(engine))


def manifests(decided: Plan, kind: str | None = None, wishes: Wishes | None = None) -> dict[str, list[Manifest]]:
    files = kubernetes_files(decided, launch_of(decided), wishes or Wishes(), kind)
    return {name: list(yaml.safe_load_all(text)) for name, text in files.items()}


def pods(value: Any) -> Iterator[Manifest]:
    """Every pod in a manifest, wherever it stands."""
    if isinstance(value, dict):
        if isinstance(value.get("containers"), list):
            yield value
        for item in value.values():
            yield from pods(item)
    elif isinstance(value, list):
        for item in value:
            yield from pods(item)


def engine_of(manifest: Manifest) -> Manifest:
    return next(iter(pods(manifest)))["containers"][0]  # type: ignore[no-any-return]


def init_of(manifest: Manifest) -> Manifest:
    return next(iter(pods(manifest)))["initContainers"][0]  # type: ignore[no-any-return]


def pod_of(manifest: Manifest) -> Manifest:
    return next(iter(pods(manifest)))
