"""The audit of what drivers, hosts and inputs say: each code where it belongs and nowhere else, and nothing twice."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import audit_cases as a
import pytest
from fake_nvml import FakeMachine
from fake_nvml.machines import (
    LOST,
    Description,
    a100_pcie_pairs,
    dgx1_v100,
    gb200_tray,
    healthy,
    hgx_b200,
    hgx_h100,
    l40s_8,
    rtx_3090_bridges,
)
from finding_cases import Case, check_complete, check_pair, finding_of, findings_of
from hypothesis import given
from hypothesis import strategies as st

from probe.audit import audit
from probe.checks.codes import CODES, TOPICS
from probe.checks.codes_gpu import CODES_GPU
from probe.checks.codes_host import CODES_HOST
from probe.checks.codes_input import CODES_INPUT
from probe.checks.codes_links import CODES_LINKS
from probe.checks.codes_run import CODES_RUN
from probe.checks.notices import split
from probe.finding import Severity
from probe.measurement import Survey
from probe.sources.machines import MACHINES, machine
from probe.sources.nvml import read_nvml
from probe.sources.smi_text import read_topo
from probe.topology import (
    Fabric,
    FabricState,
    GpuRef,
    GpuState,
    GpuStatus,
    Nic,
    Notice,
    P2pStatus,
    PcieLink,
    Provenance,
    Topology,
)

ROOT = Path(__file__).resolve().parent.parent
DRIVER_CODES = (*CODES_LINKS, *CODES_GPU, *CODES_HOST, *CODES_RUN, *CODES_INPUT)
NOT_IN_SURVEYS = {
    *("lab-crowded", "gpu-hidden", "memory-low", "one-gpu", "driver-old"),  # said before a run, on stderr
    *("cache-unreadable", "library-differs"),  # said of the cache, on stderr
}
CALLS = ("Notice", "_say", "say")


def text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def test_every_code_has_a_survey_that_shows_it_and_one_that_does_not() -> None:
    check_complete(a.DRIVER_CASES, DRIVER_CODES)


@pytest.mark.parametrize("case", a.DRIVER_CASES, ids=lambda case: case.code)
def test_a_code_is_found_where_it_belongs_and_only_there(case: Case) -> None:
    check_pair(case)


def test_what_a_source_can_notice_has_a_code_and_no_code_is_stale() -> None:
    """Codes that are literals where a Notice is made; a test that finds none of them would be blind."""
    literals: dict[str, Path] = {}
    texts = ""
    for path in (ROOT / "probe").rglob("*.py"):
        if path.parent.name == "checks" and path.name.startswith("codes"):
            continue
        source = path.read_text("utf-8")
        texts += source
        for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args):
            if ast.unparse(call.func).rpartition(".")[2] in CALLS and (code := text(call.args[0])):
                literals[code] = path
    assert len(literals) > 80
    assert not {code: path for code, path in literals.items() if code not in CODES}.keys() - NOT_IN_SURVEYS
    unspoken = {code for code in DRIVER_CODES if f'"{code}"' not in texts}
    assert not unspoken, "no source and no check says these"


def test_a_code_belongs_to_one_topic() -> None:
    assert sum(map(len, TOPICS.values())) == len(CODES)


def test_the_page_of_findings_is_written_from_the_codes() -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "write-findings-page"))["page"]()
    assert (ROOT / "docs" / "findings.md").read_text("utf-8") == written, "run `make findings-page`"
    sections = re.findall(r"^### (.+)$", written, re.MULTILINE)
    assert sections == list(CODES)


# --- machines as they should be ---


@pytest.mark.parametrize("name", [*MACHINES, "16xhgx-h100", "hgx-h100-4"])
def test_a_machine_as_it_should_be_has_neither_failure_nor_warning(name: str) -> None:
    assert [found for found in findings_of(machine(name)) if found.severity is not Severity.INFO] == []


def test_h100_nvl_is_judged_by_its_own_12_links() -> None:
    nvl = a.plain("h100-nvl-pairs-8")
    assert findings_of(a.active(nvl, {}, 18)) == []
    found = finding_of(a.active(nvl, {0: 8, 1: 8}, 18), "degraded-links")
    assert (found.value, found.bar, found.gpus) == (8, 12, (GpuRef(0, 0), GpuRef(0, 1)))
    assert found.severity is Severity.WARNING, "a bridge may be absent by choice"
    assert found.source is not None and found.source.startswith("https://www.nvidia.com")


def test_bonds_alone_tell_missing_links_behind_a_switch() -> None:
    """A matrix names no count per GPU: behind a switch each bond has all links of the poorer end."""
    links = {(x, y): "NV16" if 3 in (x, y) else "NV18" for x in range(8) for y in range(x + 1, 8)}
    read = a.matrix(8, links)()
    assert isinstance(read, Topology)
    named = a.with_gpus(read, lambda gpu: replace(gpu, name="NVIDIA H100 80GB HBM3"))
    found = finding_of(named, "degraded-links")
    assert (found.gpus, found.value, found.bar, found.severity) == ((GpuRef(0, 3),), 16, 18, Severity.FAILURE)


def test_a_cube_mesh_is_not_judged_pair_by_pair() -> None:
    assert findings_of(a.plain("dgx1-v100")) == []


def test_links_that_a_virtual_machine_was_not_given_are_no_fault() -> None:
    """Half a DGX-1: two of six links of each GPU lead to the other half."""
    quad = a.active(a.plain("dgx1-v100-4"), dict.fromkeys(range(4), 4), 6)
    inside = a.with_node(quad, virtualization="passthrough")
    assert finding_of(inside, "degraded-links").severity is Severity.INFO
    assert finding_of(quad, "degraded-links").severity is Severity.FAILURE


def test_gpus_whose_fabric_fails_are_told_once_with_their_reason() -> None:
    """Fabric manager down: links read active, and NVLink joins nobody."""
    down = a.with_fabric(a.on_pcie(a.plain("hgx-h100")), Fabric(FabricState.COMPLETED, 5))
    assert [found.code for found in findings_of(down)] == ["fabric-failed"]
    (absent,) = findings_of(a.with_fabric(a.on_pcie(a.plain("hgx-h100")), a.READY))
    assert absent.code == "nvlink-absent" and "18 of its links are active" in absent.seen


def test_a_single_gpu_of_a_virtual_machine_needs_no_fabric() -> None:
    one = a.with_fabric(a.plain("h200-1"), Fabric(FabricState.NOT_SUPPORTED))
    assert [f.code for f in findings_of(a.with_node(one, virtualization="passthrough"))] == ["virtualized"]


def test_no_cluster_is_normal_and_joins_nothing() -> None:
    assert findings_of(a.with_fabric(a.plain("hgx-h100"), a.READY)) == []
    some_alone = a.with_fabric(a.plain("hgx-h100"), a.IN_RACK, a.IN_RACK, a.READY)
    assert "GPUs 0,1 are in clique 7, GPUs 2-7 are in none" in finding_of(some_alone, "clique-differs").seen


@pytest.mark.parametrize(
    ("mask", "words", "severity"),
    [
        (0xA9, "degraded bandwidth", Severity.WARNING),
        (0x9A, "unhealthy route", Severity.FAILURE),
        (0x5AA, "insufficient nvlinks", Severity.FAILURE),
        (0xFAA, "incorrect", Severity.FAILURE),
    ],
)
def test_health_masks_in_words(mask: int, words: str, severity: Severity) -> None:
    found = finding_of(a.with_fabric(a.plain("hgx-h100"), replace(a.READY, health_mask=mask)), "fabric-unhealthy")
    assert words in found.seen and found.severity is severity


# --- PCIe and P2P ---


def test_an_idle_card_is_not_accused_of_its_generation() -> None:
    idle = PcieLink(generation=1, generation_max=4, width=16, width_max=16)
    assert findings_of(a.port(a.plain("l40s-8"), idle)) == []


def test_a_slot_of_8_lanes_shows_though_the_driver_calls_8_the_most() -> None:
    """NVML's maximum is that of card and slot together; the catalog knows the card."""
    found = finding_of(a.port(a.plain("l40s-8"), PcieLink(4, 4, 8, 8), 2), "pcie-narrow")
    assert (found.value, found.bar, found.unit, found.gpus) == (8, 16, "lanes", (GpuRef(0, 2),))
    assert "NVIDIA L40S" in (found.expected or "")


