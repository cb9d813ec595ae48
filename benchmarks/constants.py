"""The cost model's constants as data: found in its files, each moved alone to see what hangs on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from types import ModuleType
from typing import Any
from unittest.mock import patch

from configgen import cost, passes, rates, roofline, wires

COST_MODEL = (cost, passes, roofline, rates, wires)


def constants() -> list[str]:
    """Names of the public module-level numbers and tables of numbers; 'HOST.step_s' is a field of a record of them."""
    return list(dict.fromkeys(name for module in COST_MODEL for name in _of(module)))


def _of(module: ModuleType) -> Iterator[str]:
    for name, value in vars(module).items():
        if not name.isupper() or name.startswith("_"):
            continue
        if is_dataclass(value) and not isinstance(value, type):
            yield from (f"{name}.{f.name}" for f in fields(value) if scaled(getattr(value, f.name) or None, 1.0))
        elif scaled(value, 1.0) is not None:
            yield name


@contextmanager
def moved(constant: str, factor: float) -> Iterator[None]:
    """The constant scaled, wherever the cost model's files have imported it to."""
    name, _, field = constant.partition(".")
    with ExitStack() as stack:
        for module in COST_MODEL:
            if name in vars(module):
                own: Any = vars(module)[name]
                other = replace(own, **{field: scaled(getattr(own, field), factor)}) if field else scaled(own, factor)
                stack.enter_context(patch.object(module, name, other))
        yield


def scaled(value: object, factor: float) -> object | None:
    """A number, or every number of a tuple or table, scaled; None where something else is in it."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return round(value * factor)
    if isinstance(value, float):
        return value * factor
    if isinstance(value, tuple) and value:
        parts = [scaled(one, factor) for one in value]
        return None if None in parts else tuple(parts)
    if isinstance(value, dict) and value:
        parts = [scaled(one, factor) for one in value.values()]
        return None if None in parts else dict(zip(value, parts, strict=True))
    return None
