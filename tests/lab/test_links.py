"""`wirelore measure` between nodes, over links that are slow, cut, flapping or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import GBIT, MBIT, Lab
from test_lab import TCP_SHARE
from together import TORCH_S, Measuring

pytestmark = pytest.mark.usefixtures("torch")

SPARE_S = 5.0
"""What a run may outlast its deadline."""


def test_two_nodes_see_their_wire_beside_interfaces_that_lead_nowhere(tmp_path: Path) -> None:
    with Lab(2, GBIT) as lab:
        lab.add_unusable(lab.nodes[0], "eth1", up=True)
        lab.add_unusable(lab.nodes[1], "eth1", up=False)
        with Measuring(lab, tmp_path, "machine:l4-1", "--budget", "10s", "--largest", "4MiB") as run:
            assert [ended.code for ended in run.ended(TORCH_S)] == [0, 0], run.words(0) + run.words(1)
            survey = run.survey()
            assert run.nothing_left()
    assert len(survey.topology.nodes) == 2
    assert survey.lab is not None
    assert {e.value.split()[0] for e in survey.evidence if e.what == "interface"} == {"eth0"}
    ring = next(curve for curve in survey.curves if curve.key.operation == "all_reduce")
    largest = ring.samples[-1]
    assert largest.size_bytes >= 2 << 20
    # No more than a smoke: the bucket's burst is 6 to 12 % of such a message. benchmarks/fidelity.py looks closely.
    assert largest.size_bytes / largest.p50_s == pytest.approx(GBIT / 8 * TCP_SHARE, rel=0.25)


@pytest.mark.parametrize(
    ("options", "problem", "cure"),
    [
        (("--master", "lab-node-0"), "the host name 'lab-node-0' of node 0 (--nnodes, --node-rank, --master) does not "
         "resolve here", "Give --master IP:PORT"),
        (("--interface", "eth1"), "the interface 'eth1' is down", "eth0 (10.77.0."),
        (("--interface", "ib0"), "the interface 'ib0' does not exist", "eth0 (10.77.0."),
        (("--master", "10.99.0.1:29500"), "10.99.0.1", "10.77.0."),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_anything_starts(
    tmp_path: Path, options: tuple[str, ...], problem: str, cure: str
) -> None:
    with Lab(2, None) as lab:
        for node in lab.nodes:
            lab.add_unusable(node, "eth1", up=False)
        with Measuring(lab, tmp_path, "machine:l4-1", *options) as run:
            ended = run.ended(10.0)
    for one in ended:
        assert one.code == 2
        assert problem in one.words and cure in one.words


@pytest.mark.long
def test_ipv6_loopback_alone_is_enough_for_one_node(tmp_path: Path) -> None:
    with Lab(1, None) as lab:
        lab.ipv6_loopback(lab.nodes[0])
        with Measuring(lab, tmp_path, "machine:l4-2", "--budget", "8s", "--largest", "1MiB") as run:
            [ended] = run.ended(TORCH_S)
            assert ended.code == 0, ended.words
            assert run.points()
            assert run.nothing_left()


def test_a_link_cut_ends_the_run_in_time_and_keeps_what_was_finished(tmp_path: Path) -> None:
    timeout_s = 3.0
    with Lab(2, 200 * MBIT) as lab:
        options = ("--budget", "60s", "--timeout", f"{timeout_s:g}s", "--largest", "4MiB")
        with Measuring(lab, tmp_path, "machine:l4-1", *options) as run:
            finished = run.wait_for_points(4)
            lab.cut(lab.nodes[1])
            here, there = run.ended(timeout_s + SPARE_S)
            assert run.nothing_left()
            assert finished <= run.points()
    assert here.code == there.code == 4
    for ended, other in ((here, "node 1"), (there, "node 0")):
        assert other in ended.words or "unknown" in ended.words
    assert "--resume" in here.words


@pytest.mark.long
def test_a_flap_shorter_than_the_timeout_is_survived(tmp_path: Path) -> None:
    with Lab(2, 200 * MBIT) as lab:
        options = ("--budget", "30s", "--timeout", "30s", "--largest", "1MiB")
        with Measuring(lab, tmp_path, "machine:l4-1", *options) as run:
            before = run.wait_for_points(4)
            with lab.flap(lab.nodes[1], 5.0):
                pass
            after = run.wait_for_points(len(before) + 1)
            assert [ended.code for ended in run.ended(30 + SPARE_S)] == [0, 0], run.words(0) + run.words(1)
            assert before < after


def test_a_node_that_never_arrives_is_named(tmp_path: Path) -> None:
    timeout_s = 5.0
    with (
        Lab(2, None) as lab,
        Measuring(lab, tmp_path, "machine:l4-1", "--timeout", f"{timeout_s:g}s", nodes=3) as run,
    ):
        ended = run.ended(timeout_s + SPARE_S + TORCH_S)
        assert run.nothing_left()
    for one in ended:
        assert one.code == 4
    assert "2 of 3 nodes joined within 5 s, missing: node 2" in ended[0].words


@pytest.mark.long
def test_a_node_0_that_is_not_there_is_named_with_its_address(tmp_path: Path) -> None:
    with Lab(2, None) as lab, Measuring(lab, tmp_path, "machine:l4-1", "--timeout", "4s", only=(1,)) as run:
        [ended] = run.ended(4 + SPARE_S + TORCH_S)
        assert run.nothing_left()
    assert ended.code == 4
    assert f"node 0 at {lab.nodes[0].address}" in ended.words
