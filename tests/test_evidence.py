"""Evidence of what a run used: NCCL's and RCCL's logs as several versions write them, hostile ones, own sockets."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.bench.evidence import evidence, evidence_in_file
from probe.bench.sockets import Connection, interfaces, ipv6_addresses, own_sockets, socket_evidence
from probe.measurement import Evidence


def told(log: str) -> dict[tuple[str, str], list[str]]:
    """{(operation, what): values} of a log whose lines are written here without their marks."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in evidence(log.strip("\n").splitlines()):
        found.setdefault((one.operation, one.what), []).append(one.value)
    return found


def marked(*texts: str, rank: int = 0) -> str:
    return "\n".join(f"node-a:4711:48{rank:02} [{rank}] NCCL INFO {text}" for text in texts)


def test_two_nvlinked_gpus_of_nccl_2_19() -> None:
    log = marked(
        "Bootstrap : Using eno1:192.168.7.4<0>",
        "cudaDriverVersion 12020",
        "NET/IB : No device found.",
        "NET/Socket : Using [0]eno1:192.168.7.4<0>",
        "Using network Socket",
        "NVLS multicast support is not available on dev 0",
        "NCCL_P2P_LEVEL set by environment to NVL",
        "Channel 00/04 :    0   1",
        "Channel 00/0 : 0[0] -> 1[1] via P2P/IPC/read",
        "Channel 01/0 : 0[0] -> 1[1] via P2P/IPC/read",
        "Connected all rings",
        "4 coll channels, 0 nvls channels, 4 p2p channels, 4 p2p channels per peer",
        "comm 0x55d5 rank 0 nranks 2 cudaDev 0 nvmlDev 0 busId 1000 commId 0x7e1 - Init COMPLETE",
        "AllReduce: 4096 Bytes -> Algo 1 proto 0 time 11.300000",
        "AllReduce: 65536 Bytes -> Algo 1 proto 0 time 12.300000",
        "AllReduce: 67108864 Bytes -> Algo 1 proto 2 time 912.300000",
        "AllGather: 67108864 Bytes -> Algo 4 proto 2 time 912.300000",
    )
    assert told("NCCL version 2.19.3+cuda12.2\n" + log) == {
        ("any", "version"): ["NCCL 2.19.3+cuda12.2"],
        ("any", "bootstrap"): ["eno1"],
        ("any", "cuda_driver"): ["12020"],
        ("any", "network"): ["Socket"],
        ("any", "nvls"): ["not available"],
        ("any", "environment"): ["NCCL_P2P_LEVEL=NVL"],
        ("any", "transport"): ["P2P/IPC/read"],
        ("any", "channels"): ["4 coll, 0 nvls, 4 p2p"],
        ("all_reduce", "algorithm"): ["RING/LL 4096-65536 B", "RING/SIMPLE 67108864 B"],
        ("all_gather", "algorithm"): ["NVLS/SIMPLE 67108864 B"],
    }


def test_two_nodes_with_infiniband_of_nccl_2_27() -> None:
    log = marked(
        "NCCL version 2.27.5+cuda12.9",
        "Bootstrap: Using bond0:10.4.0.12<0>",
        "NCCL_IB_HCA set to mlx5_0,mlx5_3",
        "NET/IB : Made virtual device [0] name=mlx5_0 speed=400000 ndevs=1",
        "NET/IB : Made virtual device [1] name=mlx5_3 speed=400000 ndevs=1",
        "NET/IB : Using [0]mlx5_0:1/IB/SHARP [1]mlx5_3:1/RoCE [RO]; OOB bond0:10.4.0.12<0>",
        "Initialized NET plugin IB",
        "Assigned NET plugin IB to comm",
        "Using network IB",
        "NVLS multicast support is available on dev 3 (NVLS_NCHANNELS 24)",
        "Channel 00/0 : 8[0] -> 3[3] [receive] via NET/IB/1/GDRDMA/flush=None",
        "Channel 00/0 : 3[3] -> 2[2] via P2P/CUMEM",
        "Channel 01/0 : 3[3] -> 11[3] [send] via NET/IB/1(2)/GDRDMA(PCI)/Shared",
        "16 coll channels, 16 collnet channels, 24 nvls channels, 16 p2p channels, 2 p2p channels per peer",
        "AllReduce: 1048576 Bytes -> Algo TREE proto LL128 channel{Lo..Hi}={0..15}",
        "AllReduce: 268435456 Bytes -> Algo NVLS_TREE proto SIMPLE channel{Lo..Hi}={0..15}",
        "AllGather [Symmetric]: 8192 Bytes -> Kernel AllGather_LL nchannels 4 nthreads 512 nWorks 1",
        rank=3,
    )
    assert told(log) == {
        ("any", "version"): ["NCCL 2.27.5+cuda12.9"],
        ("any", "bootstrap"): ["bond0"],
        ("any", "network"): ["IB"],
        ("any", "nvls"): ["available"],
        ("any", "transport"): ["NET/IB/1/GDRDMA", "P2P/CUMEM", "NET/IB/1/GDRDMA(PCI)/Shared"],
        ("any", "pxn"): ["used"],
        ("any", "channels"): ["16 coll, 24 nvls, 16 p2p"],
        ("any", "nic"): ["mlx5_3"],
        ("all_reduce", "algorithm"): ["TREE/LL128 1048576 B", "NVLS_TREE/SIMPLE 268435456 B"],
        ("all_gather", "algorithm"): ["kernel AllGather_LL 8192 B"],
    }


