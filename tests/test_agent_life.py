"""A whole life of `wirelore agent`, over the real bindings, on a machine that changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from agent_cases import short, well
from agent_run import Running, agent
from command import environment, wirelore
from fake_nvml.machines import LOST, Description

from probe.store import decode_survey


def with_link_lost(description: Description) -> Description:
    description["link.state 2 17"] = 0
    return description


def with_gpu_lost(description: Description) -> Description:
    description["memory 5"] = LOST
    return description


def looks(run: Running) -> float:
    return sum(value for (name, _), value in run.metrics().items() if name == "wirelore_probes_total")


def test_metrics_and_labels_follow_the_machine_within_one_interval(fake_nvml: Path, tmp_path: Path) -> None:
    """A change counts as followed by the first look that began after it: at most two end until it must be seen."""
    with agent(tmp_path, fake_nvml, well()) as run:
        run.until(lambda: run.labels.get("wirelore.io/island-size") == "8")
        assert run.until(lambda: run.metric("wirelore_nvlinks_active", gpu="2")) == 18
        for change, shows in (
            (lambda: run.become(with_link_lost(well())), lambda: run.metric("wirelore_nvlinks_active", gpu="2") == 17),
            (lambda: run.become(with_gpu_lost(well())), lambda: run.metric("wirelore_gpu_usable", gpu="5") == 0),
            (run.lose_driver, lambda: run.metric("wirelore_probe_success") == 0),
            (lambda: run.become(well()), lambda: run.metric("wirelore_gpu_usable", gpu="5") == 1),
        ):
            before = looks(run)
            change()
            run.until(shows)
            assert looks(run) <= before + 2
            wanted = {
                0.0: {"probe": "failed"},
                1.0: {"probe": "ok", "gpus": "7" if run.metric("wirelore_gpu_usable", gpu="5") == 0 else "8"},
            }[run.metric("wirelore_probe_success") or 0.0]
            run.until(lambda wanted=wanted: wanted.items() <= short(run.labels).items())  # type: ignore[misc]
        status, text = run.get("/healthz")
        assert (status, text) == (200, "ok\n")
        code, seconds = run.end()
        log = run.log.splitlines()
    assert code == 0
    assert seconds < 1
    assert run.children() == []
    assert "Traceback" not in run.log
    assert all(line.startswith("wirelore agent: ") for line in log)
    assert sum("no GPU can be read" in line for line in log) == 1
    assert sum("GPUs can be read again" in line for line in log) == 1
    assert log[-1] == "wirelore agent: ends on SIGTERM"
    assert short(run.labels)["gpus"] == "8", "the features stay until they expire"
    assert decode_survey((tmp_path / "survey.json").read_bytes(), where="it").topology.gpu_count == 8


def test_a_driver_that_hangs_makes_it_unwell_and_still_lets_it_end(fake_nvml: Path, tmp_path: Path) -> None:
    hanging = well()
    hanging["count"] = "hang"
    with agent(tmp_path, fake_nvml, well()) as run:
        run.until(lambda: run.get("/healthz")[0] == 200 and run.labels)
        run.become(hanging)
        status, text = run.until(lambda: (found := run.get("/healthz"))[0] == 503 and found)  # type: ignore[misc]
        assert "3 intervals are 3 s" in text
        assert run.metric("wirelore_probe_success") == 1, "the last look that ended"
        assert len(run.children()) == 1
        code, seconds = run.end()
    assert (code, status) == (0, 503)
    assert seconds < 1
    assert "Traceback" not in run.log


def test_a_hang_that_ends_is_one_failed_look(fake_nvml: Path, tmp_path: Path) -> None:
    hanging = well()
    hanging["count"] = "hang"
    with agent(tmp_path, fake_nvml, hanging, WIRELORE_NVML_TIMEOUT_S="1") as run:
        run.until(lambda: (run.metric("wirelore_probes_total", result="failed") or 0) >= 2)
        assert run.log.count("does not answer") == 1
        run.become(well())
        run.until(lambda: run.metric("wirelore_probe_success"))
        run.until(lambda: not [child for child in run.children() if child.endswith("Z")])


def test_sighup_asks_for_a_look_at_once(fake_nvml: Path, tmp_path: Path) -> None:
    with agent(tmp_path, fake_nvml, well(), interval="1h") as run:
        run.until(lambda: run.metric("wirelore_probe_success"))
        run.become(with_gpu_lost(well()))
        os.kill(run.process.pid, 1)
        run.until(lambda: short(run.labels).get("gpus") == "7")
        assert looks(run) == 2
        assert run.end(2)[0] == 0


def test_what_is_only_the_agents_own_container_says_nothing_of_the_node(fake_nvml: Path, tmp_path: Path) -> None:
    inside = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "NVIDIA_VISIBLE_DEVICES": "all", "NODE_NAME": "gpu-node-7"}
    with agent(tmp_path, fake_nvml, well(), **inside) as run:
        run.until(lambda: run.metric("wirelore_node_info", hostname="gpu-node-7"))
        run.until((tmp_path / "survey.json").exists)
        codes = {dict(labels)["code"] for (name, labels) in run.metrics() if name == "wirelore_finding"}
    assert not codes & {"container-sees-all", "shm-small", "memlock-limited", "gpu-count-differs"}
    (node,) = decode_survey((tmp_path / "survey.json").read_bytes(), where="it").topology.nodes
    assert node.hostname == "gpu-node-7"


def test_figures_that_were_measured_here_are_published_and_those_of_others_are_not(
    fake_nvml: Path, tmp_path: Path
) -> None:
    description = well()
    told = environment(
        LD_LIBRARY_PATH=str(fake_nvml),
        FAKE_NVML=str(description.write(tmp_path / "this")),
        XDG_CACHE_HOME=str(tmp_path),
    )
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from measured_surveys import curve, refs
from probe.cache import remember
from probe.measurement import Survey
from probe.sources.registry import read_this_machine
topology = read_this_machine()
made = curve(topology, refs(*range(8)), 450.0, library_version="2.27.3")
kept = remember(Survey(topology, curves=(made,), measured_at="2026-11-20T12:00:00Z"))
assert kept.file, kept.reason
"""
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], env=told, check=True, timeout=30)
    here = wirelore("agent", "--once", environ={**told})
    assert "wirelore.io/measured-gbps=400\n" in here.data()
    other = well()
    other |= {f"uuid {i}": f"GPU-{i:08x}-ffff-bbbb-cccc-00000000000{i}" for i in range(8)}
    other.write(tmp_path / "this")
    assert "measured-gbps" not in wirelore("agent", "--once", environ={**told}).data()


