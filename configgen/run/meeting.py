"""A group meets: the leader decides once all are there, and the plan counts once all have it. Bounded in time."""

from __future__ import annotations

import time
from typing import Protocol

from configgen.run.group import Roll, digest, holds_for
from configgen.run.house import House
from configgen.run.link import connected
from configgen.run.messages import Commit, Elsewhere, Hello, Measure, Proposal, Staged, Trouble, Unmet
from probe.errors import GroupError, WireloreError, one_line

GRACE_S = 10.0
"""What a proposal may take beyond the deadline: once it is out, to wait is better than to part."""
_AGAIN_S = 0.1


class Part(Protocol):
    """What a member does in the meeting, besides talking."""

    def held(self) -> Proposal | None:
        """The plan that an earlier run of this group left here, if it is for what is here now."""

    def measure(self, roll: Roll, seconds_left: float) -> Measure | None:
        """The leader's order to measure; None where nothing can or need be measured."""

    def take_part(self, order: Measure) -> None:
        """Measures with the others; the leader keeps what comes out."""

    def decide(self, roll: Roll, addresses: tuple[str, ...]) -> Proposal:
        """Raises WireloreError where there is no plan."""

    def stage(self, proposal: Proposal) -> None:
        """Puts all files of it where they only need renaming. Raises WireloreError."""

    def publish(self, proposal: Proposal) -> None:
        """Makes the staged files the ones that count."""

    def discard(self) -> None:
        """Forgets what was staged: it will never count."""

    @property
    def is_pending(self) -> bool:
        """Whether a plan was staged, now or by an earlier run, of which nobody said whether it counts."""


def lead(own: Hello, part: Part, port: int, *, ends_s: float) -> Proposal | Unmet:
    """Node 0: waits for all, decides, and lets the plan count once all have it. `ends_s` is of time.monotonic().

    Raises the error that one member's trouble is to all of them.
    """
    roll = Roll(own)
    house = House(roll)
    try:
        opened = house.open(port, ends_s)
        if opened is not None:
            return _alone(part, roll, opened)
        return _led(house, roll, part, ends_s)
    finally:
        house.close()


def _led(house: House, roll: Roll, part: Part, ends_s: float) -> Proposal | Unmet:
    latest_s = ends_s + GRACE_S
    while True:
        house.serve(lambda: roll.is_complete, ends_s)
        if (trouble := roll.objection()) is not None:
            raise _dismissed(house, trouble, ends_s)
        held = part.held()
        if held is not None and holds_for(held, roll):
            proposal = held
        elif not roll.is_complete:
            return _parted(house, roll, part)
        else:
            try:
                order = part.measure(roll, ends_s - time.monotonic())
                if order is not None:
                    house.tell(order)
                    part.take_part(order)
                proposal = part.decide(roll, house.addresses)
            except WireloreError as error:
                raise _dismissed(house, Trouble.of(error), ends_s) from error
        try:
            part.stage(proposal)
        except WireloreError as error:
            raise _dismissed(house, Trouble.of(error, "node 0: "), ends_s) from error
        house.propose(proposal)
        here = roll.present
        house.serve(lambda: roll.is_staged or roll.present != here, latest_s)  # noqa: B023 - asked only inside
        if (trouble := roll.objection()) is not None:
            raise _dismissed(house, trouble, ends_s)
        if roll.present == here and roll.is_staged:
            part.publish(proposal)  # before any member is told: a leader that comes back must know what it promised
            house.verdict = Commit(plan=digest(proposal.plan))
            house.tell(house.verdict)
            return proposal
        if time.monotonic() >= latest_s:
            return _parted(house, roll, part)


def _parted(house: House, roll: Roll, part: Part) -> Unmet:
    slow = "not every node had the plan on its volume in time"
    unmet = Unmet(reason=roll.absence if not roll.is_complete else slow)
    part.discard()
    house.tell(unmet)
    return unmet


def _alone(part: Part, roll: Roll, reason: str) -> Proposal | Unmet:
    """What a member without a meeting goes by: the plan that counted before, for the same facts."""
    held = part.held()
    if held is not None and holds_for(held, roll):
        part.stage(held)
        part.publish(held)
        return held
    return Unmet(reason=reason)


def _dismissed(house: House, trouble: Trouble, ends_s: float) -> WireloreError:
    """The error that ends this member, once the others know it too; who has not come by then has to find out alone."""
    house.dismiss(trouble, min(ends_s, time.monotonic() + GRACE_S))
    return trouble.error()


def attend(hello: Hello, part: Part, address: str, port: int, *, ends_s: float) -> Proposal | Unmet:
    """Any other node: comes, has the plan staged, and takes it once the leader says that it counts.

    Raises what is trouble to all, and GroupError where a plan was staged and nobody says whether it counts: to start
    on any other could then be to start on two.
    """
    staged: Proposal | None = None
    latest_s = ends_s + GRACE_S
    why = f"the leader at {one_line(address, 80)} port {port} was not there in time"
    while time.monotonic() < ends_s:
        try:
            with connected(address, port, ends_s) as link:
                link.send(hello)
                while True:
                    match link.receive(ends_s):
                        case Elsewhere(reason=reason):
                            why = f"the leader at {one_line(address, 80)} port {port}: {one_line(reason, 120)}"
                            break
                        case Measure() as order:
                            part.take_part(order)
                        case Proposal() as proposal:
                            try:
                                part.stage(proposal)
                            except WireloreError as error:
                                link.send(Trouble.of(error))
                                part.discard()
                                raise
                            staged = proposal
                            ends_s = latest_s
                            link.send(Staged(plan=digest(proposal.plan)))
                        case Commit(plan=plan) if staged is not None and plan == digest(staged.plan):
                            part.publish(staged)
                            return staged
                        case Unmet() as unmet:
                            part.discard()
                            return unmet
                        case Trouble() as trouble:
                            part.discard()
                            raise trouble.error()
                        case _:
                            raise ValueError("a commit without its proposal")
        except OSError as error:
            reason = one_line(error.strerror or str(error), 80)
            why = f"the leader at {one_line(address, 80)} port {port}: {reason or 'no answer'}"
        except ValueError as error:
            why = f"at {one_line(address, 80)} port {port} is somebody else: {one_line(str(error), 80)}"
        time.sleep(max(0.0, min(_AGAIN_S, ends_s - time.monotonic())))
    if part.is_pending:
        raise GroupError(
            f"{why}, and this node holds a plan of which nobody said whether the group starts on it",
            cure="Start all nodes of the group again.",
        )
    return _alone(part, _only(hello), why)


def _only(hello: Hello) -> Roll:
    """A list on which this member stands alone."""
    roll = Roll(hello)
    roll.hellos = {hello.node: hello}
    return roll
