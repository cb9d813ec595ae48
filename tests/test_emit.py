"""The emitted scripts, run: a stub stands in for the engine and records what it was really started with."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from builders import cluster_of, llama_70b, llama_405b, node_of
from command import environment, matrix, wirelore
from stub_engine import AWKWARD, MASTER, decided_by, emitted, expected, run_script, stub_engine

from configgen.decide import plan
from configgen.document import decode_plan, encode_plan
from configgen.engines.rules import engine_traits
from configgen.engines.vllm import vllm_launch
from configgen.hub import load_model
from configgen.plan import Limits, Plan, Workload
from probe.errors import UsageError
from probe.measurement import Survey
from probe.sources.machines import machine

FULL = ("--objective", "throughput", "--concurrency", "512")


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    """A folder with a `vllm` that records how it was called."""
    return stub_engine(tmp_path, "vllm")


def test_one_server_is_started_as_the_launch_says(tmp_path: Path, vllm: Path) -> None:
    decided = decided_by("qwen3-32b", "--from", "machine:3090-bridges-4", folder=tmp_path)
    (script,) = emitted(decided, tmp_path)
    launch = vllm_launch(decided)
    (record,) = run_script(script, vllm)
    assert [record] == expected(list(launch.processes))
    assert record["argv"][:2] == ["serve", "Qwen/Qwen3-32B"]
    assert record["argv"][record["argv"].index("--device-ids") + 1] == "0,2,1,3"
    assert record["environment"] == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    flags = wirelore("emit", "plan.json", "--target", "flags", cwd=tmp_path).data().split()
    assert record["argv"][2:] == flags, "both forms say the same"
    printed = wirelore("emit", "plan.json", cwd=tmp_path).data()
    assert printed == script.read_text(), "one script may go to standard output"


@pytest.mark.parametrize("engine", ["vllm", "trtllm"])
def test_the_ranks_of_a_stage_lie_node_after_node(engine: str) -> None:
    """Three trays of four GPUs: engines count ranks by nodes, so no other order can be had."""
    model = load_model("moonshotai/Kimi-K2-Instruct", offline=True)
    workload = Workload(assumed=("objective", "concurrency"))
    decided = plan(Survey(machine("gb200-nvl72")), model, workload, engine_traits(engine), Limits(gpus=12))
    for replica in decided.replicas:
        assert [node for node, _ in groupby(ref.node for ref in replica.gpus)] == list(replica.nodes)
    assert len(decided.replicas[0].nodes) == 3


def test_what_a_launcher_left_visible_does_not_shift_the_indices(tmp_path: Path, vllm: Path) -> None:
    """vLLM counts --device-ids inside CUDA_VISIBLE_DEVICES, the plan counts all GPUs."""
    decided = decided_by("qwen3-32b", "--from", "machine:3090-bridges-4", folder=tmp_path)
    (script,) = emitted(decided, tmp_path)
    (record,) = run_script(script, vllm, CUDA_VISIBLE_DEVICES="3,1")
    assert "CUDA_VISIBLE_DEVICES" not in record["environment"]
    wirelore("emit", "plan.json", "--target", "yaml", "-o", "files", cwd=tmp_path).data()
    (file,) = (tmp_path / "files").iterdir()
    start = tmp_path / "start.sh"
    start.write_text(file.read_text().partition("\n")[0].removeprefix("# "))
    (record,) = run_script(start, vllm, CUDA_VISIBLE_DEVICES="3,1")
    assert record["environment"] == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "nor by the line above a configuration file"


def test_every_flag_has_its_reason_above_it(tmp_path: Path) -> None:
    decided = decided_by("qwen3-32b", "--from", "machine:3090-bridges-4", folder=tmp_path)
    lines = wirelore("emit", "plan.json", cwd=tmp_path).data().splitlines()
    for flag in vllm_launch(decided).processes[0].flags:
        place = next(i for i, line in enumerate(lines) if line.startswith(f'set -- "$@" {flag.words[0]}'))
        assert lines[place - 1] == f"# {flag.reason}"


def test_uneven_stages_carry_their_layers(tmp_path: Path, vllm: Path) -> None:
    (tmp_path / "topo.txt").write_text(matrix("X SYS", "SYS X"))
    arguments = ["qwen3-32b", "--from", "topo.txt", "--gpu-memory", "30GiB,50GiB", "--concurrency", "1"]
    decided = decided_by(*arguments, folder=tmp_path)
    (script,) = emitted(decided, tmp_path)
    (record,) = run_script(script, vllm)
    first, second = map(int, record["environment"]["VLLM_PP_LAYER_PARTITION"].split(","))
    assert (first, second) == decided.layers_per_stage
    assert first < second
    assert first + second == 64


@pytest.mark.parametrize("shell", ["bash", "sh", "env"])
def test_several_servers_on_a_node_are_all_started(tmp_path: Path, vllm: Path, shell: str) -> None:
    """By `bash node0.sh`, by `sh node0.sh` whatever shell that is, and by `./node0.sh`."""
    decided = decided_by("mixtral-8x7b", "--from", "machine:hgx-h100", *FULL, folder=tmp_path)
    (script,) = emitted(decided, tmp_path)
    assert script.read_text().startswith("#!/usr/bin/env bash")
    records = run_script(script, vllm, shell=shell, SERVERS=str(decided.parallelism.dp))
    assert len(records) == decided.parallelism.dp > 1
    assert records == expected(list(vllm_launch(decided).processes))
    devices, ports = [], []
    for record in records:
        argv = record["argv"]
        devices += argv[argv.index("--device-ids") + 1].split(",")
        ports.append(argv[argv.index("--port") + 1])
    assert sorted(map(int, devices)) == list(range(8)), "every GPU belongs to one server"
    assert len(set(ports)) == len(ports)


def test_servers_that_all_ended_well_are_no_failure(tmp_path: Path, vllm: Path) -> None:
    """There is nobody left to stop then, and `kill` says so: that must not become the script's own exit code."""
    (vllm / "vllm").write_text("#!/bin/sh\nexit 0\n")
    decided = decided_by("mixtral-8x7b", "--from", "machine:hgx-h100", *FULL, folder=tmp_path)
    (script,) = emitted(decided, tmp_path)
    gone = 'for server in $servers; do while kill -0 "$server" 2>/dev/null; do :; done; done'
    text = script.read_text()
    assert text.count("\nwait -n\n") == 1
    script.write_text(text.replace("\nwait -n\n", f"\n{gone}\nwait -n\n"))
    assert run_script(script, vllm, shell="bash") == []