def test_where_lanes_are_missing_the_generation_is_told_beside_them() -> None:
    assert "Gen2 of Gen4 when it was read" in finding_of(a.port(a.plain("3090-4"), a.NARROW, 0), "pcie-narrow").seen


def test_one_slot_of_an_older_generation_is_graver_than_a_host_of_one() -> None:
    older = replace(a.X16, generation_max=3)
    whole = finding_of(a.port(a.plain("l40s-8"), older), "pcie-host-older")
    one = finding_of(a.port(a.port(a.plain("l40s-8"), a.X16), older, 5), "pcie-host-older")
    assert (whole.severity, one.severity, one.gpus) == (Severity.INFO, Severity.WARNING, (GpuRef(0, 5),))


@pytest.mark.parametrize(
    ("name", "virtualization", "severity"),
    [
        ("l40s-8", "bare", Severity.WARNING),
        ("l40s-8", None, Severity.WARNING),
        ("l40s-8", "passthrough", Severity.INFO),
        ("4090-8", "bare", Severity.INFO),
        ("t4-4", "bare", Severity.INFO),
    ],
)
def test_p2p_that_is_refused_is_grave_between_data_centre_gpus_under_one_switch(
    name: str, virtualization: str | None, severity: Severity
) -> None:
    refused = a.p2p(a.plain(name), P2pStatus.CHIPSET_NOT_SUPPORTED)
    assert finding_of(a.with_node(refused, virtualization=virtualization), "p2p-not-ok").severity is severity


