"""Which GPUs CUDA will show this process, and under which numbers. Pure; NVML knows nothing of it.

CUDA_VISIBLE_DEVICES lists ordinals, or GPU- UUIDs, or MIG- UUIDs (unambiguous prefixes do), all of one kind. As CUDA
does: the first invalid entry hides itself and all after it, an empty list hides everything, a repeated entry too
(CUDA C++ Programming Guide, "CUDA Environment Variables"; torch.cuda._parse_visible_devices).

Ordinals count in CUDA_DEVICE_ORDER. Its default, FASTEST_FIRST, equals the PCI order only among GPUs of one model, so
on mixed models an ordinal is read as a PCI position, which is what a launch with CUDA_DEVICE_ORDER=PCI_BUS_ID makes of
it; `cuda_index` stays None then, with a Notice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from probe.topology import Gpu, GpuState, GpuStatus, Notice
from probe.units import count, ranges

_MAX_ENTRIES = 512
_ORDINAL = re.compile(r"[0-9]{1,4}")
_ORDER_CURE = "CUDA's default order is fastest first: set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name GPUs by UUID."


class Choice(NamedTuple):
    """An entry that CUDA accepts: a GPU, or one MIG instance of it."""

    gpu: int
    mig_uuid: str | None = None


def with_visibility(
    gpus: Sequence[Gpu], states: Sequence[GpuState], environ: Mapping[str, str]
) -> tuple[tuple[GpuState, ...], tuple[Notice, ...]]:
    """The states with `visible`, `cuda_index` and only the visible MIG instances, and what a person should know."""
    order = _pci_order(states)
    one_model = len({gpus[i].name for i in order}) == 1 and gpus[order[0]].name is not None
    order_is_known = one_model or len(order) <= 1 or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    text = environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        # With MIG on, CUDA shows a process one instance only: no numbering of GPUs would be true.
        if not order_is_known or any(s.mig_instances for s in states):
            return tuple(states), ()
        return tuple(replace(s, cuda_index=order.index(i) if i in order else None) for i, s in enumerate(states)), ()

    chosen, invalid = _choices(text, order, states)
    by_ordinal = _ORDINAL.match(text.strip()) is not None
    numbered = {c.gpu: n for n, c in enumerate(chosen) if c.mig_uuid is None and (order_is_known or not by_ordinal)}
    seen = tuple(_seen(i, s, chosen, numbered.get(i)) for i, s in enumerate(states))
    return seen, tuple(_notices(seen, invalid, by_ordinal and not order_is_known))


def _pci_order(states: Sequence[GpuState]) -> list[int]:
    """The GPUs that CUDA can open, in PCI order; NVML's own order is that too where a bus id is missing."""
    usable = [i for i, s in enumerate(states) if s.status is GpuStatus.OK]
    ids = {i: s.pci_bus_id for i, s in enumerate(states)}
    if any(ids[i] is None for i in usable):
        return usable
    return sorted(usable, key=lambda i: (len(ids[i] or ""), ids[i] or ""))


def _choices(text: str, order: Sequence[int], states: Sequence[GpuState]) -> tuple[list[Choice], str | None]:
    """The entries that CUDA accepts, and the first that it does not."""
    chosen: list[Choice] = []
    kind = ""
    for entry in (e.strip() for e in text.split(",", _MAX_ENTRIES)[:_MAX_ENTRIES]):
        ordinal = _ORDINAL.match(entry)
        this_kind = "ordinal" if ordinal else entry[:4].upper()
        kind = kind or this_kind
        found: list[Choice] = []
        if this_kind == kind == "ordinal" and ordinal and int(ordinal.group()) < len(order):
            found = [Choice(order[int(ordinal.group())])]
        elif this_kind == kind == "GPU-":
            found = [Choice(i) for i in order if (states[i].uuid or "").lower().startswith(entry.lower())]
        elif this_kind == kind == "MIG-":
            found = [
                Choice(i, m.uuid)
                for i in order
                for m in states[i].mig_instances
                if m.uuid is not None and m.uuid.lower().startswith(entry.lower())
            ]
        if len(found) != 1:
            return chosen, entry if text.strip() else None
        if found[0] in chosen:
            return [], entry
        chosen += found
    return chosen, None


def _seen(index: int, state: GpuState, chosen: Sequence[Choice], cuda_index: int | None) -> GpuState:
    mine = [c for c in chosen if c.gpu == index]
    instances = state.mig_instances
    if mine and all(c.mig_uuid is not None for c in mine):
        instances = tuple(m for m in instances if Choice(index, m.uuid) in mine)
    return replace(state, visible=bool(mine), cuda_index=cuda_index, mig_instances=instances)


def _notices(states: Sequence[GpuState], invalid: str | None, order_is_doubtful: bool) -> list[Notice]:
    notices = []
    hidden = [i for i, s in enumerate(states) if not s.visible]
    if hidden:
        what = f"hides {len(hidden)} of {count(len(states), 'GPU')} ({ranges(hidden)}) from this process"
        notices.append(Notice("cuda-hidden", f"CUDA_VISIBLE_DEVICES {what}; unset it to plan on all."))
    if invalid is not None:
        what = f"CUDA_VISIBLE_DEVICES: {invalid[:60]!r} is repeated, ambiguous or no GPU of this machine"
        notices.append(Notice("cuda-visible-invalid", f"{what}; CUDA ignores it and every entry after it."))
    if order_is_doubtful:
        what = "CUDA_VISIBLE_DEVICES names GPUs of different models by number, read here in PCI order"
        notices.append(Notice("cuda-order", f"{what}. {_ORDER_CURE}"))
    return notices
