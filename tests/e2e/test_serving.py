"""A real vLLM serves from what `wirelore emit` wrote, on the CPU: every split answers with the tokens of one GPU's."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command import environment, matrix, wirelore

HERE = Path(__file__).resolve().parent
HOME = Path(os.environ.get("ENGINES_HOME", HERE.parent.parent / ".engines")).resolve()
VLLM = HOME / "vllmenv" / "bin" / "vllm"
MODEL = HOME / "tiny-llama"
STARTS_IN_S = 240
PROMPT = "Hello world"

CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
"""What vLLM wants to know on a CPU, and where all nodes are one."""

GPUS = ("--gpu-model", "NVIDIA L40S")
LAYERS = 4


def forced(folder: Path, nodes: Sequence[str], tp: int, pp: int) -> Path:
    """A plan with this split. Nobody would plan it for so small a model: the document of another one is edited."""
    sources = []
    for number, text in enumerate(nodes):
        (folder / f"node{number}.txt").write_text(text)
        sources += ["--from", f"node{number}.txt"]
    limit = ["--gpus", str(tp * pp), "--input-tokens", "128", "--output-tokens", "64"]
    wirelore("plan", MODEL, *sources, *GPUS, *limit, "--objective", "throughput", "-o", "plan.json", cwd=folder).data()
    told = json.loads((folder / "plan.json").read_text())
    gpus = [ref for replica in told["replicas"] for stage in replica["stages"] for ref in stage]
    replica = told["replicas"][0] | {
        "stages": [gpus[stage * tp : (stage + 1) * tp] for stage in range(pp)],
        "tp_path": "SYS" if tp > 1 else None,
        "hops": ["SYS"] * (pp - 1),
    }
    told |= {
        "tensor_parallel_size": tp,
        "pipeline_parallel_size": pp,
        "data_parallel_size": 1,
        "replicas": [replica],
        "layers_per_stage": [LAYERS // pp] * pp,
        "memory": told["memory"][:1] * pp,
    }
    (folder / "plan.json").write_text(json.dumps(told))
    return folder / "plan.json"


@contextmanager
def served(folder: Path, plan: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Starts every emitted script as a person would; gives the server's address and what each `vllm` was told."""
    wirelore("emit", plan.name, "--target", "shell", "-o", "scripts", cwd=folder).data()
    records, path = folder / "records", folder / "bin"
    records.mkdir()
    path.mkdir()
    (path / "vllm").write_text(f'#!/bin/sh\nexec {sys.executable} -IS {HERE / "vllm_on_cpu.py"} "$@"\n')
    (path / "vllm").chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {"PORT": str(port), "RECORDS": str(records), "REAL_VLLM": str(VLLM), "MASTER_ADDR": "127.0.0.1"}
    environ = environment(**CPU, **told, PATH=f"{path}:{os.environ['PATH']}")
    environ.pop("PYTHONPATH", None)
    scripts = sorted((folder / "scripts").glob("node*.sh"))
    started = []
    try:
        for script in scripts:
            with (folder / f"{script.stem}.log").open("w") as log:
                command = ["sh", str(script)]
                started.append(
                    subprocess.Popen(command, env=environ, cwd=folder, stdout=log, stderr=log, start_new_session=True)
                )
        address = f"http://127.0.0.1:{port}"
        _wait(address, started, folder)
        yield address, [json.loads(file.read_text()) for file in sorted(records.iterdir())]
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


def _wait(address: str, started: list[subprocess.Popen[bytes]], folder: Path) -> None:
    until = time.monotonic() + STARTS_IN_S
    while time.monotonic() < until:
        ended = [process.args for process in started if process.poll() is not None]
        if ended:
            break
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    logs = "\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in sorted(folder.glob("*.log")))
    pytest.fail(f"no server within {STARTS_IN_S} s\n{logs}")


def tokens(address: str) -> list[int]:
    """What the server answers; /health alone says nothing of its stages."""
    told = {"model": str(MODEL), "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(told).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        found = json.load(answer)["choices"][0]["token_ids"]
    assert len(found) == 12
    return list(found)


ONE, TWO = matrix("X"), matrix("X SYS", "SYS X")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """The tokens of the model on one GPU, from an emitted script as well."""
    if not (VLLM.exists() and MODEL.exists()):
        pytest.skip(f"no vLLM in {HOME}, scripts/setup-engines makes it: NOTHING is really served")
    folder = tmp_path_factory.mktemp("one")
    with served(folder, forced(folder, [ONE], 1, 1)) as (address, _):
        return tokens(address)


@pytest.mark.parametrize(
    ("nodes", "tp", "pp"), [([TWO], 2, 1), ([TWO], 1, 2), ([ONE, ONE], 1, 2)], ids=["TP2", "PP2", "PP2-on-two-nodes"]
)
def test_it_answers_as_one_gpu_does(tmp_path: Path, expected: list[int], nodes: list[str], tp: int, pp: int) -> None:
    with served(tmp_path, forced(tmp_path, nodes, tp, pp)) as (address, records):
        assert tokens(address) == expected
    assert len(records) == len(nodes)
    for told in records:
        assert told["emitted"][:2] == ["serve", str(MODEL)]
        value = {flag: told["emitted"][told["emitted"].index(flag) + 1] for flag in ("--tensor-parallel-size",)}
        assert value == {"--tensor-parallel-size": str(tp)}
        assert ("--pipeline-parallel-size" in told["emitted"]) == (pp > 1)
        assert ("--nnodes" in told["emitted"]) == (len(nodes) > 1)
        assert told["left_out"][:1] == ["--device-ids"]
    log = (tmp_path / "node0.log").read_text()
    assert f"tensor_parallel_size={tp}, pipeline_parallel_size={pp}" in log
