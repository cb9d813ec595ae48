"""Wrong data is a finding: real gloo groups of two and three ranks, and operations that do not do what they should.

Run as a program, this file is those ranks: it prints what each of them made of each case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

WORLD = 3
TEAMS = ((0, 1), (0, 1, 2), (2, 0))
SIZES = (1, 4, 1000, 4096, 100_004)
"""Bytes: less than an element, an element, and what neither two nor three ranks divide."""
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
DIRECTIONS = ("forward", "backward", "both")
DAMAGES = ("last element", "nothing arrives", "not a number", "parts swapped", "a little late")
SUMS = ("all_reduce", "reduce_scatter")
DAMAGED_SUMS = ("a rank is lost", "one lost, another twice")
DAMAGED_BYTES = 100_004
LARGE_BYTES = 20 << 20
"""Several chunks, each of them small beside the message."""

Case = tuple[str, tuple[int, ...], int, "str | None", "str | None"]
"""Operation, team, bytes, direction, damage."""


def told_cases() -> Iterator[Case]:
    for operation, team, size in product(COLLECTIVES, TEAMS, SIZES):
        yield operation, team, size, None, None
    for team, size, direction in product((TEAMS[0], TEAMS[2]), SIZES, DIRECTIONS):
        yield "p2p", team, size, direction, None
    for operation, team, damage in product(COLLECTIVES, TEAMS, DAMAGES):
        yield operation, team, DAMAGED_BYTES, None, damage
    for operation, team, damage in product(SUMS, TEAMS, DAMAGED_SUMS):
        yield operation, team, DAMAGED_BYTES, None, damage
    for direction, damage in product(("backward", "both"), ("last element", "nothing arrives", "a little late")):
        yield "p2p", TEAMS[0], DAMAGED_BYTES, direction, damage
    yield "p2p", TEAMS[0], 1, "backward", "nothing arrives"
    for operation in ("p2p", "all_reduce"):  # damaged far behind the first chunk
        yield operation, TEAMS[0], LARGE_BYTES, "both" if operation == "p2p" else None, "last element"


CASES = tuple(told_cases())


def hurt(case: Case) -> dict[int, str]:
    """What goes wrong at which rank: the last, whose share of a sum is lost, or rank 0, which is in every team."""
    damage = case[4]
    if damage is None:
        return {}
    if damage == "one lost, another twice":
        return {max(case[1]): "a rank is lost", 0: "a rank twice"}
    return {max(case[1]) if damage == "a rank is lost" else 0: damage}


def name(case: Case) -> str:
    operation, team, size, direction, damage = case
    words = [operation, direction, f"ranks {team}", f"{size} bytes", damage]
    return ", ".join(word for word in words if word)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bool]]:
    """Case -> rank -> whether it found its data right."""
    pytest.importorskip("torch", reason="no torch here: NO COLLECTIVE is tested")
    environ = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-W", "ignore", __file__, str(tmp_path_factory.mktemp("store") / "store")]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert isinstance(told, dict)
    return told


@pytest.mark.parametrize("case", [case for case in CASES if case[4] is None], ids=name)
def test_right_data_are_accepted_whether_or_not_the_ranks_divide_them(
    verdicts: dict[str, dict[str, bool]], case: Case
) -> None:
    assert verdicts[name(case)] == {str(rank): True for rank in case[1]}


@pytest.mark.parametrize("case", [case for case in CASES if case[4] is not None], ids=name)
def test_wrong_data_are_seen_by_the_ranks_that_hold_them(verdicts: dict[str, dict[str, bool]], case: Case) -> None:
    wrong = case[1] if case[4] in DAMAGED_SUMS else hurt(case)
    assert verdicts[name(case)] == {str(rank): rank not in wrong for rank in case[1]}


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 72, 128, 129, 200, 251, 1000, 4096])
def test_sums_are_exact_in_bfloat16_and_no_rank_stands_for_another(ranks: int) -> None:
    torch = pytest.importorskip("torch", reason="no torch here: NO COLLECTIVE is tested")
    from probe.bench.collectives import pattern

    shares = [pattern(source, 5, summed=ranks) for source in range(ranks)]
    sums = torch.zeros(len(shares[0]), dtype=torch.bfloat16)
    for share in shares:
        sums += share
    assert sums.tolist() == torch.stack(shares).sum(0).tolist()
    assert len({tuple(share.tolist()) for share in shares}) == min(ranks, len(shares[0]))
    if ranks <= 128:
        assert min(int(share.min()) for share in shares) > 0, "a lost one shows in a message of one element"
    if ranks % len(shares[0]):
        assert len(set(sums.tolist())) > 1, "parts in wrong places show"


@pytest.mark.parametrize("operation", [*COLLECTIVES, "p2p"])
def test_no_operation_takes_more_memory_than_preflight_asks_for(
    verdicts: dict[str, dict[str, bool]], operation: str
) -> None:
    assert verdicts[f"memory of {operation}"] == dict.fromkeys("012" if operation != "p2p" else "01", True)


# ---- the ranks -----------------------------------------------------------------------------------------------------


def main(store: str) -> None:
    """Imports torch once, forks the ranks, prints the verdicts of all of them."""
    import torch.distributed  # noqa: F401

    verdicts: dict[str, dict[str, bool]] = {name(case): {} for case in CASES}
    found = [tempfile.TemporaryFile("w+") for _ in range(WORLD)]  # noqa: SIM115
    children = []
    for rank, file in enumerate(found):
        pid = os.fork()
        if pid == 0:
            try:
                json.dump(one_rank(rank, store), file)
                file.flush()
                os._exit(0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        sys.exit(1)
    for rank, file in enumerate(found):
        file.seek(0)
        for case, right in json.load(file).items():
            verdicts.setdefault(case, {})[str(rank)] = right
    print(json.dumps(verdicts))  # noqa: T201


def one_rank(rank: int, path: str) -> dict[str, bool]:
    import torch
    import torch.distributed as dist

    from probe.bench import collectives
    from probe.bench.device import CpuDevice

    dist.init_process_group("gloo", store=dist.FileStore(path, WORLD), rank=rank, world_size=WORLD)
    teams: dict[tuple[int, ...], collectives.Team | None] = {
        ranks: collectives.new_team(ranks, rank, "gloo", 30.0) for ranks in TEAMS
    }
    found = {}
    for case in CASES:
        operation, ranks, size, direction, _ = case
        team = teams[ranks]
        if team is not None:
            ready = collectives.exchange(operation, team, CpuDevice(), size, torch.float32, direction)
            with damaged(hurt(case).get(rank), team.size):
                found[name(case)] = ready.is_right()
    for operation in (*COLLECTIVES, "p2p"):
        team = teams[TEAMS[0] if operation == "p2p" else TEAMS[1]]
        if team is not None:
            found[f"memory of {operation}"] = is_frugal(operation, team)
    dist.destroy_process_group()
    return found


def is_frugal(operation: str, team: Any) -> bool:
    """Whether the buffers are within preflight's count, and no check makes another one of the message's size."""
    import torch

    from probe.bench import collectives
    from probe.bench.device import CpuDevice
    from probe.bench.preflight import BUFFERS_PER_RANK

    with made() as buffers:
        ready = collectives.exchange(operation, team, CpuDevice(), LARGE_BYTES, torch.float32, "both")
    with made() as temporary:
        assert ready.is_right()
    spare = 1 << 20
    return sum(buffers) < BUFFERS_PER_RANK * LARGE_BYTES + spare and max(temporary) < LARGE_BYTES // 8


@contextmanager
def made() -> Iterator[list[int]]:
    """The bytes of every tensor that is made, not of views."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            known = {storage.data_ptr() for storage in storages((args, kwargs))}
            made = call(*args, **(kwargs or {}))
            sizes.extend(storage.nbytes() for storage in storages(made) if storage.data_ptr() not in known)
            return made

    def storages(values: Any) -> list[Any]:
        return [one.untyped_storage() for one in tree_leaves(values) if hasattr(one, "untyped_storage")]

    with Watch():  # type: ignore[no-untyped-call]
        yield sizes