def test_a_server_that_dies_takes_its_neighbours_with_it(tmp_path: Path, vllm: Path) -> None:
    """Else half a node would go on answering, and nobody would know. The stubs would run for a minute."""
    decided = decided_by("mixtral-8x7b", "--from", "machine:hgx-h100", *FULL, folder=tmp_path)
    (script,) = emitted(decided, tmp_path)
    servers = str(decided.parallelism.dp)
    records = run_script(script, vllm, shell="bash", ends=3, SERVERS=servers, FAILING_PORT="8001")
    assert len(records) == decided.parallelism.dp


def test_a_replica_over_two_nodes_needs_the_address_of_the_first(tmp_path: Path, vllm: Path) -> None:
    decided = decided_by("llama-3.1-405b", "--from", "machine:4xhgx-h100", folder=tmp_path)
    scripts = emitted(decided, tmp_path)
    assert [script.name for script in scripts] == ["node0.sh", "node1.sh", "node2.sh", "node3.sh"]
    environ = environment(PATH=f"{vllm}:{os.environ['PATH']}")
    without = subprocess.run(["sh", scripts[0]], env=environ, capture_output=True, check=False, text=True)
    assert without.returncode != 0
    assert "MASTER_ADDR" in without.stderr
    launch = vllm_launch(decided)
    ranks: Counter[str] = Counter()
    for node, script in enumerate(scripts):
        records = run_script(script, vllm, MASTER_ADDR=MASTER)
        assert records == expected([p for p in launch.processes if p.node == node], MASTER_ADDR=MASTER)
        for argv in (record["argv"] for record in records):
            assert argv[argv.index("--master-addr") + 1] == MASTER
            assert ("--headless" in argv) == ("--port" not in argv), "one part of a replica answers requests"
            ranks[argv[argv.index("--node-rank") + 1]] += 1
    assert ranks == {"0": 2, "1": 2}


