"""Silence is no clean bill: what nobody looked at is never green, and a lab's figures are no GPU's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from audit_cases import plain
from defusedxml.ElementTree import fromstring
from measured_surveys import curve, honest, rated, refs, told

from configgen.audited import Audited
from configgen.report.fleet import verdict
from configgen.report.html import page
from configgen.report.junit import junit
from configgen.unchecked import unchecked, unproven
from probe.audit import audit
from probe.checks.codes import CODES
from probe.fleet_files import audit_files
from probe.measurement import Rate, Survey
from probe.sources.smi_text import read_topo
from probe.store import encode_survey
from probe.topology import GpuRef, Nic, Origin, P2p, PcieLink, Provenance, Topology

WHEN = "2026-11-21T04:00:00+00:00"


def audited(survey: Survey) -> Audited:
    return Audited(survey, audit(survey), WHEN)


def green(survey: Survey) -> set[str]:
    cases = list(fromstring(junit(audited(survey), strict=True)).iter("testcase"))
    return {case.get("name", "") for case in cases if len(case) == 0}


def test_every_code_that_may_be_unproven_is_a_code() -> None:
    text = read_topo("\tGPU0\tGPU1\nGPU0\tX\tNV18\nGPU1\tNV18\tX\n", where="a test")
    for survey in (Survey(text), Survey(plain("2xhgx-h100")), honest(plain("l4-8"))):
        assert unproven(survey).keys() <= CODES.keys()
        assert all(unproven(survey).values())


def test_a_text_matrix_proves_nothing_of_the_driver_and_the_host() -> None:
    text = read_topo("\tGPU0\tGPU1\nGPU0\tX\tNV18\nGPU1\tNV18\tX\n", where="a test")
    unseen = {"ecc-uncorrected", "throttled", "shm-small", "acs-redirects", "pcie-narrow", "fabric-failed", "gpu-busy"}
    unseen |= {"nvlink-errors", "nic-down", "p2p-not-ok", "mixed-models", "gpu-lost", "nvls-absent"}
    assert green(Survey(text)).isdisjoint(unseen)
    assert {"split-island", "rows-missing"} <= green(Survey(text))


def test_one_curve_proves_nothing_of_rates_checks_and_transports() -> None:
    topology = plain("hgx-h100")
    shown = green(Survey(topology, (curve(topology, refs(*range(8)), 480.0),)))
    unseen = {"p2p-fails-check", "rate-below-catalog", "pcie-slow-under-load", "wrong-nic", "nccl-not-peer-to-peer"}
    assert shown.isdisjoint(unseen | {"nvls-absent", "asymmetric-bandwidth", "p2p-slower-than-host"})
    assert {"below-expectation", "slow-start", "wrong-data"} <= shown


def test_what_was_looked_at_is_green() -> None:
    survey = told(honest(plain("l4-8")), ("transport", "P2P/CUMEM"))
    copies = (Rate("h2d", GpuRef(0, 0), 26.0, "GB/s"),)
    whole = replace(survey, topology=live(survey.topology), rates=copies)
    shown = {"ecc-uncorrected", "shm-small", "gpu-busy", "pcie-narrow", "p2p-not-ok", "nic-down", "mixed-models"}
    assert shown | {"pcie-slow-under-load", "nccl-not-peer-to-peer", "asymmetric-bandwidth"} <= green(whole)


def live(topology: Topology) -> Topology:
    """As NVML and the host tell it."""
    node = topology.nodes[0]
    gpus = tuple(replace(gpu, pcie=PcieLink(4, 4, 16, 16)) for gpu in node.shape.gpus)
    paths = tuple(replace(path, p2p=P2p()) for path in node.shape.paths)
    shape = replace(node.shape, gpus=gpus, paths=paths, nics=(Nic("mlx5_0", state="active"),), nic_paths=())
    states = tuple(replace(state, memory_free_bytes=1 << 30) for state in node.gpus)
    origin = Origin("gpus", Provenance.READ, "NVML 12.580, driver 580", 0)
    return Topology((replace(node, shape=shape, gpus=states),), provenance=(origin,))


def test_copies_of_a_superchip_prove_nothing_of_pcie() -> None:
    assert "pcie-slow-under-load" not in green(rated(plain("gh200-1"), lambda gpu: 300.0, kind="h2d"))


@pytest.mark.parametrize("lab", [None, "CPU ranks of a laptop"])
def test_what_gloo_moved_is_no_figure_of_the_gpus(lab: str | None) -> None:
    topology = plain("hgx-h100")
    made = audited(Survey(topology, (curve(topology, refs(*range(8)), 1.0, backend="gloo"),), lab=lab))
    assert "as it should be" not in made.verdict
    assert "nothing was measured" in made.verdict or not made.passes
    assert "bandwidth and latency of the wires" in {one.what for one in unchecked(made.survey)}
    assert "and nothing was measured: what the driver says" in page(made) or not made.passes


# ---- fleets --------------------------------------------------------------------------------------------------------


def fleet_of(folder: Path, *surveys: Survey) -> tuple[str, set[str]]:
    """The verdict, and the codes that were found."""
    for n, survey in enumerate(surveys):
        (folder / f"{n}.json").write_bytes(encode_survey(survey))
    fleet = audit_files(sorted(map(str, folder.glob("*.json"))), processes=1)
    return verdict(fleet), {code for code, _, _ in fleet.codes}


def test_a_fleet_that_nobody_measured_is_not_said_to_be_well(tmp_path: Path) -> None:
    topology = plain("l4-8")
    lab = Survey(topology, (curve(topology, refs(*range(8)), 1.0, backend="gloo"),), lab="CPU ranks")
    assert fleet_of(tmp_path, lab, lab)[0] == "2 machines: nothing found, and nothing was measured on their GPUs"
    told, _ = fleet_of(tmp_path, lab, honest(topology))
    assert told == "2 machines: nothing stands out; nothing was measured on 1 of them"


def test_a_fleet_with_rates_and_curves_lacks_nothing(tmp_path: Path) -> None:
    """Curves are a matter of a machine's equals at first, which is no reason to miss them."""
    whole = replace(honest(plain("l4-8")), rates=rated(plain("l4-8"), lambda gpu: 260.0).rates)
    assert "unmeasured-groups" not in fleet_of(tmp_path, *[whole] * 6)[1]
    assert "unmeasured-groups" in fleet_of(tmp_path, *[replace(whole, curves=())] * 6)[1]
