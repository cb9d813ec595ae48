"""Ray: a cluster of two nodes, each in a network namespace of its own, and what is asked of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from docs_commands import documented, with_wirelore
from lab import Lab, missing
from started import (
    ROOT,
    SETTINGS,
    START_S,
    Figures,
    assert_same_survey,
    clean_environment,
    figures,
    run_together,
    tool,
    typed,
)

from probe.bench.ray_nodes import RayNode, _endings, _free_port, choose_nodes
from probe.errors import MeasureError, UsageError


def described(address: str, *, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeManagerAddress": address, "Alive": alive, "Resources": {"memory": 1e9, **resources}}


def test_nodes_with_gpus_are_taken_and_the_drivers_own_leads() -> None:
    told = [
        described("10.0.0.1", CPU=8),  # a head without a GPU
        described("10.0.0.3", CPU=64, GPU=8),
        described("10.0.0.4", CPU=64, GPU=8, alive=False),
        described("10.0.0.2", CPU=64, GPU=8),
    ]
    assert [node.address for node in choose_nodes(told, None)] == ["10.0.0.2", "10.0.0.3"]
    assert [node.address for node in choose_nodes(told, None, first="10.0.0.3")] == ["10.0.0.3", "10.0.0.2"]
    assert [node.address for node in choose_nodes(told, 1)] == ["10.0.0.2"]
    with pytest.raises(UsageError, match="Ray has 2 nodes with GPUs, not 3"):
        choose_nodes(told, 3)
    assert [node.address for node in choose_nodes(told[:1], None)] == ["10.0.0.1"], "a lab has no GPU"
    with pytest.raises(UsageError, match="Ray has 0 nodes"):
        choose_nodes([], None)


def test_a_whole_node_is_reserved_and_a_head_without_cpus_can_take_part() -> None:
    assert RayNode("10.0.0.1", 8, 64).bundle == {"node:10.0.0.1": 0.001, "GPU": 8, "CPU": 1}
    assert RayNode("10.0.0.1", 0, 0).bundle == {"node:10.0.0.1": 0.001}


class StubRay:
    """What `measure_on_ray` asks of ray, told in advance: results of tasks by name, None for one that never ends."""

    class exceptions:
        class RayError(Exception):
            pass

        class GetTimeoutError(RayError):
            pass

    def __init__(self, **results: Any) -> None:
        self.results = results
        self.patience: list[float | None] = []

    def wait(self, tasks: list[str], *, num_returns: int, timeout: float | None) -> tuple[list[str], list[str]]:
        self.patience.append(timeout)
        done = [task for task in tasks if self.results[task] is not None]
        assert timeout is not None or len(done) >= num_returns, "it would wait for ever"
        return done, [task for task in tasks if task not in done]

    def get(self, task: str, *, timeout: float) -> Any:
        result = self.results[task]
        if result is None:
            raise self.exceptions.GetTimeoutError("Get timed out: some object(s) not ready.")
        if isinstance(result, Exception):
            raise result
        return result


class StubActor:
    """An actor whose method calls become the name of a task."""

    class free_port:
        @staticmethod
        def remote() -> str:
            return "port"


PAIR = [RayNode("10.0.0.1", 8, 64), RayNode("10.0.0.2", 8, 64)]


def test_nodes_that_never_end_are_not_waited_for_longer_than_told() -> None:
    ray = StubRay(a=None, b=None)
    with pytest.raises(MeasureError, match="none of Ray's 2 nodes ended within 90 s"):
        list(_endings(ray, PAIR, ["a", "b"], 30.0, 90.0))
    assert ray.patience == [90.0]


def test_a_node_that_outlasts_the_others_or_whose_result_is_lost_ends_by_name() -> None:
    lost = StubRay.exceptions.RayError("the object's owner died")
    first, second, third = _endings(
        StubRay(a=(0, "done", b"{}"), b=None, c=lost), [*PAIR, PAIR[0]], ["a", "b", "c"], 30.0, None
    )
    assert (first.exit_code, first.survey) == (0, b"{}")
    assert (second.address, second.exit_code) == ("10.0.0.2", 124) and "did not end" in second.words
    assert third.exit_code == 70 and "owner died" in third.words


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "10.0.0.1 started nothing within 30 s"),
        (StubRay.exceptions.RayError("No module named 'probe'"), "10.0.0.1 runs no wirelore: No module named 'probe'"),
    ],
)
def test_a_first_node_that_tells_no_port_is_named(answer: object, says: str) -> None:
    with pytest.raises(MeasureError, match=says):
        _free_port(StubRay(port=answer), PAIR[0], StubActor(), 30.0)
    assert _free_port(StubRay(port=29510), PAIR[0], StubActor(), 30.0) == 29510


RAY = tool("ray")

PROGRAM = """
import json, pathlib, signal, socket, sys
words = sys.argv[1:]
told = dict(zip(words[::2], words[1::2]))
if told.get("--fail-on") == told["--node-rank"]:
    sys.exit("no GPU answers here")
