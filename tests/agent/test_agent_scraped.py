"""A real Prometheus scrapes the agent, and asks what its alerts would ask."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from agent_run import agent
from fake_nvml.machines import LOST, healthy, hgx_h100
from ports import free_port

pytestmark = pytest.mark.long

CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: wirelore
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    """Its URL, for as long as it runs."""
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed: NOTHING here says that it can scrape the agent")
    folder.mkdir()
    (folder / "prometheus.yml").write_text(CONFIG.format(port=target))
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def ask(url: str, query: str) -> list[dict[str, object]]:
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=5) as answer:
        found = json.load(answer)["data"]["result"]
    assert isinstance(found, list)
    return found


def until(url: str, query: str, limit_s: float = 40.0) -> list[dict[str, object]]:
    """The result as soon as it is not empty."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if found := ask(url, query):
                return found
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"nothing for {query} within {limit_s:g} s; up: {ask(url, 'up')}")


def test_a_prometheus_sees_the_machine_and_its_loss(tmp_path: Path, fake_nvml: Path) -> None:
    with agent(tmp_path, fake_nvml, healthy(hgx_h100())) as run, prometheus(tmp_path / "prometheus", run.port) as url:
        until(url, 'up{job="wirelore"} == 1')
        assert len(until(url, "wirelore_nvlinks_active == 18")) == 8
        assert not ask(url, "wirelore_gpu_usable == 0")
        lost = healthy(hgx_h100())
        lost["memory 5"] = LOST
        run.become(lost)
        (found,) = until(url, "wirelore_gpu_usable == 0")
        assert isinstance(found["metric"], dict)
        assert found["metric"]["gpu"] == "5"
        until(url, 'wirelore_finding{severity="failure", gpu="5"} == 1')
        until(url, "wirelore_audit_passed == 0")
        run.lose_driver()
        until(url, "wirelore_probe_success == 0")
        until(url, "absent(wirelore_gpu_usable)")
        until(url, 'rate(wirelore_probes_total{result="failed"}[10s]) > 0')
        assert ask(url, "process_resident_memory_bytes{job='wirelore'} < 60e6")
        assert not ask(url, 'up{job="wirelore"} == 0')


def test_the_alerts_on_its_page_are_rules_of_prometheus(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: NOTHING here says that the alerts are Prometheus'")
    page = (Path(__file__).resolve().parents[2] / "docs" / "agent.md").read_text()
    blocks = [yaml.safe_load_all(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    (rules,) = (document for block in blocks for document in block if document["kind"] == "PrometheusRule")
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules["spec"]))
    checked = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert b"4 rules found" in checked.stdout


def test_promtool_can_read_every_line(tmp_path: Path, fake_nvml: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: NOTHING here says that the text is Prometheus'")
    with agent(tmp_path, fake_nvml, healthy(hgx_h100())) as run:
        run.until(lambda: run.metric("wirelore_probe_success"))
        _, text = run.get("/metrics")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    complaints = (checked.stdout + checked.stderr).splitlines()
    assert complaints == []
