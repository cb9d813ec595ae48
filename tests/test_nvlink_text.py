"""`nvidia-smi nvlink -s`: how many links are up, alone and beside a matrix."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.errors import SourceError
from probe.sources.nvlink_text import looks_like_nvlink, read_nvlink, read_nvlink_status, with_nvlink_status
from probe.sources.smi_text import read_topo
from probe.topology import PathKind, Topology

UUIDS = [f"GPU-{i:08x}-1111-2222-3333-444444444444" for i in range(8)]


def printed(*gpus: str, name: str = "NVIDIA H100 80GB HBM3", speed: str = "26.562 GB/s") -> str:
    """One string per GPU: a link per letter, 'u' up, 'd' down."""
    lines = []
    for i, links in enumerate(gpus):
        lines.append(f"GPU {i}: {name} (UUID: {UUIDS[i]})")
        lines += [f"\t Link {k}: {speed if link == 'u' else '<inactive>'}" for k, link in enumerate(links)]
    return "\n".join(lines) + "\n"


MATRIX = "\tGPU0\tGPU1\nGPU0\t X \tNV4\nGPU1\tNV4\t X \n\nLegend:\n\n  NV#  = Connection of bonded NVLinks\n"


def codes(topology: Topology) -> set[str]:
    return {w.code for w in topology.warnings}


def test_links_are_counted_per_gpu_with_the_speed_of_the_slowest() -> None:
    text = printed("uuud", "uuuu").replace("Link 1: 26.562", "Link 1: 25.781", 1)
    told = read_nvlink_status(text)
    assert [(s.active, s.total, s.gbps_per_link) for s in told.values()] == [(3, 4, 25.781), (4, 4, 26.562)]
    assert told[0].name == "NVIDIA H100 80GB HBM3" and told[1].uuid == UUIDS[1]


def test_verdicts_instead_of_links() -> None:
    text = (
        f"GPU 0: NVIDIA A100-PCIE-40GB (UUID: {UUIDS[0]})\n"
        "NVML: Unable to retrieve NVLink information as all links are inActive\n"
        f"GPU 1: NVIDIA RTX A4000 (UUID: {UUIDS[1]}) Device does not have or support Nvlink\n"
    )
    told = read_nvlink_status(text)
    assert (told[0].active, told[0].total) == (0, None)
    assert (told[1].active, told[1].total, told[1].name) == (0, 0, "NVIDIA RTX A4000")


@pytest.mark.parametrize("paste", ["\r\n", "&lt;", "> "])
def test_pastes_read_the_same(paste: str) -> None:
    text = printed("udu", "uuu")
    damaged = {
        "\r\n": text.replace("\n", "\r\n"),
        "&lt;": text.replace("<", "&lt;").replace(">", "&gt;"),
        "> ": "".join(f"> {line}\n" for line in text.splitlines()),
    }[paste]
    assert looks_like_nvlink(damaged)
    assert read_nvlink_status(damaged) == read_nvlink_status(text)


def test_capabilities_and_remote_ends_are_no_states() -> None:
    more = (
        f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {UUIDS[0]})\n"
        "\t Link 0, P2P is supported: true\n\t Link 0: Remote Device 00000000:CD:00.0: Link 25\n"
    )
    assert read_nvlink_status(printed("ud") + more) == read_nvlink_status(printed("ud"))
    assert read_nvlink_status(more) == {} and not looks_like_nvlink(more)


def test_alone_it_gives_gpus_without_paths_and_says_so() -> None:
    topology = read_nvlink(printed("uu", "uu"), where="links.txt")
    shape = topology.nodes[0].shape
    assert [p.kind for p in shape.paths] == [PathKind.UNKNOWN] and not shape.nvlink_visible
    assert [(g.nvlinks_active, g.nvlinks_total) for g in shape.gpus] == [(2, 2), (2, 2)]
    assert codes(topology) == {"paths-unknown"}


def test_beside_a_matrix_it_fills_the_links_and_names_a_degraded_gpu() -> None:
    text = MATRIX + printed("uuuu", "uuud")
    topology = with_nvlink_status(read_topo(text, where="dump"), text)
    assert [g.nvlinks_active for g in topology.nodes[0].shape.gpus] == [4, 3]
    assert topology.nodes[0].shape.path(0, 1).links == 4
    [degraded] = [w for w in topology.warnings if w.code == "degraded-links"]
    assert "GPU 1 has 3" in degraded.message
    assert "nvlink-differs" in codes(topology)
    assert any(o.fact == "gpus.nvlinks_active" for o in topology.provenance)


def test_all_links_of_a_healthy_machine_up_says_nothing() -> None:
    text = MATRIX + printed("uuuu", "uuuu")
    before = read_topo(text, where="dump")
    assert with_nvlink_status(before, text).warnings == before.warnings


def test_boards_without_a_bridge_are_not_degraded() -> None:
    assert codes(read_nvlink(printed("dddd", "dddd"), where="x")) == {"paths-unknown", "nvlink-no-bridge"}


def test_slow_links_among_siblings_are_named() -> None:
    text = printed("uu", "uu").replace("26.562", "13.281", 2)
    assert "slow-links" in codes(read_nvlink(text, where="x"))


def test_gpus_are_matched_by_uuid_not_by_number() -> None:
    listed = f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {UUIDS[1]})\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: {UUIDS[0]})\n"
    topology = with_nvlink_status(read_topo(listed + MATRIX, where="dump"), printed("uuuu", "uuud"))
    assert [g.nvlinks_active for g in topology.nodes[0].shape.gpus] == [3, 4]


def test_links_of_another_machine_are_left_out_with_a_notice() -> None:
    topology = with_nvlink_status(read_topo(MATRIX, where="dump"), printed("uu", "uu", "uu"))
    assert topology.nodes[0].shape.gpus[0].nvlinks_active is None and "nvlink-ignored" in codes(topology)


@pytest.mark.parametrize(
    "text",
    [
        "nothing of the kind",
        printed("u").replace("GPU 0", "GPU 4"),
        printed("u").replace("Link 0", "Link 900"),
        printed("u").replace("26.562", "999999"),
        printed("u") + printed("u").replace(UUIDS[0], UUIDS[1]),
        printed("u", "u").replace(UUIDS[0], UUIDS[1]),
        "".join(f"GPU {i}: NVIDIA H100\n Link 0: 25 GB/s\n" for i in range(200)),
    ],
)
def test_what_no_machine_prints_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SourceError) as refusal:
        read_nvlink(text, where="links.txt")
    assert "\n" not in str(refusal.value) and "links.txt" in str(refusal.value)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from([*printed("ud", "uu").splitlines(), "Link 3: 0 GB/s", "GPU 1:", "\x1b[1m", "Link :"])))
def test_any_order_of_lines_is_read_or_refused(lines: list[str]) -> None:
    try:
        topology = read_nvlink("\n".join(lines), where="links.txt")
    except SourceError:
        return
    for gpu in topology.nodes[0].shape.gpus:
        assert gpu.nvlinks_active is not None and gpu.nvlinks_active <= (gpu.nvlinks_total or 0)
