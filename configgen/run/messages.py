"""What members of a group say to each other, and how: length-prefixed JSON of bounded size."""

from __future__ import annotations

import struct

import msgspec

from probe.errors import GroupError, NoGpuError, NoPlanError, UsageError, WireloreError, one_line

HELLO_BYTES = 16 << 20
"""At most, from a stranger: one node's survey, with all that was ever measured on it, is a tenth of it."""
MOST_BYTES = 64 << 20
"""At most, from a known member or the leader: a plan and the survey of a whole group."""
_HEAD = struct.Struct(">I")
_KINDS = (GroupError, NoGpuError, NoPlanError, UsageError)
_LONGEST_SAID = 400


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all. Unknown keys of a later version are ignored, missing ones refused."""


class Trouble(Message, frozen=True, kw_only=True):
    """An error of one member that ends it for all: each ends with its exit code."""

    exit_code: int
    problem: str
    cure: str

    @classmethod
    def of(cls, error: WireloreError, where: str = "") -> Trouble:
        return cls(exit_code=error.exit_code, problem=where + error.problem, cure=error.cure)

    def error(self) -> WireloreError:
        kind = next((kind for kind in _KINDS if kind.exit_code == self.exit_code), GroupError)
        return kind(one_line(self.problem, _LONGEST_SAID), cure=one_line(self.cure, _LONGEST_SAID))


class Hello(Message, frozen=True, kw_only=True):
    """A member comes: who it is, what it was asked for, what it has."""

    group: str
    """Digest of what the launcher tells all members alike: strangers at the same port have another one."""
    node: int
    nodes: int
    version: str
    request: str
    """Digest of model, engine, load and limits, which must be the same everywhere ..."""
    asked: str
    """... and in words, for the line that says what differs."""
    facts: str = ""
    """Digest of this node's GPUs and wires, by which a plan made earlier is known to hold still."""
    survey: str = ""
    """This node's survey document."""
    unable: str | None = None
    """Why this member cannot measure; None where it can."""
    trouble: Trouble | None = None
    """Why no engine can start on this node."""


class Elsewhere(Message, frozen=True, kw_only=True):
    """The leader to one that is not of its group, or comes too late: it may ask again."""

    reason: str


class Measure(Message, frozen=True, kw_only=True):
    """All measure the network together, now."""

    budget_s: float


class Proposal(Message, frozen=True, kw_only=True):
    """The one plan: put it where it can't be lost, and say so."""

    plan: str
    survey: str
    addresses: tuple[str, ...]
    """Of each node, as the leader sees it."""
    members: tuple[str, ...]
    """The facts of each node, on which the plan rests."""
    unmeasured: str | None = None
    """Why nothing was measured, where that is no fault."""
    faults: tuple[str, ...] = ()
    """What went wrong on the way, and makes the plan worse."""


class Staged(Message, frozen=True, kw_only=True):
    """A member has the plan of this digest on its volume, ready to be made the one that counts."""

    plan: str


class Commit(Message, frozen=True, kw_only=True):
    """All have it: it counts."""

    plan: str


class Unmet(Message, frozen=True, kw_only=True):
    """The group did not come together: everybody takes the plan that needs no meeting."""

    reason: str


FromMember = Hello | Staged | Trouble
FromLeader = Elsewhere | Measure | Proposal | Commit | Unmet | Trouble


def packed(message: Message) -> bytes:
    """A frame: four bytes of length, most significant first, then JSON."""
    data = msgspec.json.encode(message)
    return _HEAD.pack(len(data)) + data


class Frames:
    """Bytes as they come from a socket -> whole frames. Raises ValueError on a frame that is longer than allowed."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._bytes += data
        whole = []
        while len(self._bytes) >= _HEAD.size:
            (length,) = _HEAD.unpack_from(self._bytes)
            if length > self.most_bytes:
                raise ValueError(f"a frame of {length:,} bytes, and {self.most_bytes:,} are allowed")
            if len(self._bytes) < _HEAD.size + length:
                break
            whole.append(bytes(self._bytes[_HEAD.size : _HEAD.size + length]))
            del self._bytes[: _HEAD.size + length]
        return whole


def from_member(frame: bytes) -> FromMember:
    """Raises ValueError on anything else."""
    try:
        return _MEMBERS.decode(frame)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error


def from_leader(frame: bytes) -> FromLeader:
    """Raises ValueError on anything else."""
    try:
        return _LEADERS.decode(frame)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error


_MEMBERS: msgspec.json.Decoder[FromMember] = msgspec.json.Decoder(FromMember)
_LEADERS: msgspec.json.Decoder[FromLeader] = msgspec.json.Decoder(FromLeader)
