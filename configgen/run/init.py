"""One plan for this node, alone or in its group: read, meet, measure, decide, and leave the files in a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from configgen.document import encode_plan
from configgen.model import ModelSpec
from configgen.plan import EngineTraits, Limits, Workload
from configgen.run.assumed import plan_without_meeting, seen_gpus
from configgen.run.files import Paper, node_files
from configgen.run.group import Roll, digest, holds_for, unable
from configgen.run.meeting import attend, lead
from configgen.run.messages import Hello, Measure, Proposal, Trouble, Unmet
from configgen.run.one_server import plan_for_group
from configgen.run.place import visible_gpus
from configgen.run.volume import Record, Volume
from probe import __version__
from probe.errors import NoGpuError, UsageError, WireloreError, one_line
from probe.islands import fingerprint
from probe.measurement import Survey
from probe.merge import cluster
from probe.sources.told import with_assumed_memory
from probe.store import decode_survey, encode_survey
from probe.topology import Topology
from probe.units import count

_TELL_S = 10.0
"""How long a member whose own trouble is known tries to tell the others."""
_DECIDE_S = 5.0
"""Of the deadline, kept for deciding and for the files."""
_LEAST_S = 3.0
"""Less is no measurement: torch alone takes as long to load."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; the same on all nodes of a group."""

    model: ModelSpec
    workload: Workload
    traits: EngineTraits
    limits: Limits
    promised: int | None = None
    """GPUs that each node was asked for at the scheduler."""
    budget_s: float | None = None
    """For measuring; None where that is not wanted."""

    @property
    def digest(self) -> str:
        """The model counts as what it is, not by where its configuration lay."""
        parts = [replace(self.model, source=""), *self.asked.splitlines()[1:]]
        return digest(msgspec.json.encode(parts, order="deterministic").decode())

    @property
    def asked(self) -> str:
        """One line per thing."""
        w, most = self.workload, self.limits
        told = {
            "engine": f"{self.traits.engine} {self.traits.version}",
            "objective": w.objective.value,
            "input tokens": "assumed" if "input_tokens" in w.assumed else w.input_tokens,
            "output tokens": "assumed" if "output_tokens" in w.assumed else w.output_tokens,
            "concurrency": "assumed" if "concurrency" in w.assumed else w.concurrency,
            "max TTFT": w.max_ttft_s,
            "max TPOT": w.max_tpot_s,
            "GPUs": most.gpus,
            "replicas": most.replicas,
            "GPUs per node": self.promised,
            "seconds for measuring": self.budget_s,
        }
        return "\n".join([f"model {self.model.name}", *(f"{name} {value}" for name, value in told.items())])


@dataclass(frozen=True, slots=True)
class Standing:
    """Where this node stands: alone, or in a group of which a launcher told it."""

    node: int = 0
    nodes: int = 1
    address: str = ""
    """Of node 0."""
    port: int = 0
    group: str = ""
    launcher: str = "the only node"


Measuring = Callable[[float, Standing], tuple[Survey | None, str | None]]
"""Seconds -> what was measured, on node 0, and what cut it short."""


@dataclass(frozen=True, slots=True)
class Done:
    """What was decided, and where this node's part of it is now."""

    survey: Survey
    summary: str
    faults: tuple[str, ...]
    """What went otherwise than it should have, and makes the plan worse."""


