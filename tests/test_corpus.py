"""Every recorded machine that lies beside the project is read right, by the same comparison as the benchmark's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT.parent / "shared" / "topologies" / "index.jsonl"


def test_every_recorded_machine_is_read_right(monkeypatch: pytest.MonkeyPatch) -> None:
    if not INDEX.exists():
        pytest.skip(f"{INDEX} is not here: NO recorded machine was read")
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from benchmarks.corpus import score

    table, lines, _ = score(INDEX)
    assert not {kind: dict(c) for kind, c in table.items() if c["wrong"] or c["refused"]}, lines
    assert sum(c.total() for c in table.values()) > 0
