"""AMD's topology tables, as text and JSON, whole and damaged."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.errors import SourceError
from probe.islands import islands
from probe.sources.rocm import looks_like_rocm, read_rocm
from probe.sources.smi_text import looks_like_topo
from probe.topology import P2p, P2pStatus, PathKind, Topology

CORPUS = FilePath(__file__).resolve().parents[2] / "shared" / "topologies" / "index.jsonl"
Cell = Callable[[int, int], str]

TITLES = {
    "weight": " Weight between two GPUs ",
    "hops": " Hops between two GPUs ",
    "type": " Link Type between two GPUs ",
}


def two_hives(a: int, b: int) -> tuple[str, str, str]:
    """(weight, hops, type): GPUs 0-1 and 2-3 joined by xGMI, one pair per NUMA node."""
    if a == b:
        return ("0", "0", "0")
    return ("15", "1", "XGMI") if a // 2 == b // 2 else ("72", "3", "PCIE")


def table(n: int, title: str, cell: Cell) -> str:
    lines = [title.center(90, "="), "       " + "".join(f"GPU{j}".ljust(13) for j in range(n))]
    lines += [f"GPU{i}".ljust(7) + "".join(cell(i, j).ljust(13) for j in range(n)) for i in range(n)]
    return "\n".join(lines) + "\n\n"


def printed(n: int, cells: Callable[[int, int], tuple[str, str, str]], numa: Mapping[int, int] | None = None) -> str:
    text = " ROCm System Management Interface ".center(90, "=") + "\n"
    for k, title in enumerate(TITLES.values()):
        text += table(n, title, lambda a, b, k=k: cells(a, b)[k])  # type: ignore[misc]
    if numa is not None:
        text += " Numa Nodes ".center(90, "=") + "\n"
        for gpu, node in numa.items():
            text += f"GPU[{gpu}]\t\t: (Topology) Numa Node: {max(node, 0)}\n"
            text += f"GPU[{gpu}]\t\t: (Topology) Numa Affinity: {node}\n"
    return text + " End of ROCm SMI Log ".center(90, "=") + "\n"


HIVES = printed(4, two_hives, {0: 0, 1: 0, 2: 1, 3: 1})


def kinds(topology: Topology) -> list[PathKind]:
    return [p.kind for p in topology.nodes[0].shape.paths]


def codes(topology: Topology) -> set[str]:
    return {w.code for w in topology.warnings}


def read(text: str) -> Topology:
    return read_rocm(text, where="topo.txt")


X, S, N, U = PathKind.XGMI, PathKind.SYS, PathKind.NODE, PathKind.UNKNOWN


def test_a_whole_print_gives_paths_and_numa_nodes() -> None:
    topology = read(HIVES)
    assert kinds(topology) == [X, S, S, S, S, X]
    assert [g.numa_node for g in topology.nodes[0].shape.gpus] == [0, 0, 1, 1]
    assert [[r.gpu for r in i.members] for i in islands(topology)] == [[0, 1], [2, 3]]
    assert topology.nodes[0].shape.nvlink_visible and not topology.warnings


@pytest.mark.parametrize(
    ("hops", "weight", "numa", "kind"),
    [
        ("2", "40", None, N),
        ("3", "72", None, S),
        ("2", "72", None, S),
        ("1", "20", None, U),
        ("N/A", "N/A", {0: 0, 1: 0}, N),
        ("N/A", "N/A", {0: 0, 1: 1}, S),
        ("2", "40", {0: 0, 1: 1}, S),
        ("N/A", "N/A", {0: -1, 1: 0}, U),
    ],
)
def test_pcie_counts_only_as_near_as_the_tables_prove(
    hops: str, weight: str, numa: Mapping[int, int] | None, kind: PathKind
) -> None:
    topology = read(printed(2, lambda a, b: ("0", "0", "0") if a == b else (weight, hops, "PCIE"), numa))
    assert kinds(topology) == [kind]
    assert ("pcie-level-coarse" in codes(topology)) == (kind is N)
    assert ("paths-unknown" in codes(topology)) == (kind is U)


def test_the_link_types_alone_are_enough_for_the_islands() -> None:
    topology = read(table(2, TITLES["type"], lambda a, b: "0" if a == b else "XGMI"))
    assert kinds(topology) == [X] and not topology.warnings


def test_without_link_types_xgmi_is_unknown_not_absent() -> None:
    topology = read(table(2, TITLES["hops"], lambda a, b: "0" if a == b else "1"))
    assert kinds(topology) == [U] and not topology.nodes[0].shape.nvlink_visible
    assert "nvlink-not-visible" in codes(topology)


def test_xgmi_through_other_gpus_is_named() -> None:
    topology = read(printed(3, lambda a, b: ("0", "0", "0") if a == b else (str(15 * abs(a - b)), "1", "XGMI")))
    [notice] = [w for w in topology.warnings if w.code == "xgmi-indirect"]
    assert "0-2" in notice.message and kinds(topology) == [X, X, X]


def test_rows_that_differ_count_as_the_slower_one() -> None:
    text = table(2, TITLES["type"], lambda a, b: "0" if a == b else "XGMI" if a < b else "PCIE")
    [path] = read(text).nodes[0].shape.paths
    assert path.kind is not X and path.asymmetric and "asymmetric" in codes(read(text))


def test_islands_of_gpus_that_are_not_consecutive_are_named() -> None:
    text = table(4, TITLES["type"], lambda a, b: "0" if a == b else "XGMI" if (a - b) % 2 == 0 else "PCIE")
    assert "islands-not-adjacent" in codes(read(text))


def test_a_partial_mesh_is_named() -> None:
    text = table(3, TITLES["type"], lambda a, b: "0" if a == b else "XGMI" if abs(a - b) == 1 else "PCIE")
    assert "partial-mesh" in codes(read(text))


def prefixed(text: str, prefix: str) -> str:
    return "".join(f"{prefix}{line}\n" for line in text.splitlines())


@pytest.mark.parametrize(
    "paste",
    [
        lambda t: t.replace("\n", "\r\n"),
        lambda t: "$ rocm-smi --showtopo\n" + t + "\nI see a hang with GPU0 and GPU3.\n",
        lambda t: prefixed(t, "> "),
        lambda t: prefixed(t, "# "),
        lambda t: t.replace("  ", " ").replace("  ", " "),
        lambda t: t.replace("GPU0   ", "\x1b[1mGPU0\x1b[0m   "),
        lambda t: "\n\n" + t.replace("\n", "\n\n"),
        lambda t: t + t,
        lambda t: t.replace("GPU0         GPU1         GPU2         GPU3", "GPU0GPU1         GPU2 GPU3"),
        lambda t: t.replace("XGMI         PCIE         PCIE", "XGMI PCIEPCIE"),
        lambda t: t.replace("PCIE         PCIE         0            XGMI", "PCIE         PCIE\n 0            XGMI"),
    ],
)
def test_pastes_that_lose_nothing_read_the_same(paste: Callable[[str], str]) -> None:
    text = paste(HIVES)
    assert looks_like_rocm(text) and not looks_like_topo(text)
    assert read(text).nodes == read(HIVES).nodes


def test_a_damaged_row_is_left_out_and_said() -> None:
    text = HIVES.replace("GPU2   PCIE         PCIE         0 ", "GPU2   PCIE         0 ")
    topology = read(text)
    assert kinds(topology) == [X, S, S, S, S, X]  # the other rows tell
    assert {"row-unreadable", "rows-missing"} <= codes(topology)


def test_a_cut_table_leaves_pairs_unknown_and_says_so() -> None:
    text = table(4, TITLES["type"], lambda a, b: two_hives(a, b)[2])
    topology = read(text[: text.index("\nGPU2")])
    assert kinds(topology) == [X, U, U, U, U, U]
    assert {"rows-missing", "paths-unknown"} <= codes(topology)


@pytest.mark.parametrize(
    "text",
    [
        "GPU0 GPU1\nnothing",
        HIVES + table(4, TITLES["type"], lambda a, b: "0" if a == b else "PCIE"),
        HIVES + table(2, TITLES["type"], lambda a, b: "0" if a == b else "PCIE"),
        HIVES.replace("GPU3", "GPU7"),
        HIVES.replace("GPU3", "GPU1"),
        HIVES.replace("GPU[3]", "GPU[9]"),
        HIVES.replace("Numa Affinity: 0", "Numa Affinity: 1", 1) + "GPU[0] : (Topology) Numa Affinity: 0\n",
        table(140, TITLES["type"], lambda a, b: "0" if a == b else "XGMI"),
        "[" * 100_000 + '"link_type"',
        json.dumps([{"gpu": 7, "link_type": {"gpu_0": "SELF"}}]),
        json.dumps([{"gpu": i, "link_type": {}} for i in range(500)]),
        json.dumps({"link_type": 1}),
    ],
)
def test_what_is_no_one_machine_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SourceError) as refusal:
        read(text)
    assert "\n" not in str(refusal.value) and refusal.value.cure


def test_an_nvidia_matrix_does_not_look_like_amds() -> None:
    assert not looks_like_rocm("\tGPU0\tGPU1\nGPU0\t X \tNV18\nGPU1\tNV18\t X \n\nLegend:\n  X = Self\n")


# --- amd-smi ---


def links(n: int, **more: Any) -> list[dict[str, Any]]:
    def link(i: int, j: int) -> dict[str, Any]:
        weight, hops, kind = two_hives(i, j)
        told = {"weight": int(weight), "link_status": "ENABLED", "link_type": kind if i != j else "SELF"}
        bandwidth = "50000-200000" if kind == "XGMI" else "N/A"
        return {"gpu": j, "bdf": f"0000:{j:02x}:00.0", **told, "num_hops": int(hops), "bandwidth": bandwidth, **more}

    return [{"gpu": i, "bdf": f"0000:{i:02x}:00.0", "links": [link(i, j) for j in range(n)]} for i in range(n)]


def test_amd_smi_json_tells_links_and_access_too() -> None:
    topology = read(json.dumps(links(4), indent=4))
    shape = topology.nodes[0].shape
    assert kinds(topology) == [X, S, S, S, S, X] and shape.path(0, 1).links == 4
    assert shape.path(0, 1).p2p == P2p(read=P2pStatus.OK, write=P2pStatus.OK)
    assert [s.pci_bus_id for s in topology.nodes[0].gpus] == [f"0000:{i:02x}:00.0" for i in range(4)]
    assert read("$ amd-smi topology --json\n" + json.dumps(links(4))).nodes == topology.nodes
    assert read(json.dumps({"topology": links(4)})).nodes == topology.nodes


def test_refused_peer_access_is_named() -> None:
    assert "p2p-not-ok" in codes(read(json.dumps(links(4, link_status="DISABLED"))))


def test_the_json_of_older_releases() -> None:
    def row(i: int, k: int) -> dict[str, Any]:
        return {f"gpu_{j}": "SELF" if i == j and k == 2 else two_hives(i, j)[k] for j in range(4)}

    old = [{"gpu": i, "weight": row(i, 0), "hops": row(i, 1), "link_type": row(i, 2)} for i in range(4)]
    assert kinds(read(json.dumps(old))) == [X, S, S, S, S, X]


def test_rocm_smi_json_tells_each_pair_once() -> None:
    system = {}
    for a in range(4):
        for b in range(a + 1, 4):
            weight, hops, kind = two_hives(a, b)
            system[f"(Topology) Weight between DRM devices {a} and {b}"] = weight
            system[f"(Topology) Hops between DRM devices {a} and {b}"] = hops
            system[f"(Topology) Link type between DRM devices {a} and {b}"] = kind
    cards = {
        f"card{i}": {"(Topology) Numa Node": str(i // 2), "(Topology) Numa Affinity": str(i // 2)} for i in range(4)
    }
    assert read(json.dumps({"system": system, **cards})).nodes == read(HIVES).nodes


def test_amd_smi_tables_name_gpus_by_bus_id() -> None:
    ids = [f"0000:{i:02x}:00.0" for i in range(4)]
    text = ""
    for title, k in (("WEIGHT TABLE:", 0), ("HOPS TABLE:", 1), ("LINK TYPE TABLE:", 2)):
        text += f"{title}\n{'':13}{' '.join(ids)} \n"
        for i, own in enumerate(ids):
            cells = ["SELF" if i == j and k == 2 else two_hives(i, j)[k] for j in range(4)]
            text += own + " " + "".join(c.ljust(13) for c in cells) + "\n"
        text += "\n"
    topology = read(text + "CACHE COHERANCY TABLE:\n" + ids[0] + " SELF NC NC C\n")
    assert kinds(topology) == [X, S, S, S, S, X]
    assert [s.pci_bus_id for s in topology.nodes[0].gpus] == ids


@pytest.mark.parametrize("value", [-1, 1e308, float("nan"), None, [], {}, "XGMI2", "9" * 30, True])
def test_hostile_values_become_unknown_with_a_notice(value: object) -> None:
    for key in ("weight", "num_hops", "link_type", "bandwidth", "link_status"):
        if key == "link_status" and value is True:
            continue
        topology = read(json.dumps(links(2, **{key: value})))
        assert "odd-value" in codes(topology)
        assert kinds(topology) == [U if key == "link_type" else X]


# --- never a wrong answer silently ---


LOSSY = {"row-unreadable", "rows-missing", "truncated", "paths-unknown", "nvlink-not-visible", "asymmetric"}


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_damage_is_refused_or_said_never_a_wrong_path(rng: Random) -> None:
    truth = read(HIVES)
    text = HIVES
    for _ in range(rng.randint(1, 3)):
        a = rng.randrange(len(text))
        what = rng.randrange(4)
        if what == 0:
            text = text[:a]
        elif what == 1:
            text = text[:a] + text[a + rng.randint(1, 200) :]
        elif what == 2:
            text = text[:a] + "\n" + text[a:]
        else:
            lines = text.split("\n")
            lines.insert(rng.randrange(len(lines)), lines[rng.randrange(len(lines))])
            text = "\n".join(lines)
        if not text:
            return
    try:
        seen = read(text)
    except SourceError as refusal:
        assert "\n" not in str(refusal)
        return
    assert len(seen.nodes[0].gpus) == len(truth.nodes[0].gpus), text
    for (a, b, path), (_, _, true) in zip(seen.nodes[0].shape.pairs, truth.nodes[0].shape.pairs, strict=True):
        if path.kind is not true.kind:
            assert path.slowness >= true.slowness and codes(seen) & LOSSY | ({"pcie-level-coarse"} & codes(seen)), (
                f"{a}-{b}: {path.label}\n{text}"
            )


def test_many_gpus_and_long_lines_are_read_in_time() -> None:
    big = table(128, TITLES["type"], lambda a, b: "0" if a == b else "XGMI") + "GPU0 " + "X" * 100_000 + "!\n"
    begin = time.process_time()
    assert len(read(big).nodes[0].gpus) == 128
    assert time.process_time() - begin < 3


# --- recorded machines ---


def test_recorded_machines_are_read_as_expected() -> None:
    if not CORPUS.exists():
        pytest.skip(f"no recorded machines at {CORPUS}: NOTHING of real rocm-smi output is tested")
    records = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    for record in records:
        text = (CORPUS.parent / record["file"]).read_bytes().decode("utf-8", "replace")
        assert looks_like_rocm(text) == record["kind"].startswith("rocm-smi"), record["id"]
        if not record["kind"].startswith("rocm-smi"):
            continue
        expected = record["expected"]
        topology = read_rocm(text, where=record["file"])
        assert not looks_like_topo(text)
        shape = topology.nodes[0].shape
        assert len(shape.gpus) == expected["gpus"]
        assert [[a, b] for a, b, p in shape.pairs if p.kind is X] == expected["xgmi_pairs"]
        groups = [[r.gpu for r in island.members] for island in islands(topology)]
        assert sorted(g for g in groups if len(g) > 1) == expected["fast_domains"]
