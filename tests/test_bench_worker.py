"""What only GPUs do in a rank, done by CPU ranks: graphs, generations of ranks, and nodes that must mean the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from measure_run import Run
from ports import free_port

from probe.bench import channel
from probe.bench.generations import affordable, generations, left_out
from probe.bench.messages import Done, Failed, Job, Measured, Message, Point, Rendezvous
from probe.sources.machines import machine
from probe.store import encode_topology
from probe.topology import Topology

NODE = """
from probe.bench import schedule, generations
from probe.bench.device import CpuDevice
from dataclasses import replace

usual = schedule.steps

def with_graphs(topology, **told):
    found = usual(topology, **told)
    return tuple(s for step in found for s in ((step, replace(step, graph=True)) if FITS(step) else (step,)))

def captured(self, operation, times):
    if FAILS:
        raise RuntimeError("operation not permitted when stream is capturing")
    def replay():
        for _ in range(times):
            operation()
    return replay

FITS = lambda step: step.operation == "all_reduce"
FAILS = {fails}
generations.steps = with_graphs
CpuDevice.has_graphs = True
CpuDevice.captured = captured
from probe.bench import node
node.main()
"""
"""The node's process, whose CPU ranks have graphs as CudaDevice has: a real run, with a stand-in for the capture."""


def told_by(script: str, folder: Path, topology: Topology, budget_s: float) -> list[Message]:
    """All messages of a node's process that runs this script."""
    (folder / "node.py").write_text(script)
    job = Job(
        rendezvous=Rendezvous(interface="lo"),
        topology=msgspec.Raw(encode_topology(topology)),
        backend="gloo",
        started_s=time.monotonic(),
        budget_s=budget_s,
        timeout_s=30.0,
        largest_bytes=1 << 14,
        told=Measured(),
    )
    receiver, sender = channel.pair()
    with receiver:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(folder / "node.py"), str(sender.fileno()), str(os.getpid())],
            stdin=subprocess.PIPE,
            pass_fds=(sender.fileno(),),
        )
        sender.close()
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(job))
        process.stdin.close()
        told = []
        while (message := channel.receive(receiver)) is not None:
            told.append(message)
        process.wait()
    return told


def test_ranks_that_take_no_part_in_a_graph_keep_in_step(tmp_path: Path) -> None:
    """With three ranks one is idle in each pair: all have to count runs alike, or the next gathering differs."""
    told = told_by(NODE.replace("{fails}", "False"), tmp_path, machine("l4-3"), 12.0)
    assert isinstance(told[-1], Done), [m for m in told if isinstance(m, Failed)]
    points = [m for m in told if isinstance(m, Point) and m.key.operation == "all_reduce"]
    assert {p.key.graph for p in points} == {True, False}


def test_a_graph_that_cannot_be_captured_is_left_out_and_said(tmp_path: Path) -> None:
    told = told_by(NODE.replace("{fails}", "True"), tmp_path, machine("l4-2"), 8.0)
    assert isinstance(told[-1], Done), [m for m in told if isinstance(m, Failed)]
    assert not [m for m in told if isinstance(m, Point) and m.key.graph]
    assert [m for m in told if isinstance(m, Point) and not m.key.graph], "eager times stand for them"
    assert {n.code for m in told if isinstance(m, Measured) for n in m.missing} >= {"no-graph"}


def test_generations_of_nccl_and_what_a_short_budget_leaves_of_them() -> None:
    plans = generations(machine("hgx-h100"), backend="nccl", every_pair=False)
    assert [dict(plan.environment) for plan in plans[:2]] == [{}, {"NCCL_P2P_DISABLE": "1"}]
    assert plans[-1].log_only and plans[0].rates and not plans[1].rates
    assert affordable(plans, None) == affordable(plans, 600.0) == (0, 1, 2)
    assert affordable(plans, 20.0) == affordable(plans, -5.0) == (0,)
    assert {notice.code for notice in left_out(plans, (0,))} == {"not-measured"}
    assert len(left_out(plans, (0,))) == 2 and left_out(plans, (0, 1, 2)) == ()


def test_where_p2p_failed_its_check_nothing_is_measured_with_it() -> None:
    (plan,) = generations(machine("l4-4"), backend="nccl", every_pair=False, through_host=True)
    assert plan.environment == {"NCCL_P2P_DISABLE": "1"} and plan.rates
    assert {step.p2p_enabled for step in plan.steps} == {False}


@pytest.mark.parametrize("other", ["--every-pair", "--largest=1MiB"])
def test_node_0_decides_for_all_where_options_differ(tmp_path: Path, other: str) -> None:
    port = str(free_port())
    together = ("--from", "machine:l4-2", "--nnodes", "2", "--master", f"127.0.0.1:{port}", "--budget", "5s")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    runs = [
        Run(tmp_path / "a", *together, "--node-rank", "0", other),
        Run(tmp_path / "b", *together, "--node-rank", "1"),
    ]
    ended = [run.process.wait(60) for run in runs]
    assert ended == [0, 0], [(tmp_path / name / "err.txt").read_text() for name in "ab"]
