"""What one node's picture shows: the node, its figures, its islands and its part of the plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from configgen.plan import Plan
from configgen.report.drawing.speeds import Speeds
from probe.topology import Gpu, GpuRef, GpuState, GpuStatus, Node
from probe.units import gib


@dataclass(frozen=True, slots=True)
class Role:
    """What a GPU does in a plan. A number is None where the plan has only one of the kind."""

    replica: int
    stage: int
    rank: int
    dp: int | None
    pp: int | None
    tp: int | None

    @property
    def group(self) -> str:
        """'DP 0 PP 1'; nothing where one stage of one replica is all."""
        parts = (f"{name} {n}" for name, n in (("DP", self.dp), ("PP", self.pp)) if n is not None)
        return " ".join(parts)

    @property
    def text(self) -> str:
        words = (self.group, "" if self.tp is None else f"TP {self.tp}")
        return " ".join(word for word in words if word) or "in use"


def roles(plan: Plan | None) -> dict[GpuRef, Role]:
    """By GPU; a GPU that the plan leaves alone is absent."""
    if plan is None:
        return {}
    p = plan.parallelism
    return {
        ref: Role(r, s, t, r if p.dp > 1 else None, s if p.pp > 1 else None, t if p.tp > 1 else None)
        for r, replica in enumerate(plan.replicas)
        for s, stage in enumerate(replica.stages)
        for t, ref in enumerate(stage)
    }


@dataclass(frozen=True)
class View:
    """`position` is the node's place in its topology; islands are numbered within the node, single GPUs have none."""

    position: int
    node: Node
    speeds: Speeds
    roles: Mapping[GpuRef, Role]
    has_plan: bool
    islands: Mapping[int, int]
    same_model: bool
    """Whether all its GPUs are of one model, which the title then names."""
    prefix: str = ""
    """'node 3 ' where there are several."""

    def ref(self, gpu: int) -> GpuRef:
        return GpuRef(self.position, gpu)

    def role(self, gpu: int) -> Role | None:
        return self.roles.get(self.ref(gpu))

    def gpu_name(self, gpu: int) -> str:
        return f"{self.prefix}GPU {gpu}"


def letter(island: int) -> str:
    """0 -> 'A', 25 -> 'Z', 26 -> '27'."""
    return chr(ord("A") + island) if island < 26 else str(island + 1)


def short_model(name: str) -> str:
    """A GPU's name without what every one of its maker has in front."""
    for maker in ("NVIDIA GeForce ", "NVIDIA ", "AMD Instinct ", "AMD "):
        if name.startswith(maker) and len(name) > len(maker):
            return name[len(maker) :]
    return name


def gpu_lines(view: View, gpu: int) -> list[tuple[str, str]]:
    """(text, role) of each line in a GPU's box, uncut."""
    told, state = view.node.shape.gpus[gpu], view.node.gpus[gpu]
    lines = [(f"GPU {gpu}", "name")]
    if not view.same_model:
        lines.append((short_model(told.name) if told.name else "unknown model", ""))
    if told.memory_bytes is not None:
        lines.append((gib(told.memory_bytes), "dim"))
    if (trouble := _trouble(state)) is not None:
        lines.append((trouble, "loud"))
    lines += [(text, "") for text in mig_lines(state)]
    if gpu in view.islands:
        lines.append((f"island {letter(view.islands[gpu])}", ""))
    if view.has_plan and trouble is None:
        role = view.role(gpu)
        words = [] if role is None else [w for w in (role.group, "" if role.tp is None else f"TP {role.tp}") if w]
        lines += [(word, "plan") for word in words] or [
            ("in use" if role else "not in plan", "plan" if role else "dim")
        ]
    return lines


def mig_lines(state: GpuState) -> list[str]:
    """'2 x 3g.40gb' for each profile."""
    profiles: dict[str, int] = {}
    for instance in state.mig_instances:
        name = instance.profile or "MIG"
        profiles[name] = profiles.get(name, 0) + 1
    return [f"{n} x {name}" for name, n in list(profiles.items())[:3]]


def pcie_lines(view: View, gpu: int) -> list[str]:
    """What is known of a GPU's PCIe port: 'Gen5 x16', '55 GB/s'. The generation drops when idle, so it is the best."""
    link = view.node.shape.gpus[gpu].pcie
    lines = []
    if link is not None:
        generation = link.generation_max or link.generation
        words = ([f"Gen{generation}"] if generation else []) + ([f"x{link.width}"] if link.width else [])
        lines += [" ".join(words)] if words else []
    speed = view.speeds.hosts.get(view.ref(gpu))
    if speed is not None:
        lines.append(f"{speed.text} GB/s")
    return lines


def is_narrow(gpu: Gpu) -> bool:
    """Whether its PCIe port runs with fewer lanes than it has."""
    link = gpu.pcie
    return link is not None and link.width is not None and link.width_max is not None and link.width < link.width_max


def _trouble(state: GpuState) -> str | None:
    if state.status is not GpuStatus.OK:
        return {GpuStatus.LOST: "LOST", GpuStatus.NO_PERMISSION: "NO ACCESS"}.get(state.status, "FAILED")
    return None if state.visible else "HIDDEN"
