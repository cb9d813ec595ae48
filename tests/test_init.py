"""`wirelore init` on one node: what it leaves in the folder, when it measures, and what the start script does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from builders import cluster_of, llama_70b, node_of
from command import Ended, environment, wirelore
from fake_nvml import FakeMachine
from fake_nvml.machines import a100_mig, l40s_8, rtx_3090_bridges
from members import OF_LAUNCHERS, PLAIN, Group
from ports import free_port
from stub_engine import AWKWARD

from configgen.document import decode_plan
from configgen.engines.rules import engine_traits
from configgen.plan import Limits, Workload
from configgen.run.init import Member, Request, Standing, settle_plan
from configgen.run.volume import Volume
from probe.errors import MeasureError
from probe.measurement import Curve, CurveKey, Sample, Survey
from probe.sources.machines import machine
from probe.store import decode_survey

STUB = """#!/bin/sh
{ for word in "$@"; do printf '%s\\0' "$word"; done; } > "$RECORDS/$$-argv"
env > "$RECORDS/$$-environment"
: > "$RECORDS/$$-ready"
[ -z "${HOLD:-}" ] || exec sleep 60
"""


def init(*words: str, cwd: Path, environ: dict[str, str] | None = None) -> Ended:
    told = {"XDG_CACHE_HOME": str(cwd / "cache"), **(environ or {})}
    return wirelore("init", *words, cwd=cwd, environ=told)


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def stub(folder: Path, *names: str) -> Path:
    binaries = folder / "bin"
    binaries.mkdir(exist_ok=True)
    for name in names:
        (binaries / name).write_text(STUB)
        (binaries / name).chmod(0o755)
    (folder / "records").mkdir(exist_ok=True)
    return binaries


def smi(folder: Path, *lines: str) -> None:
    """An nvidia-smi that tells these GPUs."""
    told = "".join(f"echo '{line}'\n" for line in lines)
    (folder / "bin" / "nvidia-smi").write_text(f'#!/bin/sh\n[ "$*" = -L ] || exit 2\n{told}')
    (folder / "bin" / "nvidia-smi").chmod(0o755)


def start(folder: Path, script: Path, *words: str, shell: str | None = None, **more: str) -> Ended:
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    environ = environment(PATH=path, RECORDS=str(folder / "records"), **more)
    clean = {n: v for n, v in environ.items() if n not in PLAIN and not n.startswith(OF_LAUNCHERS)}
    command = [*([shell] if shell else []), str(script), *words]
    ended = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=20, check=False, cwd=folder)
    return Ended(ended.returncode, ended.stdout, ended.stderr, 0.0)


def has_ended(pid: int) -> bool:
    """One that nobody has collected yet has, too."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def recorded(folder: Path) -> list[list[str]]:
    return sorted(path.read_text().split("\0")[:-1] for path in (folder / "records").glob("*-argv"))


