"""`nvidia-smi topo` text in every state in which people paste it."""

from __future__ import annotations

import time
from collections import Counter
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from topo_printer import LAYOUTS, WRAPS, Printed, Variant, random_printed, random_variant

from probe.errors import SourceError
from probe.sources.smi_text import looks_like_topo, read_topo
from probe.topology import NodeShape, P2pStatus, Path, PathKind, Topology


def shape_of(text: str) -> NodeShape:
    return read_topo(text, where="topo.txt").nodes[0].shape


def codes(topology: Topology) -> set[str]:
    return {w.code for w in topology.warnings}


def labels(text: str) -> list[str]:
    return [p.label for p in shape_of(text).paths]


def silent_error(variant: Variant, read: Topology) -> str | None:
    """What is wrong in a reading and not admitted by a notice; None where nothing is."""
    truth, shape, said = variant.printed.topology.nodes[0].shape, read.nodes[0].shape, codes(read)
    lossy = said & {"rows-missing", "truncated", "row-unreadable", "matrix-unreadable", "asymmetric"}
    if "columns-unnamed" in said:  # what is a GPU and what a NIC is then a guess, and told as one
        return None
    if len(shape.gpus) != len(truth.gpus):
        return f"{len(shape.gpus)} GPUs, not {len(truth.gpus)}"
    # Where neither a header nor a row names a NIC column, it is numbered, and the missing row is said.
    seen = [n.label for n in shape.nics]
    numbered = [
        t.label if not lossy or s != f"NIC{k}" else s for k, (s, t) in enumerate(zip(seen, truth.nics, strict=False))
    ]
    if len(seen) != len(truth.nics) or seen != numbered:
        return f"NICs {[n.label for n in shape.nics]}"
    for (a, b, path), (_, _, true) in zip(shape.pairs, truth.pairs, strict=True):
        if (path.kind, path.links) != (true.kind, true.links) and not (path.kind is PathKind.UNKNOWN and lossy):
            return f"{a}-{b}: {path.label}, not {true.label}"
        if variant.whole and path.kind is PathKind.UNKNOWN and not lossy:
            return f"{a}-{b} is unknown"
    for row, true_row in zip(shape.nic_paths, truth.nic_paths, strict=True):
        for path, true in zip(row, true_row, strict=True):
            if path.kind is not true.kind and not (path.kind is PathKind.UNKNOWN and lossy):
                return f"a NIC path: {path.label}, not {true.label}"
    for nic, true_nic in zip(shape.nics, truth.nics, strict=True):
        if nic.name not in (true_nic.name, true_nic.label, nic.label):
            return f"{true_nic.label} is called {nic.name}"
    for gpu, true_gpu in zip(shape.gpus, truth.gpus, strict=True):
        for field in ("cpu_affinity", "numa_node"):
            seen, true_value = getattr(gpu, field), getattr(true_gpu, field)
            if seen != true_value and not (seen is None and ("affinity-unknown" in said or lossy)):
                return f"GPU{gpu.index} {field}: {seen}, not {true_value}"
        if gpu.nearest_nics and variant.whole and len(gpu.nearest_nics) != len(true_gpu.nearest_nics):
            return f"GPU{gpu.index} is nearest to {gpu.nearest_nics}"
    return None


@pytest.mark.parametrize("seed", range(400))
def test_a_printed_machine_is_read_back_whatever_the_paste_did(seed: int) -> None:
    rng = Random(seed)
    variant = random_variant(rng, random_printed(rng, most_gpus=8, most_nics=12))
    try:
        read = read_topo(variant.text, where="paste")
    except SourceError as refusal:
        assert str(refusal).count("\n") == 0 and refusal.cure
    else:
        assert silent_error(variant, read) is None, f"{variant.how}\n{variant.text}"


