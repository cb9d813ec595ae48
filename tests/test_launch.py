"""`wirelore launch`, run: stubs stand in for the engine, a fake driver for the machine; all processes are real."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from builders import cluster_of, llama_70b, llama_405b, node_of
from command import WIRELORE, Ended, environment, wirelore
from fake_nvml import FakeMachine
from fake_nvml.machines import LOST, Description, a100_mig, hgx_h100, rtx_3090_bridges
from stub_engine import AWKWARD

from configgen.decide import plan
from configgen.document import decode_plan, encode_plan
from configgen.engines.launcher import launch_of
from configgen.engines.rules import engine_traits
from configgen.plan import Objective, Plan, Workload
from configgen.run.launch import Start
from configgen.run.together import run_together
from probe.errors import UsageError
from probe.measurement import Survey
from probe.sources.machines import machine
from probe.topology import Topology

# It records how it was started, and then does what its environment says: end with a code, or hold until a signal.
STUB = f"""#!{sys.executable} -IS
import json, os, signal, subprocess, sys
folder = os.environ["RECORDS"]
def put(name, told):
    with open(os.path.join(folder, "." + name), "w") as file:
        json.dump(told, file)
    os.rename(os.path.join(folder, "." + name), os.path.join(folder, name))
child = None
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM, signal.SIGINT, signal.SIGHUP}})
if "CHILD" in os.environ:
    child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL).pid
put(str(os.getpid()), {{"argv": sys.argv, "environment": dict(os.environ), "child": child}})
port = sys.argv[sys.argv.index("--port") + 1] if "--port" in sys.argv else None
if "FAILING_PORT" in os.environ and port == os.environ["FAILING_PORT"]:
    while sum(n.isdigit() for n in os.listdir(folder)) < int(os.environ["SERVERS"]):
        os.sched_yield()
    sys.exit(int(os.environ["CODE"]))
if "HOLD" in os.environ:
    while True:
        number = signal.sigtimedwait({{signal.SIGTERM, signal.SIGINT, signal.SIGHUP}}, 60).si_signo
        put(f"signal-{{os.getpid()}}", number)
        if os.environ["HOLD"] != "deaf":
            sys.exit(0)
"""

MIXTRAL = ("mixtral-8x7b", "--objective", "throughput", "--concurrency", "512")
OF_LAUNCHERS = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "MPI_", "TORCHELASTIC_", "GROUP_", "ROLE_", "LWS_", "PET_", "JOB_C")


@dataclass(frozen=True)
class Engines:
    """Stubs on PATH, and the folder in which they tell how they were started."""

    folder: Path
    records: Path

    def environment(self, **more: str) -> dict[str, str]:
        path = f"{self.folder}:{os.environ['PATH']}"
        told = environment(PATH=path, RECORDS=str(self.records), **more)
        names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return {n: v for n, v in told.items() if n in more or not (n in names or n.startswith(OF_LAUNCHERS))}

    def told(self, count: int | None = None) -> list[dict[str, Any]]:
        """What the stubs recorded, by their words; with a count, once so many have."""
        deadline = time.monotonic() + 15
        while count is not None and len(self._started()) < count and time.monotonic() < deadline:
            os.sched_yield()
        found = [json.loads(path.read_text()) | {"pid": int(path.name)} for path in self._started()]
        assert count is None or len(found) == count
        return sorted(found, key=lambda record: str(record["argv"]))

    def signals(self) -> list[int]:
        return [json.loads(path.read_text()) for path in self.records.glob("signal-*")]

    def _started(self) -> list[Path]:
        return [path for path in self.records.iterdir() if path.name.isdigit()]


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    folder, records = tmp_path / "bin", tmp_path / "records"
    folder.mkdir()
    records.mkdir()
    for name in ("vllm", "trtllm-serve", "torchrun"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    return Engines(folder, records)


Launched = Callable[..., Ended]


def run(engines: Engines, folder: Path, *arguments: str, **more: str) -> Ended:
    """`wirelore launch plan.json` to its end."""
    command = [*WIRELORE, "launch", "plan.json", *arguments]
    environ = engines.environment(**more)
    start = time.perf_counter()
    ended = subprocess.run(command, env=environ, capture_output=True, cwd=folder, timeout=30, check=False, text=True)
    return Ended(ended.returncode, ended.stdout, ended.stderr, time.perf_counter() - start)


def saved(decided: Plan, folder: Path) -> Plan:
    (folder / "plan.json").write_bytes(encode_plan(decided))
    return decided


def planned_on(here: dict[str, str], folder: Path, *arguments: str) -> Plan:
    """The plan of a machine that the driver describes, so with its UUIDs."""
    wirelore("plan", *arguments, "-o", "plan.json", cwd=folder, environ=here).data()
    return decode_plan((folder / "plan.json").read_bytes(), where="plan.json")


def words(decided: Plan, node: int = 0) -> list[list[str]]:
    return sorted(list(p.argv[1:]) for p in launch_of(decided).processes if p.node == node)


def is_gone(pid: int) -> bool:
    """Whether it has ended; one that nobody has collected yet has."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + 10
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline, "a process is left"
        os.sched_yield()