class Member:
    """This node's part in deciding: what it has, what it asks for, and its folder."""

    def __init__(
        self,
        request: Request,
        survey: Survey,
        volume: Volume,
        environ: Mapping[str, str],
        *,
        standing: Standing,
        measuring: Measuring,
        unable: str | None,
    ) -> None:
        self.request, self.survey, self.volume, self.standing = request, survey, volume, standing
        self.environ = dict(environ)
        self.facts = facts(survey.topology)
        self._measuring = measuring
        self._unable = unable
        self._measured: Survey | None = None
        self._cut: str | None = None
        self._unmeasured: str | None = None
        self._paper: Paper | None = None

    def hello(self) -> Hello:
        return msgspec.structs.replace(
            _hello(self.standing, self.request),
            facts=self.facts,
            survey=encode_survey(self.survey).decode(),
            unable=self._unable,
        )

    def held(self) -> Proposal | None:
        record = self.volume.record()
        ours = record is not None and record.members and _is_ours(record, self)
        return self.volume.held() if ours else None

    def measure(self, roll: Roll, seconds_left: float) -> Measure | None:
        budget_s = self.request.budget_s
        hellos = [roll.hellos[node] for node in roll.present]
        self._unmeasured = "--no-measure" if budget_s is None else unable(hellos) if len(hellos) > 1 else self._unable
        if budget_s is None or self._unmeasured is not None or self._measured is not None:
            return None
        if self._surveyed(roll).is_measured:
            return None
        budget_s = min(budget_s, seconds_left - _DECIDE_S)
        if budget_s < _LEAST_S:
            self._cut = "the deadline left no time to measure"
            return None
        return Measure(budget_s=budget_s)

    def take_part(self, order: Measure) -> None:
        try:
            self._measured, cut = self._measuring(order.budget_s, self.standing)
        except WireloreError as error:
            cut = error.problem
        if cut is not None:
            self._cut = f"measuring failed: {one_line(cut, 200)}"

    def decide(self, roll: Roll, addresses: tuple[str, ...]) -> Proposal:
        survey = self._surveyed(roll)
        survey = replace(survey, topology=with_assumed_memory(survey.topology))
        if not any(gpu.is_usable for node in survey.topology.nodes for gpu in node.gpus):
            what, cure = "no GPU of this machine can be used", "See `wirelore probe` for the state of each GPU."
            raise NoGpuError(what if self.standing.nodes == 1 else "no GPU of the group can be used", cure=cure)
        r = self.request
        decided = plan_for_group(survey, r.model, r.workload, r.traits, r.limits)
        faults = (*self._too_few(survey.topology), *([self._cut] if self._cut else []))
        decided = replace(decided, degraded=(*decided.degraded, *faults))
        members = tuple(roll.hellos[node].facts for node in roll.present)
        plan_text, survey_text = encode_plan(decided).decode(), encode_survey(survey).decode()
        return Proposal(
            plan=plan_text,
            survey=survey_text,
            addresses=addresses,
            members=members,
            unmeasured=self._unmeasured,
            faults=faults,
        )

    def stage(self, proposal: Proposal) -> None:
        self._write(proposal, reason=None)

    def publish(self, proposal: Proposal) -> None:
        self.volume.publish()

    def discard(self) -> None:
        self.volume.discard()

    @property
    def is_pending(self) -> bool:
        record = self.volume.pending()
        return record is not None and bool(record.members) and _is_ours(record, self)

    def without_meeting(self, reason: str) -> None:
        """Takes the plan that needs no meeting. Raises NoPlanError, NoGpuError."""
        former = self.volume.record()
        if former is not None and not former.members and former.reason and _is_ours(former, self):
            reason = former.reason  # so that the same files stay the same, however the meeting failed this time
        r = self.request
        here = self.survey.topology.nodes[0]
        if r.promised is not None and len(visible_gpus(here)) != r.promised:
            raise NoGpuError(
                f"the group did not meet, and this node has {count(len(visible_gpus(here)), 'GPU')}, not {r.promised}",
                cure="Give the node back to the scheduler, or see `wirelore probe` for what it lacks.",
            )
        gpus = seen_gpus(self.survey.topology)
        decided = plan_without_meeting(self.standing.nodes, gpus, r.model, r.workload, r.traits, r.limits)
        told = Proposal(
            plan=encode_plan(decided).decode(), survey=encode_survey(self.survey).decode(), addresses=(), members=()
        )
        self._write(told, reason=reason)
        self.volume.publish()

    def done(self) -> Done:
        assert self._paper is not None
        text = (self.volume.folder / "summary.txt").read_text("utf-8")
        record = self._paper.record
        return Done(self._paper.measured, text, (*([record.reason] if record.reason else []), *record.faults))

    def _surveyed(self, roll: Roll) -> Survey:
        """Of all who are there: what they measured together, else what each brought."""
        if self._measured is not None and len(self._measured.topology.nodes) == roll.own.nodes:
            return self._measured
        if roll.own.nodes == 1:
            return self.survey
        surveys = [self.survey]
        for node in roll.present[1:]:
            brought = decode_survey(roll.hellos[node].survey.encode(), where=f"the survey of node {node}")
            if len(brought.topology.nodes) != 1:
                raise UsageError(f"node {node} describes several nodes", cure="Describe one node per command.")
            surveys.append(brought)
        return together(surveys)

    def _too_few(self, topology: Topology) -> list[str]:
        promised = self.request.promised
        return [
            f"node {position} has {count(len(visible_gpus(node)), 'GPU')}, and {promised} were asked for"
            for position, node in enumerate(topology.nodes)
            if promised is not None and len(visible_gpus(node)) != promised
        ]

    def _write(self, proposal: Proposal, *, reason: str | None) -> None:
        record = Record(
            version=__version__,
            request=self.request.digest,
            node=self.standing.node,
            members=proposal.members,
            facts=self.facts,
            addresses=proposal.addresses,
            plan=digest(proposal.plan),
            survey=digest(proposal.survey),
            reason=reason,
            unmeasured=proposal.unmeasured,
            faults=proposal.faults,
            files=(),
        )
        survey = decode_survey(proposal.survey.encode(), where="the group's survey")
        self._paper = Paper(
            plan=proposal.plan,
            survey=proposal.survey,
            measured=survey,
            record=record,
            launcher=self.standing.launcher,
            address=self.standing.address,
            here=self.survey.topology,
        )
        self.volume.stage(node_files(self._paper, self.volume.folder, self.environ))


