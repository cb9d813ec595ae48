"""What this user measured is found again on equal wires under equal drivers, and nothing else ever is."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command import wirelore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.cache import cache_folder, recall, remember, same_gpus, search
from probe.islands import group_shape
from probe.measurement import Curve, CurveKey, Rate, Sample, Survey
from probe.sources.machines import machine
from probe.store import encode_survey
from probe.topology import GpuRef, Notice, Topology

PARTLY = (Notice("partly-measured", "time ran out"),)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wirelore" / "surveys"


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Records what pip installed, in front of what it really did: 2.27.3 for a start."""
    packages = tmp_path / "site-packages"

    def install(*names: str) -> None:
        shutil.rmtree(packages, ignore_errors=True)
        for name in names:
            (packages / f"{name}.dist-info").mkdir(parents=True)

    install("nvidia_nccl_cu12-2.27.3")
    monkeypatch.setattr(sys, "path", [str(packages), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(packages))
    return install


UNKNOWN = ("nvidia_nccl_cu12-2.27.3", "nvidia_nccl_cu13-2.28.9")
"""Which of the two torch takes, nobody knows without asking it."""


def real(name: str = "3090-bridges-4", driver: str | None = "580.65.06", host: str = "a") -> Topology:
    """As a driver tells a machine: with its version, UUIDs and a host name."""
    topology = machine(name)
    nodes = tuple(
        replace(
            node,
            driver_version=driver,
            hostname=f"{host}{n}",
            gpus=tuple(replace(gpu, uuid=f"GPU-{host}-{n}-{i}") for i, gpu in enumerate(node.gpus)),
        )
        for n, node in enumerate(topology.nodes)
    )
    return replace(topology, nodes=nodes)


def measured(
    topology: Topology,
    *,
    sizes: int = 3,
    at: str = "2026-11-20T10:00:00+00:00",
    library: str | None = "2.27.3",
    backend: str = "nccl",
) -> Survey:
    members = (GpuRef(0, 0), GpuRef(0, 2))
    key = CurveKey("all_reduce", group_shape(topology, members), "bfloat16", backend, library_version=library)
    samples = tuple(Sample(1 << 10 + i, ((1e-5, 2e-5),)) for i in range(sizes))
    return Survey(topology, (Curve(key, samples, members),), measured_at=at)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*")) if folder.exists() else []


def test_what_was_measured_is_found_again_with_the_present_state_of_the_machine(home: Path) -> None:
    survey = measured(real())
    kept = remember(survey)
    assert kept.reason is None
    assert kept.file is not None and kept.file.parent == home
    state = real().nodes[0].gpus[0]
    now = replace(real().nodes[0], gpus=(replace(state, memory_free_bytes=1 << 30), *real().nodes[0].gpus[1:]))
    topology = Topology((now,))
    found = recall(topology)
    assert found is not None
    assert found.curves == survey.curves
    assert found.topology == topology


def test_only_this_user_may_look_into_the_folder(home: Path) -> None:
    remember(measured(real()))
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_was_made_for_others_too_stays_theirs(home: Path) -> None:
    """Another user's agent reads what was measured, where an operator wanted that."""
    home.mkdir(parents=True)
    home.chmod(0o755)
    kept = remember(measured(real()))
    assert kept.file is not None
    assert (home.stat().st_mode & 0o777, kept.file.stat().st_mode & 0o044) == (0o755, 0o044)


@pytest.mark.parametrize(
    "survey",
    [
        replace(measured(real()), lab="CPU ranks standing in for machine:3090-bridges-4"),
        replace(measured(real()), lab=""),
        measured(real(), backend="gloo"),
        measured(real(driver=None)),
        Survey(real()),
    ],
    ids=["lab", "lab without a word", "gloo", "no driver", "nothing measured"],
)
def test_what_is_no_figure_of_known_gpus_never_enters(home: Path, survey: Survey) -> None:
    kept = remember(survey)
    assert kept.file is None
    assert kept.reason
    assert files(home) == []
    assert recall(survey.topology) is None


def test_lab_figures_that_got_into_the_folder_all_the_same_are_left_out_aloud(home: Path) -> None:
    kept = remember(measured(real()))
    assert kept.file is not None
    kept.file.write_bytes(encode_survey(replace(measured(real()), lab="a lab")))
    found = search(real())
    assert found.survey is None
    assert [n.code for n in found.notices] == ["cache-unreadable"]


@pytest.mark.parametrize(
    "other",
    [real(driver="575.1"), real(driver=None), real("3090-4"), real("2x3090-bridges-4")],
    ids=["another driver", "no driver", "other wires", "two of them"],
)
def test_other_wires_or_drivers_are_not_these(other: Topology) -> None:
    remember(measured(real()))
    assert recall(other) is None


def test_an_equal_machine_is_told_from_this_one() -> None:
    remember(measured(real(host="a")))
    found = search(real(host="b"))
    assert found.survey is not None and found.measured_on is not None
    assert not same_gpus(found.measured_on, real(host="b"))
    assert same_gpus(found.measured_on, real(host="a"))


def test_equal_nodes_in_another_order_are_other_wires() -> None:
    """Curves name their members by node."""
    remember(measured(real("1x3090-bridges-4+1x3090-4")))
    assert recall(real("1x3090-bridges-4+1x3090-4")) is not None
    assert recall(real("1x3090-4+1x3090-bridges-4")) is None


def two_measurements() -> None:
    """Of two versions of NCCL, the newer one first."""
    remember(measured(real(), at="2026-11-19T10:00:00+00:00", library="2.28.9"))
    remember(measured(real(), at="2026-11-20T10:00:00+00:00", library="2.27.3"))


@pytest.mark.parametrize(
    ("record", "day", "library"),
    [
        (("nvidia_nccl_cu12-2.27.3",), "20", None),
        (("nvidia_nccl_cu13-2.28.9",), "19", None),
        (("nvidia_nccl_cu12-2.27.3", "nvidia_nccl_cu13-2.27.3.post1"), "20", None),
        (UNKNOWN, "20", "NCCL 2.27.3, here unknown"),
    ],
)
def test_what_was_measured_with_the_installed_library_counts_before_what_is_newer(
    installed: Callable[..., None], record: tuple[str, ...], day: str, library: str | None
) -> None:
    two_measurements()
    installed(*record)
    for found in (search(real()), search(real(), other_library=True)):
        assert found.survey is not None and found.notices == ()
        assert found.survey.measured_at == f"2026-11-{day}T10:00:00+00:00"
        assert found.library == library


def test_after_an_upgrade_old_figures_are_used_only_where_that_is_asked_for_and_aloud(
    installed: Callable[..., None],
) -> None:
    two_measurements()
    installed("nvidia_nccl_cu12-2.29.1")
    assert recall(real()) is None
    found = search(real(), other_library=True)
    assert found.survey is not None and found.survey.measured_at == "2026-11-20T10:00:00+00:00"
    assert found.library == "NCCL 2.27.3, here 2.29.1"
    assert [n.code for n in found.notices] == ["library-differs"]
    assert "NCCL 2.29.1 is installed" in found.notices[0].message and "NCCL 2.27.3" in found.notices[0].message


def test_a_version_that_is_not_recorded_is_called_unknown() -> None:
    remember(measured(real(), library=None))
    found = search(real())
    assert found.survey is not None
    assert found.library == "NCCL of unknown version, here 2.27.3"


def test_a_whole_survey_of_a_few_sizes_does_not_displace_a_rich_one() -> None:
    """`measure --fresh --largest 64KiB` comes to its end, too."""
    assert remember(measured(real(), sizes=8, at="2026-11-20")).file
    assert "fuller" in (remember(measured(real(), sizes=3, at="2026-11-21")).reason or "")
    assert remember(measured(real(), sizes=7, at="2026-11-22")).file, "a newer one of about the same size"


def test_a_partial_survey_is_kept_but_never_in_the_place_of_a_fuller_one() -> None:
    partial = replace(measured(real(), sizes=2, at="2026-11-21"), missing=PARTLY)
    assert remember(replace(partial, curves=measured(real(), sizes=1).curves)).file, "better than nothing"
    assert remember(partial).file, "more than before"
    assert remember(measured(real(), sizes=4, at="2026-11-22")).file
    refused = remember(partial)
    assert refused.file is None
    assert refused.reason is not None and "fuller" in refused.reason and "2026-11-22" in refused.reason
    found = recall(real())
    assert found is not None and found.points == 4
    assert remember(measured(real(), sizes=3, at="2026-11-23")).file, "what is whole replaces what is old"


@pytest.mark.parametrize("code", ["unfinished", "not-measured", "partly-measured"])
def test_a_run_that_was_cut_short_replaces_nothing(code: str) -> None:
    remember(measured(real(), sizes=4))
    assert remember(replace(measured(real(), sizes=3), missing=(Notice(code, "cut short"),))).file is None


def test_rates_alone_are_kept_too() -> None:
    topology = real("h100-1")
    rates = (Rate("hbm_read", GpuRef(0, 0), 3300.0, "GB/s"),)
    assert remember(Survey(topology, rates=rates)).file
    found = search(topology)
    assert found.survey is not None and found.survey.rates == rates
    assert found.library is None, "NCCL has no part in them"


@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=300), st.text(max_size=300))
def test_no_driver_or_library_can_name_a_file_elsewhere(home: Path, driver: str, library: str) -> None:
    kept = remember(measured(real(driver=driver), library=library))
    if kept.file is not None:
        assert kept.file.parent == home
        assert kept.file.name.replace("-", "").removesuffix(".json").isalnum()
        assert search(real(driver=driver), other_library=True).survey is not None