def test_a_header_that_breaks_inside_its_last_title_names_the_nic_alone() -> None:
    """The tab before 'CPU Affinity' was lost, and the line broke after CPU."""
    text = "\tGPU0\tGPU1\tmlx5_0CPU\nGPU0\t X \tNV1\tPIX\nGPU1\tNV1\t X \tPIX\n"
    assert [nic.name for nic in read_topo(text, where="paste").nodes[0].shape.nics] == ["mlx5_0"]


def test_of_2000_damaged_texts_none_is_read_wrongly_and_at_most_2_percent_are_refused() -> None:
    rng = Random(20261121)
    refused: Counter[str] = Counter()
    wrong = []
    for _ in range(2000):
        variant = random_variant(rng)
        try:
            read = read_topo(variant.text, where="paste")
        except SourceError as refusal:
            refused[f"{variant.how}: {refusal.problem}"] += 1
            continue
        error = silent_error(variant, read)
        if error:
            wrong.append(f"{variant.how}: {error}")
    assert not wrong, f"{len(wrong)} silently wrong: {wrong[:10]}"
    assert refused.total() <= 40, f"{refused.total()} refused: {refused.most_common(15)}"


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_an_undamaged_print_is_read_whole_and_without_a_word(rng: Random) -> None:
    printed = random_printed(rng)
    read = read_topo(printed.text(), where="topo.txt")
    truth, shape = printed.topology.nodes[0].shape, read.nodes[0].shape
    assert [(p.kind, p.links) for p in shape.paths] == [(p.kind, p.links) for p in truth.paths]
    assert shape.nic_paths == truth.nic_paths
    assert [len(g.nearest_nics) for g in shape.gpus] == [len(g.nearest_nics) for g in truth.gpus]
    assert [n.name for n in shape.nics] == [n.name if printed.legend else n.label for n in truth.nics]
    assert not codes(read) & {
        "truncated",
        "rows-missing",
        "glued-cells",
        "header-missing",
        "asymmetric",
        "legend-garbled",
    }
    if printed.tails == 3:
        assert [(g.cpu_affinity, g.numa_node) for g in shape.gpus] == [
            (g.cpu_affinity, g.numa_node) for g in truth.gpus
        ]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet="GPUNIC0123456789XSYVBHOD \t\n-,/AK:#|[m\x1b\r", max_size=400))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    looks_like_topo(text)
    try:
        read_topo(text, where="noise")
    except SourceError as refusal:
        assert "\n" not in str(refusal)


PAIRS = """
        GPU0    GPU1    GPU2    GPU3    CPU Affinity    NUMA Affinity   GPU NUMA ID
GPU0     X      SYS     NV4     SYS     0-15    0               N/A
GPU1    SYS      X      SYS     NV4     0-15    0               N/A
GPU2    NV4     SYS      X      SYS     16-31   1               N/A
GPU3    SYS     NV4     SYS      X      16-31   1               N/A
"""


def test_pairs_that_are_not_neighbours_are_said_aloud() -> None:
    read = read_topo(PAIRS, where="topo.txt")
    assert labels(PAIRS) == ["SYS", "NV4", "SYS", "SYS", "NV4", "SYS"]
    assert "islands-not-adjacent" in codes(read)
    assert [g.numa_node for g in read.nodes[0].shape.gpus] == [0, 0, 1, 1]
    assert read.provenance[0].source == "nvidia-smi topo -m text"


def test_two_rows_that_differ_count_as_the_slower_and_keep_both_readings() -> None:
    text = "\tGPU0\tGPU1\tGPU2\nGPU0\t X \tNV6\tNV18\nGPU1\tSYS\t X \tPIX\nGPU2\tNV17\tPIX\t X \n"
    shape = shape_of(text)
    assert shape.path(0, 1) == Path(PathKind.SYS, asymmetric=("NV6", "SYS"))
    assert shape.path(0, 2) == Path(PathKind.NVLINK, 17, asymmetric=("NV18", "NV17"))
    assert "asymmetric" in codes(read_topo(text, where="t"))


