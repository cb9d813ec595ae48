"""`nvidia-smi -q -x`: what a GPU is, and the honesty about the wires that it does not tell."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.errors import SourceError
from probe.islands import islands
from probe.sources.smi_xml import looks_like_smi, read_smi
from probe.topology import GpuStatus, Node, PathKind, Through, Topology

DOMAIN = {
    "state": "Completed",
    "status": "Success",
    "cliqueId": "7",
    "clusterUuid": "0A1B2C3D-0000-4000-8000-00000000BEEF",
}
HGX = {**DOMAIN, "cliqueId": "0", "clusterUuid": "00000000-0000-0000-0000-000000000000"}


def fields(**texts: str) -> str:
    return "".join(f"<{tag}>{text}</{tag}>" for tag, text in texts.items())


def gpu_xml(i: int, **changes: str) -> str:
    """A GPU of the tests' own make; a change replaces the inside of a tag, or adds the tag."""
    inside = {
        "product_name": "NVIDIA Test 80GB",
        "uuid": f"GPU-{i:08x}-1111-2222-3333-444444444444",
        "serial": f"16{i:011d}",
        "mig_mode": fields(current_mig="Disabled", pending_mig="Disabled"),
        "mig_devices": "None",
        "gpu_virtualization_mode": fields(virtualization_mode="None", host_vgpu_mode="N/A"),
        "pci": fields(
            pci_bus_id=f"00000000:{16 + i:02X}:00.0",
            pci_gpu_link_info=fields(
                pcie_gen=fields(max_link_gen="5", current_link_gen="1"),
                link_widths=fields(max_link_width="16x", current_link_width="8x"),
            ),
        ),
        "fb_memory_usage": fields(total="81559 MiB", reserved="500 MiB", used="0 MiB", free="81000 MiB"),
        "fabric": fields(state="N/A", status="N/A"),
    }
    return f'<gpu id="00000000:{16 + i:02X}:00.0">{fields(**{**inside, **changes})}</gpu>'


def log_xml(*gpus: str, attached: int | None = None, version: int = 13) -> str:
    head = fields(driver_version="580.65.06", cuda_version="13.0", attached_gpus=str(attached or len(gpus)))
    dtd = f'<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v{version}.dtd">'
    return f'<?xml version="1.0" ?>\n{dtd}\n<nvidia_smi_log>{head}{"".join(gpus)}</nvidia_smi_log>'


def read(*gpus: str, attached: int | None = None) -> Topology:
    return read_smi(log_xml(*gpus, attached=attached), where="q.xml")


def node_of(*gpus: str) -> Node:
    return read(*gpus).nodes[0]


def codes(topology: Topology) -> set[str]:
    return {w.code for w in topology.warnings}


@pytest.mark.parametrize("version", [10, 11, 12, 13])
def test_a_gpu_is_read_with_its_identity_memory_and_port(version: int) -> None:
    text = log_xml(gpu_xml(0), gpu_xml(11), version=version)
    assert looks_like_smi(text[:200])
    node = read_smi(text, where="q.xml").nodes[0]
    gpu, state = node.shape.gpus[1], node.gpus[1]
    assert (gpu.name, gpu.memory_bytes) == ("NVIDIA Test 80GB", 81559 << 20)
    assert state.memory_free_bytes == 81000 << 20
    assert (state.uuid, state.pci_bus_id) == ("GPU-0000000b-1111-2222-3333-444444444444", "0000:1b:00.0")
    assert state.serial == "1600000000011"
    port = gpu.pcie
    assert port is not None
    assert (port.generation, port.generation_max, port.width, port.width_max) == (1, 5, 8, 16)
    assert (node.driver_version, node.cuda_version, node.virtualization) == ("580.65.06", "13.0", "bare")


def test_the_wires_are_unknown_and_said_to_be() -> None:
    topology = read(gpu_xml(0), gpu_xml(1), gpu_xml(2))
    shape = topology.nodes[0].shape
    assert {p.kind for p in shape.paths} == {PathKind.UNKNOWN} and not shape.nvlink_visible
    said = next(w.message for w in topology.warnings if w.code == "paths-unknown")
    assert "3 GPU pairs" in said and "nvidia-smi topo -m" in said and "likely" not in said


def test_a_gpu_alone_leaves_nothing_unknown() -> None:
    assert codes(read(gpu_xml(0))) == set() and node_of(gpu_xml(0)).shape.nvlink_visible