def test_scripts_may_be_run_and_other_files_not(tmp_path: Path) -> None:
    """By those who may read them, and no others."""
    decided_by("llama-3.1-405b", "--from", "machine:2xhgx-h100", folder=tmp_path)
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "node0.sh").touch(0o640)  # as an earlier version left it
    wirelore("emit", "plan.json", "-o", "scripts", cwd=tmp_path).data()
    assert (folder / "node0.sh").stat().st_mode & 0o777 == 0o750
    assert (folder / "node1.sh").stat().st_mode & 0o500 == 0o500
    wirelore("emit", "plan.json", "-o", "scripts", "--target", "env", cwd=tmp_path).data()
    assert all(path.stat().st_mode & 0o111 == 0 for path in folder.glob("*.env"))


def test_no_part_of_an_earlier_plan_is_left_beside_the_new_one(tmp_path: Path) -> None:
    """Its node1.sh would start as well as the new plan's; a person's own files are nobody's business."""
    folder = tmp_path / "scripts"
    for target in ("shell", "yaml", "env"):
        decided_by("llama-3.1-405b", "--from", "machine:2xhgx-h100", folder=tmp_path)
        for _ in range(2):
            wirelore("emit", "plan.json", "-o", "scripts", "--target", target, cwd=tmp_path).data()
        (folder / "node7.sh").write_text("#!/bin/sh\n# mine\n")
        (folder / "notes.txt").touch()
        decided_by("llama-3.1-8b", "--from", "machine:h100-1", folder=tmp_path)
        before = {path: path.read_bytes() for path in folder.iterdir()}
        ended = wirelore("emit", "plan.json", "-o", "scripts", "--target", target, cwd=tmp_path)
        assert (ended.code, ended.out) == (2, "")
        (stale,) = (path.name for path in before if path.name.startswith("node1"))
        assert f"scripts has {stale} of another plan" in ended.err
        assert "node7.sh" not in ended.err
        assert before == {path: path.read_bytes() for path in folder.iterdir()}, "nothing is written then"
        (folder / stale).unlink()
        wirelore("emit", "plan.json", "-o", "scripts", "--target", target, cwd=tmp_path).data()


def test_several_scripts_need_a_folder(tmp_path: Path) -> None:
    decided_by("llama-3.1-405b", "--from", "machine:2xhgx-h100", folder=tmp_path)
    ended = wirelore("emit", "plan.json", cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert "-o DIR" in ended.err


def small(name: str) -> Plan:
    decided = plan(Survey(cluster_of(node_of(8, 80, "all"))), llama_70b(), Workload(), engine_traits("vllm"))
    return replace(
        decided, model=replace(decided.model, name=name), hostnames=(f"{name}\n",), gpu_uuids=decided.gpu_uuids
    )


@pytest.mark.parametrize("name", AWKWARD)
def test_no_name_is_read_by_the_shell(tmp_path: Path, vllm: Path, name: str) -> None:
    decided = small(name)
    (script,) = emitted(decided, tmp_path)
    (record,) = run_script(script, vllm)
    assert [record] == expected(list(vllm_launch(decided).processes))
    assert record["argv"][1] == name


def test_all_awkward_names_in_every_shell_at_hand(tmp_path: Path, vllm: Path) -> None:
    decided = small(" ".join(AWKWARD))
    (script,) = emitted(decided, tmp_path)
    for shell in ("sh", "bash"):
        (record,) = run_script(script, vllm, shell=shell)
        assert record["argv"][1] == decided.model.name


def test_awkward_names_where_servers_share_a_script(tmp_path: Path, vllm: Path) -> None:
    two = cluster_of(node_of(8, 80, "all"), node_of(8, 80, "all"))
    decided = plan(Survey(two), llama_405b(), Workload(), engine_traits("vllm"))
    decided = replace(decided, model=replace(decided.model, name="it's $(x)\n"), hostnames=("a\nrm -rf x", "`b`"))
    for node, script in enumerate(emitted(decided, tmp_path)):
        records = run_script(script, vllm, MASTER_ADDR=MASTER)
        processes = [p for p in vllm_launch(decided).processes if p.node == node]
        assert records == expected(processes, MASTER_ADDR=MASTER)


def test_a_folder_with_weights_is_served_from_where_it_lies(tmp_path: Path, vllm: Path) -> None:
    model = tmp_path / "my models" / "$(touch pwned) it's"
    model.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 32,
        "vocab_size": 32000,
    }
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "intermediate_size": 14336}
    (model / "config.json").write_text(json.dumps({**config, **heads, "torch_dtype": "bfloat16"}))
    (model / "model-00001-of-00002.safetensors").touch()
    relative = str(model.relative_to(tmp_path))
    decided = decided_by(relative, "--from", "machine:h100-1", folder=tmp_path)
    (script,) = emitted(decided, tmp_path)
    (record,) = run_script(script, vllm)
    assert record["argv"][1] == str(model)