@pytest.mark.parametrize(
    ("glued", "links"),
    [("NV128-35", 12), ("NV180-31", 18), ("NV18-15", 1), ("NV18N/A", 18), ("NV10-3", 1), ("NV1128-155", 1)],
)
def test_a_link_count_that_ran_into_the_cpu_list_is_settled_by_the_other_row(glued: str, links: int) -> None:
    text = f"\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\nGPU0\t X \t{glued}\t0\nGPU1\tNV{links}\t X \t36-39\t0\n"
    assert shape_of(text).path(0, 1) == Path(PathKind.NVLINK, links)


def test_a_link_count_that_nothing_settles_is_refused_by_name() -> None:
    text = "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\nGPU0\t X \tNV128-35\t0\n"
    with pytest.raises(SourceError, match="ran together"):
        read_topo(text, where="t")


def test_cpu_list_and_numa_digit_that_ran_together_are_not_guessed() -> None:
    text = PAIRS.replace("0-15    0     ", "0-150         ")
    gpus = shape_of(text).gpus
    assert [g.cpu_affinity for g in gpus] == [None, None, "16-31", "16-31"]
    assert [g.numa_node for g in gpus] == [None, None, 1, 1]
    assert "affinity-unknown" in codes(read_topo(text, where="t"))


def test_rows_without_their_header_are_read_by_their_own_cross() -> None:
    headless = "\n".join(PAIRS.strip("\n").split("\n")[1:])
    assert labels(headless) == labels(PAIRS)
    assert "header-missing" in codes(read_topo(headless, where="t"))


def test_without_header_and_nic_rows_gpus_and_nics_cannot_be_told_apart() -> None:
    with pytest.raises(SourceError, match="without a whole header"):
        read_topo("GPU0\t X \tPIX\tSYS\tSYS\nGPU1\tPIX\t X \tSYS\tSYS\n", where="t")


def test_missing_rows_leave_unknown_paths_and_say_so() -> None:
    lines = PAIRS.strip("\n").split("\n")
    read = read_topo("\n".join([lines[0], *lines[3:]]), where="t")
    assert read.nodes[0].shape.path(0, 1) == Path(PathKind.UNKNOWN)
    assert read.nodes[0].shape.path(0, 2) == Path(PathKind.NVLINK, 4)
    assert "rows-missing" in codes(read)


def test_a_text_cut_in_a_row_never_shortens_a_link_count() -> None:
    text = "\tGPU0\tGPU1\tGPU2\tGPU3\n" + "".join(
        f"GPU{i}\t" + "\t".join(" X " if i == j else "NV18" for j in range(4)) + "\n" for i in range(4)
    )
    for cut in range(30, len(text)):
        try:
            read = read_topo(text[:cut], where="t")
        except SourceError:
            continue
        assert {p.links for p in read.nodes[0].shape.paths} <= {18, None}, text[:cut]
        assert cut > len(text) - 5 or codes(read) & {"truncated", "rows-missing"}, text[:cut]


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.floats(0.05, 1), st.sampled_from(("", "\n", "\n```\nplease help\n")))
def test_a_matrix_cut_anywhere_is_admitted(rng: Random, share: float, after: str) -> None:
    printed = random_printed(rng, most_gpus=8, most_nics=8)
    lines = rng.choice(LAYOUTS)(printed.matrix_lines(), rng)
    text = "\n".join(rng.choice(WRAPS)(lines[rng.randrange(2) :], rng))
    variant = Variant(printed, text[: int(len(text) * share)] + after, whole=False, headless=False, how="cut")
    try:
        read = read_topo(variant.text, where="paste")
    except SourceError:
        return
    assert silent_error(variant, read) is None, variant.text


def test_a_row_with_a_lost_cell_is_left_out_not_shifted() -> None:
    text = PAIRS.replace("GPU1    SYS      X ", "GPU1     X ")
    read = read_topo(text, where="t")
    assert labels(text) == labels(PAIRS)
    assert "row-unreadable" in codes(read)


