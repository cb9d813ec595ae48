"""Everything here serves a model with a real engine, one server after the other, and writes down what came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "conformance"))

from record import write_rows

RESULTS: dict[str, str] = {}
"""Of each split: what came of it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(400))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Iterator[None]:
    report = yield
    if (report.failed or report.when == "call") and item.path.is_relative_to(Path(__file__).parent):
        name = f"vLLM 0.32.0 on the CPU, {item.callspec.id}"
        RESULTS[name] = "FAILED" if report.failed else "the tokens of one GPU"
    return report


def pytest_sessionfinish() -> None:
    if RESULTS:
        write_rows("what was served", [[name, date.today().isoformat(), told] for name, told in RESULTS.items()])
