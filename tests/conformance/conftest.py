"""Everything here asks the real engines, if their environments are there, and writes down what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from record import ALL, write_rows

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.conformance)
            item.add_marker(pytest.mark.timeout(600))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Iterator[None]:
    report = yield
    if report.failed and "run" in item.funcargs:
        item.funcargs["run"].record.failed += 1
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run of some tests alone is no record."""
    whole = not session.config.option.keyword and not any("::" in argument for argument in session.config.args)
    if whole and ALL:
        write_rows("what was checked", [told.row for told in ALL])
