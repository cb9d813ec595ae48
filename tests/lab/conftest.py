"""Everything here needs a network of its own, and says so where it cannot have one."""

from __future__ import annotations

import importlib.util

import pytest
from lab import missing


@pytest.fixture(scope="session")
def network() -> None:
    """Skips, aloud, where this host makes no namespaces or shaped links."""
    reason = missing()
    if reason:
        pytest.skip(f"{reason}: NOTHING is tested between nodes")


@pytest.fixture(scope="session")
def torch(network: None) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: NOTHING is measured between nodes")