# --- NICs ---


def test_a_machine_with_one_nic_for_two_sockets_is_built_so() -> None:
    one = a.with_nics(a.plain("a100-pcie-8"), lambda i, nic: replace(nic, state="down") if i else nic)
    found = finding_of(one, "nic-far")
    assert found.severity is Severity.INFO and {ref.gpu for ref in found.gpus} == {4, 5, 6, 7}


def test_sys_between_devices_of_one_numa_node_is_no_other_socket() -> None:
    """As cloud machines print it: a GPU under the NIC's own switch, the others SYS, all of NUMA node 0."""
    gpus = "\n".join(f"GPU{i}\t" + "\t".join(_row(i)) + "\t0-47\t\t0\t\tN/A" for i in range(4))
    nics = "\n".join(f"NIC{i}\t" + "\t".join(_row(4 + i)) for i in range(2))
    header = "\tGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID"
    read = read_topo(f"{header}\n{gpus}\n{nics}\n", where="a test")
    assert len(read.nodes[0].shape.nics) == 2 and read.nodes[0].shape.gpus[1].numa_node == 0
    assert not findings_of(read, "nic-far")


def _row(i: int) -> list[str]:
    """Two GPUs have a NIC under their switch (0 and 4, 2 and 5)."""
    near = {(0, 4), (4, 0), (2, 5), (5, 2)}
    return [" X " if i == k else "PIX" if (i, k) in near else "NV18" if max(i, k) < 4 else "SYS" for k in range(6)]


def test_a_slow_port_for_management_is_no_finding() -> None:
    """A 1 Gbit port, and a slower card that is no GPU's nearest."""

    def changed(i: int, nic: Nic) -> Nic:
        return replace(nic, name="eno1", speed_gbps=1.0, link_layer="Ethernet") if i == 7 else nic

    assert findings_of(a.with_nics(without_nearest(a.plain("hgx-h100"), "mlx5_7"), changed)) == []


