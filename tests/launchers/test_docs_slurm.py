"""docs/slurm.md as a reader follows it, and srun as docs/measure.md has it: typed on a node of a real Slurm."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import wirelore
from docs_commands import Command, documented, follow, program
from fake_nvml import compiler
from slurm_cluster import ABSENT, Cluster
from slurm_driver import install_wirelore
from started import SETTINGS, START_S, figures, typed

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}: NOTHING of docs/slurm.md is tested"),
    pytest.mark.skipif(compiler() is None, reason="no C compiler here: NOTHING of docs/slurm.md is tested"),
]

ENGINE = f"""#!{sys.executable} -IS
import json, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.end_headers()
        self.wfile.write(json.dumps({{"argv": sys.argv[1:]}}).encode())

if "--headless" in sys.argv:
    time.sleep(300)
HTTPServer(("", int(sys.argv[sys.argv.index("--port") + 1] if "--port" in sys.argv else 8000)), Answer).serve_forever()
"""
"""A stand-in for vLLM: it answers one path, on the nodes on which vLLM would."""


@dataclass
class Reader:
    """Somebody in a folder on the first node, who has done all that the page said so far."""

    folder: Path
    cluster: Cluster
    environ: dict[str, str]

    def typed(self, command: Command | str) -> list[str]:
        return self.cluster.lab.nodes[0].inside(*typed(command))

    def runs(self, command: Command | str, **more: str) -> str:
        done = subprocess.run(
            self.typed(command), cwd=self.folder, env={**self.environ, **more}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=START_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def comes(self, is_there: Callable[[], bool], what: str) -> None:
        ends_s = time.monotonic() + START_S
        while not is_there():
            assert time.monotonic() < ends_s, f"{what}: {[p.read_text() for p in self.folder.glob('*.out')]}"
            time.sleep(0.1)


@pytest.fixture
def reader(cluster: Cluster, tmp_path: Path) -> Iterator[Reader]:
    programs = tmp_path / "bin"
    program(programs, "vllm", ENGINE)
    install_wirelore(programs, tmp_path / "driver")
    # Nobody serves the names of these nodes to curl, as every cluster does.
    names = [f"resolve = gpu{i}:8000:{node.address}\n" for i, node in enumerate(cluster.lab.nodes)]
    (tmp_path / ".curlrc").write_text("".join(names))
    more = {"PATH": f"{programs}:{cluster.environ['PATH']}", "TMPDIR": str(tmp_path), "CURL_HOME": str(tmp_path)}
    someone = Reader(tmp_path, cluster, {**cluster.environ, **more})
    yield someone
    someone.runs("scancel --me")
    someone.comes(lambda: someone.runs("squeue --noheader") == "", "the job does not end")


def test_the_job_is_submitted_watched_and_asked(reader: Reader) -> None:
    submit, queue, watch, ask = documented("slurm.md", "sbatch", "squeue", "tail", "curl")
    follow("slurm.md", reader.folder, submit)
    assert reader.runs(submit).startswith("Submitted batch job")
    assert " llama " in reader.runs(queue)
    assert reader.runs("squeue --me --noheader --format='%P %l'") == "gpu 1-00:00:00\n", "options win over the script's"
    reader.comes(lambda: bool([*reader.folder.glob("slurm-*.out")]), "the job says nothing")
    with subprocess.Popen(
        reader.typed(watch), cwd=reader.folder, env=reader.environ, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
    assert line.startswith("wirelore "), "what was planned"
    answered: list[str] = []

    def is_answered() -> bool:
        done = subprocess.run(
            reader.typed(ask), cwd=reader.folder, env=reader.environ, capture_output=True, text=True, check=False
        )
        answered.append(done.stdout)
        return done.returncode == 0

    reader.comes(is_answered, "nobody answers")
    assert json.loads(answered[-1])["argv"][:2] == ["serve", "meta-llama/Llama-3.1-405B"]


def test_a_node_tells_of_itself_for_a_plan_elsewhere(reader: Reader) -> None:
    (record,) = documented("slurm.md", "srun --nodes=1")
    reader.runs(record)
    told = wirelore("plan", "llama-3.1-70b", "--from", "node.json", "--format", "flags", cwd=reader.folder).data()
    assert "--tensor-parallel-size" in told


def test_the_nodes_are_measured_alone(reader: Reader) -> None:
    (measure,) = documented("slurm.md", "srun --nodes=2")
    reader.runs(measure, **SETTINGS)
    assert figures(reader.folder / "survey.json")


def test_the_shortest_words_measure_too(reader: Reader) -> None:
    (measure,) = documented("measure.md", "srun -N 2")
    reader.runs(measure, **SETTINGS)
    assert figures(reader.folder / "survey.json")
