"""One plan for a group: who has come, what speaks against going on, who has the plan. No clock and no socket here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

from configgen.run.messages import Elsewhere, Hello, Proposal, Trouble
from probe.errors import one_line
from probe.units import ranges

_JOB_VARIABLES = ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "PET_RDZV_ID", "JOBSET_NAME")
"""By which launchers tell one group from another at the same address; each gives them to all members alike."""


def digest(text: str) -> str:
    """What stands for a document wherever two members compare theirs."""
    return sha256(text.encode()).hexdigest()


def group_name(environ: Mapping[str, str], *, address: str, port: int, nodes: int) -> str:
    """Equal for the members of one group, and for nobody else who could come to this port."""
    told = [f"{name}={environ[name]}" for name in _JOB_VARIABLES if name in environ]
    return digest("\n".join([address.lower().rstrip("."), str(port), str(nodes), *told]))


class Roll:
    """The leader's list: the members that are there, and which of them have the proposal on their volumes."""

    def __init__(self, own: Hello) -> None:
        self.own = own
        self.hellos = {0: own}
        self._staged: set[int] = set()
        self._troubles: dict[int, Trouble] = {0: own.trouble} if own.trouble else {}

    def refusal(self, hello: Hello) -> Elsewhere | None:
        """Why this is no member of the group; None where it is one."""
        if hello.group != self.own.group:
            return Elsewhere(reason="another group meets at this port")
        if not 0 < hello.node < self.own.nodes:
            return Elsewhere(reason=f"this group has nodes 1 to {self.own.nodes - 1} besides its leader")
        return None

    def enter(self, hello: Hello) -> None:
        """Takes a member in, again where it comes again; a proposal then begins anew."""
        self.leave(hello.node)
        self.hellos[hello.node] = hello
        if hello.trouble is not None:
            self._troubles[hello.node] = hello.trouble

    def leave(self, node: int) -> None:
        self.hellos.pop(node, None)
        self._troubles.pop(node, None)
        self._staged.clear()

    def stage(self, node: int, plan: str, proposed: str | None) -> bool:
        """Whether it is the proposed plan that the member has."""
        if plan != proposed:
            return False
        self._staged.add(node)
        return True

    def complain(self, node: int, trouble: Trouble) -> None:
        self._troubles[node] = trouble

    @property
    def is_complete(self) -> bool:
        return len(self.hellos) == self.own.nodes

    @property
    def present(self) -> list[int]:
        return sorted(self.hellos)

    @property
    def is_staged(self) -> bool:
        """Whether all who are there have the proposal; the leader itself has it before it proposes."""
        return self._staged >= self.hellos.keys() - {0}

    @property
    def absence(self) -> str:
        """Who did not come."""
        missing = [node for node in range(self.own.nodes) if node not in self.hellos]
        return f"node{'s' * (len(missing) > 1)} {ranges(missing)} of {self.own.nodes} did not come in time"

    def objection(self) -> Trouble | None:
        """Why no plan of this group could be started; the lowest node that objects speaks."""
        for node in sorted(self._troubles):
            trouble = self._troubles[node]
            return Trouble(exit_code=trouble.exit_code, problem=f"node {node}: {trouble.problem}", cure=trouble.cure)
        for node in self.present:
            hello = self.hellos[node]
            if hello.version != self.own.version:
                what = f"node {node} runs wirelore {one_line(hello.version, 40)}, node 0 {self.own.version}"
                return Trouble(exit_code=2, problem=what, cure="Use the same image on all nodes.")
            if hello.request != self.own.request:
                return Trouble(exit_code=2, problem=_difference(self.own, hello), cure="Ask the same of all nodes.")
        return None


def holds_for(proposal: Proposal, roll: Roll) -> bool:
    """Whether a plan made earlier rests on the very facts of all who are there."""
    members = proposal.members
    return len(members) == roll.own.nodes and all(members[node] == h.facts for node, h in roll.hellos.items())


def unable(hellos: Sequence[Hello]) -> str | None:
    """Why the group cannot measure; None where every member can."""
    return next((f"node {h.node}: {one_line(h.unable, 200)}" for h in hellos if h.unable is not None), None)


def _difference(own: Hello, other: Hello) -> str:
    """The first word that differs, of what the two were asked for."""
    here, there = own.asked.splitlines(), other.asked.splitlines()
    pairs = [(a, b) for a, b in zip(here, there, strict=False) if a != b]
    a, b = pairs[0] if pairs else ("another configuration of the model", "its own")
    return f"node {other.node} was asked for {one_line(b, 120)}, node 0 for {one_line(a, 120)}"