def refused(ended: Ended, code: int, *says: str) -> None:
    assert (ended.code, ended.out) == (code, ""), ended
    assert ended.err.startswith("wirelore: ")
    assert ended.err.count("\n") == 1
    for text in says:
        assert text in ended.err


def test_one_server_takes_the_place_of_the_command(engines: Engines, tmp_path: Path, fake_machine: FakeMachine) -> None:
    here = fake_machine(rtx_3090_bridges())
    decided = planned_on(here, tmp_path, "qwen3-32b")
    environ = engines.environment(**here, CUDA_VISIBLE_DEVICES="3,2,1,0", KEPT="as it was")
    command = [*WIRELORE, "launch", "plan.json"]
    process = subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, b"", b"")
    (record,) = engines.told()
    assert record["pid"] == process.pid, "no shell and no parent stand between"
    assert [record["argv"][1:]] == words(decided)
    assert record["argv"][record["argv"].index("--device-ids") + 1] == "0,2,1,3"
    assert record["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert record["environment"]["KEPT"] == "as it was"
    assert "CUDA_VISIBLE_DEVICES" not in record["environment"], "vLLM would count --device-ids inside it"


def other_gpu(d: Description) -> None:
    d["uuid 2"] = "GPU-99999999-aaaa-bbbb-cccc-000000000000"


def exchanged(d: Description) -> None:
    d["uuid 0"], d["uuid 2"] = d.answers["uuid 2"], d.answers["uuid 0"]


def lost(d: Description) -> None:
    for key in [key for key in d.answers if key.endswith(" 2") and key.count(" ") == 1]:
        d[key] = LOST


def fewer(d: Description) -> None:
    d["count"] = 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_gpu, ["planned GPU 2 (GPU-00000003", "GPU 2 is GPU-99999999"]),
        (exchanged, ["planned GPU 0 (GPU-00000001", "is GPU 2 here"]),
        (lost, ["planned GPU 2"]),
        (fewer, ["planned GPU 2 (GPU-00000003", "is missing: there are 2 GPUs", "planned GPU 3"]),
    ],
)
def test_another_machine_starts_nothing(
    engines: Engines,
    tmp_path: Path,
    fake_machine: FakeMachine,
    change: Callable[[Description], None],
    says: list[str],
) -> None:
    planned_on(fake_machine(rtx_3090_bridges()), tmp_path, "qwen3-32b")
    description = rtx_3090_bridges()
    change(description)
    refused(run(engines, tmp_path, **fake_machine(description)), 4, "not node 0 of the plan", *says)
    assert engines.told() == []


def test_a_gpu_that_is_hidden_here_starts_nothing(engines: Engines, tmp_path: Path, fake_machine: FakeMachine) -> None:
    here = fake_machine(rtx_3090_bridges())
    planned_on(here, tmp_path, "qwen3-32b")
    ended = run(engines, tmp_path, **here, CUDA_VISIBLE_DEVICES="0,1")
    refused(ended, 4, "planned GPU 2", "hidden by CUDA_VISIBLE_DEVICES")