def test_gpus_of_one_nvlink_domain_are_one_island_over_the_nodes() -> None:
    topology = read(*(gpu_xml(i, fabric=fields(**DOMAIN)) for i in range(4)))
    paths = topology.nodes[0].shape.paths
    assert {(p.kind, p.links, p.through) for p in paths} == {(PathKind.NVLINK, None, Through.SWITCH)}
    assert "paths-unknown" not in codes(topology) and len(islands(topology)[0].members) == 4
    rack = Topology(topology.nodes * 2)
    assert [len(i.members) for i in islands(rack)] == [8]


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ({}, {"cliqueId": "8"}),
        ({}, {"clusterUuid": "0A1B2C3D-0000-4000-8000-00000000DEAD"}),
        ({}, {"state": "In Progress", "status": "N/A"}),
        ({}, {"status": "Unknown Error"}),
        ({"cliqueId": "0"}, {"cliqueId": "0"}),
        (HGX, HGX),
    ],
)
def test_what_does_not_prove_a_domain_joins_nothing(change: dict[str, str], other: dict[str, str]) -> None:
    topology = read(gpu_xml(0, fabric=fields(**{**DOMAIN, **change})), gpu_xml(1, fabric=fields(**{**DOMAIN, **other})))
    assert topology.nodes[0].shape.path(0, 1).kind is PathKind.UNKNOWN
    assert all(len(i.members) == 1 for i in islands(topology))


def test_registration_with_a_switch_is_a_hint_not_a_wire() -> None:
    topology = read(*(gpu_xml(i, fabric=fields(**HGX)) for i in range(2)))
    assert "NVLink is likely" in next(w.message for w in topology.warnings if w.code == "paths-unknown")
    fabric = topology.nodes[0].gpus[0].fabric
    assert fabric is not None and fabric.is_ready and fabric.domain is None and fabric.cluster_uuid is None


@pytest.mark.parametrize(
    ("words", "mask", "complaint"),
    [
        (("Full", "False", "False", "False", "None"), 0x1AA, None),
        (("Full", "False", "False", "False", "N/A"), 0xAA, None),
        (("N/A", "N/A", "N/A", "N/A", "N/A"), None, None),
        (("Degraded", "False", "False", "False", "None"), 0x1A9, "degraded bandwidth"),
        (("Full", "False", "True", "False", "None"), 0x19A, "unhealthy route"),
        (("Full", "False", "False", "False", "Insufficient Nvlinks"), 0x5AA, "insufficient nvlinks"),
        (("Full", "False", "False", "False", "Something New"), 0xFAA, "incorrect"),
    ],
)
def test_fabric_health_is_the_mask_that_nvml_gives(
    words: tuple[str, ...], mask: int | None, complaint: str | None
) -> None:
    tags = (
        "bandwidth",
        "route_recovery_in_progress",
        "route_unhealthy",
        "access_timeout_recovery",
        "incorrect_configuration",
    )
    health = fields(summary="?", **dict(zip(tags, words, strict=True)))
    topology = read(gpu_xml(0, fabric=fields(**DOMAIN, health=health)))
    fabric = topology.nodes[0].gpus[0].fabric
    assert fabric is not None and fabric.health_mask == mask
    said = [w.message for w in topology.warnings if w.code == "fabric-unhealthy"]
    assert [complaint in s for s in said if complaint] == ([True] if complaint else [])


def test_a_failed_registration_is_never_ready() -> None:
    topology = read(*(gpu_xml(i, fabric=fields(**{**DOMAIN, "status": "Unknown Error"})) for i in range(2)))
    fabric = topology.nodes[0].gpus[0].fabric
    assert fabric is not None and not fabric.is_ready and "fabric-failed" in codes(topology)
    assert "fabric-in-progress" in codes(read(gpu_xml(0, fabric=fields(state="In Progress", status="N/A"))))


def test_mig_instances_are_counted_and_stand_alone() -> None:
    instance = fields(index="0", gpu_instance_id="3", fb_memory_usage=fields(total="19968 MiB", free="19955 MiB"))
    sliced = {
        "mig_mode": fields(current_mig="Enabled", pending_mig="Enabled"),
        "mig_devices": f"<mig_device>{instance}</mig_device>" * 2,
        "fabric": fields(**DOMAIN),
    }
    topology = read(gpu_xml(0, **sliced), gpu_xml(1, fabric=fields(**DOMAIN)))
    state = topology.nodes[0].gpus[0]
    assert [m.memory_bytes for m in state.mig_instances] == [19968 << 20] * 2 and "mig" in codes(topology)
    assert topology.nodes[0].shape.path(0, 1).kind is PathKind.UNKNOWN
    empty = node_of(gpu_xml(0, **{**sliced, "mig_devices": "None"})).gpus[0]
    assert empty.status is GpuStatus.FAILED and "no instance" in str(empty.status_reason)


