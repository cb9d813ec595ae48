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

_LARGEST_EXACT = 251
"""Below it bfloat16 (8 significant bits) holds every integer; a prime, so that no pattern repeats with the ranks."""


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
        values.fill_(_share(team.place, 0))
        run()
        right = _all_are(values, sum(_share(i, 0) for i in range(team.size)))
        values.zero_()  # sums of zeros stay zeros, however often
        return right

    return Exchange(run, is_right)


def _share(place: int, part: int) -> int:
    """A rank's share of a sum: never 0, so that a lost one shows; one rank's tells the parts of a scatter apart.

    The sums are exact in bfloat16, and so up to 256, for up to 156 ranks.
    """
    return 1 + (part % 101 if place == 0 else 0)


def _all_are(values: torch.Tensor, expected: int) -> bool:
    """By their extremes: those need no memory, as a comparison would, and show a NaN as well."""
    low, high = torch.aminmax(values)
    return float(low) == float(high) == expected


def _gathered(team: Team, device: Device, elements: int, dtype: torch.dtype) -> Exchange:
    part = -(-elements // team.size)
    own = torch.full((part,), _mark(team.place, 0), dtype=dtype, device=device.place)
    whole = torch.zeros(part * team.size, dtype=dtype, device=device.place)

    def run() -> None:
        _all_gather(whole, own, group=team.handle)

    def is_right() -> bool:
        run()
        return all(_all_are(whole[i * part : (i + 1) * part], _mark(i, 0)) for i in range(team.size))

    return Exchange(run, is_right)


def _scattered(team: Team, device: Device, elements: int, dtype: torch.dtype) -> Exchange:
    part = -(-elements // team.size)
    whole = torch.empty(part * team.size, dtype=dtype, device=device.place)
    for to in range(team.size):
        whole[to * part : (to + 1) * part] = _share(team.place, to)
    own = torch.zeros(part, dtype=dtype, device=device.place)

    def run() -> None:
        _reduce_scatter(own, whole, group=team.handle)

    def is_right() -> bool:
        run()
        return _all_are(own, sum(_share(i, team.place) for i in range(team.size)))

    return Exchange(run, is_right)


def _all_to_all(team: Team, device: Device, elements: int, dtype: torch.dtype) -> Exchange:
    part = -(-elements // team.size)
    sent = torch.empty(part * team.size, dtype=dtype, device=device.place)
    for to in range(team.size):
        sent[to * part : (to + 1) * part] = _mark(team.place, to)
    received = torch.zeros_like(sent)

    def run() -> None:
        dist.all_to_all_single(received, sent, group=team.handle)

    def is_right() -> bool:
        run()
        return all(_all_are(received[i * part : (i + 1) * part], _mark(i, team.place)) for i in range(team.size))

    return Exchange(run, is_right)


def _mark(source: int, target: int) -> int:
    return 1 + (source * 31 + target * 7) % (_LARGEST_EXACT - 1)  # not the 0 of a buffer where nothing arrived


def _point_to_point(team: Team, device: Device, size_bytes: int, direction: str | None) -> Exchange:
    """Bytes from the first member to the second ('forward'), back, or both at once; the receiver's clock counts."""
    place = team.ranks.index(team.own)
    peer = team.ranks[1 - place]
    sends = direction == "both" or (direction == "forward") == (place == 0)
    receives = direction == "both" or not sends
    sent = _pattern(size_bytes, place, device) if sends else None
    received = torch.zeros(size_bytes, dtype=torch.uint8, device=device.place) if receives else None
    operations = []
    if received is not None:  # first, or two senders wait for each other
        operations.append(dist.P2POp(dist.irecv, received, peer, team.handle))
    if sent is not None:
        operations.append(dist.P2POp(dist.isend, sent, peer, team.handle))

    def run() -> None:
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    def is_right() -> bool:
        run()
        return received is None or bool((received == _pattern(size_bytes, 1 - place, device)).all())

    return Exchange(run, is_right, clocked=receives)


def _pattern(size_bytes: int, place: int, device: Device) -> torch.Tensor:
    period = torch.arange(place, place + _LARGEST_EXACT, device=device.place).remainder_(_LARGEST_EXACT)
    return period.to(torch.uint8).repeat(-(-size_bytes // _LARGEST_EXACT))[:size_bytes].contiguous()


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