def without_nearest(topology: Topology, name: str) -> Topology:
    return a.with_gpus(topology, lambda gpu: replace(gpu, nearest_nics=tuple(n for n in gpu.nearest_nics if n != name)))


def test_as_many_ports_down_as_up_are_unused_ones() -> None:
    half = a.with_nics(a.plain("hgx-h100"), lambda i, nic: replace(nic, state="down") if i % 2 else nic)
    assert finding_of(half, "nic-down").severity is Severity.INFO


# --- GPUs and nodes against each other ---


def test_a_node_with_fewer_gpus_than_its_equals_is_told_by_them() -> None:
    found = finding_of(a.fewer("hgx-h100", 6, "hgx-h100-4"), "gpus-missing")
    assert (found.node, found.value, found.bar) == (5, 4, 8)
    assert not findings_of(a.fewer("hgx-h100", 2, "hgx-h100-4"), "gpus-missing"), "one of two says nothing"


def test_a_lost_gpu_is_no_missing_gpu_and_has_no_links_to_judge() -> None:
    lost = a.on_pcie(a.status(GpuStatus.LOST), lambda x, y: 3 in (x, y))
    assert [found.code for found in findings_of(lost)] == ["gpu-lost"]


def test_what_many_nodes_tell_alike_is_one_finding() -> None:
    cluster = machine("64xhgx-h100-7")
    found = finding_of(cluster, "gpus-missing")
    assert found.node is None and "so on 64 nodes" in found.seen
    narrow = a.port(a.port(a.plain("2xl40s-8"), a.NARROW, 1), a.X16)
    both = replace(narrow, nodes=(a.port(a.plain("l40s-8"), a.NARROW, 1).nodes[0],) * 2)
    assert finding_of(both, "pcie-narrow").gpus == (GpuRef(0, 1), GpuRef(1, 1))


# --- over the driver's own bindings ---


def sick(d: Description) -> Description:
    """GPU 2 has a link down, GPU 3 runs at 4 lanes, GPU 5 is lost."""
    d["link.state 2 17"] = 0
    d["pcie.width 3"] = 4
    d["memory 5"] = LOST
    return d


def test_what_driver_and_facts_both_tell_is_told_once(fake_machine: FakeMachine) -> None:
    read = read_nvml(environ=fake_machine(sick(healthy(hgx_h100()))))
    assert {"degraded-links", "pcie-narrow", "gpu-lost"} <= {warning.code for warning in read.warnings}
    found = findings_of(read)
    assert sorted((f.code, [ref.gpu for ref in f.gpus]) for f in found) == [
        ("degraded-links", [2]),
        ("gpu-lost", [5]),
        ("pcie-narrow", [3]),
    ]
    assert [f.severity for f in found] == [Severity.FAILURE, Severity.FAILURE, Severity.WARNING]


@pytest.mark.parametrize("made", [hgx_h100, hgx_b200, gb200_tray, a100_pcie_pairs, dgx1_v100, l40s_8, rtx_3090_bridges])
def test_a_well_machine_has_no_finding(fake_machine: FakeMachine, made: Callable[[], Description]) -> None:
    assert findings_of(read_nvml(environ=fake_machine(healthy(made())))) == []


# --- notices ---


def test_a_notice_that_the_facts_tell_themselves_is_left_out() -> None:
    lost = replace(a.status(GpuStatus.LOST), warnings=(Notice("gpu-lost", "GPU 3: it fell. Reboot.", 0),))
    assert len(findings_of(lost, "gpu-lost")) == 1
    other = replace(lost, warnings=(Notice("gpu-lost", "GPU 5: it fell. Reboot.", 0),))
    assert [f.gpus for f in findings_of(other, "gpu-lost")] == [(GpuRef(0, 3),), (GpuRef(0, 5),)]


def test_growth_that_the_measurement_told_is_not_told_again() -> None:
    survey = a.snapshots(pcie__replays=9)
    assert len(findings_of(survey, "pcie-replays")) == 1
    told = replace(survey, missing=(Notice("pcie-replays", "PCIe replays grew on GPU 1: sent again. Reseat it."),))
    found = finding_of(told, "pcie-replays")
    assert found.gpus == (GpuRef(0, 1),) and found.cure == "Reseat it." and found.provenance is Provenance.MEASURED