def test_the_folder_has_all_that_the_engines_container_needs(tmp_path: Path, fake_machine: FakeMachine) -> None:
    here = fake_machine(rtx_3090_bridges())
    log = tmp_path / "termination-log"
    ended = init("qwen3-32b", "--folder", "plan", cwd=tmp_path, environ=here | {"WIRELORE_TERMINATION_LOG": str(log)})
    summary = ended.data()
    folder = tmp_path / "plan"
    names = ["argv.json", "facts.json", "plan.env", "plan.json", "start", "summary.txt", "survey.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert summary == log.read_text() == (folder / "summary.txt").read_text()
    assert "TP2 PP2" in summary
    assert "not measured: " in summary
    decided = decode_plan((folder / "plan.json").read_bytes(), where="plan.json")
    (process,) = json.loads((folder / "argv.json").read_text())
    line = wirelore("plan", "qwen3-32b", "--format", "flags", cwd=tmp_path, environ=here).data().split()
    assert process["argv"][3:] == line, "what `wirelore plan` gives on this machine"
    assert process["port"] == 8000
    env = dict(line.split("=", 1) for line in (folder / "plan.env").read_text().splitlines())
    assert (env["PLAN_TENSOR_PARALLEL_SIZE"], env["PLAN_PIPELINE_PARALLEL_SIZE"]) == ("2", "2")
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    survey = decode_survey((folder / "survey.json").read_bytes(), where="survey.json")
    uuids = {gpu.uuid for gpu in survey.topology.nodes[0].gpus}
    assert {uuid for node in decided.gpu_uuids for uuid in node} == uuids
    assert (folder / "start").stat().st_mode & 0o777 == 0o755


def test_a_second_run_touches_nothing_and_other_facts_plan_anew(tmp_path: Path, fake_machine: FakeMachine) -> None:
    folder = tmp_path / "plan"
    words = ("qwen3-32b", "--folder", "plan")
    first = init(*words, cwd=tmp_path, environ=fake_machine(rtx_3090_bridges())).data()
    before = files(folder)
    assert init(*words, cwd=tmp_path, environ=fake_machine(rtx_3090_bridges())).data() == first
    assert files(folder) == before
    (folder / "start").write_text("exit 1\n")
    init(*words, cwd=tmp_path, environ=fake_machine(rtx_3090_bridges())).data()
    assert (folder / "start").read_bytes() == before["start"][0], "what somebody changed is put right"
    assert (folder / "start").stat().st_mode & 0o111
    description = rtx_3090_bridges()
    description["uuid 1"] = "GPU-99999999-aaaa-bbbb-cccc-000000000000"
    init(*words, cwd=tmp_path, environ=fake_machine(description)).data()
    assert b"GPU-99999999" in (folder / "plan.json").read_bytes()
    init(*words, "--concurrency", "2", cwd=tmp_path, environ=fake_machine(description)).data()
    assert json.loads((folder / "plan.json").read_text())["workload"]["concurrency"] == 2
    assert not (folder / ".pending").exists()


def test_what_another_plan_needed_is_removed(tmp_path: Path) -> None:
    source = ("--from", "machine:3090-bridges-4")
    init("qwen3-32b", "--engine", "trtllm", "--folder", "plan", *source, cwd=tmp_path).data()
    config = tmp_path / "plan" / "replica0.yaml"
    (process,) = json.loads((tmp_path / "plan" / "argv.json").read_text())
    assert str(config) in process["argv"]
    assert config.is_file()
    (tmp_path / "plan" / "theirs").write_text("x")
    init("qwen3-32b", "--folder", "plan", *source, cwd=tmp_path).data()
    assert not config.exists()
    assert (tmp_path / "plan" / "theirs").exists(), "nobody else's file is touched"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("no-such-model-7b",), 2, "no-such-model-7b"),
        (("llama-3.1-405b",), 3, "405B"),
        (("qwen3-32b", "--engine", "nothing"), 2, "nothing"),
    ],
)
def test_failures_end_as_the_policy_says(tmp_path: Path, words: tuple[str, ...], code: int, says: str) -> None:
    log = tmp_path / "log"
    told = ("--folder", "plan", "--from", "machine:3090-4")
    ended = init(*words, *told, cwd=tmp_path, environ={"WIRELORE_TERMINATION_LOG": str(log)})
    assert (ended.code, ended.out) == (code, "")
    assert says in ended.err
    assert log.read_text() == ended.err, "kubectl describe shows it"
    assert not (tmp_path / "plan").exists()


def test_no_driver_ends_with_4(tmp_path: Path) -> None:
    ended = init("qwen3-32b", "--folder", "plan", cwd=tmp_path)
    assert ended.code == 4
    assert "libnvidia-ml.so.1" in ended.err


