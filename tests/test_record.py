"""A record gives the same topology again, by `--from` and through the fake driver, and hides whose machine it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from command import environment, wirelore
from fake_nvml import machines
from fake_nvml.replay import description

from probe.errors import SourceError
from probe.sources.host import HostFacts
from probe.sources.nvml import read_nvml
from probe.sources.record import (
    Fact,
    Record,
    decode_record,
    encode_record,
    facts_of,
    record_this_machine,
    redacted,
    replay,
)
from probe.topology import Nic, Notice, Topology

FakeMachine = Callable[..., dict[str, str]]


def lost_gpu() -> machines.Description:
    d = machines.hgx_h100()
    d["name 5"] = "!15"
    return d


def split_and_degraded() -> machines.Description:
    d = machines.hgx_h100()
    for link in range(3):
        d[f"link.state 2 {link}"] = 0
    for a in range(4):
        for b in range(4, 8):
            d.p2p(a, b, 0, nvlink=5)
            d.p2p(b, a, 0, nvlink=5)
    return d


def fabric_pending() -> machines.Description:
    d = machines.hgx_b200()
    d.fabric(state=2)
    return d


def healthy() -> machines.Description:
    d = machines.hgx_h100()
    machines.healthy(d)
    return d


MACHINES = (
    lost_gpu,
    split_and_degraded,
    fabric_pending,
    healthy,
    machines.hgx_h100,
    machines.hgx_b200,
    machines.gb200_tray,
    machines.a100_pcie_pairs,
    machines.dgx1_v100,
    machines.l40s_8,
    machines.rtx_3090_bridges,
    machines.h200_vm,
    machines.a100_mig,
    machines.gb10,
)


def recorded(environment: dict[str, str], *, redact: bool = False, **more: str) -> Record:
    return record_this_machine(redact=redact, environ={**os.environ, **environment, **more})


def without_host(record: Record) -> Record:
    return Record(
        record_version=record.record_version,
        redacted=record.redacted,
        facts=record.facts,
        host=HostFacts(),
        environment=record.environment,
    )


def anonymous(topology: Topology) -> Topology:
    """The topology without what redaction replaces."""
    nodes = tuple(
        replace(
            node,
            hostname=None,
            gpus=tuple(
                replace(
                    g,
                    uuid=None,
                    serial=None,
                    mig_instances=tuple(replace(m, uuid=None) for m in g.mig_instances),
                    fabric=g.fabric and replace(g.fabric, cluster_uuid=None),
                )
                for g in node.gpus
            ),
        )
        for node in topology.nodes
    )
    return replace(topology, nodes=nodes)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.__name__)
def test_a_record_gives_the_same_topology_again(
    machine: Callable[[], machines.Description], fake_machine: FakeMachine, tmp_path: Path
) -> None:
    environment = fake_machine(machine())
    live = read_nvml(environ={**os.environ, **environment})
    record = recorded(environment)
    again = decode_record(encode_record(record), where="record.json")
    assert again == record
    assert replay(without_host(again)) == live

    told = tmp_path / "again.nvml"
    told.write_text(description(facts_of(again)), encoding="utf-8")
    through_the_bindings = read_nvml(environ={**os.environ, **environment, "FAKE_NVML": str(told)})
    assert through_the_bindings == live


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.__name__)
def test_a_redacted_record_differs_in_names_alone(
    machine: Callable[[], machines.Description], fake_machine: FakeMachine
) -> None:
    record = recorded(fake_machine(machine()))
    assert anonymous(replay(redacted(record))) == anonymous(replay(record))


def test_what_identifies_a_machine_never_reaches_a_redacted_record(fake_machine: FakeMachine) -> None:
    machine = machines.gb200_tray()
    machine["uuid 0"] = "GPU-5ec2e755-1111-2222-3333-444455556666"
    machine["serial 0"] = "1654321987654"
    secrets = ["5ec2e755", "1654321987654", "secretnode", "corp.example", "enxdeadbeef0001", "hush"]
    environment = fake_machine(machine, CUDA_VISIBLE_DEVICES="GPU-5ec2e755-11", SOME_TOKEN="hush")
    record = recorded(environment)
    host = replace(
        record.host,
        hostname="secretnode.corp.example",
        nics=(Nic("enxdeadbeef0001", interface="enxdeadbeef0001"), Nic("mlx5_0")),
        notices=(Notice("odd", "secretnode has an odd fact"),),
    )
    planted = Record(
        record_version=record.record_version,
        redacted=False,
        facts=record.facts,
        host=host,
        environment=record.environment,
    )
    text = encode_record(redacted(planted)).decode()
    assert [secret for secret in secrets if secret in text] == []
    assert [s for s in secrets if s not in encode_record(planted).decode()] == ["hush"]


def test_names_addresses_and_home_folders_in_odd_places_never_reach_a_redacted_record(
    fake_machine: FakeMachine,
) -> None:
    """A host called H100 in a domain, devices named after GUIDs, and a virtual environment in somebody's home."""
    record = recorded(fake_machine(machines.hgx_h100()))
    told = (
        "see H100.SecretCorp.example, vethH100, 10.1.2.3, fe80::1234:5678:9abc:def0, aa:bb:cc:dd:ee:ff in /home/alice"
    )
    host = replace(
        record.host,
        hostname="h100.secretcorp.example",
        product="PowerEdge h100.secretcorp.example",
        nics=(Nic("ibx506b4b0300ab12cd"), Nic("rocexec0d9a03009c3a4a"), Nic("h100-eth0"), Nic("mlx5_0")),
        notices=(Notice("odd", told),),
    )
    facts = tuple(Fact(f.fact, f.at, "/home/alice/venv/pynvml.py") if f.fact == "bindings" else f for f in record.facts)
    planted = msgspec.structs.replace(record, host=host, facts=facts)
    text = encode_record(redacted(planted)).decode()
    secrets = ["secretcorp", "vethH100", "h100-eth0", "10.1.2.3", "9abc", "aa:bb", "alice", "506b4b", "ec0d9a"]
    assert [secret for secret in secrets if secret.lower() in text.lower()] == []
    gpu = replay(redacted(planted)).nodes[0]
    assert gpu.shape.gpus[0].name == "NVIDIA H100 80GB HBM3"
    assert gpu.gpus[0].pci_bus_id == replay(record).nodes[0].gpus[0].pci_bus_id


