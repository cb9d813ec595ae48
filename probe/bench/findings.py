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
        if resumed is not None:
            self._survey = replace(
                resumed,
                lab=lab,
                origins=tuple(dict.fromkeys((*resumed.origins, origin))),
                missing=(_UNFINISHED, *(n for n in resumed.missing if n.code not in UNFINISHED)),
            )
            for curve in resumed.curves:
                known = {sample.size_bytes: list(sample.rounds_s) for sample in curve.samples}
                self._rounds[curve.key, curve.members] = known

    def add(self, message: Message) -> bool:
        """Whether the survey says more than before. Raises UsageError where the machine is not the resumed one."""
        if isinstance(message, Point):
            sizes = self._rounds.setdefault((message.key, message.members), {})
            sizes.setdefault(message.size_bytes, []).append(message.times_s)
        elif isinstance(message, Measured):
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
        if self._rounds and fingerprint(topology) != fingerprint(self._survey.topology):
            raise UsageError(
                "the survey to resume is of another machine", cure="Give another -o, or leave --resume out."
            )
        self._survey = replace(self._survey, topology=topology)


def _joined(known: Iterable[object], new: Iterable[object]) -> tuple:  # type: ignore[type-arg]
    return tuple(dict.fromkeys((*known, *new)))