@pytest.mark.parametrize("damage", [b"", b"{", b"\0" * 100, b'{"schema_version": 99}', b"[]"])
def test_a_damaged_file_is_left_out_aloud_and_replaced(damage: bytes) -> None:
    kept = remember(measured(real()))
    assert kept.file is not None
    kept.file.write_bytes(damage)
    found = search(real())
    assert found.survey is None
    assert [n.code for n in found.notices] == ["cache-unreadable"]
    assert str(kept.file) in found.notices[0].message
    assert remember(replace(measured(real()), missing=PARTLY)).file, "a damaged file is not fuller"
    assert search(real()).notices == ()


def test_what_is_no_plain_file_is_never_opened() -> None:
    kept = remember(measured(real()))
    assert kept.file is not None
    kept.file.unlink()
    os.mkfifo(kept.file)
    assert search(real()).survey is None


def test_a_folder_that_cannot_be_made_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    kept = remember(measured(real()))
    assert kept.file is None
    assert kept.reason is not None and "not kept" in kept.reason
    assert recall(real()) is None


def test_a_relative_cache_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "wirelore" / "surveys"


# ---- the command ---------------------------------------------------------------------------------------------------


def test_plan_says_where_its_measurement_comes_from(tmp_path: Path) -> None:
    kept = remember(measured(real(host="a")))
    environ = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "PYTHONPATH")}
    for host, where in (("a", "on this machine"), ("b", "on an equal machine, a0")):
        (tmp_path / "machine.json").write_bytes(encode_survey(Survey(real(host=host))))
        plan = ("plan", "llama-3.1-8b", "--from", tmp_path / "machine.json")
        text = "".join(wirelore(*plan, environ=environ).data().split())
        assert f"measured 2026-11-20 {where} (cache {kept.file})".replace(" ", "") in text, "however it is wrapped"
        assert f"2026-11-20 {where}" in wirelore(*plan, "--format", "json", environ=environ).data()
        assert "2026-11-20" not in wirelore(*plan, "--no-cache", environ=environ).data()
        flags = wirelore(*plan, "--format", "flags", environ=environ)
        assert flags.out.count("\n") == 1
        assert f"note: measured 2026-11-20 {where}" in flags.err