def test_a_plan_survives_its_file() -> None:
    decided = small("any")
    assert decode_plan(encode_plan(decided), where="a test") == decided


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("schema_version", 2, "schema version 2"),
        ("schema_version", None, "schema_version"),
        ("tensor_parallel_size", 4, r"tp \* pp \* dp == GPUs used"),
        ("layers_per_stage", [79], "every layer once"),
        ("layers_per_stage", [], "every stage has a layer|pp"),
        ("layers_per_stage", "most", "layers_per_stage"),
        ("engine", "abacus", "abacus"),
        ("engine_version", "0.1", "vllm@0.1"),
        ("confidence", "total", "confidence"),
        ("gpu_order", [[0, 1]], "gpu_order"),
        ("gpu_order", [[50, 51, 52, 53, 54, 55, 56, 57]], "gpu_order names each used GPU once, in rank order"),
        ("gpu_uuids", [], "one order, UUIDs and name per node"),
        ("gpu_uuids", [[]], "one UUID per used GPU"),
        ("gpu_models", [["NVIDIA H100"]], "one model per used GPU"),
        ("sites", [{}, {}], "one site per node"),
        ("sites", [{"numa_nodes": [0]}], "a site tells of each used GPU"),
        ("memory", [], "memory"),
        ("expert_parallel_size", 2, "only a model with experts"),
    ],
)
def test_a_plan_that_was_edited_is_checked_again(key: str, value: object, says: str) -> None:
    told = json.loads(encode_plan(replace(small("any"), alternatives=())))
    told[key] = value
    with pytest.raises(UsageError, match=says):
        decode_plan(json.dumps(told).encode(), where="plan.json")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("replicas 0 stages 0 0 gpu", -1, "counted from 0"),
        ("replicas 0 stages 0 0 node", -1, "counted from 0"),
        ("replicas 0 stages 0 0 node", 7, "on one of the plan's nodes"),
        ("replicas 0 stages 0 0 gpu", 60, "gpu_order"),
        ("replicas 0 tp_path", "NV1\nrm", "path's label is one line"),
        ("replicas 0 memory_utilization", 0.0, "fraction of 1"),
        ("replicas 0 memory_utilization", -1, "fraction of 1"),
        ("replicas 0 memory_utilization", 5.0, "fraction of 1"),
        ("replicas 0 memory_utilization", 0.95, "at most the engine's fraction"),
        ("replicas 0 kv_cache_bytes", -4, "KV cache"),
        ("predictions max_context", -5, "a prediction is positive"),
        ("predictions max_concurrency", 0, "a prediction is positive"),
        ("predictions ttft_s", -1.0, "a prediction is positive"),
        ("predictions uncertainty", -0.1, "uncertainty is never negative"),
        ("model name", "", "a model has a name"),
        ("model name", "a\0b", "no NUL"),
        ("model name", "--trust-remote-code", "starts with no dash"),
        ("model max_context", 0, "context is positive"),
    ],
)
def test_so_is_every_part_of_it(path: str, value: object, says: str) -> None:
    """Else the engine would be given `--device-ids -1,-2`, or a flag for a model, or a traceback would answer."""
    told = json.loads(encode_plan(replace(small("any"), alternatives=())))
    *way, last = (int(key) if key.isdigit() else key for key in path.split())
    part = told
    for key in way:
        part = part[key]
    part[last] = value
    with pytest.raises(UsageError, match=says):
        decode_plan(json.dumps(told).encode(), where="plan.json")


def test_no_stage_is_without_memory() -> None:
    told = json.loads(encode_plan(replace(small("any"), alternatives=())))
    told["memory"] = [dict.fromkeys(told["memory"][0], 0)]
    with pytest.raises(UsageError, match="every stage has memory"):
        decode_plan(json.dumps(told).encode(), where="plan.json")
