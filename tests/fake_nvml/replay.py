"""A record as a description for the fake driver: what was told through the bindings, told through them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from probe.sources.nvml_facts import Facts, Reading
from probe.sources.nvml_reader import (
    C2C_ERRORS,
    FIELD_C2C_COUNT,
    FIELD_NVLINK_COUNT,
    FIELD_RECOVERY_ACTION,
    LINK_ERRORS,
    LINK_ERRORS_5,
)

_NOT_THE_DRIVERS = ("hostname", "bindings", "read", "end", "numa_node.cpus")
_FIELDS = {"links": FIELD_NVLINK_COUNT, "recovery_action": FIELD_RECOVERY_ACTION, "c2c.links": FIELD_C2C_COUNT}
_FIELDS_BY_LINK = {"link.errors": LINK_ERRORS | LINK_ERRORS_5, "c2c.errors": C2C_ERRORS}
_BYTES_UNTOLD = (1 << 64) - 1  # NVML_VALUE_NOT_AVAILABLE


def description(facts: Facts) -> str:
    """`key [i [j]] = value` lines; an answer that failed becomes its error code."""
    lines = []
    for (fact, at), reading in facts.readings.items():
        if fact in _FIELDS_BY_LINK:
            lines += _link_fields(fact, at, reading)
        elif fact not in _NOT_THE_DRIVERS and reading.value is not True:
            key = f"field {at[0]} {_FIELDS[fact]}" if fact in _FIELDS else " ".join((fact, *map(str, at)))
            lines.append(f"{key} = {_text(fact, reading.value) if reading.error is None else f'!{reading.error}'}")
    return "\n".join(lines) + "\n"


def _link_fields(fact: str, at: tuple[int, ...], reading: Reading) -> Iterator[str]:
    told = reading.value if isinstance(reading.value, Mapping) else {}
    for name, number in _FIELDS_BY_LINK[fact].items():
        if name in told or reading.error is not None:
            yield f"field {at[0]} {number} {at[1]} = {told.get(name, f'!{reading.error}')}"


def _text(fact: str, value: object) -> str:
    if fact == "processes" and isinstance(value, list | tuple):
        return " ".join(f"{pid} {_BYTES_UNTOLD if used is None else used}" for pid, used in value)
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "0"
    if not isinstance(value, Mapping):
        return str(value)
    if "total" in value:
        return f"{value['total']} 0 {value['free']} 0"
    if "cluster" in value:
        return f"{value['state']} {value['status']} {value['clique']} {value['health'] or 0} {value['cluster']}"
    if fact == "ecc.sram":
        return " ".join(map(str, value.values()))
    return f"{value['chassis'] or '-'} {value['slot']} {value['tray']} {value['host']} 0 {value['module']}"