def test_visibility_means_the_same_gpu_after_redaction(fake_machine: FakeMachine) -> None:
    uuid = machines.rtx_3090_bridges().answers["uuid 2"]
    record = recorded(fake_machine(machines.rtx_3090_bridges()), CUDA_VISIBLE_DEVICES=str(uuid)[:13])
    for kept in (record, redacted(record)):
        assert [g.visible for g in replay(kept).nodes[0].gpus] == [False, False, True, False]


def test_two_nodes_of_one_nvlink_domain_stay_together_after_redaction(fake_machine: FakeMachine) -> None:
    first = replay(recorded(fake_machine(machines.gb200_tray()), redact=True))
    second = replay(recorded(fake_machine(machines.gb200_tray()), redact=True))
    domains = {g.fabric.domain for t in (first, second) for g in t.nodes[0].gpus if g.fabric}
    assert len(domains) == 1 and None not in domains


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b'{"record_version": 1}',
        b'{"record_version": 99, "redacted": true, "facts": [], "host": {}, "environment": {}}',
        b"[" * 100_000,
        b'{"record_version": 1, "redacted": true, "facts": [{"fact": 3}], "host": {}, "environment": {}}',
    ],
)
def test_what_is_no_record_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(SourceError) as caught:
        decode_record(data, where="x.json")
    assert "\n" not in str(caught.value)


def test_the_command_records_and_reads_back_what_it_showed(fake_machine: FakeMachine, tmp_path: Path) -> None:
    there = environment(**fake_machine(machines.rtx_3090_bridges()))
    shown = wirelore("probe", "--record", "r.json", "--format", "json", cwd=tmp_path, environ=there).data()
    assert wirelore("probe", "--from", "r.json", "--format", "json", cwd=tmp_path).data() == shown
    assert "GPU-00000001" not in (tmp_path / "r.json").read_text()
    wirelore("probe", "--record", "named.json", "--no-redact", cwd=tmp_path, environ=there).data()
    assert "GPU-00000001" in (tmp_path / "named.json").read_text()
    refused = wirelore("probe", "--no-redact", cwd=tmp_path, environ=there)
    assert refused.code == 2 and "--record" in refused.err