def test_a_plugin_uses_the_devices_that_are_told_under_the_name_of_what_it_replaces() -> None:
    log = marked(
        "NET/Plugin: Loaded net plugin NCCL RDMA Plugin v8 (v8)",
        "NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB [2]mlx5_4:1/IB; OOB ens3:10.0.0.1<0>",
        "Using network IBext_v8",
        "Channel 03/0 : 7[3] -> 3[3] [receive] via NET/IBext_v8/2/GDRDMA",
    )
    found = told(log)
    assert found["any", "nic"] == ["mlx5_4:1/IB"]
    assert found["any", "transport"] == ["NET/IBext_v8/2/GDRDMA"]
    assert found["any", "plugin"] == ["NCCL RDMA Plugin v8 (v8)"]


def test_sockets_are_named_without_their_addresses() -> None:
    log = marked(
        "NET/Socket : Using [0]eth0:172.16.9.1<0> [1]eth1:fe80::12%eth1<0>",
        "Channel 00/0 : 1[0] -> 0[0] [send] via NET/Socket/1",
        "NCCL_COMM_ID set by environment to 172.16.9.1:4000",
        "NCCL_DEBUG_FILE set by environment to /home/ada/secret.log",
    )
    found = evidence(log.splitlines())
    assert [e.value for e in found if e.what == "nic"] == ["eth1"]
    assert not [e for e in found if "172." in e.value or "ada" in e.value or "fe80" in e.value]


def test_efa() -> None:
    log = marked(
        "NET/OFI Selected Provider is efa (found 4 nics)",
        "Using network AWS Libfabric",
        "Channel 00/0 : 8[0] -> 0[0] [receive] via NET/AWS Libfabric/3/GDRDMA",
    )
    found = told(log)
    assert found["any", "provider"] == ["efa"]
    assert found["any", "transport"] == ["NET/AWS Libfabric/3/GDRDMA"]


def test_rccl() -> None:
    log = (
        "gpu-5:9:9 [0] NCCL INFO RCCL version : 2.22.3-HEAD:7d8d67c\n"
        "HIP version  : 6.4.43484-123eb5128\n"
        "ROCm version : 6.4.2.0-120-e7d83f5\n"
    ) + marked(
        "Channel 00/0 : 1[c6000] -> 4[c1000] [receive] via NET/Socket/1 comm 0x95cdeb0 nRanks 08",
        "Channel 02/0 : 7[ce000] -> 5[c6000] via P2P/IPC comm 0xfb16e30 nRanks 08",
        "Channel 02/0 : 5[ce000] -> 7[c6000] via SHM/direct/direct comm 0xfb16e30 nRanks 08",
    )
    found = told(log)
    assert found["any", "version"] == ["RCCL 2.22.3-HEAD:7d8d67c", "HIP 6.4.43484-123eb5128"]
    assert found["any", "transport"] == ["NET/Socket/1", "P2P/IPC", "SHM/direct/direct"]


def test_choices_without_a_function_and_of_numbers_to_come() -> None:
    found = told(marked("1024 Bytes -> Algo 0 proto 1 time 3.5", "Novel: 7 Bytes -> Algo 9 proto 2 time 1"))
    assert found == {("any", "algorithm"): ["TREE/LL128 1024 B", "9/SIMPLE 7 B"]}


def test_timestamps_before_a_line_do_no_harm() -> None:
    line = "[2026-04-28 14:14:47] pod-0:2345:3743 [7] NCCL INFO Channel 00/0 : 7[7] -> 6[6] via P2P/direct pointer"
    assert told(line) == {("any", "transport"): ["P2P/direct pointer"]}


def test_what_is_no_evidence_is_none() -> None:
    noise = "Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM\nnode NCCL WARN via P2P\nNCCL INFO\n\x00\x1b[31m\nvia NET/IB/0"
    assert told(noise) == {}
    assert evidence([]) == ()


def test_a_line_that_is_cut_or_colours_the_terminal() -> None:
    found = told(marked("Channel 00/0 : 0[0] -> 1[1] via P2P/\x1b[31mCUMEM\x07", "Channel 00/0 : 0[0] -> 1[1] vi"))
    assert found == {("any", "transport"): ["P2P/ [31mCUMEM"]}


