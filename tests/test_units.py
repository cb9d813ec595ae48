"""systemd units: what a user that exists only while the engine runs must be allowed, and how a unit ends."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_plans import decided_case

from configgen.deploy.service import Wishes
from configgen.deploy.systemd import systemd_files
from configgen.engines.launcher import launch_of


def unit_of(model: str, folder: Path) -> list[str]:
    """Lines of the first node's unit, which systemd has read without a complaint where it is here."""
    decided = decided_case("nodes")
    decided = replace(decided, model=replace(decided.model, name=model))
    files = systemd_files(decided, launch_of(decided), Wishes(name="engine"))
    text = files["engine-node0.service"]
    (folder / "engine.service").write_text(text)
    if Path("/usr/bin/systemd-analyze").exists():
        command = ["systemd-analyze", "verify", str(folder / "engine.service")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert "engine.service:" not in ended.stderr
    return text.splitlines()


def test_what_lies_in_its_own_folders_can_be_run(tmp_path: Path) -> None:
    """systemd 257 mounts the folders of a DynamicUser noexec: the start script ended with 126, permission denied."""
    assert "ExecPaths=%S/engine %C/engine" in unit_of("Qwen/Qwen3-32B", tmp_path)


@pytest.mark.parametrize("folder", ["/home/me/models/Qwen3-32B", "/root/m", "/tmp/m", "/data/a+b@1.0"])
def test_a_model_in_a_folder_is_seen_wherever_it_lies(tmp_path: Path, folder: str) -> None:
    lines = unit_of(folder, tmp_path)
    assert f"BindReadOnlyPaths=-{folder}" in lines
    assert "ProtectHome=tmpfs" in lines, "below ProtectHome=yes nothing can be bound"


@pytest.mark.parametrize(
    "model", ["Qwen/Qwen3-32B", "/home/me/a:b", "/home/me/a b", "/m\nExecStartPost=/bin/id", "/%n"]
)
def test_all_else_of_home_stays_hidden(tmp_path: Path, model: str) -> None:
    lines = unit_of(model, tmp_path)
    assert "ProtectHome=yes" in lines
    assert not [line for line in lines if line.startswith(("BindReadOnlyPaths", "ExecStartPost"))]


def test_servers_that_end_when_they_are_told_to_have_not_failed(tmp_path: Path) -> None:
    assert "SuccessExitStatus=143" in unit_of("Qwen/Qwen3-32B", tmp_path)