@pytest.mark.parametrize("name", ["plan.json", "survey.json", "facts.json"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff"], ids=["empty", "other", "no text"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, name: str, damage: bytes) -> None:
    """Else the pod would crash again and again until somebody emptied the volume."""
    words = ("qwen3-32b", "--folder", "plan", "--from", "machine:3090-4")
    init(*words, cwd=tmp_path).data()
    before = {path.name: path.read_bytes() for path in (tmp_path / "plan").iterdir()}
    (tmp_path / "plan" / name).write_bytes(damage)
    init(*words, cwd=tmp_path).data()
    assert {path.name: path.read_bytes() for path in (tmp_path / "plan").iterdir()} == before


def test_a_start_that_may_not_be_run_is_put_right(tmp_path: Path) -> None:
    words = ("qwen3-32b", "--folder", "plan", "--from", "machine:3090-4")
    init(*words, cwd=tmp_path).data()
    (tmp_path / "plan" / "start").chmod(0o644)
    init(*words, cwd=tmp_path).data()
    assert (tmp_path / "plan" / "start").stat().st_mode & 0o777 == 0o755


def test_a_folder_where_a_file_should_be_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "plan" / "start").mkdir(parents=True)
    ended = init("qwen3-32b", "--folder", "plan", "--from", "machine:3090-4", cwd=tmp_path)
    assert ended.code == 2
    assert "cannot write into" in ended.err
    assert not (tmp_path / "plan" / ".pending").exists()


def test_a_folder_that_cannot_be_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = init("qwen3-32b", "--folder", "file/plan", "--from", "machine:3090-4", cwd=tmp_path)
    assert ended.code == 2
    assert "file/plan" in ended.err


def test_fewer_gpus_than_were_asked_for(tmp_path: Path) -> None:
    words = ("qwen3-32b", "--folder", "plan", "--from", "machine:l4-7", "--gpus-per-node", "8")
    assert "degraded: node 0 has 7 GPUs, and 8 were asked for" in init(*words, cwd=tmp_path).data()
    assert init(*words, "--strict", cwd=tmp_path).code == 1


def test_gpus_that_the_scheduler_hides_were_not_asked_for(tmp_path: Path, fake_machine: FakeMachine) -> None:
    here = fake_machine(l40s_8()) | {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    unmet = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = ("llama-3.1-8b", "--no-measure", "--deadline", "100ms", "--gpus-per-node")
    assert "were asked for" not in init(*words, "4", "--folder", "one", cwd=tmp_path, environ=here).data()
    assert "node 0 has 4 GPUs, and 8 were" in init(*words, "8", "--folder", "all", cwd=tmp_path, environ=here).data()
    assert "not met: " in init(*words, "4", "--folder", "group", cwd=tmp_path, environ=here | unmet).data()
    processes = json.loads((tmp_path / "group" / "argv.json").read_text())
    told = [argv[argv.index("--device-ids") + 1].split(",") for argv in (process["argv"] for process in processes)]
    assert {gpu for gpus in told for gpu in gpus} <= {"4", "5", "6", "7"}
    refused = init(*words, "8", "--folder", "none", cwd=tmp_path, environ=here | unmet)
    assert refused.code == 4
    assert "this node has 4 GPUs, not 8" in refused.err


def test_gpus_of_which_none_may_be_used_are_no_gpus(tmp_path: Path, fake_machine: FakeMachine) -> None:
    """It is the node that lacks them, not the model that has no plan."""
    here = fake_machine(l40s_8()) | {"CUDA_VISIBLE_DEVICES": ""}
    refused = init("llama-3.1-8b", "--no-measure", "--folder", "plan", cwd=tmp_path, environ=here)
    assert refused.code == 4
    assert "no GPU of this machine can be used" in refused.err
    assert not (tmp_path / "plan").exists()


def test_other_processes_of_a_node_step_aside(tmp_path: Path) -> None:
    ended = init("qwen3-32b", "--folder", "plan", "--from", "machine:3090-4", cwd=tmp_path, environ={"LOCAL_RANK": "1"})
    assert ended.code == 0
    assert not (tmp_path / "plan").exists()


# Measuring


def measured(survey: Survey) -> Survey:
    from probe.islands import group_shape, islands

    members = islands(survey.topology)[0].members
    key = CurveKey("all_reduce", group_shape(survey.topology, members), "bfloat16", "nccl")
    return replace(survey, curves=(Curve(key, (Sample(1 << 20, ((1e-4,) * 5,)),), members),), measured_at="2026-01-01")


class Bench:
    """In the place of a measurement."""

    def __init__(self, ends: Survey | Exception | str) -> None:
        self.ends, self.budgets = ends, []

    def __call__(self, seconds: float, standing: Standing) -> tuple[Survey | None, str | None]:
        self.budgets.append(seconds)
        if isinstance(self.ends, Exception):
            raise self.ends
        return (None, self.ends) if isinstance(self.ends, str) else (self.ends, None)


def member(folder: Path, bench: Bench, *, budget_s: float | None = 20.0, unable: str | None = None) -> Member:
    request = Request(llama_70b(), Workload(), engine_traits("vllm"), Limits(), None, budget_s)
    survey = Survey(machine("hgx-h100"))
    return Member(request, survey, Volume(folder), {}, standing=Standing(), measuring=bench, unable=unable)


def test_it_measures_once_and_within_its_budget(tmp_path: Path) -> None:
    bench = Bench(measured(Survey(machine("hgx-h100"))))
    done = settle_plan(member(tmp_path, bench), ends_s=time.monotonic() + 15)
    (budget_s,) = bench.budgets
    assert 5 < budget_s <= 10, "the deadline leaves room to decide"
    assert done.faults == ()
    assert done.survey.is_measured
    before = files(tmp_path)
    again = Bench(AssertionError("it measured again"))
    assert settle_plan(member(tmp_path, again), ends_s=time.monotonic() + 15).summary == done.summary
    assert files(tmp_path) == before


@pytest.mark.parametrize("ends", [MeasureError("NCCL hung", cure="-"), "rank 3 was lost"], ids=["raised", "told"])
def test_a_measurement_that_fails_degrades_the_plan_and_no_more(tmp_path: Path, ends: Exception | str) -> None:
    done = settle_plan(member(tmp_path, Bench(ends)), ends_s=time.monotonic() + 60)
    why = ends.problem if isinstance(ends, MeasureError) else ends
    assert done.faults == (f"measuring failed: {why}",)
    assert f"degraded: measuring failed: {why}\n" in done.summary
    assert why in json.loads((tmp_path / "plan.json").read_text())["degraded"][-1]


def test_a_late_start_leaves_measuring_out(tmp_path: Path) -> None:
    bench = Bench(AssertionError("there was no time"))
    done = settle_plan(member(tmp_path, bench), ends_s=time.monotonic() + 6)
    assert done.faults == ("the deadline left no time to measure",)


def test_where_nothing_can_measure_the_plan_is_not_worse_for_it(tmp_path: Path) -> None:
    bench = Bench(AssertionError("it measured"))
    done = settle_plan(member(tmp_path, bench, unable="no torch here"), ends_s=time.monotonic() + 60)
    assert done.faults == ()
    assert "not measured: no torch here\n" in done.summary
    done = settle_plan(member(tmp_path, bench, budget_s=None), ends_s=time.monotonic() + 60)
    assert "not measured: --no-measure\n" in done.summary


def test_what_hangs_ends_in_time(tmp_path: Path) -> None:
    """A pipe that nobody writes to, where a model's configuration should be."""
    before = """
import configgen.cli.init as i, os
i.GRACE_S = i._SLACK_S = 0.1
i._request = lambda *_: os.read(os.pipe()[0], 1)
"""
    result = Group(tmp_path, 1).run(0, deadline="100ms", before=before)
    assert result.code == 4
    assert "not done 0.2 s after the start" in result.err
    assert "--deadline" in (tmp_path / "log-0").read_text()


# The start script


def gpu_lines(n: int) -> list[str]:
    return [
        f"GPU {i}: NVIDIA GeForce RTX 3090 (UUID: GPU-{i + 1:08x}-aaaa-bbbb-cccc-0000000000{i:02x})" for i in range(n)
    ]


@pytest.fixture
def planned(tmp_path: Path, fake_machine: FakeMachine) -> Path:
    init("qwen3-32b", "--folder", "plan", cwd=tmp_path, environ=fake_machine(rtx_3090_bridges())).data()
    stub(tmp_path, "vllm")
    return tmp_path / "plan"


@pytest.mark.parametrize("shell", [None, "sh", "bash"])
def test_the_script_becomes_the_engine_on_the_planned_gpus(tmp_path: Path, planned: Path, shell: str | None) -> None:
    smi(tmp_path, *gpu_lines(4))
    ended = start(tmp_path, planned / "start", shell=shell, CUDA_VISIBLE_DEVICES="1", KEPT="yes")
    assert (ended.code, ended.err) == (0, "")
    (process,) = json.loads((planned / "argv.json").read_text())
    assert recorded(tmp_path) == [process["argv"][1:]]
    (told,) = [path.read_text().splitlines() for path in (tmp_path / "records").glob("*-environment")]
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in told
    assert "KEPT=yes" in told
    assert not [line for line in told if line.startswith("CUDA_VISIBLE_DEVICES")]


def test_words_of_the_container_come_after_the_plans(tmp_path: Path, planned: Path) -> None:
    assert start(tmp_path, planned / "start", "--api-key", "two  words").code == 0
    assert recorded(tmp_path)[0][-2:] == ["--api-key", "two  words"]


def test_other_gpus_start_nothing(tmp_path: Path, planned: Path) -> None:
    exchanged = gpu_lines(4)
    exchanged[1], exchanged[2] = (f"GPU {i}:{exchanged[j].partition(':')[2]}" for i, j in ((1, 2), (2, 1)))
    for lines in (gpu_lines(3), exchanged, ["GPU 0: NVIDIA GeForce RTX 3090 (UUID: GPU-ffffffff)"]):
        smi(tmp_path, *lines)
        ended = start(tmp_path, planned / "start")
        assert ended.code == 4
        assert "Run wirelore init again" in ended.err
    assert recorded(tmp_path) == []


def test_an_nvidia_smi_that_tells_nothing_stops_nothing(tmp_path: Path, planned: Path) -> None:
    smi(tmp_path)
    ended = start(tmp_path, planned / "start")
    assert ended.code == 0
    assert "nobody looked" in ended.err
    assert len(recorded(tmp_path)) == 1


def test_a_slice_of_a_gpu_is_known_by_its_own_uuid(tmp_path: Path, fake_machine: FakeMachine) -> None:
    init("qwen3-4b", "--gpus", "1", "--folder", "plan", cwd=tmp_path, environ=fake_machine(a100_mig())).data()
    stub(tmp_path, "vllm")
    planned = json.loads((tmp_path / "plan" / "plan.json").read_text())["gpu_uuids"][0]
    smi(tmp_path, *[f"  MIG 3g.20gb     Device  0: (UUID: {uuid})" for uuid in planned], *gpu_lines(2)[1:])
    if planned[0].startswith("MIG-"):
        assert start(tmp_path, tmp_path / "plan" / "start").code == 0
        smi(tmp_path, "  MIG 3g.20gb     Device  0: (UUID: MIG-another)")
        assert start(tmp_path, tmp_path / "plan" / "start").code == 4


def test_it_starts_from_a_read_only_folder_under_another_user(tmp_path: Path, planned: Path) -> None:
    for path in (*planned.iterdir(), planned):
        path.chmod(path.stat().st_mode & ~0o222)
        assert path.stat().st_mode & 0o004, "anybody may read it"
    assert start(tmp_path, planned / "start").code == 0
    planned.chmod(0o755)


@pytest.mark.parametrize("word", [word for word in AWKWARD if "\n" not in word and not word.startswith("-")])
def test_awkward_names_stay_one_word(tmp_path: Path, word: str) -> None:
    folder = tmp_path / "models" / word.replace("/", "-")
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 512,
        "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 1024, "vocab_size": 32000,
        "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    init(str(folder), "--folder", "plan", "--from", "machine:h100-1", cwd=tmp_path).data()
    stub(tmp_path, "vllm")
    ended = start(tmp_path, tmp_path / "plan" / "start")
    assert (ended.code, ended.err) == (0, "")
    assert recorded(tmp_path)[0][:2] == ["serve", str(folder)]
    assert not list(tmp_path.glob("**/pwned"))


@pytest.mark.parametrize("shell", [(), ("sh",)], ids=["itself", "sh"])
def test_several_servers_of_a_node_end_together(tmp_path: Path, shell: tuple[str, ...]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash here: a node with several servers is NOT tested")
    words = ("mixtral-8x7b", "--objective", "throughput", "--concurrency", "512", "--from", "machine:hgx-h100")
    init(*words, "--folder", "plan", cwd=tmp_path).data()
    stub(tmp_path, "vllm")
    processes = json.loads((tmp_path / "plan" / "argv.json").read_text())
    assert len(processes) > 1
    environ = environment(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", RECORDS=str(tmp_path / "records"), HOLD="1")
    script = subprocess.Popen([*shell, str(tmp_path / "plan" / "start")], env=environ, start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while len(ready := list((tmp_path / "records").glob("*-ready"))) < len(processes):
            assert time.monotonic() < deadline, "not all servers started"
            os.sched_yield()
        script.send_signal(signal.SIGTERM)
        assert script.wait(20) == 143
        assert all(has_ended(int(path.name.partition("-")[0])) for path in ready), "a server outlived the script"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
        script.wait()
    assert recorded(tmp_path) == sorted(process["argv"][1:] for process in processes)


def test_a_node_that_the_plan_leaves_idle_waits(tmp_path: Path) -> None:
    """A container that ended would be started again and again."""
    from configgen.decide import plan
    from configgen.document import encode_plan
    from configgen.run.files import Paper, node_files
    from configgen.run.group import digest
    from configgen.run.volume import Record
    from probe.store import encode_survey

    survey = Survey(cluster_of(node_of(2, 80, "all"), node_of(2, 80, "all")))
    decided = plan(survey, llama_70b(), Workload(concurrency=1), engine_traits("vllm"), Limits(nodes=1, gpus=2))
    text = encode_plan(decided).decode()
    surveyed = encode_survey(survey).decode()
    record = Record(
        version="1", request="", node=1, members=("a", "b"), facts="b", addresses=("", ""), plan=digest(text),
        survey=digest(surveyed), reason=None, unmeasured=None, faults=(), files=(),
    )  # fmt: skip
    paper = Paper(text, surveyed, survey, record, "a test", "10.0.0.1", survey.topology)
    written = node_files(paper, tmp_path, {})
    assert json.loads(written["argv.json"]) == []
    assert b"starts: nothing on this node\n" in written["summary.txt"]
    (tmp_path / "start").write_bytes(written["start"])
    script = subprocess.Popen(["sh", str(tmp_path / "start")], stderr=subprocess.PIPE, start_new_session=True)
    assert script.stderr is not None
    assert script.stderr.readline() == b"wirelore: the plan has nothing to start on this node\n"
    assert script.poll() is None
    os.killpg(script.pid, signal.SIGTERM)
    assert script.wait(10) in (0, -signal.SIGTERM)
    script.stderr.close()
