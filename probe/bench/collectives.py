"""One operation of torch.distributed on a group of ranks: its buffers, the run that is timed, the check of its data.

Sizes are the bytes that nccl-tests prints (github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md): what one rank holds of an
all-reduce, the *total* of an all-gather, reduce-scatter or all-to-all, one direction of a send. Where a total does not
divide by the ranks, the buffers are the next larger that do (fewer elements more than ranks).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from probe.bench.device import Device, Operation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_PERIOD = 251
"""After so many elements data repeat: a prime, which chunks are no multiple of, so that one in a wrong place shows."""
_CHUNK = _PERIOD << 13
"""Elements that are compared at once: a comparison needs memory, and the message may have taken most of it."""


@dataclass(frozen=True, slots=True)
class Team:
    """The ranks of one group in the order of its members, and which of them this one is."""

    handle: dist.ProcessGroup
    ranks: tuple[int, ...]
    own: int

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def place(self) -> int:
        """This rank's number in the group: torch sorts what `new_group` is given."""
        return sorted(self.ranks).index(self.own)


@dataclass(frozen=True, slots=True)
class Exchange:
    """An operation that is ready to run. `is_right` runs it once and looks at what arrived."""

    run: Operation
    is_right: Callable[[], bool]
    clocked: bool = True
    """Whether this rank's clock counts: a sender is done before its data have arrived."""


def barrier(team: Team, device: Device) -> Operation:
    """An all-reduce of one number: on a GPU it is enqueued, so that late ranks do not count as wire time."""
    one = torch.zeros(1, device=device.place)
    return lambda: dist.all_reduce(one, group=team.handle)


