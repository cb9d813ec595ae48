"""Two nodes that no launcher started, by the command that docs/measure.md has for it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from docs_commands import documented, settings, with_wirelore
from ports import free_port
from started import SETTINGS, clean_environment, figures, run_together, typed


@pytest.mark.skipif(find_spec("torch") is None, reason="no torch here: NOTHING is measured by hand")
def test_each_node_is_told_its_number(tmp_path: Path) -> None:
    (command,) = documented("measure.md", "wirelore measure --nnodes 2")
    first = command.at("10.0.0.1", "127.0.0.1")
    assert command.comment.endswith("--node-rank 1 there")
    both = [typed(first), typed(first.at("--node-rank 0", "--node-rank 1"))]
    told = settings("measure", port=str(free_port()))
    environ = clean_environment(PATH=with_wirelore(tmp_path / "bin"), **told, **SETTINGS)
    run_together(both, environ, cwd=tmp_path)
    assert figures(tmp_path / "survey.json")
