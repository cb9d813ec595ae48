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
DAMAGES = ("last element", "nothing arrives", "not a number", "a rank is lost", "parts swapped")
DAMAGED_BYTES = 100_004

Case = tuple[str, tuple[int, ...], int, "str | None", "str | None"]
"""Operation, team, bytes, direction, damage."""


def told_cases() -> Iterator[Case]:
    for operation, team, size in product(COLLECTIVES, TEAMS, SIZES):
        yield operation, team, size, None, None
    for team, size, direction in product((TEAMS[0], TEAMS[2]), SIZES, DIRECTIONS):
        yield "p2p", team, size, direction, None
    for operation, team, damage in product(COLLECTIVES, TEAMS, DAMAGES):
        if (damage != "parts swapped" or operation in ("all_gather", "all_to_all")) and (
            damage != "a rank is lost" or operation in ("all_reduce", "reduce_scatter")
        ):
            yield operation, team, DAMAGED_BYTES, None, damage
    for direction, damage in product(("backward", "both"), DAMAGES[:2]):
        yield "p2p", TEAMS[0], DAMAGED_BYTES, direction, damage


CASES = tuple(told_cases())


def hurt(case: Case) -> int:
    """The rank where it goes wrong: the last, whose share of a sum is lost, or rank 0, which is in every team."""
    return max(case[1]) if case[4] == "a rank is lost" else 0


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
    wrong = case[1] if case[4] == "a rank is lost" else (hurt(case),)
    assert verdicts[name(case)] == {str(rank): rank not in wrong for rank in case[1]}


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
            verdicts[case][str(rank)] = right
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
        operation, ranks, size, direction, damage = case
        team = teams[ranks]
        if team is not None:
            ready = collectives.exchange(operation, team, CpuDevice(), size, torch.float32, direction)
            with damaged(damage if rank == hurt(case) else None, team.size):
                found[name(case)] = ready.is_right()
    dist.destroy_process_group()
    return found


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


if __name__ == "__main__":
    main(sys.argv[1])