def test_without_uuids_models_and_count_are_compared(
    engines: Engines, tmp_path: Path, fake_machine: FakeMachine
) -> None:
    wirelore("plan", "qwen3-32b", "--from", "machine:3090-bridges-4", "-o", "plan.json", cwd=tmp_path).data()
    refused(
        run(engines, tmp_path, **fake_machine(hgx_h100())), 4, "planned as NVIDIA GeForce RTX 3090", "is NVIDIA H100"
    )
    small = rtx_3090_bridges()
    small["count"] = 3
    refused(run(engines, tmp_path, **fake_machine(small)), 4, "planned GPU 3", "there are 3 GPUs")
    assert run(engines, tmp_path, **fake_machine(rtx_3090_bridges())).code == 0
    assert len(engines.told()) == 1


def test_a_mig_instance_is_known_by_its_own_uuid(engines: Engines, tmp_path: Path, fake_machine: FakeMachine) -> None:
    here = fake_machine(a100_mig())
    decided = planned_on(here, tmp_path, "qwen2.5-1.5b")
    assert decided.uses_mig
    assert run(engines, tmp_path, **here).code == 0
    again = a100_mig()
    again["mig.uuid 0 0"] = "MIG-99999999-1111-2222-3333-444444444444"
    refused(run(engines, tmp_path, **fake_machine(again)), 4, "planned GPU 0 (MIG-0f1e0000", "MIG-99999999")


def test_without_a_driver_nothing_is_started(engines: Engines, tmp_path: Path) -> None:
    wirelore("plan", "qwen3-32b", "--from", "machine:3090-bridges-4", "-o", "plan.json", cwd=tmp_path).data()
    refused(run(engines, tmp_path), 4, "libnvidia-ml.so.1")


def test_an_engine_that_is_not_there_is_named_with_its_cure(
    engines: Engines, tmp_path: Path, fake_machine: FakeMachine
) -> None:
    here = fake_machine(rtx_3090_bridges())
    planned_on(here, tmp_path, "qwen3-32b")
    (engines.folder / "vllm").unlink()
    refused(run(engines, tmp_path, **here), 2, "vllm is not on PATH", "pip install vllm")
    (engines.folder / "vllm").write_bytes(b"\x7fELF nothing of the kind")
    (engines.folder / "vllm").chmod(0o755)
    refused(run(engines, tmp_path, **here), 2, "vllm cannot be started", "Check")


@contextmanager
def two_servers(engines: Engines, folder: Path, here: dict[str, str], **more: str) -> Iterator[subprocess.Popen[str]]:
    """Two servers of four GPUs each under one `wirelore launch`, which no test leaves behind."""
    planned_on(here, folder, *MIXTRAL)
    environ = engines.environment(**here, SERVERS="2", **more)
    command = [*WIRELORE, "launch", "plan.json"]
    process = subprocess.Popen(command, env=environ, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_all_servers_start_and_end_with_the_first(engines: Engines, tmp_path: Path, fake_machine: FakeMachine) -> None:
    here = fake_machine(hgx_h100())
    with two_servers(engines, tmp_path, here, HOLD="1", FAILING_PORT="8001", CODE="3", CHILD="1") as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == 3
    assert "starts 2 servers of node 0" in err
    assert "server 1 (port 8001) ended with 3: the others are ended too" in err
    records = engines.told(2)
    decided = decode_plan((tmp_path / "plan.json").read_bytes(), where="plan.json")
    assert sorted(record["argv"][1:] for record in records) == words(decided)
    assert engines.signals() == [signal.SIGTERM]
    wait_until_gone(*(record["pid"] for record in records), *(record["child"] for record in records))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_server(
    engines: Engines, tmp_path: Path, fake_machine: FakeMachine, number: signal.Signals
) -> None:
    with two_servers(engines, tmp_path, fake_machine(hgx_h100()), HOLD="1", CHILD="1") as process:
        records = engines.told(2)
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert engines.signals() == [number, number]
    wait_until_gone(*(record["pid"] for record in records), *(record["child"] for record in records))


def test_asked_twice_it_kills_what_does_not_listen(engines: Engines, tmp_path: Path, fake_machine: FakeMachine) -> None:
    with two_servers(engines, tmp_path, fake_machine(hgx_h100()), HOLD="deaf") as process:
        records = engines.told(2)
        process.terminate()
        while len(engines.signals()) < 2:
            os.sched_yield()
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    wait_until_gone(*(record["pid"] for record in records))


def test_no_server_outlives_a_killed_parent(engines: Engines, tmp_path: Path, fake_machine: FakeMachine) -> None:
    with two_servers(engines, tmp_path, fake_machine(hgx_h100()), HOLD="deaf") as process:
        records = engines.told(2)
        process.kill()
        process.communicate(timeout=20)
    wait_until_gone(*(record["pid"] for record in records))


def test_a_server_that_cannot_be_started_leaves_none() -> None:
    held = Start(("sleep", "60"), (), ())
    before = psutil.Process().children()
    with pytest.raises(UsageError, match="cannot be started"):
        run_together([held, held, Start(("/nonexistent/vllm",), (), ())], dict(os.environ))
    assert set(psutil.Process().children()) <= set(before), "zombies count too"


def test_it_steps_aside_for_its_neighbour_in_the_same_node(engines: Engines, tmp_path: Path) -> None:
    wirelore("plan", "qwen3-32b", "--from", "machine:3090-bridges-4", "-o", "plan.json", cwd=tmp_path).data()
    ended = run(engines, tmp_path, SLURM_LOCALID="1")
    assert (ended.code, ended.out) == (0, "")
    assert "nothing to do" in ended.err


SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1",
        "SLURM_STEP_NODELIST": "gpu[03-04]"}  # fmt: skip
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1", "MASTER_ADDR": "10.0.0.7",
            "MASTER_PORT": "29500", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
            "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
          "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "MASTER_ADDR": "10.0.0.7"}  # fmt: skip
