"""A smoke of the fuzz benchmark: damaged documents of our own end as a Topology or as one line of refusal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from benchmarks.fuzz import own_seeds

    return own_seeds()


def test_the_seeds_themselves_are_read(seeds: list[bytes]) -> None:
    from probe.sources.registry import read_bytes

    assert all(read_bytes(seed, where="seed").gpu_count > 0 for seed in seeds)


@pytest.mark.parametrize("dice", range(4))
def test_damaged_documents_never_end_in_a_traceback(seeds: list[bytes], dice: int) -> None:
    from benchmarks.fuzz import run

    ends, bad, _ = run((dice, 250, seeds))
    assert bad == []
    assert ends["read"] + ends["refused"] == 250
