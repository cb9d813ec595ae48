"""`wirelore drift`: each difference between a plan and what is there now, in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Ended, matrix, wirelore
from fake_nvml import FakeMachine
from fake_nvml.machines import LOST, Description, rtx_3090_bridges


def drift(*words: str, cwd: Path, environ: dict[str, str] | None = None) -> Ended:
    return wirelore("drift", *words, cwd=cwd, environ=environ)


def planned(here: dict[str, str], folder: Path, *, survey: bool = True, model: str = "qwen3-32b") -> str:
    told = {**here, "XDG_CACHE_HOME": str(folder / "cache")}
    wirelore("init", model, "--folder", "plan", cwd=folder, environ=told).data()
    if not survey:
        (folder / "plan" / "survey.json").unlink()
    return "plan/plan.json"


def bridge_lost(d: Description) -> None:
    for number in range(4):
        d[f"link.state 1 {number}"] = d[f"link.state 3 {number}"] = 0
    d.p2p(1, 3, 0, nvlink=5)
    d.p2p(3, 1, 0, nvlink=5)


def other_gpu(d: Description) -> None:
    d["uuid 2"] = "GPU-99999999-aaaa-bbbb-cccc-000000000000"


def gpu_lost(d: Description) -> None:
    for key in [key for key in d.answers if key.endswith(" 2") and key.count(" ") == 1]:
        d[key] = LOST


def fewer(d: Description) -> None:
    d["count"] = 2


def more_memory(d: Description) -> None:
    d["memory 3"] = f"{48 << 30} {1 << 29} {47 << 30} {1 << 29}"


def test_the_machine_that_was_planned_for_fits(tmp_path: Path, fake_machine: FakeMachine) -> None:
    here = fake_machine(rtx_3090_bridges())
    ended = drift(planned(here, tmp_path), cwd=tmp_path, environ=here)
    assert (ended.code, ended.out, ended.err) == (0, "the plan fits what is there\n", "")
    told = json.loads(drift("plan/plan.json", "--format", "json", cwd=tmp_path, environ=here).data())
    assert told == {"fits": True, "differences": []}


def test_a_gpu_that_was_lost_already_is_no_drift(tmp_path: Path, fake_machine: FakeMachine) -> None:
    """Nothing tells its memory, then as now; a liveness hook would restart the pod for ever."""
    description = rtx_3090_bridges()
    gpu_lost(description)
    here = fake_machine(description)
    ended = drift(planned(here, tmp_path, model="llama-3.1-8b"), cwd=tmp_path, environ=here)
    assert (ended.code, ended.out) == (0, "the plan fits what is there\n")
    wirelore("plan", "llama-3.1-8b", "-o", "alone.json", cwd=tmp_path, environ=here).data()
    assert drift("alone.json", cwd=tmp_path, environ=here).code == 0


def test_memory_in_use_is_no_drift(tmp_path: Path, fake_machine: FakeMachine) -> None:
    """A liveness hook asks while the engine holds all of it."""
    name = planned(fake_machine(rtx_3090_bridges()), tmp_path)
    busy = rtx_3090_bridges()
    for i in range(4):
        busy[f"memory {i}"] = f"{24 << 30} {1 << 29} {1 << 30} {(23 << 30) - (1 << 29)}"
    assert drift(name, cwd=tmp_path, environ=fake_machine(busy)).code == 0


@pytest.mark.parametrize("survey", [True, False], ids=["beside its survey", "alone"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (bridge_lost, "joined by PHB, and were by NV4"),
        (other_gpu, "planned GPU 2 (GPU-00000003-aaaa-bbbb-cccc-000000000002) is missing, GPU 2 is GPU-99999999"),
        (gpu_lost, "planned GPU 2"),
        (fewer, "is missing: there are 2 GPUs"),
        (more_memory, "the fingerprint is wl1-"),
    ],
)
def test_each_difference_is_one_line(
    tmp_path: Path, fake_machine: FakeMachine, change: Callable[[Description], None], says: str, survey: bool
) -> None:
    name = planned(fake_machine(rtx_3090_bridges()), tmp_path, survey=survey)
    description = rtx_3090_bridges()
    change(description)
    here = fake_machine(description)
    ended = drift(name, cwd=tmp_path, environ=here)
    assert ended.code == 1
    if not survey:
        says = says.replace("joined by PHB, and were by NV4", "the slowest path of its stages is PHB, and was NV4")
    assert says in ended.out
    told = json.loads(drift(name, "--format", "json", cwd=tmp_path, environ=here).out)
    assert told == {"fits": False, "differences": ended.out.splitlines()}


def test_a_cluster_is_compared_node_by_node(tmp_path: Path) -> None:
    wirelore("plan", "llama-3.1-405b", "--from", "machine:2xhgx-h100", "-o", "plan.json", cwd=tmp_path).data()
    assert drift("plan.json", "--from", "machine:2xhgx-h100", cwd=tmp_path).code == 0
    ended = drift("plan.json", "--from", "machine:hgx-h100", "--from", "machine:hgx-h200", cwd=tmp_path)
    assert ended.code == 1
    assert all(line.startswith("node 1: planned GPU ") for line in ended.out.splitlines())
    assert drift("plan.json", "--from", "machine:hgx-h100", "--node", "1", cwd=tmp_path).code == 0
    assert drift("plan.json", "--from", "machine:3xhgx-h100", cwd=tmp_path).code == 2


def test_a_plan_of_unseen_nodes_claims_nothing_of_wires(tmp_path: Path) -> None:
    alone = {"LWS_LEADER_ADDRESS": "127.0.0.1", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}
    words = ("--folder", "plan", "--from", "machine:l4-2", "--deadline", "100ms")
    wirelore("init", "qwen3-32b", *words, cwd=tmp_path, environ=alone).data()
    assert drift("plan/plan.json", "--from", "machine:l4-2", cwd=tmp_path, environ=alone).code == 0
    assert drift("plan/plan.json", "--from", "machine:l40s-2", cwd=tmp_path, environ=alone).code == 1


def test_no_driver_is_no_drift(tmp_path: Path, fake_machine: FakeMachine) -> None:
    name = planned(fake_machine(rtx_3090_bridges()), tmp_path)
    assert drift(name, cwd=tmp_path).code == 4


def test_text_that_tells_no_links_says_so_of_none(tmp_path: Path) -> None:
    (tmp_path / "topo.txt").write_text(matrix("X NV4 SYS SYS", "NV4 X SYS SYS", "SYS SYS X NV4", "SYS SYS NV4 X"))
    (tmp_path / "later.txt").write_text(matrix("X NV4 SYS SYS", "NV4 X SYS SYS", "SYS SYS X PHB", "SYS SYS PHB X"))
    told = ("--gpu-model", "NVIDIA GeForce RTX 3090")
    words = ("init", "qwen3-32b", "--folder", "plan", "--from", "topo.txt")
    wirelore(*words, *told, cwd=tmp_path).data()
    assert drift("plan/plan.json", "--from", "topo.txt", *told, cwd=tmp_path).code == 0
    ended = drift("plan/plan.json", "--from", "later.txt", *told, cwd=tmp_path)
    assert (ended.code, ended.out) == (1, "GPU 2 and GPU 3 are joined by PHB, and were by NV4\n")