def test_one_snapshot_of_each_gpu_tells_nothing() -> None:
    survey = a.snapshots(pcie__replays=9)
    assert findings_of(replace(survey, health=survey.health[:2])) == []


@pytest.mark.parametrize(
    ("message", "seen", "cure"),
    [
        (
            "GPU 3 runs at PCIe x4 of x16: less. Reseat it; check it.",
            "GPU 3 runs at PCIe x4 of x16: less",
            "Reseat it; check it.",
        ),
        ("the text ends inside the legend", "the text ends inside the legend", None),
        ("Left out: all. `mount -o x` helps. Or not.", "Left out: all", "`mount -o x` helps. Or not."),
        ("/sys/x holds 'y': taken as unknown.", "/sys/x holds 'y': taken as unknown", None),
        ("no fp8 here (so on 6 nodes)", "no fp8 here (so on 6 nodes)", None),
        ("It ended. Go on. (so on 6 nodes)", "It ended (so on 6 nodes)", "Go on."),
        ("driver 580.95.05 and e.g. x", "driver 580.95.05 and e.g. x", None),
        ("two\nlines\x1b[31m", "two lines [31m", None),
    ],
)
def test_what_was_seen_and_what_to_do(message: str, seen: str, cure: str | None) -> None:
    assert split(message) == (seen, cure)


def test_a_notice_without_a_cure_gets_the_one_of_its_code() -> None:
    found = finding_of(a.noticed("truncated", "the text ends inside the legend")(), "truncated")
    assert found.cure == CODES["truncated"].cure


@pytest.mark.parametrize(
    ("message", "gpus"),
    [
        ("GPU 1 of node 1 has no memory", [(1, 1)]),
        ("GPUs 0-1 run slow, GPU 1 stands", [(0, 0), (0, 1)]),
        ("sysfs shows no PCI device of GPU 0, 1: unknown", [(0, 0), (0, 1)]),
        ("GPU 9999 and GPU 2 are none of these, nor is GPU 0 of node 7", []),
        ("4 GPUs (NVIDIA L4) and 2 more", []),
    ],
)
def test_the_gpus_that_a_notice_names(message: str, gpus: list[tuple[int, int]]) -> None:
    two = replace(a.plain("2xl4-2"), warnings=(Notice("gpu-busy", message, 0),))
    assert [(ref.node, ref.gpu) for ref in finding_of(two, "gpu-busy").gpus] == gpus


def test_a_described_machine_is_assumed_and_a_text_is_read() -> None:
    assert finding_of(machine("l4-2"), "synthetic").provenance is Provenance.ASSUMED
    text = "\tGPU0\tGPU1\nGPU0\t X \tNV18\nGPU1\tNV17\t X \n"
    assert finding_of(read_topo(text, where="a test"), "asymmetric").provenance is Provenance.READ


@given(st.text(max_size=60), st.text(max_size=300), st.one_of(st.none(), st.integers(-3, 9)))
def test_any_notice_becomes_a_finding_of_printable_lines(code: str, message: str, node: int | None) -> None:
    survey = Survey(
        replace(a.plain("l4-2"), warnings=(Notice(code, message, node),)), missing=(Notice(code, message, node),)
    )
    found = audit(survey)
    assert found and {one.code for one in found} <= CODES.keys()
    assert all(one.seen.isprintable() and one.cure.isprintable() for one in found)


def test_hostile_names_stay_on_one_line() -> None:
    named = a.with_gpus(a.plain("l4-2"), lambda gpu: replace(gpu, name=f"L4\n\x1b[31m{gpu.index}"))
    broken = a.with_states(named, {0: GpuState(status=GpuStatus.LOST, status_reason="fell\noff")})
    assert all(one.seen.isprintable() for one in findings_of(broken))
