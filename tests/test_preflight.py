"""Before and after a measurement: what stops it, what is said, and counters that grew meanwhile, over the fake NVML."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import GIB, cluster_of, node_of
from command import environment as no_driver
from fake_nvml import machines as m

from probe.bench.health import health
from probe.bench.preflight import Ground, TorchBuild, preflight, read_ground, torch_build
from probe.counters import grown
from probe.errors import MeasureError, UsageError
from probe.measurement import HealthSnapshot
from probe.sources.nvml import read_nvml
from probe.topology import GpuRef, GpuState, GpuStatus, MigInstance, Node, Notice, Topology

FakeMachine = Callable[..., dict[str, str]]
CUDA = Ground(TorchBuild("2.9.0+cu128", cuda="12.8"), cpus=64)
CPU_ONLY = Ground(TorchBuild("2.9.0+cpu"), cpus=4)
NOON, LATER = "2026-11-21T12:00:00Z", "2026-11-21T12:00:20Z"


def checked(topology: Topology, ground: Ground = CUDA, **options: object) -> list[str]:
    given: dict[str, object] = {"backend": "auto", "lab": False, "largest_bytes": 1 << 30, **options}
    return [n.code for n in preflight(topology, ground, **given)]  # type: ignore[arg-type]


def with_states(node: Node, **changed: dict[int, Any]) -> Topology:
    """The node with facts of single GPUs changed: `visible={1: False}`."""
    states = list(node.gpus)
    for name, values in changed.items():
        for i, value in values.items():
            states[i] = replace(states[i], **{name: value})
    return cluster_of(replace(node, gpus=tuple(states)))


def four(**changed: dict[int, Any]) -> Topology:
    return with_states(node_of(4, 24, "all", free_gib=(23, 23, 23, 23)), **changed)


# ---- what stops it --------------------------------------------------------------------------------------------------


def test_without_torch_the_cure_is_named() -> None:
    for lab in (False, True):
        with pytest.raises(MeasureError) as error:
            checked(four(), Ground(None, cpus=64), lab=lab)
        assert "pip install 'wirelore[measure]'" in error.value.cure
        assert error.value.exit_code == 4


def test_a_torch_for_cpus_cannot_measure_gpus() -> None:
    with pytest.raises(MeasureError, match=r"2\.9\.0\+cpu.*built for CPUs"):
        checked(four(), CPU_ONLY)
    assert checked(cluster_of(node_of(2, 24)), CPU_ONLY, lab=True) == []
    assert checked(four(), Ground(TorchBuild("2.9.0+rocm6.4", hip="6.4"))) == []


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"visible": dict.fromkeys(range(4), False)}, "CUDA_VISIBLE_DEVICES hides them"),
        ({"status": dict.fromkeys(range(4), GpuStatus.LOST)}, "lost"),
        ({"mig_instances": dict.fromkeys(range(4), (MigInstance("MIG-1"),))}, "MIG"),
    ],
)
def test_no_gpu_that_can_be_measured(changed: dict[str, dict[int, Any]], why: str) -> None:
    with pytest.raises(MeasureError, match=why):
        checked(four(**changed))


def test_a_full_gpu_stops_it_and_is_named() -> None:
    with pytest.raises(MeasureError, match=r"GPUs 1,2 are short of memory: 0\.1 GiB free"):
        checked(four(memory_free_bytes={1: GIB // 2, 2: GIB // 10}))


def test_a_full_gpu_that_is_hidden_does_not() -> None:
    assert checked(four(memory_free_bytes={1: GIB // 2}, visible={1: False})) == ["gpu-hidden"]


def test_nccl_needs_gpus_and_gloo_none() -> None:
    with pytest.raises(UsageError, match="not here"):
        checked(four(), lab=True, backend="nccl")
    with pytest.raises(UsageError, match="gloo measures CPUs"):
        checked(four(), backend="gloo")


def test_a_lab_larger_than_the_host_is_refused_and_a_crowded_one_is_told() -> None:
    lab = cluster_of(*(node_of(8, 80, "all") for _ in range(3)))
    with pytest.raises(UsageError, match="24 ranks is too much for 2 CPUs: at most 16"):
        checked(lab, Ground(TorchBuild("2.9"), cpus=2), lab=True)
    assert checked(lab, Ground(TorchBuild("2.9"), cpus=4), lab=True) == ["lab-crowded"]
    assert checked(lab, Ground(TorchBuild("2.9"), cpus=24), lab=True) == []
    with pytest.raises(UsageError, match="at most 64"):
        checked(cluster_of(*(node_of(8, 80) for _ in range(9))), Ground(TorchBuild("2.9"), cpus=512), lab=True)


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_a_fit_machine_needs_no_word() -> None:
    assert checked(four()) == []


def test_hidden_gpus_are_named() -> None:
    (notice,) = preflight(four(visible={1: False, 2: False}), CUDA, backend="nccl", lab=False, largest_bytes=1)
    assert notice.code == "gpu-hidden" and notice.message.startswith("GPUs 1,2 are hidden")


def test_one_gpu_gives_rates_only_unless_other_nodes_take_part() -> None:
    one = four(status={1: GpuStatus.LOST, 2: GpuStatus.LOST}, visible={3: False})
    assert checked(one) == ["gpu-hidden", "one-gpu"]
    assert checked(one, nodes=2) == ["gpu-hidden"]


def test_sizes_that_do_not_fit_are_announced() -> None:
    assert checked(four(memory_free_bytes={3: 2 * GIB})) == ["memory-low"]
    assert checked(four(memory_free_bytes={3: 2 * GIB}), largest_bytes=1 << 28) == []
    assert checked(four(memory_free_bytes={3: None})) == []


def test_a_driver_older_than_the_build_is_told() -> None:
    node = node_of(2, 24)
    assert checked(cluster_of(replace(node, cuda_version="11.8"))) == ["driver-old"]
    assert checked(cluster_of(replace(node, cuda_version="12.2"))) == [], "within a major version CUDA is compatible"
    assert checked(cluster_of(replace(node, cuda_version="odd"))) == []


def test_what_the_driver_already_told_comes_first_and_unchanged(fake_machine: FakeMachine) -> None:
    machine = m.healthy(m.rtx_3090_bridges())
    machine |= {
        "compute_mode 1": 3, "processes 2": f"4242 {4 * 10**9}", "persistence 0": 0, "clocks.reasons 3": 0x40,
    }  # fmt: skip
    topology = read_nvml(environ=fake_machine(machine))
    found = preflight(topology, CUDA, backend="auto", lab=False, largest_bytes=1 << 20)
    assert [n.code for n in found if n in topology.warnings] == ["gpu-busy", "compute-mode", "throttled"]
    assert "persistence-off" in {w.code for w in topology.warnings}, "which disturbs no measurement"


# ---- this host ------------------------------------------------------------------------------------------------------


def test_torch_is_looked_for_and_not_imported() -> None:
    code = (
        "import sys; from probe.bench.preflight import read_ground; ground = read_ground(); "
        "print(ground.cpus > 0, 'torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["True", "False"]


def test_the_installed_torch_is_known_as_it_knows_itself() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: reading its version is NOT tried")
    build = read_ground().torch
    assert build == TorchBuild(torch.version.__version__, torch.version.cuda, torch.version.hip)


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("__version__ = '2.4.1+cu121'\ncuda: Optional[str] = '12.1'\nhip = None\n", TorchBuild("2.4.1+cu121", "12.1")),
        ('__version__ = "2.9"\ncuda = None\nhip: Optional[str] = "6.4.4"\n', TorchBuild("2.9", None, "6.4.4")),
        ("cuda_home = '9'\nnocuda = '8'\n", TorchBuild()),
        ("", TorchBuild()),
        ("cuda" + " " * 100_000 + "x", TorchBuild()),
    ],
)
def test_what_torch_was_built_for(text: str, build: TorchBuild) -> None:
    assert torch_build(text) == build


# ---- before and after -----------------------------------------------------------------------------------------------


def measured(fake_machine: FakeMachine, after: dict[str, object]) -> tuple[Notice, ...]:
    """What is said of a GB200-like machine whose counters changed while it was measured."""
    machine = m.healthy(m.rtx_3090_bridges())
    machine |= {"pcie.replays 1": 5, "field 0 161 1": 2}
    before, reasons = health(NOON, environ=fake_machine(machine))
    assert reasons == () and [s.taken_at for s in before] == [NOON] * 4
    machine |= after
    later, _ = health(LATER, environ=fake_machine(machine))
    return grown(before, later)


def test_old_errors_are_no_news(fake_machine: FakeMachine) -> None:
    assert measured(fake_machine, {}) == ()


def test_counters_that_grew_are_told_by_kind(fake_machine: FakeMachine) -> None:
    said = measured(
        fake_machine,
        {
            "pcie.replays 1": 1505, "field 0 161 1": 9, "field 3 163 2": 1, "rows 2": "1 0 0 0",
            "ecc.corrected.volatile 2": 4, "ecc.corrected.aggregate 2": 4,
        },
    )  # fmt: skip
    assert [n.code for n in said] == ["nvlink-errors", "pcie-replays", "ecc-errors", "row-remaps"]
    link, pcie, ecc, _ = (n.message for n in said)
    assert "GPU 0 (link.1.replay +7), GPU 3 (link.2.crc +1)" in link
    assert "GPU 1 (pcie.replays +1,500)" in pcie and "Reseat" in pcie
    assert "GPU 2 (ecc.corrected.volatile +4)" in ecc, "the same errors are told once"


def test_counters_that_fell_or_appeared_tell_nothing() -> None:
    before = (HealthSnapshot(GpuRef(0, 0), NOON, (("pcie.replays", 9),)),)
    after = (HealthSnapshot(GpuRef(0, 0), LATER, (("link.0.crc", 7), ("pcie.replays", 0))),)
    assert grown(before, after) == ()
    assert grown((), after) == ()
    assert grown(before, ()) == (), "no answer afterwards is told where it is asked"


def test_lifetime_counts_serve_where_there_are_no_others() -> None:
    before = (HealthSnapshot(GpuRef(1, 0), NOON, (("ecc.uncorrected.aggregate", 1),)),)
    after = (HealthSnapshot(GpuRef(1, 0), LATER, (("ecc.uncorrected.aggregate", 3),)),)
    (notice,) = grown(before, after)
    assert notice.code == "ecc-uncorrected" and "GPU 0 of node 1 (ecc.uncorrected.aggregate +2)" in notice.message


def test_a_gpu_that_falls_silent_is_told(fake_machine: FakeMachine) -> None:
    before, _ = health(NOON, environ=fake_machine(m.healthy(m.rtx_3090_bridges())))
    (notice,) = grown(before, before[:2] + before[3:])
    assert notice.code == "gpu-silent" and notice.message.startswith("GPU 2 told")


def test_every_counter_that_is_read_has_a_meaning(fake_machine: FakeMachine) -> None:
    machine = m.healthy(m.gb200_tray(), nvlink_5=True)
    machine |= {"field 1 170": 1, "field 1 231 0": 3}
    before, _ = health(NOON, environ=fake_machine(machine))
    after = tuple(replace(s, counters=tuple((name, n + 1) for name, n in s.counters)) for s in before)
    kinds = {name.partition(".")[0] for s in before for name, _ in s.counters}
    assert kinds == {"link", "c2c", "pcie", "ecc", "rows"}
    assert len(grown(before, after)) == len(kinds) + 1, "errors of memory that were not corrected are told apart"


def test_many_errors_on_many_gpus_stay_one_line() -> None:
    def snapshot(i: int, n: int) -> HealthSnapshot:
        return HealthSnapshot(GpuRef(0, i), NOON, tuple((f"link.{link:02}.crc", n) for link in range(18)))

    (notice,) = grown(tuple(snapshot(i, 0) for i in range(64)), tuple(snapshot(i, 1) for i in range(64)))
    assert len(notice.message) < 1000 and "and 58 more" in notice.message


def test_no_driver_is_a_reason_and_no_error() -> None:
    snapshots, (notice,) = health(NOON, environ=no_driver())
    assert snapshots == ()
    assert notice.code == "health-unknown" and "libnvidia-ml" in notice.message


def test_a_driver_that_tells_no_counters_is_a_reason(fake_machine: FakeMachine) -> None:
    snapshots, (notice,) = health(NOON, environ=fake_machine(m.hgx_h100()))
    assert snapshots == () and notice.code == "health-unknown"


def test_a_driver_that_hangs_costs_its_deadline(fake_machine: FakeMachine) -> None:
    machine = m.healthy(m.rtx_3090_bridges())
    machine["ecc.mode 1"] = "hang"
    snapshots, reasons = health(NOON, deadline_s=1.0, environ=fake_machine(machine))
    assert [s.gpu for s in snapshots] == [GpuRef(0, 0)] and reasons == ()


def test_no_state_of_a_gpu_breaks_it() -> None:
    for status in GpuStatus:
        for visible in (True, False):
            odd = GpuState(status=status, visible=visible, memory_free_bytes=0)
            node = node_of(2, 24)
            topology = cluster_of(replace(node, gpus=(node.gpus[0], odd)))
            if odd.is_usable:
                with pytest.raises(MeasureError, match="GPU 1 is short of memory"):
                    checked(topology)
            else:
                assert "one-gpu" in checked(topology)


def test_the_version_file_of_a_broken_installation(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('never run')")
    code = "from probe.bench.preflight import read_ground as r; print(r().torch)"
    place = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).resolve().parent.parent}"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=place)
    assert ended.stdout.strip() == "TorchBuild(version=None, cuda=None, hip=None)"


def test_the_check_of_real_gpus_looks_whether_init_gives_all_memory_back(fake_machine: FakeMachine) -> None:
    checks = Path(__file__).resolve().parent.parent / "benchmarks"
    code = (
        f"import sys; sys.path.insert(0, {str(checks)!r}); import gpu_check; sys.exit(len(gpu_check.print_kept('5s')))"
    )
    environ = no_driver(**fake_machine(m.l40s_8()))
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environ)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "init_measured: False\ninit_memory_kept_mib: 0\n" in ended.stdout