class damaged:
    """Operations that go wrong at this rank as `damage` says; the others, and the wire, are as they are."""

    def __init__(self, damage: str | None, ranks: int) -> None:
        self.damage, self.ranks = damage, ranks

    def __enter__(self) -> None:
        import torch.distributed as dist

        from probe.bench import collectives

        self.places: list[tuple[Any, str, Any]] = [
            (dist, "all_reduce", self.around(dist.all_reduce, output=0, source=0)),
            (dist, "all_to_all_single", self.around(dist.all_to_all_single, output=0, source=1)),
            (dist, "batch_isend_irecv", self.received(dist.batch_isend_irecv)),
            (collectives, "_all_gather", self.around(collectives._all_gather, output=0, source=1)),
            (collectives, "_reduce_scatter", self.around(collectives._reduce_scatter, output=0, source=1)),
        ]
        self.former = [(owner, what, getattr(owner, what)) for owner, what, _ in self.places]
        for owner, what, wrong in self.places:
            setattr(owner, what, wrong)

    def __exit__(self, *_: object) -> None:
        for owner, what, right in self.former:
            setattr(owner, what, right)

    def around(self, real: Callable[..., object], *, output: int, source: int) -> Callable[..., object]:
        def wrong(*tensors: torch.Tensor, **options: object) -> None:
            before = tensors[output].clone()
            if self.damage == "a rank is lost":
                tensors[source].zero_()
            if self.damage == "a rank twice":
                tensors[source].mul_(2)
            real(*tensors, **options)
            self.spoil(tensors[output], before)

        return wrong

    def received(self, real: Callable[..., Any]) -> Callable[..., object]:
        def wrong(operations: list[Any]) -> object:
            import torch.distributed as dist

            for work in real(operations):
                work.wait()
            for one in operations:
                if one.op is dist.irecv:
                    self.spoil(one.tensor, one.tensor.new_zeros(one.tensor.shape))
            return []

        return wrong

    def spoil(self, values: torch.Tensor, before: torch.Tensor) -> None:
        if self.damage == "last element":
            values[-1] += 1
        elif self.damage == "nothing arrives":
            values.copy_(before)
        elif self.damage == "not a number":
            values[len(values) // 2] = float("nan")
        elif self.damage == "parts swapped":
            values.copy_(values.roll(len(values) // self.ranks))
        elif self.damage == "a little late":
            values.copy_(values.roll(1))


if __name__ == "__main__":
    main(sys.argv[1])