LEADER_WORKER_SET = {"LWS_LEADER_ADDRESS": "10.0.0.7", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}


def two_nodes(folder: Path, *hostnames: str | None) -> Plan:
    """One replica over two nodes."""
    decided = plan(Survey(two()), llama_405b(), Workload(), engine_traits("vllm"))
    assert [r.nodes for r in decided.replicas] == [(0, 1)]
    return saved(replace(decided, hostnames=hostnames or (None, None)), folder)


def two() -> Topology:
    return cluster_of(node_of(8, 80, "all"), node_of(8, 80, "all"))


@pytest.mark.parametrize(
    ("launcher", "address"),
    [
        (SRUN, "gpu03"),
        (TORCHRUN, "10.0.0.7"),
        (MPIRUN, "10.0.0.7"),
        (LEADER_WORKER_SET, "10.0.0.7"),
        ({"JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "10.0.0.7"}, "10.0.0.7"),
    ],
)
def test_a_node_takes_its_own_part_by_the_launchers_rank(
    engines: Engines, tmp_path: Path, fake_machine: FakeMachine, launcher: dict[str, str], address: str
) -> None:
    decided = two_nodes(tmp_path)
    ended = run(engines, tmp_path, **fake_machine(hgx_h100()), **launcher)
    assert ended.code == 0, ended.err
    (record,) = engines.told()
    assert [[address if word == "$MASTER_ADDR" else word for word in words(decided, 1)[0]]] == [record["argv"][1:]]
    assert "--headless" in record["argv"]
    left = [name for name in record["environment"] if name.startswith("TORCHELASTIC") or name == "GROUP_RANK"]
    assert left == [], "torchrun's ranks are not the engine's"


def test_a_node_takes_its_own_part_by_its_name(engines: Engines, tmp_path: Path, fake_machine: FakeMachine) -> None:
    two_nodes(tmp_path, "first.cluster", socket.gethostname())
    here = fake_machine(hgx_h100())
    assert run(engines, tmp_path, **here).code == 0
    (record,) = engines.told()
    assert "--headless" in record["argv"]
    address = record["argv"][record["argv"].index("--master-addr") + 1]
    assert address == "first.cluster", "where its own name is the plan's, so are the others'"


def test_a_name_wins_over_a_rank_in_another_order(engines: Engines, tmp_path: Path, fake_machine: FakeMachine) -> None:
    two_nodes(tmp_path, socket.gethostname(), "second.cluster")
    assert run(engines, tmp_path, **fake_machine(hgx_h100()), **TORCHRUN).code == 0
    (record,) = engines.told()
    assert record["argv"][record["argv"].index("--node-rank") + 1] == "0"
    assert record["argv"][record["argv"].index("--master-addr") + 1] == socket.gethostname()


def test_who_nobody_names_is_told_what_to_do(engines: Engines, tmp_path: Path, fake_machine: FakeMachine) -> None:
    two_nodes(tmp_path)
    here = fake_machine(hgx_h100())
    refused(run(engines, tmp_path, **here), 2, "which of the plan's 2 nodes", "--node N")
    refused(run(engines, tmp_path, "--node", "2", **here), 2, "--node 2", "0 to 1")
    refused(run(engines, tmp_path, "--node", "1", **here), 2, "replica 0 begins on node 0", "MASTER_ADDR")
    refused(run(engines, tmp_path, "--node", "1", **here, MASTER_ADDR="a b"), 2, "MASTER_ADDR")
    three = SRUN | {"SLURM_NODEID": "2", "SLURM_STEP_NUM_NODES": "3"}
    refused(run(engines, tmp_path, **here, **three), 2, "srun says node 2 of 3")
    both = MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "3", "OMPI_COMM_WORLD_SIZE": "6"}
    refused(run(engines, tmp_path, **here, **both), 2, "mpirun", "--node N")
    assert run(engines, tmp_path, "--node", "1", **here, MASTER_ADDR="10.1.1.1").code == 0
    (record,) = engines.told()
    assert record["argv"][record["argv"].index("--master-addr") + 1] == "10.1.1.1"


def test_the_jobs_address_is_not_that_of_every_replica(
    engines: Engines, tmp_path: Path, fake_machine: FakeMachine
) -> None:
    """The second replica begins on node 2, and MASTER_ADDR of a launcher is node 0's."""
    full = Workload(concurrency=512, objective=Objective.THROUGHPUT)
    decided = plan(Survey(machine("4xhgx-h100")), llama_405b(), full, engine_traits("vllm"))
    assert [r.nodes for r in decided.replicas] == [(0, 1), (2, 3)]
    saved(replace(decided, hostnames=(None,) * 4), tmp_path)
    here = fake_machine(hgx_h100())
    job = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_NODES": "4", "MASTER_ADDR": "10.0.0.7"}
    for node, code in ((1, 0), (2, 2), (3, 2)):
        assert run(engines, tmp_path, **here, **job, SLURM_NODEID=str(node)).code == code
    saved(replace(decided, hostnames=("a", "b", "c", socket.gethostname())), tmp_path)
    assert run(engines, tmp_path, **here, **job, SLURM_NODEID="3").code == 0
    addresses = {r["argv"][r["argv"].index("--master-addr") + 1] for r in engines.told()}
    assert addresses == {"10.0.0.7", "c"}


def trtllm(folder: Path) -> Plan:
    decided = plan(Survey(cluster_of(node_of(8, 80, "all"))), llama_70b(), Workload(), engine_traits("trtllm"))
    return saved(decided, folder)


def test_configuration_files_lie_beside_the_plan_or_where_it_is_told(
    engines: Engines, tmp_path: Path, fake_machine: FakeMachine
) -> None:
    decided = trtllm(tmp_path)
    names = sorted({file.name for process in launch_of(decided).processes for file in process.files})
    assert names
    here = fake_machine(hgx_h100())
    dry = run(engines, tmp_path, "--dry-run", **here)
    assert dry.code == 0
    assert not list(tmp_path.glob("*.yaml")), "a dry run writes nothing"
    assert run(engines, tmp_path, **here).code == 0
    assert sorted(path.name for path in tmp_path.glob("*.yaml")) == names
    assert run(engines, tmp_path, "--folder", "other/two words", **here).code == 0
    assert sorted(path.name for path in (tmp_path / "other" / "two words").iterdir()) == names
    given = [word for record in engines.told() for word in record["argv"] if word.endswith(".yaml")]
    assert given
    assert all(Path(word).is_file() and Path(word).is_absolute() for word in given)
    (tmp_path / "taken").touch()
    refused(run(engines, tmp_path, "--folder", "taken/x", **here), 2, "cannot make", "--folder")


def test_what_only_the_environment_knows_is_asked_for(
    engines: Engines, tmp_path: Path, fake_machine: FakeMachine
) -> None:
    decided = plan(Survey(cluster_of(node_of(8, 80, "all"))), llama_70b(), Workload(), engine_traits("megatron"))
    saved(decided, tmp_path)
    here = fake_machine(hgx_h100())
    refused(run(engines, tmp_path, **here), 2, "is not set", "Set it to the folder")
    ended = run(engines, tmp_path, **here, MEGATRON="/src/$(id)", CHECKPOINT="/ckpt")
    assert ended.code == 0, ended.err
    argv = [word for record in engines.told() for word in record["argv"]]
    assert any(word.startswith("/src/$(id)/tools/") for word in argv)


@pytest.mark.parametrize("name", ["new\nline", "it's $(touch pwned)", " ".join(AWKWARD)])
def test_a_dry_run_prints_what_would_be_executed(engines: Engines, tmp_path: Path, name: str) -> None:
    """A shell that runs the line starts just what the launch starts; and the terminal sees no control character."""
    decided = plan(Survey(cluster_of(node_of(8, 80, "all"))), llama_70b(), Workload(), engine_traits("vllm"))
    saved(replace(decided, model=replace(decided.model, name=name)), tmp_path)
    dry = run(engines, tmp_path, "--dry-run", CUDA_VISIBLE_DEVICES="1")
    assert dry.code == 0, dry.err
    assert engines.told() == []
    line = dry.out.removesuffix("\n")
    assert line.isprintable(), "one line, and nothing that a terminal obeys"
    environ = engines.environment(CUDA_VISIBLE_DEVICES="1")
    subprocess.run(["bash", "-c", line], env=environ, cwd=tmp_path, check=True, timeout=20)
    (record,) = engines.told()
    assert record["argv"][2] == name
    assert [record["argv"][1:]] == [[w if w != decided.model.name else name for w in words(decided)[0]]]
    assert "CUDA_VISIBLE_DEVICES" not in record["environment"]


def test_a_dry_run_says_what_would_stop_it(engines: Engines, tmp_path: Path, fake_machine: FakeMachine) -> None:
    planned_on(fake_machine(rtx_3090_bridges()), tmp_path, "qwen3-32b")
    (engines.folder / "vllm").unlink()
    description = rtx_3090_bridges()
    other_gpu(description)
    dry = run(engines, tmp_path, "--dry-run", **fake_machine(description))
    assert dry.code == 0
    assert dry.out.count("\n") == 1
    assert "vllm is not on PATH" in dry.err
    assert "planned GPU 2" in dry.err


def test_a_node_without_a_part_says_so(engines: Engines, tmp_path: Path, fake_machine: FakeMachine) -> None:
    decided = plan(Survey(two()), llama_70b(), Workload(concurrency=1), engine_traits("vllm"))
    assert {n for r in decided.replicas for n in r.nodes} == {0}
    saved(decided, tmp_path)
    ended = run(engines, tmp_path, "--node", "1", **fake_machine(hgx_h100()))
    assert (ended.code, ended.out) == (0, "")
    assert "no process to start" in ended.err


def test_a_word_with_a_nul_is_refused(engines: Engines, tmp_path: Path) -> None:
    decided = plan(Survey(cluster_of(node_of(8, 80, "all"))), llama_70b(), Workload(), engine_traits("vllm"))
    saved(replace(decided, uses_mig=True, gpu_uuids=(("MIG-1\0",) * 8,)), tmp_path)
    refused(run(engines, tmp_path, "--dry-run"), 2, "NUL")


def test_no_other_gpus_are_started_than_those_that_are_looked_at(
    engines: Engines, tmp_path: Path, fake_machine: FakeMachine
) -> None:
    """The machine is checked by gpu_order, and the engine is started on what the replicas name."""
    here = fake_machine(hgx_h100())
    planned_on(here, tmp_path, "llama-3.1-8b", "--gpus", "2", "--objective", "latency")
    told = json.loads((tmp_path / "plan.json").read_text())
    for stage in told["replicas"][0]["stages"]:
        for ref in stage:
            ref["gpu"] += 6
    (tmp_path / "plan.json").write_text(json.dumps(told))
    refused(run(engines, tmp_path, **here), 2, "gpu_order")
    assert engines.told() == []