if "--wait" in told:
    signal.pause()
if "-o" in told:
    pathlib.Path(told["-o"]).write_text(json.dumps({"host": socket.gethostname(), **told}))
print("node", told["--node-rank"], "of", told["--nnodes"], "at", told["--master"])
"""

DRIVER = """
import json, os, sys
from probe.bench.ray_nodes import measure_on_ray
found = measure_on_ray(["-c", *sys.argv[3:]], cluster=sys.argv[1], nodes=int(sys.argv[2]), timeout_s=1)
os.write(1, (json.dumps([[e.address, e.exit_code, e.words, e.survey and e.survey.decode()] for e in found])).encode())
"""


@dataclass(frozen=True)
class Cluster:
    lab: Lab
    environ: dict[str, str]

    def driver(self, *words: str) -> list[str]:
        node = self.lab.nodes[0]
        return node.inside(sys.executable, "-c", DRIVER, f"{node.address}:6379", "2", PROGRAM, *words)

    def waiting(self) -> int:
        """How many nodes' commands run."""
        lines = []
        for pid in [pid for node in self.lab.nodes for pid in node.processes()]:
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended since
                lines.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        return sum(b"--wait\0" in line and b"measure_on_ray" not in line for line in lines)

    def drive(self, *words: str) -> list[list[Any]]:
        done = subprocess.run(
            self.driver(*words),
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
            env=self.environ,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        endings: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
        return endings


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    reason = missing() if RAY else "ray is not installed"
    if reason or RAY is None:
        pytest.skip(f"{reason}: NOTHING of Ray is tested")
    environ = clean_environment(RAY_USAGE_STATS_ENABLED="0", RAY_DISABLE_IMPORT_WARNING="1")
    with ExitStack() as stack:
        # Short, because Ray's sockets lie below it.
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="wlray", dir="/tmp", ignore_cleanup_errors=True)
        )
        lab = stack.enter_context(Lab(2, rate_bits_s=None))
        common = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"]
        head = ["--head", "--port=6379", f"--temp-dir={folder}", "--include-dashboard=false"]
        worker = [f"--address={lab.nodes[0].address}:6379"]
        for node, words in zip(lab.nodes, (head, worker), strict=True):
            command = node.inside(RAY, "start", f"--node-ip-address={node.address}", *words, *common)
            log = Path(folder, f"{node.hostname}.txt")
            with log.open("wb") as output:
                done = subprocess.run(command, stdout=output, stderr=output, timeout=START_S, check=False, env=environ)
            assert done.returncode == 0, log.read_text(errors="replace")
        yield Cluster(lab, environ)


@pytest.mark.long
def test_each_node_runs_its_part_and_node_0_gives_the_survey_back(cluster: Cluster) -> None:
    first, second = cluster.drive("--budget", "8s")
    address = cluster.lab.nodes[0].address
    assert [first[0], second[0]] == [node.address for node in cluster.lab.nodes]
    assert [first[1], second[1]] == [0, 0], (first, second)
    survey = json.loads(first[3])
    assert survey["host"] == cluster.lab.nodes[0].hostname
    assert (survey["--nnodes"], survey["--budget"]) == ("2", "8s")
    assert survey["--master"].startswith(f"{address}:")
    assert second[2].startswith(f"node 1 of 2 at {survey['--master']}")
    assert second[3] is None


@pytest.mark.long
def test_a_node_that_fails_is_named_with_its_own_words(cluster: Cluster) -> None:
    first, second = cluster.drive("--fail-on", "1")
    assert first[1] == 0
    assert second[:2] == [cluster.lab.nodes[1].address, 1]
    assert "no GPU answers here" in second[2]


@pytest.mark.long
def test_ray_measures_what_a_static_rendezvous_measures(
    cluster: Cluster, static_figures: Figures, tmp_path: Path
) -> None:
    (measure,) = documented("measure.md", "wirelore measure --ray")
    head = cluster.lab.nodes[0]
    told = {"RAY_ADDRESS": f"{head.address}:6379", "PATH": with_wirelore(tmp_path / "bin")}
    run_together([head.inside(*typed(measure))], {**cluster.environ, **told, **SETTINGS}, cwd=tmp_path)
    assert_same_survey(figures(tmp_path / "survey.json"), static_figures)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_driver_goes(cluster: Cluster, how: signal.Signals) -> None:
    driver = subprocess.Popen(
        cluster.driver("--wait", "1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=cluster.environ, cwd=ROOT
    )
    try:
        wait_until(lambda: cluster.waiting() == 2, "both nodes run")
        driver.send_signal(how)
        wait_until(lambda: cluster.waiting() == 0, "both nodes ended")
    finally:
        driver.kill()
        driver.communicate()


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    ends_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < ends_s, f"not within 30 s: {what}"
        time.sleep(0.1)