def test_the_pcie_view_leaves_nvlink_unknown() -> None:
    legend = (
        "\nLegend:\n\n  X    = Self\n  SYS  = Connection\n  PIX  = Connection traversing at most a single PCIe bridge\n"
    )
    matrix = "\tGPU0\tGPU1\nGPU0\t X \tSYS\nGPU1\tSYS\t X \n"
    for text in (matrix + legend, f"$ nvidia-smi topo -mp\n{matrix}"):
        read = read_topo(text, where="t")
        assert not read.nodes[0].shape.nvlink_visible and "nvlink-not-visible" in codes(read)
    for text in (matrix, matrix + legend + "  NV#  = Connection traversing a bonded set of # NVLinks\n"):
        assert shape_of(text).nvlink_visible
    both = f"$ nvidia-smi topo -mp\n{matrix}{legend}\n$ nvidia-smi topo -m\n{matrix.replace('SYS', 'NV4')}"
    assert shape_of(both).path(0, 1) == Path(PathKind.NVLINK, 4)


def test_peer_access_is_read_beside_the_wires_and_alone() -> None:
    grants = "$ nvidia-smi topo -p2p w\n \tGPU0\tGPU1\tGPU2\tGPU3\n" + "".join(
        f" GPU{i}\t" + "\t".join("X" if i == j else "CNS" if {i, j} == {0, 1} else "OK" for j in range(4)) + "\n"
        for i in range(4)
    )
    both, alone = read_topo(PAIRS + grants, where="t"), read_topo(grants, where="t")
    for read, kind in ((both, PathKind.SYS), (alone, PathKind.UNKNOWN)):
        path = read.nodes[0].shape.path(0, 1)
        assert path.kind is kind and path.p2p and path.p2p.write is P2pStatus.CHIPSET_NOT_SUPPORTED
        assert path.p2p.read is None and "p2p-not-ok" in codes(read)
    assert "p2p-only" in codes(alone) and "p2p-only" not in codes(both)


def test_a_dump_tells_names_uuids_mig_and_driver() -> None:
    dump = (
        "CUDA_VISIBLE_DEVICES=1\nNvidia driver version: 570.86.15\n"
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaaaaaa-0000-1111-2222-333333333330)\n"
        "  MIG 1g.10gb     Device  0: (UUID: MIG-aaaaaaaa-0000-1111-2222-333333333339)\n"
        "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bad\x07one)\nGPU 2: NVIDIA H100 80GB HBM3\n"
    )
    read = read_topo(dump + PAIRS, where="t")
    node = read.nodes[0]
    assert [g.name for g in node.shape.gpus] == ["NVIDIA H100 80GB HBM3"] * 3 + [None]
    assert [g.uuid for g in node.gpus] == ["GPU-aaaaaaaa-0000-1111-2222-333333333330", None, None, None]
    assert [m.profile for m in node.gpus[0].mig_instances] == ["1g.10gb"]
    assert node.driver_version == "570.86.15" and all(g.visible for g in node.gpus)
    assert "mig" in codes(read)


def test_names_of_another_machine_are_left_out() -> None:
    read = read_topo("GPU 7: NVIDIA A100\n" + PAIRS, where="t")
    assert read.nodes[0].shape.gpus[0].name is None and "names-ignored" in codes(read)


def test_a_damaged_nic_legend_leaves_labels() -> None:
    text = (
        "\tGPU0\tNIC0\tNIC1\tNIC2\tNIC3\n"
        "GPU0\t X \tPIX\tPIX\tSYS\tSYS\nNIC0\tPIX\t X \tSYS\tSYS\tSYS\nNIC1\tPIX\tSYS\t X \tSYS\tSYS\n"
        "NIC2\tSYS\tSYS\tSYS\t X \tSYS\nNIC3\tSYS\tSYS\tSYS\tSYS\t X \n\nNIC Legend:\n\n"
        "  NIC0: IX      PIX\n  NIC1: mlx5_1   NIC2: mlx5_9\n  NIC3: mlx5_9\n"
    )
    shape = shape_of(text)
    assert [n.name for n in shape.nics] == ["NIC0", "mlx5_1", "NIC2", "NIC3"]
    assert shape.gpus[0].nearest_nics == ("NIC0", "mlx5_1")
    assert "legend-garbled" in codes(read_topo(text, where="t"))


