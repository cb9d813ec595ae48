"""The agent over a minute, and over ten, on a machine that never stays as it is: it follows, and it does not grow."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_run import Running, agent
from fake_nvml.machines import LOST, Description, healthy, hgx_h100

WARM_SHARE = 0.2
"""Of the time, in which an allocator may still find its size."""
MOST_GROWTH_MIB = 2.0
MOST_MIB = 60.0


def well() -> Description:
    return healthy(hgx_h100())


def link_lost() -> Description:
    description = well()
    description["link.state 2 17"] = 0
    return description


def gpu_lost() -> Description:
    description = well()
    description["memory 5"] = LOST
    return description


def is_well(run: Running) -> bool:
    return run.metric("wirelore_nvlinks_active", gpu="2") == 18 and run.metric("wirelore_gpu_usable", gpu="5") == 1


STEPS: tuple[tuple[Callable[[Running], None], Callable[[Running], bool], dict[str, str]], ...] = (
    (
        lambda run: run.become(link_lost()),
        lambda run: run.metric("wirelore_nvlinks_active", gpu="2") == 17,
        {"wirelore.io/audit": "failure"},
    ),
    (
        lambda run: run.become(gpu_lost()),
        lambda run: run.metric("wirelore_gpu_usable", gpu="5") == 0,
        {"wirelore.io/gpus": "7"},
    ),
    (
        lambda run: run.lose_driver(),
        lambda run: run.metric("wirelore_probe_success") == 0,
        {"wirelore.io/probe": "failed"},
    ),
    (lambda run: run.become(well()), is_well, {"wirelore.io/gpus": "8", "wirelore.io/island-size": "8"}),
)


def looks(run: Running) -> float:
    return sum(value for (name, _), value in run.metrics().items() if name == "wirelore_probes_total")


def soak(folder: Path, library: Path, seconds: float, figures: Callable[[str], None]) -> None:
    with agent(folder, library, well()) as run:
        run.until(lambda: is_well(run))
        began_s, rounds = time.monotonic(), 0
        sizes: list[tuple[float, float]] = []
        threads: list[int] = []
        files: list[int] = []
        while (gone_s := time.monotonic() - began_s) < seconds:
            for change, shows, labels in STEPS:
                before = looks(run)
                change(run)
                run.until(lambda shows=shows: shows(run))  # type: ignore[misc]
                assert looks(run) <= before + 2, "it follows with the first look that begins after the change"
                run.until(lambda labels=labels: labels.items() <= run.labels.items())  # type: ignore[misc]
                assert run.get("/healthz")[0] == 200
            rounds += 1
            sizes.append((gone_s, run.rss_mib()))
            proc = Path(f"/proc/{run.process.pid}")
            threads.append(len(list((proc / "task").iterdir())))
            files.append(len(list((proc / "fd").iterdir())))
            assert not [child for child in run.children() if child.endswith("Z")]
        code, end_s = run.end()
        lines = run.log.splitlines()
    warm = [mib for at_s, mib in sizes if at_s >= WARM_SHARE * seconds]
    half = len(warm) // 2
    growth = statistics.median(warm[half:]) - statistics.median(warm[:half])
    figures(f"{rounds} rounds, {max(m for _, m in sizes):.1f} MiB at most, {growth:+.2f} MiB from half to half")
    assert code == 0
    assert end_s < 1
    assert rounds >= seconds / 15, "a round is four changes, each followed within two seconds where nothing is busy"
    assert max(mib for _, mib in sizes) < MOST_MIB
    assert growth < MOST_GROWTH_MIB
    assert max(threads) <= 4
    assert max(files) - min(files) <= 8
    assert "Traceback" not in "\n".join(lines)
    assert sum("no GPU can be read" in line for line in lines) == rounds, "one line for each change"


@pytest.fixture
def figures(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Shown also where all went well."""

    def show(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return show


def test_a_minute_of_change(tmp_path: Path, fake_nvml: Path, figures: Callable[[str], None]) -> None:
    soak(tmp_path, fake_nvml, 60.0, figures)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ten_minutes_of_change(tmp_path: Path, fake_nvml: Path, figures: Callable[[str], None]) -> None:
    soak(tmp_path, fake_nvml, 600.0, figures)