@pytest.mark.parametrize(
    ("record", "here", "noted"),
    [(("nvidia_nccl_cu12-2.28.9",), "2.28.9", True), (UNKNOWN, "unknown", False)],
)
def test_plan_says_that_the_library_is_another_or_unknown(
    tmp_path: Path, installed: Callable[..., None], record: tuple[str, ...], here: str, noted: bool
) -> None:
    kept = remember(measured(real()))
    installed(*record)
    (tmp_path / "machine.json").write_bytes(encode_survey(Survey(real())))
    environ = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "PYTHONPATH")}
    plan = ("plan", "llama-3.1-8b", "--from", tmp_path / "machine.json")
    ended = wirelore(*plan, environ=environ)
    said = f"measured 2026-11-20 on this machine (cache {kept.file}, NCCL 2.27.3, here {here})"
    assert said.replace(" ", "") in "".join(ended.data().split())
    assert ("note: NCCL 2.28.9 is installed" in ended.err) is noted


def test_a_survey_given_brings_its_own_figures(tmp_path: Path) -> None:
    remember(measured(real()))
    (tmp_path / "s.json").write_bytes(encode_survey(measured(real(), at="2026-11-01T00:00:00+00:00")))
    environ = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "PYTHONPATH")}
    told = wirelore("plan", "llama-3.1-8b", "--from", "s.json", cwd=tmp_path, environ=environ).data()
    assert "2026-11-01 (s.json)" in told
    assert "2026-11-20" not in told


@pytest.mark.parametrize("form", ["text", "json", "flags"])
def test_lab_figures_are_called_so_in_every_format(tmp_path: Path, form: str) -> None:
    survey = replace(measured(real(), backend="gloo"), lab="CPU ranks of some host")
    (tmp_path / "lab.json").write_bytes(encode_survey(survey))
    ended = wirelore("plan", "llama-3.1-8b", "--from", "lab.json", "--format", form, cwd=tmp_path)
    assert ended.code == 0
    assert "LAB FIGURES, not of these GPUs: CPU ranks of some host" in (ended.out if form == "text" else ended.err)


def test_an_unreadable_cache_is_a_note_and_the_plan_stands(tmp_path: Path) -> None:
    kept = remember(measured(real()))
    assert kept.file is not None
    kept.file.write_bytes(b"{")
    (tmp_path / "machine.json").write_bytes(encode_survey(Survey(real())))
    environ = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "PYTHONPATH")}
    ended = wirelore("plan", "llama-3.1-8b", "--from", "machine.json", cwd=tmp_path, environ=environ)
    assert "plan" in ended.data()
    assert ended.err.startswith("wirelore: note: ")
    assert "is left out" in ended.err