def mesh(n: int, links: dict[tuple[int, int], int], default: str = "SYS") -> str:
    cell = lambda i, j: f"NV{links[min(i, j), max(i, j)]}" if (min(i, j), max(i, j)) in links else default  # noqa: E731
    rows = ("\t".join([f"GPU{i}", *(" X " if i == j else cell(i, j) for j in range(n))]) for i in range(n))
    return "\n".join(["\t" + "\t".join(f"GPU{i}" for i in range(n)), *rows, ""])


def test_degraded_links_and_partial_meshes_are_told_apart() -> None:
    full = {(a, b): 18 for a in range(4) for b in range(a + 1, 4)}
    assert codes(read_topo(mesh(4, full), where="t")) & {"degraded-links", "partial-mesh"} == set()
    assert "degraded-links" in codes(read_topo(mesh(4, full | {(1, 2): 17}), where="t"))
    ring = {(0, 1): 2, (1, 2): 2, (2, 3): 2, (0, 3): 2}
    assert "partial-mesh" in codes(read_topo(mesh(4, ring), where="t"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("GPU Topology:\nCould not collect\n", "no topology matrix"),
        ("", "no topology matrix"),
        ("\tGPU0\tGPU99999\nGPU0\t X \tSYS\nGPU99999\tSYS\t X \n", "GPU99999"),
        ("\tGPU0\tGPU1\nGPU0\tSYS\t X \nGPU1\t X \tSYS\n", "cells are lost or shifted"),
        ("\tGPU0\tNIC0\nGPU0\t X \tNV4\nNIC0\tNV4\t X \n", "no NIC has NVLink"),
        (mesh(2, {(0, 1): 4}) + "\n" + mesh(2, {}), "two matrices that differ"),
        ("GPU0 X", "one row without a header"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason) as refusal:
        read_topo(text, where="topo.txt")
    assert "nvidia-smi topo -m > topo.txt" in refusal.value.cure


@pytest.mark.parametrize(
    "text",
    [
        "GPU0 X " * 300_000,
        "GPU0" * 500_000,
        "GPU0 X\n" * 200_000,
        " " * 2_000_000 + "GPU0 X",
        "NIC1: " * 300_000,
        "<" * 10**6,
        "".join(f"GPU0 X NV{i % 60 + 1}\n" for i in range(100_000)),
        "[1;" * 500_000,
        "GPU 0: A" + " a" * 500_000,
        "1 " * 90 + "x GPU0 X\n" + "1" * 30_000 + "\n",
        "GPU0 X SYS\n" + "SYS\n" * 500_000,
        "GPU0 X SYS\n" + "".join(f"nic{i} SYS X\n" for i in range(150_000)),
        ("\x1b]" + "a" * 200) * 5_000,
    ],
    ids=range(13),
)
def test_a_hostile_text_is_refused_in_bounded_time(text: str) -> None:
    begun = time.perf_counter()
    looks_like_topo(text)
    with pytest.raises(SourceError):
        read_topo(text, where="t")
    assert time.perf_counter() - begun < 5


def test_a_large_matrix_is_read_fast() -> None:
    printed: Printed = next(
        p for p in map(random_printed, map(Random, range(999))) if len(p.topology.nodes[0].shape.nics) == 63
    )
    text = printed.text()
    best = min(_seconds(text) for _ in range(3))
    assert best < 0.2  # 30 ms on an idle machine; the rest is for a loaded one


def _seconds(text: str) -> float:
    begun = time.perf_counter()
    read_topo(text, where="t")
    return time.perf_counter() - begun
