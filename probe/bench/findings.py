"""Messages -> Survey: grows with every finished point, and is a valid Survey at any moment. No I/O."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import replace

from probe.bench.messages import Joined, Measured, Message, Point
from probe.errors import UsageError
from probe.islands import fingerprint
from probe.measurement import UNFINISHED, Curve, CurveKey, HealthSnapshot, Sample, Survey
from probe.store import decode_survey
from probe.topology import GpuRef, Notice, Origin, Topology

_UNFINISHED = Notice("unfinished", "The run did not come to its end. Go on with --resume.")


class Findings:
    """What a run has found so far, on top of the survey that it resumes."""

    def __init__(self, topology: Topology, *, lab: str | None, origin: Origin, resumed: Survey | None = None) -> None:
        self._rounds: dict[tuple[CurveKey, tuple[GpuRef, ...]], dict[int, list[tuple[float, ...]]]] = {}
        self._survey = Survey(topology, lab=lab, origins=(origin,), missing=(_UNFINISHED,))
        self._origin = origin
        self._resumes = resumed is not None
        self.has_news = False
        """Whether this run has found anything itself."""
        if resumed is not None:
            if (resumed.lab is None) != (lab is None):
                raise UsageError("lab figures and real ones never share a survey", cure="Give another -o.")
            self._survey = replace(
                resumed,
                lab=lab,
                missing=(_UNFINISHED, *(n for n in resumed.missing if n.code not in UNFINISHED)),
            )
            for curve in resumed.curves:
                known = {sample.size_bytes: list(sample.rounds_s) for sample in curve.samples}
                self._rounds[curve.key, curve.members] = known

    def _begin(self) -> None:
        """The first that is new: only now is this run a part of the survey."""
        self._survey = replace(self._survey, origins=tuple(dict.fromkeys((*self._survey.origins, self._origin))))
        self.has_news = True

    def add(self, message: Message) -> bool:
        """Whether the survey says more than before. Raises UsageError where the machine is not the resumed one."""
        if isinstance(message, Point):
            self._begin()
            sizes = self._rounds.setdefault((message.key, message.members), {})
            sizes.setdefault(message.size_bytes, []).append(message.times_s)
        elif isinstance(message, Measured):
            if message.rates or message.verifications:
                self._begin()
            self._survey = replace(
                self._survey,
                rates=_joined(self._survey.rates, message.rates),
                verifications=_joined(self._survey.verifications, message.verifications),
                evidence=_joined(self._survey.evidence, message.evidence),
                environment=_joined(self._survey.environment, message.environment),
                missing=_joined(self._survey.missing, message.missing),
            )
        elif isinstance(message, Joined):
            self._meet(decode_survey(zlib.decompress(message.topology), where="the nodes' topology").topology)
        else:
            return False
        return True

    def add_health(self, snapshots: Iterable[HealthSnapshot], notices: Iterable[Notice]) -> None:
        """Counters of this node, before or after."""
        self._survey = replace(
            self._survey,
            health=_joined(self._survey.health, snapshots),
            missing=_joined(self._survey.missing, notices),
        )

    def finish(self) -> None:
        """The run came to its end; what the budget left out has its own reasons."""
        self._survey = replace(self._survey, missing=tuple(n for n in self._survey.missing if n != _UNFINISHED))

    @property
    def survey(self) -> Survey:
        """All that was found by now."""
        curves = (
            Curve(key, tuple(Sample(size, tuple(rounds)) for size, rounds in sorted(sizes.items())), members)
            for (key, members), sizes in self._rounds.items()
        )
        return replace(self._survey, curves=tuple(curves))

    def _meet(self, topology: Topology) -> None:
        if self._resumes and _wires(topology) != _wires(self._survey.topology):
            raise UsageError(
                "the survey to resume is of another machine or driver", cure="Give another -o, or leave --resume out."
            )
        self._survey = replace(self._survey, topology=topology)


def _wires(topology: Topology) -> tuple[str, list[str | None]]:
    return fingerprint(topology), sorted((node.driver_version for node in topology.nodes), key=str)


def _joined(known: Iterable[object], new: Iterable[object]) -> tuple:  # type: ignore[type-arg]
    return tuple(dict.fromkeys((*known, *new)))
