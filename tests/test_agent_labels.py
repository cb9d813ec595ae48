"""The labels that `wirelore agent` gives a node, and the file in which Node Feature Discovery reads them."""

from __future__ import annotations

import re

import pytest
from agent_cases import failed, finding, lost, seen, short
from audit_cases import plain
from measured_surveys import curve, refs

from configgen.run.features import NAMES, PREFIX, feature_file, labels
from configgen.run.labels import patch_of
from probe.finding import Severity
from probe.measurement import Survey
from probe.sources.machines import MACHINES, machine

KUBERNETES_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
"""As the API server checks a label's value (apimachinery, pkg/util/validation)."""


def test_labels_of_an_nvswitch_machine() -> None:
    told = short(labels(seen(machine("machine:hgx-h100"))))
    assert told.pop("fingerprint").startswith("wl1-")
    assert told == {
        "probe": "ok", "gpus": "8", "islands": "1x8", "island-size": "8", "link": "NV18", "nvlinks": "18",
        "audit": "passed",
    }  # fmt: skip


def test_a_lost_gpu_counts_in_no_label() -> None:
    told = short(labels(seen(lost(machine("machine:3090-bridges-4"), 0))))
    assert (told["gpus"], told["islands"], told["island-size"]) == ("3", "1x2-1x1", "2")


def test_a_machine_without_a_fast_fabric_has_no_link() -> None:
    told = short(labels(seen(machine("machine:l40s-8"))))
    assert (told["island-size"], told["islands"]) == ("1", "8x1")
    assert not {"link", "nvlinks", "measured-gbps"} & set(told)


def test_a_machine_whose_gpus_are_all_lost_claims_nothing() -> None:
    told = short(labels(seen(lost(machine("machine:l4-2"), 0, 1))))
    assert told["gpus"] == "0"
    assert not {"islands", "island-size", "link"} & set(told)


def test_a_look_that_fails_leaves_one_label() -> None:
    assert labels(failed("no driver")) == {PREFIX + "probe": "failed"}


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_every_label_is_one_that_kubernetes_takes(name: str) -> None:
    told = labels(seen(machine(f"machine:{name}"), finding("a-code", Severity.WARNING)))
    assert set(short(told)) <= set(NAMES)
    assert all(KUBERNETES_VALUE.fullmatch(value) for value in told.values())
    assert short(told)["audit"] == "warning"


@pytest.mark.parametrize(("gbps", "told"), [(460.0, "400"), (480.0, "400"), (9.0, "0"), (2000.0, "800")])
def test_a_measured_bandwidth_is_told_as_a_class(gbps: float, told: str) -> None:
    topology = plain("machine:hgx-h100")
    whole = curve(topology, refs(*range(8)), gbps, alpha_s=0.0)
    pair = curve(topology, refs(0, 1), 30.0)
    assert short(labels(seen(Survey(topology, curves=(pair, whole)))))["measured-gbps"] == told


def test_figures_of_a_part_or_of_a_lab_are_no_label() -> None:
    topology = plain("machine:hgx-h100")
    pair, whole = curve(topology, refs(0, 1), 300.0), curve(topology, refs(*range(8)), 300.0)
    assert "measured-gbps" not in short(labels(seen(Survey(topology, curves=(pair,)))))
    assert "measured-gbps" not in short(labels(seen(Survey(topology, curves=(whole,), lab="CPU ranks"))))


def test_a_feature_file_is_what_nfd_reads() -> None:
    lines = feature_file({PREFIX + "gpus": "8"}, 1_800_000_000.9, 100.0).decode().splitlines()
    assert lines[1:] == ["# +expiry-time=2027-01-15T08:05:00Z", "wirelore.io/gpus=8"]
    assert lines[0].startswith("# ")
    assert not lines[0].startswith("# +")


def test_features_outlive_three_looks_of_nfd_however_short_the_interval() -> None:
    (line,) = (x for x in feature_file({}, 0.0, 1.0).decode().splitlines() if x.startswith("# +"))
    assert line == "# +expiry-time=1970-01-01T00:03:00Z"


def test_what_is_no_label_is_never_written() -> None:
    for value in ("", "a b", "a\nwirelore.io/gpus=9", "x" * 64, "-a"):
        with pytest.raises(ValueError, match="63"):
            feature_file({PREFIX + "link": value}, 0.0, 60.0)


def test_a_patch_takes_off_what_the_machine_lacks_and_touches_nobody_elses() -> None:
    patched = patch_of(labels(failed("no driver")))
    assert patched == {"metadata": {"labels": {PREFIX + name: "failed" if name == "probe" else None for name in NAMES}}}
