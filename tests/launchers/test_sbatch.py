"""The emitted batch script, really submitted: it plans on both nodes, and each starts its own part of that plan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command import wirelore
from fake_nvml import compiler
from fake_nvml.machines import hgx_h100
from slurm_cluster import ABSENT, Cluster
from slurm_driver import install_wirelore
from stub_engine import stub_engine

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}: NOTHING of sbatch is tested"),
    pytest.mark.skipif(compiler() is None, reason="no C compiler here: NOTHING of sbatch is tested"),
]

MODEL = "llama-3.1-405b"


class Job:
    """A folder that both nodes see, with the programs of the environment and the script that `emit` wrote."""

    def __init__(self, folder: Path, machine: str = "2xhgx-h100") -> None:
        self.folder, self.driver = folder, folder / "driver"
        self.programs = stub_engine(folder, "vllm")
        install_wirelore(self.programs, self.driver)
        wirelore("plan", MODEL, "--offline", "--from", f"machine:{machine}", "-o", "made.json", cwd=folder).data()
        assert wirelore("emit", "made.json", "--target", "slurm", "-o", "job", cwd=folder).code == 0

    def submit(self, cluster: Cluster) -> tuple[int, str]:
        """How the job ended, and all that it printed."""
        (self.folder / "records").mkdir()
        environ = {
            **cluster.environ,
            "PATH": f"{self.programs}:{cluster.environ['PATH']}",
            "RECORDS": str(self.folder / "records"),
            "PLAN_FOLDER": str(self.folder / "plans"),
            "SERVERS": "2",
        }
        job = Cluster(cluster.lab, environ)
        code, said = job.ended("sbatch", "--wait", f"--output={self.folder}/out", str(self.folder / "job/job.sbatch"))
        out = self.folder / "out"
        return code, said + (out.read_text() if out.exists() else "")

    @property
    def records(self) -> list[list[str]]:
        """The argv of each engine that was started, by node rank."""
        told = [json.loads(path.read_text())["argv"] for path in (self.folder / "records").iterdir()]
        return sorted(told, key=lambda argv: argv[argv.index("--node-rank") + 1])


def test_the_job_plans_on_both_nodes_and_starts_each_ones_part(cluster: Cluster, tmp_path: Path) -> None:
    job = Job(tmp_path)
    code, output = job.submit(cluster)
    assert code == 0, output
    first, second = ((tmp_path / "plans" / node) for node in ("0", "1"))
    assert (first / "plan.json").read_bytes() == (second / "plan.json").read_bytes()
    assert json.loads((first / "plan.json").read_text())["degraded"] == []
    shutil.copy(first / "plan.json", tmp_path)
    listed = json.loads(wirelore("emit", "plan.json", "--target", "json", cwd=tmp_path).data())["processes"]
    address = cluster.lab.nodes[0].address
    planned = [
        [word if isinstance(word, str) else address + word["then"] for word in words]
        for words in ([*p["command"][1:], *(w for f in p["flags"] for w in f["words"])] for p in listed)
    ]
    assert job.records == planned, output
    assert [argv[argv.index("--node-rank") + 1] for argv in job.records] == ["0", "1"]
    assert ["--headless" in argv for argv in job.records] == [False, True]


def test_a_job_on_nodes_where_nothing_fits_ends_before_an_engine_starts(cluster: Cluster, tmp_path: Path) -> None:
    """The plan was made for other nodes than Slurm gave."""
    job = Job(tmp_path)
    for number in range(2):
        small = hgx_h100()
        small |= {f"memory {i}": f"{8 << 30} 0 {8 << 30} 0" for i in range(small.count)}
        small |= {f"uuid {i}": f"GPU-{i + 1:08x}-aaaa-bbbb-{number:04x}-0000000000{i:02x}" for i in range(small.count)}
        small.write(job.driver / f"node{number}.nvml")
    code, output = job.submit(cluster)
    assert code != 0
    assert output.count("no legal plan") == 2, "each node says it"
    assert job.records == []
