"""NCCL and RCCL topology XML at its bounds: refusals, hostile trees, random machines, recorded files."""

from __future__ import annotations

import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nccl_writer import GPU, SWITCH, bridge, bus, cpu, gpu, link, net, pci, shape_of

from probe.errors import SourceError
from probe.sources.nccl_xml import read_nccl
from probe.topology import Path, PathKind


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<system/>", "neither a GPU nor a NIC"),
        (f"<system>{bridge(1)}</system>", "neither a GPU nor a NIC"),
        ('<graphs version="1"/>', "not NCCL's <system>"),
        ("<system><cpu>", "no whole XML"),
        (f"<system>{''.join(gpu(0) for _ in range(129))}</system>", "more than 128 GPUs"),
        (f"<system><nic>{''.join(net(f'n{i}') for i in range(257))}</nic></system>", "more than 256 NICs"),
        (f"<system>{''.join(cpu(i) for i in range(1025))}</system>", "1,025 CPUs"),
        (f"<system>{'<pci/>' * 20_000}</system>", "16,384 PCI functions"),
        (f"<system>{cpu(0, gpu(0, *(link(bus(1), 1) for _ in range(300))))}</system>", "links to 300 targets"),
        (
            f"<system>{''.join(cpu(0, *(gpu(i) for i in range(100)), host=hex(h)) for h in range(11))}</system>",
            "1,100 GPUs",
        ),
    ],
)
def test_what_is_no_machine_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason) as refusal:
        read_nccl(text, where="topo.xml")
    assert "NCCL_TOPO_DUMP_FILE" in refusal.value.cure or "nvidia-smi" in refusal.value.cure


def test_the_largest_machine_is_read_fast() -> None:
    switches = [link(bus(i), 5, SWITCH) for i in range(4)]
    gpus = [bridge(1, gpu(i, *switches, at=f"{i:04x}:00:00.0")) for i in range(128)]
    nics = [bridge(2, pci(f"{i:04x}:01:00.0", "0x020700", f"<nic>{net(f'mlx5_{i}')}</nic>")) for i in range(256)]
    text = f"<system>{cpu(0, *gpus, *nics)}</system>"
    best = min(_seconds(text) for _ in range(3))
    assert best < 2  # 0.15 s on an idle core, and minutes where the work is quadratic; the rest is for a loaded one


def _seconds(text: str) -> float:
    begun = time.perf_counter()
    read_nccl(text, where="t")
    return time.perf_counter() - begun


VALUES = ("", "-1", "0", "1", "9" * 30, "NaN", "0x1", "٣", "1.5", bus(0x40), bus(0x41), SWITCH, GPU, "a'b")
ATTRIBUTES = tuple(
    "busid class link_speed target count tclass dev rank sm name speed port numaid affinity host_hash".split()
)


def any_element(random: Random, depth: int = 0) -> str:
    tag = random.choice(("cpu", "pci", "pci", "gpu", "nvlink", "xgmi", "nic", "net", "c2c"))
    told = "".join(f' {name}="{random.choice(VALUES)}"' for name in random.sample(ATTRIBUTES, random.randrange(6)))
    inside = (any_element(random, depth + 1) for _ in range(random.randrange(4) if depth < 4 else 0))
    return f"<{tag}{told}>{''.join(inside)}</{tag}>"


def test_any_tree_of_any_values_gives_a_topology_or_a_refusal() -> None:
    random = Random(20)
    read, refused = 0, 0
    for _ in range(2000):
        text = f"<system>{''.join(any_element(random) for _ in range(4))}</system>"
        try:
            topology = read_nccl(text, where="t")
        except SourceError as refusal:
            assert str(refusal).isprintable()
            refused += 1
            continue
        assert all(w.message.isprintable() for w in topology.warnings)
        read += 1
    assert read > 500 and refused > 50


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_a_written_tree_is_read_back(data: st.DataObject) -> None:
    """Random machines: the levels that the writer meant come out, whatever else hangs around."""
    count = data.draw(st.integers(1, 6))
    homes = [data.draw(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1))) for _ in range(count)]
    cpus = []
    for c in (0, 1):
        roots = []
        for root in (0, 1):
            leaves = [
                bridge(16 * c + 4 * root + leaf + 1, *(gpu(i) for i in range(count) if homes[i] == (c, root, leaf)))
                for leaf in (0, 1)
            ]
            roots.append(bridge(16 * c + 4 * root + 3, *leaves))
        cpus.append(cpu(c, *roots))
    shape = shape_of(*cpus)
    for a, b, path in shape.pairs:
        same = _agreeing(homes[a], homes[b])
        assert path == Path((PathKind.SYS, PathKind.PHB, PathKind.PXB, PathKind.PIX)[same])


def _agreeing(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many steps from the top are the same."""
    return sum(a[:n] == b[:n] for n in (1, 2, 3))
