"""RDMA rails: which GPUs send through which NIC, so that equal positions of all nodes meet on one switch. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from probe.topology import Nic, NodeShape, require


@dataclass(frozen=True, slots=True)
class Rail:
    """An RDMA NIC and the GPUs that it is nearest to; `shared` where those GPUs have other NICs as near."""

    nic: str
    gpus: tuple[int, ...]
    shared: bool = False

    def __post_init__(self) -> None:
        require(len(self.gpus) > 0, "a rail has a GPU")


def rails(shape: NodeShape) -> tuple[Rail, ...]:
    """The rails of a node in the order of its NICs. Empty where no path between GPUs and RDMA NICs is known.

    `nvidia-smi topo -m` lists RDMA devices alone (its NIC legend), sysfs tells their link layer; others are left out.
    """
    found = []
    for nic in shape.nics:
        gpus = tuple(g.index for g in shape.gpus if nic.name in g.nearest_nics)
        if gpus and _is_rdma(nic):
            shared = any(_rdma_count(shape, shape.gpus[i].nearest_nics) > 1 for i in gpus)
            found.append(Rail(nic.name, gpus, shared))
    return tuple(found)


def _is_rdma(nic: Nic) -> bool:
    return nic.link_layer is not None or nic.label is not None


def _rdma_count(shape: NodeShape, names: tuple[str, ...]) -> int:
    return sum(nic.name in names and _is_rdma(nic) for nic in shape.nics)