def test_a_hostile_log_is_bounded_in_time_and_in_what_is_kept() -> None:
    def lines() -> Iterator[str]:
        for i in range(30_000):
            yield marked(f"Channel 00/0 : 0[0] -> 1[1] via P2P/way-{i}")
            yield marked(f"Op{'x' * (i % 9)}: {i} Bytes -> Algo A{i} proto P{i}")
            yield marked(f"NET/IB : Using [{i % 999}]{'a' * 1900}")
        for repeated in ("Using network ", "[0]", "NCCL version ", "Bytes -> Algo ", "/", " ", "1.", "NET/OFI"):
            for _ in range(300):
                yield marked("NET/IB : Using " + repeated * 400)
                yield marked(repeated * 4000)

    start = time.process_time()
    found = evidence(lines())
    assert time.process_time() - start < 6
    assert len(found) < 200
    assert all(len(e.value) <= 200 and e.value.isprintable() for e in found)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.lists(
        st.lists(
            st.sampled_from(
                [
                    *("NCCL INFO ", "Channel 00/0 : ", "0[0] -> ", "1[1] ", "[send] ", "via ", "NET/IB/0", "/GDRDMA"),
                    *("NET/IB : Using ", "[0]mlx5_0:1/IB ", "AllReduce: ", "99 ", "Bytes -> ", "Algo RING ", "\x1b"),
                    *(
                        "proto LL",
                        "NCCL version ",
                        "2.27.3",
                        "NVLS multicast support is ",
                        "not ",
                        "available",
                        "\u2028",
                    ),
                ]
            ),
            max_size=9,
        ).map("".join),
        max_size=20,
    )
)
def test_any_log_gives_clean_evidence_and_each_thing_once(lines: list[str]) -> None:
    found = evidence(lines)
    assert len(set(found)) == len(found)
    assert all(e.value.isprintable() and e.value.strip() for e in found)


def test_a_file_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "nccl.log"
    path.write_bytes(b"\xff\xfe\x00" * 5000 + b"\n" + marked("Using network Socket").encode() + b"\nNCCL version 2.2")
    assert Evidence("any", "network", "Socket") in evidence_in_file(path)
    assert evidence_in_file(tmp_path / "none") == ()
    assert evidence_in_file(tmp_path) == ()


# ---- own sockets ----------------------------------------------------------------------------------------------------


def test_own_connections_and_their_interface() -> None:
    before = own_sockets()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        here = stack.enter_context(socket.create_connection(server.getsockname()))
        there = stack.enter_context(server.accept()[0])
        stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for end in socket.socketpair():
            stack.enter_context(end)
        now = own_sockets()
        here.sendall(b"still open")
        assert there.recv(16) == b"still open"
        address = here.getsockname()
    new = [c for c in now if c not in before]
    assert {(c.local, c.local_port) for c in new} == {address, ("127.0.0.1", server_port(new, address))}
    assert socket_evidence("all_reduce", now, interfaces(), before=before) == (
        Evidence("all_reduce", "interface", "lo (2 connections)"),
    )


def server_port(connections: list[Connection], address: tuple[str, int]) -> int:
    (port,) = {c.remote_port for c in connections if c.local_port == address[1]}
    return port


def test_a_listener_is_no_connection() -> None:
    before = own_sockets()
    with socket.create_server(("127.0.0.1", 0)):
        assert own_sockets() == before


def test_the_two_interfaces_of_a_node_are_told_apart() -> None:
    names = {"10.0.0.1": "eth0", "10.1.0.1": "eth1\x1b[0m", "fd00::1": "eth0"}
    connections = [
        Connection("10.0.0.1", 1, "10.0.0.2", 9),
        Connection("fd00::1", 2, "fd00::2", 9),
        Connection("10.1.0.1", 3, "10.1.0.2", 9),
        Connection("10.9.0.1", 4, "10.9.0.2", 9),
    ]
    found = socket_evidence("p2p", connections, names, before=connections[:1])
    assert [e.value for e in found] == ["eth0 (1 connection)", "eth1 [0m (1 connection)", "unknown (1 connection)"]


def test_ipv6_addresses_as_the_kernel_prints_them() -> None:
    text = (
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fe800000000000000a0027fffe123456 02 40 20 80   enp0s3\n"
        "zz800000000000000a0027fffe123456 02 40 20 80   enp0s3\nshort\n"
    )
    assert dict(ipv6_addresses(text)) == {"::1": "lo", "fe80::a00:27ff:fe12:3456": "enp0s3"}


def test_a_mapped_address_is_the_plain_one() -> None:
    try:
        server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except (OSError, ValueError):
        pytest.skip("no IPv6 here: mapped addresses are NOT tried")
    before = own_sockets()
    with server, socket.create_connection(("127.0.0.1", server.getsockname()[1])), server.accept()[0]:
        new = [c for c in own_sockets() if c not in before]
    assert {c.local for c in new} == {"127.0.0.1"}
