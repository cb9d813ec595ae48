"""However a launcher tells its members who they are: one plan, the same bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cluster_plans import decided_case, manifests, pods
from members import JOB, LWS, OF_LAUNCHERS, PLAIN, TRAINER, Group, told_by

from configgen.cli.measure import measure_command
from configgen.run.place import find_place
from probe.bench.rendezvous import DEFAULT_PORT, KUBERNETES_JOB, find_rendezvous


def test_the_same_gpus_get_the_same_plan_from_every_launcher(tmp_path: Path) -> None:
    plans = set()
    for launcher in (LWS, TRAINER, JOB):
        folder = tmp_path / launcher
        folder.mkdir()
        group = Group(folder, 2, launcher=launcher)
        results = group.run_all()
        assert [r.code for r in results] == [0, 0], results
        plans.add(group.the_plan())
        assert len({(folder / str(node) / "survey.json").read_bytes() for node in (0, 1)}) == 1
        for node, result in enumerate(results):
            assert "not met" not in result.out
            assert f"node {node} of 2 ({launcher}" in result.out
            (process,) = json.loads((folder / str(node) / "argv.json").read_text())
            argv = process["argv"]
            assert argv[argv.index("--node-rank") + 1] == str(node)
            assert argv[argv.index("--master-addr") + 1] == "127.0.0.1"
    assert len(plans) == 1


@pytest.mark.parametrize("launcher", [TRAINER, JOB])
def test_members_of_every_launcher_that_do_not_meet_have_one_plan(tmp_path: Path, launcher: str) -> None:
    group = Group(tmp_path, 2, launcher=launcher)
    results = [group.run(node, deadline="100ms") for node in (0, 1)]
    assert [r.code for r in results] == [0, 0], results
    assert b"the group did not meet" in group.the_plan()


@pytest.mark.parametrize("case", ["nodes", "nodes-sglang"])
def test_the_probes_jobset_tells_its_pods_all_that_they_need(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Of a JobSet's pods the job controller sets JOB_COMPLETION_INDEX, and the JobSet's controller no variable at all;
    it names a pod JOBSET-REPLICATEDJOB-JOB-POD, in the subdomain that is called as the JobSet is."""
    for name in (*PLAIN, "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    ((jobset,),) = manifests(decided_case(case), "jobset").values()
    ((replicated),) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (pod,) = pods(job)
    (container,) = pod["containers"]
    assert not any(variable["name"].startswith(OF_LAUNCHERS) for variable in container["env"])
    params = measure_command.make_context("measure", list(container["args"])).params
    options = {name: params[name] for name in ("nnodes", "node_rank", "master", "port", "interface")}
    nodes = job["completions"]
    assert (job["completionMode"], job["parallelism"], replicated["replicas"]) == ("Indexed", nodes, 1)
    name = jobset["metadata"]["name"]
    for index in range(nodes):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        found = find_rendezvous(os.environ, **options)
        assert (found.nodes, found.node, found.port) == (nodes, index, DEFAULT_PORT)
        assert found.address == f"{name}-{replicated['name']}-0-0.{name}"
        assert found.origin.startswith(f"{KUBERNETES_JOB},"), "by which a name that comes late is waited for"


def test_a_range_of_nodes_is_no_group_to_a_plan_of_one() -> None:
    """`wirelore launch`: how many nodes there are is in the plan."""
    elastic = {**told_by(TRAINER, 1, 2, "10.0.0.1"), "PET_NNODES": "1:4"}
    own = find_place(decided_case("pairs"), elastic, node=None, hostname="pod-1")
    assert (own.node, own.origin) == (0, "the only node")
    part = find_place(decided_case("nodes"), elastic, node=None, hostname="pod-1")
    assert (part.node, part.origin, part.address) == (1, TRAINER, "10.0.0.1")
