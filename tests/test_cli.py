"""The contract of the command: streams, exit codes, JSON keys, options from everywhere, and the driver behind it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from command import WIRELORE, environment, matrix, wirelore
from fake_nvml import machines as fake
from fake_nvml.machines import Description

from configgen.cli.root import wirelore as root
from probe.errors import UsageError
from probe.store import write_atomically

FakeMachine = Callable[..., dict[str, str]]
PAIRS = matrix("X SYS NV4 SYS", "SYS X SYS NV4", "NV4 SYS X SYS", "SYS NV4 SYS X")
FLAGS = re.compile(r"--[a-z-]+( [\w@%+=:,./-]+| --[a-z-]+)*\n", re.ASCII)


@pytest.fixture
def topo(tmp_path: Path) -> Path:
    """Four GPUs, bridges on 0-2 and 1-3, as `nvidia-smi topo -m` prints them."""
    path = tmp_path / "topo.txt"
    path.write_text(PAIRS)
    return path


def plan_json(*arguments: str, **environ: str) -> dict[str, Any]:
    told = json.loads(wirelore("plan", *arguments, "--format", "json", environ=environ).data())
    assert isinstance(told, dict)
    return told


# ---- flags ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["llama-3.1-8b", "--from", "machine:h100-1"], "--tensor-parallel-size 1 --device-ids 0"),
        (
            ["llama-3.1-70b", "--from", "machine:hgx-h100", "--objective", "latency"],
            "--tensor-parallel-size 8 --device-ids 0,1,2,3,4,5,6,7",
        ),
        (
            ["qwen3-32b", "--from", "machine:3090-bridges-4", "--concurrency", "40"],
            "--tensor-parallel-size 2 --pipeline-parallel-size 2 --device-ids 0,2,1,3",
        ),
    ],
)
def test_flags_are_one_line_and_nothing_else(arguments: list[str], flags: str) -> None:
    ended = wirelore("plan", *arguments, "--format", "flags")
    assert FLAGS.fullmatch(ended.data())
    assert ended.out.startswith(flags)
    assert ended.err == "", "nothing to say about a known machine"


def test_flags_from_a_bare_matrix_say_on_the_other_stream_what_they_assume(topo: Path) -> None:
    ended = wirelore("plan", "llama-3.1-8b", "--from", topo, "--format", "flags")
    assert FLAGS.fullmatch(ended.data())
    assert re.fullmatch(r"(wirelore: note: [^\n]+\n)+", ended.err)
    assert "--gpu-model" in ended.err


@pytest.mark.parametrize(
    ("arguments", "because"),
    [
        (["llama-3.1-405b", "--from", "machine:2xhgx-h100"], "several nodes"),
        (["qwen3-32b", "--from", "pair.txt", "--gpu-memory", "30GiB,60GiB"], "VLLM_PP_LAYER_PARTITION"),
        (["mixtral-8x7b", "--from", "machine:hgx-b200", "--concurrency", "512"], "server of its own"),
    ],
)
def test_what_one_line_cannot_say_prints_nothing_and_names_the_way(
    tmp_path: Path, arguments: list[str], because: str
) -> None:
    (tmp_path / "pair.txt").write_text(matrix("X SYS", "SYS X"))
    ended = wirelore("plan", *arguments, "--format", "flags", cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert because in ended.err
    assert "wirelore emit --target shell" in ended.err
    assert ended.err.count("\n") == 1
    assert wirelore("plan", *arguments, "-o", "plan.json", cwd=tmp_path).data() == ""
    by_emit = wirelore("emit", "plan.json", "--target", "flags", cwd=tmp_path)
    assert (by_emit.code, by_emit.out, by_emit.err) == (2, "", ended.err)


def test_a_value_that_a_shell_would_read_never_stands_in_a_line_of_flags(tmp_path: Path) -> None:
    """`$(wirelore plan ... --format flags)` is split at blanks and globbed."""
    for uuid in ("MIG-1 2", "MIG-*", "MIG-1\nx", "MIG-`id`"):
        mig = [{"uuid": uuid, "profile": "7g.80gb", "memory_bytes": 80 << 30}]
        gpu = {"index": 0, "memory_bytes": 80 << 30, "mig_instances": mig}
        document = {"schema_version": 1, "fingerprint": "", "nodes": [{"gpus": [gpu]}]}
        (tmp_path / "mig.json").write_text(json.dumps(document))
        ended = wirelore("plan", "llama-3.1-8b", "--from", "mig.json", "--format", "flags", cwd=tmp_path)
        assert (ended.code, ended.out) == (2, ""), uuid
        assert "wirelore emit --target shell" in ended.err


def test_flags_load_nothing_heavy(topo: Path) -> None:
    arguments = ["plan", "llama-3.1-70b", "--from", str(topo), "--gpu-memory", "80GiB", "--format", "flags"]
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from configgen.cli import main; main()", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rsplit("|", 1)[1].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")}
    assert "configgen.decide" in loaded
    heavy = {
        "torch",
        "numpy",
        "jinja2",
        "rich",
        "huggingface_hub",
        "pynvml",
        "psutil",
        "yaml",
        "defusedxml",
        "requests",
    }
    heavy |= {"asyncio", "email", "http.client", "multiprocessing", "ssl", "unittest", "xml.etree"}
    assert not heavy & loaded


# ---- JSON ----------------------------------------------------------------------------------------------------------


def keys(told: object, *wanted: str) -> None:
    assert isinstance(told, dict)
    assert set(wanted) <= set(told), f"missing: {set(wanted) - set(told)}"


def test_topology_json_has_the_keys_that_scripts_rely_on(tmp_path: Path) -> None:
    told = json.loads(wirelore("probe", "--from", "machine:2xdgx1-v100", "--format", "json").data())
    keys(
        told,
        "schema_version",
        "fingerprint",
        "nodes",
        "network",
        "islands",
        "maximal_cliques",
        "warnings",
        "provenance",
    )
    assert isinstance(told["schema_version"], int)
    assert isinstance(told["fingerprint"], str)
    node = told["nodes"][1]
    keys(node, "hostname", "gpus", "nics", "paths", "nic_paths")
    gpu = node["gpus"][7]
    keys(gpu, "index", "cuda_index", "uuid", "name", "memory_bytes", "memory_free_bytes", "pci_bus_id", "numa_node")
    keys(gpu, "status", "mig_instances", "fabric", "nearest_nics")
    assert (gpu["index"], gpu["status"], gpu["mig_instances"], gpu["uuid"]) == (7, "ok", [], None)
    assert isinstance(gpu["memory_bytes"], int)
    keys(node["nics"][0], "name", "speed_gbps", "numa_node")
    assert len(node["paths"]) == 28
    assert all(p["a"] < p["b"] for p in node["paths"])
    keys(node["paths"][0], "a", "b", "kind", "nvlinks", "asymmetric")
    assert (node["paths"][0]["kind"], node["paths"][0]["nvlinks"]) == ("NVLINK", 1)
    keys(node["nic_paths"][0], "gpu", "nic", "kind")
    assert told["network"] == [{"kind": "NET", "nodes": [0, 1]}]
    members = [(ref["node"], ref["gpu"]) for island in told["islands"] for ref in island]
    assert sorted(members) == [(n, g) for n in (0, 1) for g in range(8)], "every GPU in exactly one island"
    sizes = [len(island) for island in told["islands"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(told["maximal_cliques"]) > 0, "a cube mesh is no clique"
    keys(told["warnings"][0], "code", "message")
    keys(told["provenance"][0], "fact", "provenance", "source")
    fabric = json.loads(wirelore("probe", "--from", "machine:gb200-nvl72", "--format", "json").data())
    keys(fabric["nodes"][0]["gpus"][0]["fabric"], "cluster_uuid", "clique_id")


def test_plan_json_has_the_keys_that_scripts_rely_on() -> None:
    told = plan_json("llama-3.1-405b", "--from", "machine:2xhgx-h100")
    keys(
        told,
        "schema_version",
        "model",
        "workload",
        "engine",
        "engine_version",
        "fingerprint",
        "gpu_uuids",
        "provenance",
    )
    keys(told, "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "expert_parallel_size")
    keys(told, "attention_data_parallel_size", "gpu_order", "replicas", "layers_per_stage", "memory", "predictions")
    keys(told, "confidence", "reasons", "alternatives", "degraded")
    assert (told["tensor_parallel_size"], told["pipeline_parallel_size"], told["data_parallel_size"]) == (8, 2, 1)
    assert told["gpu_order"] == [list(range(8))] * 2
    assert told["replicas"][0]["stages"][1] == [{"node": 1, "gpu": g} for g in range(8)]
    assert sum(told["layers_per_stage"]) == 126
    keys(told["predictions"], "ttft_s", "tpot_s", "output_tokens_per_s_per_gpu", "max_concurrency")
    assert told["predictions"]["ttft_s"] > told["predictions"]["tpot_s"] > 0
    assert 0 < told["predictions"]["uncertainty"] < 1
    keys(told["reasons"][0], "rule", "text", "provenance")
    assert {r["provenance"] for r in told["reasons"]} <= {"measured", "read", "catalog", "assumed"}
    for alternative in told["alternatives"]:
        keys(alternative, "predictions", "margin", "law")
    assert any(a["law"] for a in told["alternatives"])
    assert told["degraded"] == []


@pytest.mark.parametrize("document", ["topology", "survey", "plan"])
def test_schema_describes_what_is_printed(document: str) -> None:
    schema = json.loads(wirelore("schema", document).data())
    named = schema["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    printed = {
        "topology": lambda: json.loads(wirelore("probe", "--from", "machine:l40s-8", "--format", "json").data()),
        "survey": lambda: {"schema_version": 1, "topology": {}},
        "plan": lambda: plan_json("llama-3.1-8b", "--from", "machine:l40s-8"),
    }[document]()
    assert set(printed) <= set(named["properties"])
    assert set(named["required"]) <= set(printed)


# ---- output --------------------------------------------------------------------------------------------------------


def test_data_goes_to_the_file_and_the_rest_to_stderr(tmp_path: Path) -> None:
    for arguments in (["probe"], ["plan", "llama-3.1-8b"]):
        ended = wirelore(*arguments, "--from", "machine:h100-1", "-o", "out.json", cwd=tmp_path)
        assert (ended.data(), ended.err) == ("", "wrote out.json\n")
        printed = wirelore(*arguments, "--from", "machine:h100-1", "--format", "json").data()
        assert (tmp_path / "out.json").read_text() == printed
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_atomically(tmp_path / "new", b"data")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    write_atomically(tmp_path / "new", b"more")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("broken", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "plan.json").write_text("old")
    monkeypatch.setattr(broken, full)
    with pytest.raises(UsageError, match="No space left on device"):
        write_atomically(tmp_path / "plan.json", b"new")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert (tmp_path / "plan.json").read_text() == "old"


def test_text_is_the_same_wherever_it_goes() -> None:
    """No colours, no terminal width, no blanks at line ends in a pipe."""
    wide = wirelore("plan", "qwen3-32b", "--from", "machine:3090-bridges-4").data()
    assert wide == wirelore("plan", "qwen3-32b", "--from", "machine:3090-bridges-4", environ={"COLUMNS": "40"}).data()
    assert "\x1b" not in wide
    assert all(line == line.rstrip() for line in wide.splitlines())


# ---- options -------------------------------------------------------------------------------------------------------

GPUS_4 = ("plan", "llama-3.1-8b", "--objective", "latency")


def gpus_used(*arguments: str, cwd: Path | None = None, **environ: str) -> int:
    flags = wirelore(*arguments, cwd=cwd, environ=environ).data().split()
    return flags[flags.index("--device-ids") + 1].count(",") + 1


def test_options_from_the_environment_and_a_file_and_flags_win(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text(
        "# what this team always wants\nplan:\n  from: machine:hgx-h100\n  format: flags\n  gpus: 4\n  gpu-memory: 80\n"
    )
    file = ("--config", "options.yaml", *GPUS_4)
    assert gpus_used(*file, cwd=tmp_path) == 4
    assert gpus_used(*file, cwd=tmp_path, WIRELORE_PLAN_GPUS="2") == 2, "the environment beats the file"
    assert gpus_used(*file, "--gpus", "1", cwd=tmp_path, WIRELORE_PLAN_GPUS="2") == 1, "a flag beats both"
    assert gpus_used(*GPUS_4, cwd=tmp_path, WIRELORE_CONFIG="options.yaml") == 4
    environ = {"WIRELORE_PLAN_FROM": "machine:hgx-h100", "WIRELORE_PLAN_FORMAT": "flags", "WIRELORE_PLAN_GPUS": "4"}
    assert gpus_used(*GPUS_4, **environ) == 4


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "plan:\n  from: [machine:h100-1]\n  offline: true\n  gpus:\n"])
def test_a_file_may_say_little(tmp_path: Path, text: str) -> None:
    (tmp_path / "options.yaml").write_text(text)
    wirelore("--config", "options.yaml", *GPUS_4, "--from", "machine:h100-1", cwd=tmp_path).data()


def test_several_sources_make_one_cluster_in_their_order(topo: Path) -> None:
    arguments = ["probe", "--from", "-", "--from", "machine:2xh100-1", "--from", str(topo), "--format", "json"]
    told = json.loads(wirelore(*arguments, stdin=matrix("X SYS", "SYS X").encode()).data())
    assert [len(node["gpus"]) for node in told["nodes"]] == [2, 1, 1, 4]
    assert told["network"] == [{"kind": "NET", "nodes": [0, 1, 2, 3]}]
    assert {w["node"] for w in told["warnings"] if w["code"] == "islands-not-adjacent"} == {3}
    plan = plan_json("llama-3.1-8b", "--from", "machine:h100-1", "--from", "machine:l40s-8")
    assert [len(order) for order in plan["gpu_order"]] == [1, 8], "a plan that holds on both"


def test_what_a_matrix_does_not_name_can_be_told(topo: Path) -> None:
    by_model = json.loads(wirelore("probe", "--from", topo, "--gpu-model", "NVIDIA L40S", "--format", "json").data())
    assert {(g["name"], g["memory_bytes"]) for g in by_model["nodes"][0]["gpus"]} == {("NVIDIA L40S", 46068 << 20)}
    by_size = ["probe", "--from", str(topo), "--gpu-memory", "24,24GiB,80GB,80e9", "--format", "json"]
    assert wirelore(*by_size).code == 2
    by_size[4] = "24,24GiB,80GB,79.5"
    told = json.loads(wirelore(*by_size).data())
    sizes = [g["memory_bytes"] for g in told["nodes"][0]["gpus"]]
    assert sizes == [24 << 30, 24 << 30, 80 * 10**9, int(79.5 * (1 << 30))]
    assert {"gpus.memory_bytes"} <= {o["fact"] for o in told["provenance"] if o["provenance"] == "assumed"}


def test_an_engine_other_than_the_plans_own_is_refused(tmp_path: Path) -> None:
    wirelore("plan", "llama-3.1-8b", "--from", "machine:h100-1", "-o", "plan.json", cwd=tmp_path).data()
    wirelore("emit", "plan.json", "--engine", "vllm", cwd=tmp_path).data()
    assert wirelore("emit", "plan.json", "--engine", "sglang", cwd=tmp_path).code == 2


# ---- help ----------------------------------------------------------------------------------------------------------

CONTEXT = click.Context(root)
COMMANDS = {name: root.get_command(CONTEXT, name) for name in root.list_commands(CONTEXT)}


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_documents_every_option(name: str | None) -> None:
    shown = wirelore(*([name] if name else []), "--help").data()
    command = COMMANDS[name] if name else root
    assert command is not None
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.opts} has no help"
            assert all(spelled in shown for spelled in parameter.opts)
    if name is None:
        assert all(re.search(rf"^  {command} +\S", shown, re.MULTILINE) for command in COMMANDS)


def test_version_and_tables() -> None:
    assert re.fullmatch(r"wirelore \d+\.\d+\.\d+\n", wirelore("--version").data())
    assert "llama-3.1-70b" in wirelore("models").data()
    assert "3090-bridges-4" in wirelore("machines").data()


# ---- the driver ----------------------------------------------------------------------------------------------------


def lost_one() -> Description:
    machine = fake.hgx_h100()
    machine["handle 3"] = fake.LOST
    return machine


@pytest.mark.parametrize(
    ("machine", "line"),
    [
        (fake.hgx_h100, r"8 x NVIDIA H100 80GB HBM3; 1 island of 8 \(NV18\); .*wirelore plan MODEL"),
        (fake.rtx_3090_bridges, r"4 x NVIDIA GeForce RTX 3090; 2 islands of 2 \(NV4\); .*"),
        (fake.l40s_8, r"8 x NVIDIA L40S; no fast fabric between GPUs; .*"),
        (lost_one, r".*, 1 of them lost; 1 island of 7 \(NV18\); .*"),
    ],
)
def test_one_line_on_this_machine(fake_machine: FakeMachine, machine: Callable[[], Description], line: str) -> None:
    ended = wirelore(environ=fake_machine(machine()))
    assert re.fullmatch(line + "\n", ended.data())
    assert ended.err == ""


def test_probe_and_plan_on_this_machine(fake_machine: FakeMachine, tmp_path: Path) -> None:
    environ = fake_machine(fake.rtx_3090_bridges())
    shown = wirelore("probe", environ=environ).data()
    assert "GPUs 0,2 (NV4)" in shown
    assert "0000:1b:00.0" in shown
    assert "driver   580.95.05, CUDA 13.0" in shown
    flags = wirelore("plan", "qwen3-32b", "--format", "flags", environ=environ)
    assert flags.data().startswith("--tensor-parallel-size 2 --pipeline-parallel-size 2 --device-ids 0,2,1,3")
    wirelore("probe", "-o", "survey.json", environ=environ, cwd=tmp_path).data()
    away = wirelore("plan", "qwen3-32b", "--from", "survey.json", "--format", "flags", cwd=tmp_path)
    assert away.data() == flags.data(), "probed on the node, planned on a laptop"
    told = plan_json("qwen3-32b", "--from", str(tmp_path / "survey.json"))
    assert told["gpu_uuids"] == [[f"GPU-{i + 1:08x}-aaaa-bbbb-cccc-0000000000{i:02x}" for i in (0, 2, 1, 3)]]


def test_a_lost_gpu_is_said_and_not_planned_on(fake_machine: FakeMachine) -> None:
    environ = fake_machine(lost_one())
    assert re.search(r"^ +3 .* lost", wirelore("probe", environ=environ).data(), re.MULTILINE)
    ended = wirelore("plan", "llama-3.1-70b", "--format", "flags", environ=environ)
    assert "3" not in ended.data().split()[-1].split(",")
    assert "cannot be used" in ended.err


def no_driver() -> Description:
    machine = fake.hgx_h100()
    machine["init"] = "!9"
    return machine


def mismatch() -> Description:
    machine = fake.hgx_h100()
    machine["init"] = "!18"
    return machine


def hang() -> Description:
    machine = fake.hgx_h100()
    machine["init"] = "hang"
    return machine


@pytest.mark.parametrize(
    "arguments", [[], ["probe"], ["plan", "llama-3.1-8b"], ["plan", "llama-3.1-8b", "--format", "flags"]]
)
@pytest.mark.parametrize(
    ("machine", "says"), [(no_driver, "not loaded"), (mismatch, "differ in version"), (hang, "does not answer")]
)
def test_a_driver_that_does_not_work_ends_with_4_and_what_to_do(
    fake_machine: FakeMachine, machine: Callable[[], Description], says: str, arguments: list[str]
) -> None:
    ended = wirelore(*arguments, environ=fake_machine(machine(), WIRELORE_NVML_TIMEOUT_S="0.5"))
    assert (ended.code, ended.out) == (4, "")
    assert re.fullmatch(rf"wirelore: [^\n]*{says}[^\n]+\. [A-Z][^\n]+\n", ended.err)
    assert ended.seconds < 3


def test_without_a_driver_the_line_says_how_to_go_on() -> None:
    ended = wirelore()
    assert (ended.code, ended.out) == (4, "")
    assert "--from machine:NAME" in ended.err


@pytest.mark.parametrize(
    ("machine", "found"), [(fake.hgx_h100, "ok.*GPUs.*8 x NVIDIA H100"), (no_driver, "--.*GPUs.*not loaded")]
)
def test_doctor_tells_what_is_there_and_what_is_missing(
    fake_machine: FakeMachine, machine: Callable[[], Description], found: str
) -> None:
    shown = wirelore("doctor", environ=fake_machine(machine())).data()
    assert re.search(found, shown)
    assert re.search("python +3", shown)


def test_a_bug_is_one_line_and_a_traceback_only_with_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from configgen.cli import run

    def broken(_: str | None) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("probe.sources.registry.read_source", broken)
    assert run(["probe", "--from", "x"]) == 70
    told = capsys.readouterr()
    assert re.fullmatch(
        r"wirelore: this is a bug [^\n]*ZeroDivisionError: of all things[^\n]*--debug[^\n]*\n", told.err
    )
    with pytest.raises(ZeroDivisionError):
        run(["--debug", "probe", "--from", "x"])


def test_the_command_is_installed() -> None:
    assert os.access(WIRELORE[0], os.X_OK)