def exchange(
    operation: str, team: Team, device: Device, size_bytes: int, dtype: torch.dtype, direction: str | None = None
) -> Exchange:
    """The operation on fresh buffers. Raises MemoryError or torch's own out-of-memory errors where they don't fit."""
    if operation == "p2p":
        return _point_to_point(team, device, size_bytes, direction)
    return _COLLECTIVES[operation](team, device, max(1, size_bytes // dtype.itemsize), dtype)


def _all_reduced(team: Team, device: Device, elements: int, dtype: torch.dtype) -> Exchange:
    values = torch.zeros(elements, dtype=dtype, device=device.place)

    def run() -> None:
        dist.all_reduce(values, group=team.handle)

    def is_right() -> bool:
        _fill(values, pattern(team.place, 0, summed=team.size))
        run()
        right = _holds(values, _summed(team.size, 0))
        values.zero_()  # sums of zeros stay zeros, however often
        return right

    return Exchange(run, is_right)


def _gathered(team: Team, device: Device, elements: int, dtype: torch.dtype) -> Exchange:
    part = -(-elements // team.size)
    own = torch.empty(part, dtype=dtype, device=device.place)
    _fill(own, pattern(team.place, 0))
    whole = torch.zeros(part * team.size, dtype=dtype, device=device.place)

    def run() -> None:
        _all_gather(whole, own, group=team.handle)

    def is_right() -> bool:
        run()
        return all(_holds(piece, pattern(i, 0)) for i, piece in enumerate(whole.split(part)))

    return Exchange(run, is_right)


def _scattered(team: Team, device: Device, elements: int, dtype: torch.dtype) -> Exchange:
    part = -(-elements // team.size)
    whole = torch.empty(part * team.size, dtype=dtype, device=device.place)
    for to, piece in enumerate(whole.split(part)):
        _fill(piece, pattern(team.place, to, summed=team.size))
    own = torch.zeros(part, dtype=dtype, device=device.place)

    def run() -> None:
        _reduce_scatter(own, whole, group=team.handle)

    def is_right() -> bool:
        run()
        return _holds(own, _summed(team.size, team.place))

    return Exchange(run, is_right)


def _all_to_all(team: Team, device: Device, elements: int, dtype: torch.dtype) -> Exchange:
    part = -(-elements // team.size)
    sent = torch.empty(part * team.size, dtype=dtype, device=device.place)
    for to, piece in enumerate(sent.split(part)):
        _fill(piece, pattern(team.place, to))
    received = torch.zeros_like(sent)

    def run() -> None:
        dist.all_to_all_single(received, sent, group=team.handle)

    def is_right() -> bool:
        run()
        return all(_holds(piece, pattern(i, team.place)) for i, piece in enumerate(received.split(part)))

    return Exchange(run, is_right)


def _point_to_point(team: Team, device: Device, size_bytes: int, direction: str | None) -> Exchange:
    """Bytes from the first member to the second ('forward'), back, or both at once; the receiver's clock counts."""
    place = team.ranks.index(team.own)
    peer = team.ranks[1 - place]
    sends = direction == "both" or (direction == "forward") == (place == 0)
    receives = direction == "both" or not sends
    sent = torch.empty(size_bytes, dtype=torch.uint8, device=device.place) if sends else None
    received = torch.zeros(size_bytes, dtype=torch.uint8, device=device.place) if receives else None
    operations = []
    if received is not None:  # first, or two senders wait for each other
        operations.append(dist.P2POp(dist.irecv, received, peer, team.handle))
    if sent is not None:
        _fill(sent, pattern(place, 1 - place))
        operations.append(dist.P2POp(dist.isend, sent, peer, team.handle))

    def run() -> None:
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    def is_right() -> bool:
        run()
        return received is None or _holds(received, pattern(1 - place, place))

    return Exchange(run, is_right, clocked=receives)


def pattern(source: int, target: int, *, summed: int = 1) -> torch.Tensor:
    """A period of what member `source` has for member `target`, where the data of `summed` members are added up.

    Each source has its own, so that one which is lost while another counts twice shows. bfloat16 has 8 significant
    bits, which hold every integer up to 256: all sums stay below, in whatever order they are formed. Among up to 128
    there is no 0, the sign of a buffer where nothing arrived; among more most have to add 0 at any one place.
    """
    steps = (torch.arange(_PERIOD) + 31 * source + 7 * target) % _PERIOD
    if summed > 128:
        return (steps % -(-summed // 128) == 0).long()
    return 1 + steps % min(_PERIOD - 1, 256 // summed)


def _summed(size: int, target: int) -> torch.Tensor:
    return torch.stack([pattern(source, target, summed=size) for source in range(size)]).sum(0)


def _fill(values: torch.Tensor, period: torch.Tensor) -> None:
    """In place: the period again and again, the last time as far as it goes."""
    rows, rest = _rows(values)
    period = period.to(values)
    rows.copy_(period)
    rest.copy_(period[: len(rest)])


def _holds(values: torch.Tensor, period: torch.Tensor) -> bool:
    """Whether that is what `_fill` writes; never of a NaN."""
    period = period.to(values)
    for chunk in values.split(_CHUNK):
        rows, rest = _rows(chunk)
        if not (bool((rows == period).all()) and bool((rest == period[: len(rest)]).all())):
            return False
    return True


def _rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of all whole periods, and of what is left."""
    whole = len(values) // _PERIOD * _PERIOD
    return values[:whole].view(-1, _PERIOD), values[whole:]


def gathered(values: list[float], ranks: int, control: dist.ProcessGroup) -> list[list[float]]:
    """Everybody's numbers, by rank: the same lists on all ranks, so that all of them decide alike."""
    own = torch.tensor(values, dtype=torch.float64)
    everybody = [torch.empty_like(own) for _ in range(ranks)]
    dist.all_gather(everybody, own, group=control)
    return [one.tolist() for one in everybody]


def new_team(ranks: tuple[int, ...], own: int, backend: str, timeout_s: float) -> Team | None:
    """A group of these ranks; every rank of the world has to ask for it. None for a rank that is not among them."""
    handle = dist.new_group(list(ranks), backend=backend, timeout=timedelta(seconds=timeout_s))
    return Team(handle, ranks, own) if own in ranks else None


_COLLECTIVES = {
    "all_reduce": _all_reduced,
    "all_gather": _gathered,
    "reduce_scatter": _scattered,
    "all_to_all": _all_to_all,
}
