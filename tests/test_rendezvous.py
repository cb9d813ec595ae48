"""Where the nodes meet, as each launcher tells it, and by which interface."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.bench.messages import Rendezvous
from probe.bench.network import Network, settle
from probe.bench.rendezvous import DEFAULT_PORT, find_rendezvous, first_host, parse_endpoint, steps_aside
from probe.errors import UsageError
from probe.sources.host import Interface

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "RANK": "8",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "16",
    "LOCAL_WORLD_SIZE": "8",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}
SRUN = {
    "SLURM_JOB_ID": "4007",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "8",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_NNODES": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "gpu[01-04]",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.9.9.9",
}
LWS = {"LWS_LEADER_ADDRESS": "serve-0.serve.default", "LWS_GROUP_SIZE": "3", "LWS_WORKER_INDEX": "2"}
TRAINER = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "8",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400",
}
MASTER = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "23456"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TORCHRUN, (2, 1, "10.0.0.1", 29500, True, "torchrun")),
        ({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "False"}, (2, 1, "10.0.0.1", 29500, False, "torchrun")),
        ({**SRUN, **TORCHRUN}, (2, 1, "10.0.0.1", 29500, True, "torchrun")),
        ({**OPEN_MPI, **MASTER}, (4, 2, "10.0.0.1", 23456, False, "mpirun")),
        ({**SRUN, "SLURM_NODEID": "0", **OPEN_MPI, **MASTER}, (4, 2, "10.0.0.1", 23456, False, "mpirun")),
        ({**HYDRA, **MASTER}, (2, 1, "10.0.0.1", 23456, False, "mpiexec")),
        (SRUN, (2, 1, "gpu03", DEFAULT_PORT + 7, False, "srun")),
        ({**SRUN, **MASTER}, (2, 1, "10.0.0.1", 23456, False, "srun")),
        ({**SRUN, "PMI_RANK": "1", "PMI_SIZE": "2"}, (2, 1, "gpu03", DEFAULT_PORT + 7, False, "srun")),
        (LWS, (3, 2, "serve-0.serve.default", DEFAULT_PORT, False, "LeaderWorkerSet")),
        (TRAINER, (2, 1, "job-node-0-0.job", 29400, False, "Kubeflow Trainer")),
        ({"RANK": "1", "WORLD_SIZE": "2", **MASTER}, (2, 1, "10.0.0.1", 23456, False, "RANK and WORLD_SIZE")),
        (
            {"RANK": "8", "WORLD_SIZE": "16", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8", **MASTER},
            (2, 1, "10.0.0.1", 23456, False, "RANK and WORLD_SIZE"),
        ),
    ],
)
def test_each_launcher_is_understood(
    environ: Mapping[str, str], expected: tuple[int, int, str, int, bool, str]
) -> None:
    found = find_rendezvous(environ)
    assert (found.nodes, found.node, found.address, found.port, found.hosted, found.origin) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_NNODES": "2", "SLURM_NODEID": "0", "SLURM_PROCID": "0"},  # a batch script, not a step
        {**SRUN, "SLURM_STEP_ID": "4294967290"},  # salloc's interactive shell
        {"JOB_COMPLETION_INDEX": "5"},  # most indexed jobs are no group
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "8"},
        {**TORCHRUN, "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1"},
    ],
)
def test_what_is_no_group_of_nodes_stays_alone(environ: Mapping[str, str]) -> None:
    found = find_rendezvous(environ)
    assert (found.nodes, found.node, found.address, found.port, found.hosted) == (1, 0, "127.0.0.1", 0, False)


def test_a_range_of_nodes_is_settled_by_who_knows_their_number() -> None:
    elastic = {**TRAINER, "PET_NNODES": "1:4"}
    assert find_rendezvous({**elastic, **TORCHRUN}).origin == "torchrun", "which tells GROUP_WORLD_SIZE"
    assert find_rendezvous({**elastic, "RANK": "1", "WORLD_SIZE": "3", **MASTER}).nodes == 3
    assert find_rendezvous({**elastic, "PET_NNODES": "2:2"}).nodes == 2
    assert find_rendezvous(elastic, nnodes=1).nodes == 1


def test_options_win_over_every_launcher_and_its_mistakes() -> None:
    broken = {**TORCHRUN, **SRUN, "SLURM_NODEID": "x", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    found = find_rendezvous(broken, nnodes=3, node_rank=2, master="[fd00::7]:4000", interface="ib0")
    assert found == Rendezvous(
        nodes=3, node=2, address="fd00::7", port=4000, interface="ib0", origin="--nnodes, --node-rank, --master, --port"
    )
    assert find_rendezvous(broken, nnodes=1).nodes == 1


def test_options_complete_a_launcher() -> None:
    found = find_rendezvous(OPEN_MPI, master="10.0.0.1")
    assert (found.nodes, found.node, found.address, found.port) == (4, 2, "10.0.0.1", DEFAULT_PORT)
    assert found.origin == "mpirun, --master"
    found = find_rendezvous({"JOB_COMPLETION_INDEX": "1"}, nnodes=2, master="job-0.svc:999")
    assert (found.nodes, found.node, found.port) == (2, 1, 999)
    found = find_rendezvous({**TRAINER, "PET_NNODES": "1:4"}, nnodes=3)
    assert (found.nodes, found.node, found.address) == (3, 1, "job-node-0-0.job")
    found = find_rendezvous({"JOB_COMPLETION_INDEX": "1", **MASTER}, nnodes=2)
    assert (found.nodes, found.node, found.address, found.port) == (2, 1, "10.0.0.1", 23456)
    own_port = find_rendezvous(TORCHRUN, port=4321)
    assert (own_port.port, own_port.hosted) == (4321, False), "the agent's store is not at that port"


@pytest.mark.parametrize(
    ("environ", "options", "problem", "cure"),
    [
        ({}, {"nnodes": 2}, "which of the 2 nodes", "--node-rank"),
        ({}, {"nnodes": 2, "node_rank": 1}, "where node 0 of 2 is", "--master"),
        ({}, {"node_rank": 1}, "how many nodes", "--nnodes"),
        ({}, {"master": "10.0.0.1"}, "how many nodes", "--nnodes"),
        ({}, {"nnodes": 0}, "no number of nodes", "1 or more"),
        ({}, {"nnodes": 2, "node_rank": 2, "master": "h"}, "node 2 of 2", "0 to 1"),
        ({}, {"nnodes": 1, "node_rank": 1}, "node 1 of 1", "0 to 0"),
        ({}, {"nnodes": 2, "node_rank": 0, "master": "h:1", "port": 2}, "port 1, --port 2", "once"),
        ({}, {"nnodes": 2, "node_rank": 0, "master": "h:99999"}, "no port", "65535"),
        ({}, {"nnodes": 2, "node_rank": 0, "master": "http://h"}, "no host and port", "HOST:PORT"),
        (TORCHRUN, {"nnodes": 4}, "torchrun 2 nodes", "--nnodes"),
        (OPEN_MPI, {}, "where node 0 of 4 is", "-x MASTER_ADDR"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, {}, "2 of 4 processes", "ppr:1:node"),
        ({**SRUN, "SLURM_NODEID": "one"}, {}, "SLURM_NODEID says 'one'", "SLURM_NODEID"),
        ({**SRUN, "SLURM_NODEID": "7"}, {}, "node 7 of 2", "0 to 1"),
        ({"TORCHELASTIC_RUN_ID": "x"}, {}, "not GROUP_WORLD_SIZE", "unset"),
        ({"TORCHELASTIC_RUN_ID": "x"}, {}, "not GROUP_WORLD_SIZE", "--node-rank"),
        ({**TRAINER, "PET_NNODES": "1:4"}, {}, "may start 1:4 nodes", "--nnodes N (1: this node alone)"),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "0", **MASTER}, {}, "count processes", "--node-rank"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a b"}, {}, "MASTER_ADDR", "HOST:PORT"),
    ],
)
def test_what_is_missing_or_contradictory_is_told_with_its_cure(
    environ: Mapping[str, str], options: dict[str, object], problem: str, cure: str
) -> None:
    with pytest.raises(UsageError) as caught:
        find_rendezvous(environ, **options)  # type: ignore[arg-type]
    assert problem in caught.value.problem
    assert cure in caught.value.cure


def test_only_the_first_process_of_a_node_measures() -> None:
    assert steps_aside({}) is None
    assert steps_aside(TORCHRUN) is None
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"):
        note = steps_aside({name: "3"})
        assert note is not None
        assert name in note
        assert steps_aside({name: "3"}, node_rank=1) is None, "told to be a node of its own"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host", ("host", None)),
        ("host.domain:29500", ("host.domain", 29500)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:29500", ("::1", 29500)),
        ("[::1]", ("::1", None)),
        ("fd00::2", ("fd00::2", None)),
        ("[fe80::1%eth0]:5", ("fe80::1%eth0", 5)),
    ],
)
def test_addresses_are_written_in_the_usual_ways(text: str, expected: tuple[str, int | None]) -> None:
    assert parse_endpoint(text, "--master") == expected


@pytest.mark.parametrize("text", ["", ":", "host:", "[::1", "[::1]x", "[host]:1", "a:b:c", "host:0", "-x", "h\x1b[0m"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_endpoint(text, "--master")


@pytest.mark.parametrize(
    ("nodelist", "expected"),
    [
        ("gpu7", "gpu7"),
        ("gpu[03-07,11],login", "gpu03"),
        ("a,b", "a"),
        ("rack[1-2]node[08-09]", "rack1node08"),
        ("n[5]-ib", "n5-ib"),
        ("", None),
        ("[", None),
    ],
)
def test_the_first_node_of_a_folded_list(nodelist: str, expected: str | None) -> None:
    assert first_host(nodelist) == expected


NAMES = sorted({*TORCHRUN, *OPEN_MPI, *HYDRA, *SRUN, *LWS, *TRAINER, "JOB_COMPLETION_INDEX"})


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["0", "1", "2", "8", "x", "", "h", "h[1-2]", "1:2"])),
    st.none() | st.integers(-1, 4),
    st.none() | st.integers(-1, 4),
    st.none() | st.text(max_size=12),
)
def test_any_environment_gives_a_possible_place_or_a_cure(
    environ: dict[str, str], nnodes: int | None, node_rank: int | None, master: str | None
) -> None:
    try:
        found = find_rendezvous(environ, nnodes=nnodes, node_rank=node_rank, master=master)
    except UsageError as error:
        assert error.cure
    else:
        assert 0 <= found.node < found.nodes
        assert found.address
        assert found.nodes == 1 or 0 < found.port < 65536


LO = Interface("lo", True, ("127.0.0.1", "::1"))
ETH0 = Interface("eth0", True, ("10.0.0.1", "fd00::1", "fe80::1%eth0"))
ETH1 = Interface("eth1", True, ("10.1.0.1",))
DOWN = Interface("ib0", False, ("10.2.0.1",))
BARE = Interface("ib1", True, ("fe80::2%ib1",))


class Described(Network):
    """A machine with these interfaces, where these names resolve (the last answer stays) and these routes lead out."""

    def __init__(
        self,
        *interfaces: Interface,
        names: Mapping[str, Sequence[tuple[str, ...]]] | None = None,
        routes: Mapping[str, str] | None = None,
        slurm: str | None = None,
    ) -> None:
        self._interfaces, self._routes, self._slurm = interfaces, routes or {}, slurm
        self._names = {name: list(answers) for name, answers in (names or {}).items()}

    def interfaces(self) -> tuple[Interface, ...]:
        return self._interfaces

    def addresses_of(self, host: str) -> tuple[str, ...]:
        answers = self._names.get(host, [()])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def source_towards(self, address: str) -> str | None:
        return self._routes.get(address) or self._routes.get("default")

    def slurm_address(self, node: str) -> str | None:
        return self._slurm


def meeting(address: str = "10.0.0.1", **more: object) -> Rendezvous:
    return msgspec.structs.replace(Rendezvous(nodes=2, node=1, address=address, port=1), **more)


def place(found: Rendezvous) -> tuple[str, str | None]:
    return found.address, found.interface


def test_one_node_speaks_over_its_loopback() -> None:
    assert place(settle(Rendezvous(), network=Described(ETH0, LO))) == ("127.0.0.1", "lo")
    six = Interface("lo", True, ("::1",))
    assert place(settle(Rendezvous(), network=Described(ETH0, six))) == ("::1", "lo")
    down = Interface("lo", False, ())
    assert place(settle(Rendezvous(), network=Described(DOWN, ETH0, down))) == ("10.0.0.1", "eth0")
    with pytest.raises(UsageError, match="ip link set lo up"):
        settle(Rendezvous(), network=Described(DOWN, down))


def test_the_interface_is_the_one_on_the_route_to_node_0() -> None:
    network = Described(ETH0, ETH1, LO, routes={"10.1.0.9": "10.1.0.1", "default": "10.0.0.1"})
    assert place(settle(meeting("10.1.0.9"), network=network)) == ("10.1.0.9", "eth1")
    assert place(settle(meeting("10.7.0.9"), network=network)) == ("10.7.0.9", "eth0")
    with pytest.raises(UsageError, match=r"no route|a route to node 0.*eth0 \(10.0.0.1\), eth1"):
        settle(meeting("10.7.0.9"), network=Described(ETH0, ETH1, LO))


@pytest.mark.parametrize(
    ("name", "why"), [("ib9", "does not exist"), ("ib0", "is down"), ("ib1", "has no IPv4 address")]
)
def test_an_interface_that_cannot_serve_is_named_with_those_that_can(name: str, why: str) -> None:
    network = Described(BARE, DOWN, ETH0, ETH1, LO, routes={"default": "10.0.0.1"})
    assert settle(meeting(interface="eth1"), network=network).interface == "eth1"
    with pytest.raises(UsageError, match=why) as caught:
        settle(meeting(interface=name), network=network)
    assert caught.value.cure == "Choose one of those that can serve: eth0 (10.0.0.1), eth1 (10.1.0.1)."


def test_node_0_binds_an_address_of_its_own() -> None:
    network = Described(ETH0, LO, names={"svc": [("10.96.0.7",)]}, routes={"default": "10.0.0.1"})
    assert place(settle(meeting(node=0), network=network)) == ("10.0.0.1", "eth0")
    with pytest.raises(UsageError, match=r"10.9.9.9, which is no address of this machine.*eth0 \(10.0.0.1\)"):
        settle(meeting("10.9.9.9", node=0), network=network)
    behind = meeting("svc", node=0, origin="Kubernetes job, --nnodes")
    assert place(settle(behind, network=network)) == ("10.0.0.1", "eth0"), "a service's address is nobody's own"
    there = meeting("10.9.9.9", node=0, hosted=True)
    assert settle(there, network=network).address == "10.9.9.9", "the launcher's store is where it says"


def test_a_host_name_that_stands_for_loopback_does_not_mislead() -> None:
    debian = {"gpu1": [("127.0.1.1",)]}
    for node in (0, 1):
        alone = Described(ETH0, LO, names=debian)
        assert place(settle(meeting("gpu1", node=node), network=alone)) == ("10.0.0.1", "eth0")
        routed = Described(ETH0, ETH1, LO, names=debian, routes={"default": "10.1.0.1"})
        assert place(settle(meeting("gpu1", node=node), network=routed)) == ("10.1.0.1", "eth1")
    with pytest.raises(UsageError, match=r"not clear.*IP of node 0.*eth0"):
        settle(meeting("gpu1", node=0), network=Described(ETH0, ETH1, LO, names=debian))
    both = Described(ETH0, LO, names={"gpu1": [("127.0.1.1", "10.0.0.1")]}, routes={"default": "10.0.0.1"})
    assert settle(meeting("gpu1", node=0), network=both).address == "10.0.0.1"
    meant = Described(ETH0, LO, names={"localhost": [("127.0.0.1",)]})
    assert place(settle(meeting("localhost", node=0), network=meant)) == ("127.0.0.1", "lo")


def test_a_name_that_does_not_resolve_says_what_to_give_instead() -> None:
    network = Described(ETH0, LO, routes={"default": "10.0.0.1"})
    with pytest.raises(UsageError, match=r"'gpu3' of node 0 \(srun\) does not resolve here.*--master IP:PORT"):
        settle(meeting("gpu3", origin="srun"), network=network)
    known = Described(ETH0, LO, routes={"default": "10.0.0.1"}, slurm="10.0.0.3")
    assert settle(meeting("gpu3", origin="srun"), network=known).address == "10.0.0.3"


def test_a_leader_whose_name_comes_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probe.bench.network.time.sleep", lambda seconds: None)
    late = [(), (), ("10.0.0.9",)]
    network = Described(ETH0, LO, names={"lead": late}, routes={"default": "10.0.0.1"})
    assert settle(meeting("lead", origin="LeaderWorkerSet"), patience_s=60, network=network).address == "10.0.0.9"


TWO_CARDS = (
    "ip link add fast0 type veth peer name fast1; ip address add 10.1.0.1/24 dev fast0; ip link set fast0 up;"
    "ip link set fast1 up; ip link add slow0 type veth peer name slow1; ip address add 10.2.0.1/24 dev slow0"
)
"""The second has an address, and nobody brought it up."""

NAMESPACES = shutil.which("unshare") and shutil.which("ip") and hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.mark.skipif(not NAMESPACES, reason="no root, unshare or iproute2: NOTHING of real interfaces is tested")
@pytest.mark.parametrize(
    ("setup", "options", "expected"),
    [
        ("ip link set lo up", "", "127.0.0.1 lo"),
        ("ip link set lo up; ip address del 127.0.0.1/8 dev lo", "", "::1 lo"),
        (
            "ip link set lo up; ip address del 127.0.0.1/8 dev lo",
            "nnodes=2, node_rank=0, master='[::1]:29500'",
            "::1 lo",
        ),
        ("true", "", "no network interface is up"),
        (
            TWO_CARDS,
            "nnodes=2, node_rank=1, master='10.1.0.9:1'",
            "10.1.0.9 fast0",
        ),
        (
            TWO_CARDS,
            "nnodes=2, node_rank=1, master='10.2.0.9:1', interface='slow0'",
            "'slow0' is down. Choose one of those that can serve: fast0 (10.1.0.1)",
        ),
        ("ip link set lo up", "nnodes=2, node_rank=1, master='10.1.0.9:1'", "a route to node 0 at 10.1.0.9"),
        ("ip link set lo up", "nnodes=2, node_rank=1, master='nowhere.invalid'", "does not resolve here"),
    ],
)
def test_on_real_interfaces(setup: str, options: str, expected: str) -> None:
    script = (
        "from probe.bench.network import settle; from probe.bench.rendezvous import find_rendezvous\n"
        "from probe.errors import UsageError\n"
        f"try: found = settle(find_rendezvous({{}}, {options})); print(found.address, found.interface)\n"
        "except UsageError as error: print(error)"
    )
    command = ["unshare", "--net", "sh", "-c", f'{setup}; exec "$0" -c "$1"', sys.executable, script]
    root = Path(__file__).resolve().parent.parent
    made = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=root)
    if "Operation not permitted" in made.stderr or "Unknown device type" in made.stderr:
        pytest.skip(f"the kernel refuses: {made.stderr.strip()}")
    assert expected in made.stdout, made.stderr
