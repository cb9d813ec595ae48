"""What the emitted `wirelore init` decides on a pod's own GPUs: one server, where the Service asks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import wirelore

FOUR_OF_EIGHT = ("qwen3-32b-fp8", "4090-8", "4090", ())
CASES = [
    FOUR_OF_EIGHT,
    ("qwen3-30b-a3b", "h200-nvl-8", "h200-nvl", ("--max-tpot", "0.02")),
    ("qwen3-0.6b", "a10g-4", "a10g", ("--objective", "latency")),
]


def planned(folder: Path, model: str, whole: str, options: tuple[str, ...]) -> Any:
    made = wirelore("plan", model, "--from", f"machine:{whole}", *options, "-o", "plan.json", cwd=folder)
    assert made.code == 0, made.err
    return json.loads((folder / "plan.json").read_text())


def decided(folder: Path, machine: str, words: list[str]) -> tuple[Any, list[int]]:
    """The plan of an init that was told these words, and the ports of its servers."""
    words[words.index("--folder") + 1] = "pod"
    ended = wirelore("init", "--from", f"machine:{machine}", *words, cwd=folder)
    assert ended.code == 0, ended.err
    processes = json.loads((folder / "pod" / "argv.json").read_text())
    return json.loads((folder / "pod" / "plan.json").read_text()), [process["port"] for process in processes]


@pytest.mark.parametrize(("model", "whole", "part", "options"), CASES)
def test_a_pod_starts_one_server_where_the_service_asks(
    tmp_path: Path, model: str, whole: str, part: str, options: tuple[str, ...]
) -> None:
    asked = planned(tmp_path, model, whole, options)
    text = wirelore("emit", "plan.json", "--target", "kubernetes", "--kind", "deployment", cwd=tmp_path).out
    pod = next(iter(yaml.safe_load_all(text)))["spec"]["template"]["spec"]
    (init,), (engine,) = pod["initContainers"], pod["containers"]
    gpus = init["resources"]["limits"]["nvidia.com/gpu"]
    own, ports = decided(tmp_path, f"{part}-{gpus}", init["args"])
    assert ports == [engine["ports"][0]["containerPort"]]
    assert own["data_parallel_size"] == 1
    assert own["tensor_parallel_size"] * own["pipeline_parallel_size"] == gpus, "none of its GPUs idles"
    share = -(-asked["workload"]["concurrency"] // asked["data_parallel_size"])
    assert own["workload"]["concurrency"] == share


def test_compose_starts_one_server_behind_each_address_of_its_proxy(tmp_path: Path) -> None:
    model, whole, part, options = FOUR_OF_EIGHT
    planned(tmp_path, model, whole, options)
    assert wirelore("emit", "plan.json", "--target", "compose", "-o", "out", cwd=tmp_path).code == 0
    document = yaml.safe_load((tmp_path / "out" / "compose.yaml").read_text())
    own, ports = decided(tmp_path, f"{part}-4", document["services"]["probe-0"]["command"])
    assert f"engine-0:{ports[0]}" in (tmp_path / "out" / "proxy.conf").read_text()
    assert len(ports) == own["data_parallel_size"] == 1


def test_a_unit_takes_no_gpus_that_the_plan_left(tmp_path: Path) -> None:
    asked = planned(tmp_path, "llama-3.1-8b", "l40s-8", ("--gpus", "4"))
    text = wirelore("emit", "plan.json", "--target", "systemd", "-o", "out", cwd=tmp_path)
    assert text.code == 0, text.err
    (unit,) = (tmp_path / "out").glob("*.service")
    line = next(line for line in unit.read_text().splitlines() if line.startswith("ExecStartPre="))
    words = re.findall(r'"([^"]*)"', line)
    own, _ = decided(tmp_path, "l40s-8", ["--folder", "pod", *words])
    assert own["gpu_order"] == asked["gpu_order"]


def test_outside_kubernetes_several_servers_are_named_with_all_their_ports(tmp_path: Path) -> None:
    planned(tmp_path, "llama-3.1-8b", "2xl40s-8", ())
    for target in ("slurm", "systemd"):
        assert wirelore("emit", "plan.json", "--target", target, "-o", target, cwd=tmp_path).code == 0
    told = json.loads(wirelore("emit", "plan.json", "--target", "json", cwd=tmp_path).out)
    servers = [(process["node"], process["port"]) for process in told["processes"]]
    assert len({node for node, _ in servers}) == 2
    job = (tmp_path / "slurm" / "job.sbatch").read_text()
    proxy = (tmp_path / "systemd" / "proxy.conf").read_text()
    for node in (0, 1):
        ports = [port for place, port in servers if place == node]
        assert f"#   node {node} of the job: ports {', '.join(map(str, ports))}\n" in job
        assert all(f"server node{node}:{port} " in proxy for port in ports)
