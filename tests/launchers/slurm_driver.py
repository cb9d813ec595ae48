"""What the nodes' environment has in place of a driver, and the `wirelore` in it: each node finds its own GPUs."""

from __future__ import annotations

import sys
from pathlib import Path

from docs_commands import program
from fake_nvml import build_fake_nvml
from fake_nvml.machines import hgx_h100
from started import ROOT

WIRELORE = """#!/bin/sh
export LD_LIBRARY_PATH={driver} FAKE_NVML={driver}/node${{SLURM_NODEID:-0}}.nvml PYTHONPATH={root}
exec {python} -c 'from configgen.cli import main; main()' "$@"
"""


def install_wirelore(programs: Path, driver: Path) -> None:
    """Into the folder of programs, with the driver of two nodes of 8 H100 each."""
    driver.mkdir()
    build_fake_nvml(driver)
    for number in range(2):
        d = hgx_h100()
        d |= {f"uuid {i}": f"GPU-{i + 1:08x}-aaaa-bbbb-{number:04x}-0000000000{i:02x}" for i in range(d.count)}
        d.write(driver / f"node{number}.nvml")
    program(programs, "wirelore", WIRELORE.format(driver=driver, root=ROOT, python=sys.executable))