@pytest.mark.parametrize("word", ["N/A", "[N/A]", "Not Supported", "Unknown Error", "ERR!", "", "-5 MiB", "1e9 MiB"])
def test_absent_or_absurd_values_are_none(word: str) -> None:
    memory = fields(total=word, free=word)
    topology = read(gpu_xml(0, fb_memory_usage=memory, uuid=word, serial="N/A", product_name="N/A"))
    gpu, state = topology.nodes[0].shape.gpus[0], topology.nodes[0].gpus[0]
    assert (gpu.memory_bytes, state.memory_free_bytes, state.uuid, state.serial, gpu.name) == (None,) * 5
    assert "memory-unknown" in codes(topology) and ("odd-value" in codes(topology)) == word.endswith(" MiB")


def test_a_lost_gpu_is_not_used_and_the_others_are_read() -> None:
    lost = gpu_xml(1, product_name="GPU is lost", uuid="[GPU is lost]", fb_memory_usage=fields(total="GPU is lost"))
    topology = read(gpu_xml(0), lost, gpu_xml(2, product_name="GPU requires reset"))
    assert [g.status for g in topology.nodes[0].gpus] == [GpuStatus.OK, GpuStatus.LOST, GpuStatus.FAILED]
    assert topology.nodes[0].shape.gpus[1].name is None and {"gpu-lost", "gpu-failed"} <= codes(topology)


def test_a_file_of_some_gpus_says_that_others_exist() -> None:
    assert "gpus-missing" in codes(read(gpu_xml(3), attached=8))


def test_doubled_identities_are_unknown_not_wrong() -> None:
    same = gpu_xml(0)
    topology = read(same, same, gpu_xml(2))
    states = topology.nodes[0].gpus
    assert [s.uuid is None for s in states] == [s.pci_bus_id is None for s in states] == [True, True, False]
    assert "doubled" in codes(topology)


def test_the_invented_port_of_gb10_is_left_out() -> None:
    info = fields(
        pcie_gen=fields(max_link_gen="1", current_link_gen="1"),
        link_widths=fields(max_link_width="1x", current_link_width="1x"),
    )
    pci = fields(pci_bus_id="0000000F:01:00.0", pci_gpu_link_info=info)
    node = node_of(gpu_xml(0, pci=pci, fb_memory_usage=fields(total="Not Supported")))
    assert node.shape.gpus[0].pcie is None and node.gpus[0].pci_bus_id == "000f:01:00.0"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<nvidia_smi_log></nvidia_smi_log>", "lists no GPU"),
        ("<system><gpu/></system>", "not <nvidia_smi_log>"),
        ("<nvidia_smi_log><gpu id='0'>", "no whole XML"),
        ("<nvidia_smi_log>" + "<gpu/>" * 129 + "</nvidia_smi_log>", "more than any machine"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><nvidia_smi_log>&a;</nvidia_smi_log>', "entities"),
        (
            "<nvidia_smi_log><gpu><mig_mode><current_mig>Enabled</current_mig></mig_mode><mig_devices>"
            + "<mig_device/>" * 65
            + "</mig_devices></gpu></nvidia_smi_log>",
            "MIG instances",
        ),
    ],
)
def test_what_is_no_machine_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason) as refusal:
        read_smi(text, where="q.xml")
    assert "nvidia-smi" in refusal.value.cure


TAGS = ["product_name", "uuid", "serial", "pci", "fb_memory_usage", "fabric", "mig_mode", "mig_devices"]
INSIDES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="<&\x0c", min_codepoint=32), max_size=30),
    st.builds(
        lambda tag, text: f"<{tag}>{text}</{tag}>",
        st.sampled_from(["total", "free", "state", "status", "cliqueId", "clusterUuid", "current_mig", "mig_device"]),
        st.sampled_from(
            ["Completed", "Success", "Enabled", "-1", "NaN", "9" * 40, "99999999 MiB", "<total/>", "٣ MiB"]
        ),
    ),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.dictionaries(st.sampled_from(TAGS), INSIDES, max_size=4), min_size=1, max_size=4))
def test_any_field_may_hold_anything(changes: list[dict[str, str]]) -> None:
    topology = read(*(gpu_xml(i, **change) for i, change in enumerate(changes)))
    assert topology.gpu_count == len(changes)
    assert all(w.message.isprintable() for w in topology.warnings)