def test_what_one_init_measured_the_next_one_and_the_agent_know(fake_nvml: Path, tmp_path: Path) -> None:
    """One folder of the node in all of them, as `emit --cache-host-path` and the chart's cache.hostPath mount it."""
    told = environment(
        LD_LIBRARY_PATH=str(fake_nvml),
        FAKE_NVML=str(well().write(tmp_path / "this")),
        XDG_CACHE_HOME=str(tmp_path / "node"),
    )
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
import probe.bench.preflight, probe.bench.session
from configgen.cli import main
from measured_surveys import curve, refs
from probe.measurement import Survey
from probe.sources.registry import read_this_machine

def measure(order, **_):
    with Path("measured").open("a") as file:
        file.write("once\\n")
    topology = read_this_machine()
    made = curve(topology, refs(*range(8)), 450.0, library_version="2.27.3")
    return Survey(topology, curves=(made,), measured_at="2026-11-20T12:00:00Z")

probe.bench.preflight.preflight = lambda *_, **__: ()
probe.bench.session.measure = measure
main()
"""
    for folder in ("first", "second"):
        words = ["init", "llama-3.1-8b", "--offline", "--folder", folder]
        command = [sys.executable, "-c", code, str(Path(__file__).parent), *words]
        ended = subprocess.run(command, env=told, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "measured").read_text() == "once\n"
    assert "wirelore.io/measured-gbps=400\n" in wirelore("agent", "--once", environ={**told}).data()