def settle_plan(member: Member, *, ends_s: float) -> Done:
    """Brings the node to a plan in its folder. `ends_s` is of time.monotonic(). Raises WireloreError where starting an
    engine would surely fail: then nothing was written."""
    with member.volume.alone(ends_s):
        standing = member.standing
        if standing.nodes == 1:
            _decide_alone(member, ends_s)
        else:
            hello = member.hello()
            if standing.node == 0:
                outcome = lead(hello, member, standing.port, ends_s=ends_s)
            else:
                outcome = attend(hello, member, standing.address, standing.port, ends_s=ends_s)
            if isinstance(outcome, Unmet):
                member.without_meeting(outcome.reason)
        return member.done()


def tell_trouble(standing: Standing, request: Request | None, error: WireloreError, *, ends_s: float) -> None:
    """Lets the group know that no engine can start here, so that nobody waits for one; returns when all know or after
    some seconds."""
    if standing.nodes == 1:
        return
    hello = msgspec.structs.replace(_hello(standing, request), trouble=Trouble.of(error))
    ends_s = min(ends_s, time.monotonic() + _TELL_S)
    try:
        if standing.node == 0:
            lead(hello, _Mute(), standing.port, ends_s=ends_s)
        else:
            attend(hello, _Mute(), standing.address, standing.port, ends_s=ends_s)
    except WireloreError:
        return  # it is this very error, or another's: one is enough


def facts(topology: Topology) -> str:
    """Stands for these GPUs in these places, wired like this: what a plan rests on, and no more."""
    own = [
        [node.hostname, node.driver_version, [[g.uuid, [m.uuid for m in g.mig_instances]] for g in node.gpus]]
        for node in topology.nodes
    ]
    return digest(msgspec.json.encode([fingerprint(topology), own]).decode())


def together(surveys: Sequence[Survey]) -> Survey:
    """The nodes of a group in their order, with what is known of their wires. Raises UsageError where two members see
    the same GPU: both their engines would take it."""
    from probe.cache import search

    topology = cluster([survey.topology for survey in surveys])
    known = search(topology)
    if known.survey is not None:
        return known.survey
    if any(survey.is_measured for survey in surveys):
        from probe.fleet import merge_surveys

        merged = merge_surveys(surveys)
        if len(merged.topology.nodes) == len(surveys):
            return merged
    return Survey(topology)


def _decide_alone(member: Member, ends_s: float) -> None:
    roll = Roll(member.hello())
    proposal = member.held()
    if proposal is None or not holds_for(proposal, roll):
        order = member.measure(roll, ends_s - time.monotonic())
        if order is not None:
            member.take_part(order)
        proposal = member.decide(roll, ("",))
    member.stage(proposal)
    member.publish(proposal)


def _is_ours(record: Record, member: Member) -> bool:
    """Whether it was made by this program, for what is asked now, for this node as it is now."""
    now = (__version__, member.request.digest, member.standing.node, member.facts)
    return (record.version, record.request, record.node, record.facts) == now


def _hello(standing: Standing, request: Request | None) -> Hello:
    return Hello(
        group=standing.group,
        node=standing.node,
        nodes=standing.nodes,
        version=__version__,
        request=request.digest if request else "",
        asked=request.asked if request else "",
    )


class _Mute:
    """The part of one that only comes to say that it can't."""

    is_pending = False

    def held(self) -> None:
        return None

    def measure(self, roll: Roll, seconds_left: float) -> None:
        return None

    def take_part(self, order: Measure) -> None:
        return None

    def decide(self, roll: Roll, addresses: tuple[str, ...]) -> Proposal:
        raise AssertionError("a leader in trouble decides nothing")

    def stage(self, proposal: Proposal) -> None:
        return None

    def publish(self, proposal: Proposal) -> None:
        return None

    def discard(self) -> None:
        return None
