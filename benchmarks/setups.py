"""What a table's words stand for: its GPU and fabric a synthetic machine, its model and precision a ModelSpec."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from benchmarks.truth import Fabric, Setup
from configgen.engines.rules import ENGINES, engine_traits
from configgen.fields import Fields
from configgen.hub import load_model
from configgen.model import ModelSpec
from configgen.plan import EngineTraits
from configgen.quantization import read_quantization
from probe.catalog import gpu_figures
from probe.errors import WireloreError
from probe.sources.machines import machine
from probe.topology import NetworkPath, Nic, NodeShape, PathKind, Topology
from probe.topology import Path as Wire

GPU_ALIASES = {"RTX-PRO-6000-SE": "rtx-pro-6000-server", "H200 (no NVLink used)": "h200-nvl"}

NODES: Mapping[tuple[str, Fabric], str] = {
    ("h100-sxm", Fabric.NVSWITCH): "hgx-h100",
    ("h200-sxm", Fabric.NVSWITCH): "hgx-h200",
    ("b200-sxm", Fabric.NVSWITCH): "hgx-b200",
    ("a100-sxm-80", Fabric.NVSWITCH): "hgx-a100",
    ("gb200", Fabric.NVSWITCH): "gb200-nvl72",
    (
        "a100-sxm-80",
        Fabric.PAIRS,
    ): "a100-pcie-pairs",  # 'A100-80GB' tells no form factor: bridges do
    ("a100-pcie-80", Fabric.PAIRS): "a100-pcie-pairs",
    ("h100-nvl", Fabric.PAIRS): "h100-nvl-pairs",
    ("a100-pcie-80", Fabric.PCIE): "a100-pcie",
    ("h100-pcie", Fabric.PCIE): "h100-pcie",
    ("h200-nvl", Fabric.PCIE): "h200-nvl",
    ("l40s", Fabric.PCIE): "l40s",
    ("l4", Fabric.PCIE): "l4",
    ("a10g", Fabric.PCIE): "a10g",
    ("t4", Fabric.PCIE): "t4",
    ("rtx-a6000", Fabric.PCIE): "a6000",
    ("rtx-3090", Fabric.PCIE): "3090",
    ("rtx-4090", Fabric.PCIE): "4090",
    ("rtx-pro-6000-server", Fabric.PCIE): "rtx-pro-6000",
}
"""Where a wire joins a node's GPUs: the synthetic machine, without its number of GPUs."""

LONE_NODES = {"gb10": "dgx-spark", "gh200-144": "gh200", "h100-sxm": "h100", "h200-sxm": "h200"}

SLOW_NETWORK_GBPS = 25.0
"""Line rate taken for 'no InfiniBand': the slowest Ethernet that GPU servers are commonly sold with."""

_UNTOUCHED = ["lm_head", "*.mlp.gate", "*.router", "*shared_expert_gate"]
FORMATS: Mapping[str, Mapping[str, object]] = {
    "fp8": {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": _UNTOUCHED},
    "fp4": {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "exclude_modules": _UNTOUCHED},
    "int4": {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": _UNTOUCHED},
    "int8": {"quant_method": "modelopt", "quant_algo": "W8A8", "exclude_modules": _UNTOUCHED},
}
"""What a table's precision means where the model's own configuration is in 16 bits: the format commonly published."""

BITS = {"bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "fp4": 4, "int4": 4}


class UnmappedError(Exception):
    """A word of a table that nothing here stands for; the text says which."""


class NoModelError(UnmappedError):
    """There is no configuration of the model: the one reason that excuses the planner."""


@dataclass(frozen=True)
class Case:
    """A set-up as the planner is given it."""

    topology: Topology
    model: ModelSpec
    traits: EngineTraits


def case(setup: Setup, models: Path | None) -> Case:
    """The machine, model and engine of a set-up. Raises UnmappedError."""
    model = model_of(setup.model, setup.precision, models)
    return Case(topology_of(setup), model, traits_of(setup.engine))


@cache
def topology_of(setup: Setup) -> Topology:
    gpu = gpu_figures(GPU_ALIASES.get(setup.gpu) or re.sub(r"\(.*\)|.*/", "", setup.gpu).strip())
    if gpu is None:
        raise UnmappedError(f"GPU {setup.gpu!r}")
    inside = replace(setup, nodes=1).fabric
    if inside is None and setup.gpus_per_node > 1:
        raise UnmappedError(f"fabric {setup.inside!r}")
    stem = NODES.get((gpu.key, inside)) if inside else LONE_NODES.get(gpu.key)
    if stem is None:
        raise UnmappedError(f"no machine has {setup.gpus_per_node} {gpu.key} on {setup.inside}")
    try:
        if stem == "gb200-nvl72":  # trays of the rack
            rack = machine(stem)
            topology = Topology(rack.nodes[: setup.nodes], (), rack.warnings, rack.provenance)
        else:
            topology = machine(f"{setup.nodes}x{stem}-{setup.gpus_per_node}")
    except WireloreError as error:
        raise UnmappedError(str(error)) from None
    return _joined_by(topology, setup.across) if setup.nodes > 1 else topology


def model_of(name: str, precision: str | None, models: Path | None) -> ModelSpec:
    """The model in the precision that was served, from a folder of configurations or the built-in table.

    A published configuration that is quantised already is never widened: 'fp8' of an MXFP4 model tells of activations.
    """
    spec = _published(re.sub(r" \(.*\)$", "", name), models)
    asked = BITS.get(precision or "bf16")
    if asked is None:
        raise UnmappedError(f"precision {precision!r}")
    own = spec.quantization.bits if spec.quantization else 16
    if asked >= own or precision is None:
        return spec
    facts = dict(FORMATS[precision])
    if spec.mla is not None and precision == "fp4":  # as NVIDIA publishes DeepSeek-R1: attention stays as it was
        facts["exclude_modules"] = [*_UNTOUCHED, "*.self_attn*"]
    quantization, _ = read_quantization(Fields(facts, precision))
    return replace(spec, quantization=quantization)


def traits_of(engine: str) -> EngineTraits:
    """The engine's own traits; one without rules yet gets vLLM's memory and splits, not its laws about pipelines."""
    name = engine.split()[0].split("/")[0] if engine else "vllm"
    if name in ENGINES:
        return engine_traits(name)
    # SGLang runs prompts before decoding goes on, unless --enable-mixed-chunk (its server_args.py) is given.
    return replace(
        engine_traits("vllm"),
        engine=name,
        prompts_first=name == "sglang",
        version="as vLLM",
        no_pipeline_architectures=frozenset(),
        attention_dp_with_stages=True,
    )


@cache
def _published(name: str, models: Path | None) -> ModelSpec:
    """From `org--name.json` in the folder, else from the built-in table, whoever published this precision of it."""
    short = name.rpartition("/")[2]
    base = re.sub(r"-(NV|MX)?FP\d(-V\d)?$", "", short)
    if models is not None and (file := models / f"{name.replace('/', '--')}.json").is_file():
        return load_model(str(file), offline=True)
    for spelling in dict.fromkeys((name, short, base)):
        with suppress(WireloreError):
            return load_model(spelling, offline=True)
    raise NoModelError(f"no configuration of {name}")


def _joined_by(topology: Topology, network: str) -> Topology:
    """The same nodes on the network that the table tells; without words for it the machine's own NICs stay."""
    told = re.search(r"(\d+) ?G(?:b|bE|bps|bit)", network)
    if not told and "no InfiniBand" not in network:
        return topology
    nic = Nic("eth0", "NIC0", float(told[1]) if told else SLOW_NETWORK_GBPS, "Ethernet", "active")
    shape = topology.nodes[0].shape
    own = NodeShape(
        gpus=tuple(replace(gpu, nearest_nics=(nic.name,)) for gpu in shape.gpus),
        paths=shape.paths,
        nics=(nic,),
        nic_paths=((Wire(PathKind.NODE),),) * len(shape.gpus),
        nvlink_visible=shape.nvlink_visible,
        numa_nodes=shape.numa_nodes,
    )
    nodes = tuple(replace(node, shape=own) for node in topology.nodes)
    return Topology(
        nodes, (NetworkPath(PathKind.NET, tuple(range(len(nodes)))),), topology.warnings, topology.provenance
    )
