"""The loop of the agent: look, publish, wait until the interval is over or something stirs, until it is told to end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from configgen.run.agent import Seen, State, changes
from configgen.run.features import FILE, feature_file, labels
from probe.errors import WireloreError

_SLICE_S = 1.0
"""How often a wait looks for a sign of change."""
_REST_S = 5.0
"""Between two looks, however much stirs: a driver that comes and goes must not keep a core busy."""


class Ended(BaseException):
    """SIGTERM or SIGINT came. No Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where the agent publishes beside HTTP: NFD's folder, the survey's file, this node's object in Kubernetes."""

    features: Path | None = None
    survey: Path | None = None
    node: str | None = None


class Agent:
    """Its state is replaced as a whole after each look, so that other threads may read it at any time."""

    def __init__(
        self,
        look: Callable[[], Seen],
        outlets: Outlets,
        say: Callable[[str], None],
        *,
        interval_s: float,
        signs: Callable[[], object] = lambda: None,
    ) -> None:
        self.look, self.outlets, self.say, self.signs = look, outlets, say, signs
        self.state = State(interval_s, time.monotonic())
        self._labelled: Mapping[str, str] | None = None
        self._asked = False

    def run(self) -> None:
        """Until SIGTERM or SIGINT, which end it within a second; SIGHUP asks for a look at once."""
        with self._hearing():
            while True:
                began_s, before = time.monotonic(), self.signs()
                self.once()
                self._wait(began_s, before)

    def once(self) -> Seen:
        """One look, published everywhere; what changed is told."""
        seen = self.look()
        lines = changes(self.state.seen, seen)
        for line in lines:
            self.say(line)
        self.state = self.state.after(seen, len(lines), time.monotonic())
        refused = tuple((name, self._refusal(write)) for name, write in self._writes(seen))
        for name, reason in refused:
            if reason is not None and (name, reason) not in self.state.refused:
                self.say(f"{name} not published: {reason}")
        self.state = replace(self.state, refused=refused)
        return seen

    def _writes(self, seen: Seen) -> Iterator[tuple[str, Callable[[], None]]]:
        features, survey, node = self.outlets.features, self.outlets.survey, self.outlets.node
        if features is not None:
            yield "features", lambda: _write_features(features, labels(seen), self.state.interval_s)
        if survey is not None:
            yield "survey", lambda: _write_survey(survey, seen)
        if node is not None:
            yield "labels", lambda: self._label(node, labels(seen))

    @staticmethod
    def _refusal(write: Callable[[], None]) -> str | None:
        try:
            write()
        except WireloreError as error:
            return str(error)
        except Exception as error:  # an agent that ends can tell nobody anything
            return f"this is a bug in wirelore: {type(error).__name__}: {error}. Report it."
        return None

    def _label(self, node: str, told: Mapping[str, str]) -> None:
        """Only what the API server does not know yet: thousands of nodes must not write to it every minute."""
        if told != self._labelled:
            from configgen.run.labels import put_labels

            put_labels(node, told)
            self._labelled = told

    def _wait(self, since_s: float, before: object) -> None:
        while not self._asked and (left_s := since_s + self.state.interval_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _SLICE_S))
            if time.monotonic() > since_s + _REST_S and self.signs() != before:
                break
        self._asked = False

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        def end(number: int, frame: FrameType | None) -> None:
            for once in ended_by:
                signal.signal(once, signal.SIG_IGN)
            raise Ended(number)

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = True

        ended_by = (signal.SIGTERM, signal.SIGINT)
        former = {number: signal.signal(number, end) for number in ended_by}
        former[signal.SIGHUP] = signal.signal(signal.SIGHUP, ask)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def _write_features(folder: Path, told: Mapping[str, str], interval_s: float) -> None:
    """Beside the target under a dot name, which NFD passes over, then renamed."""
    from probe.store import write_atomically

    write_atomically(folder / FILE, feature_file(told, time.time(), interval_s))


def _write_survey(file: Path, seen: Seen) -> None:
    """The last that could be read: one that cannot be read leaves no survey of its own."""
    if seen.audited is None:
        return
    from probe.store import encode_survey, write_atomically

    data = encode_survey(seen.audited.survey)
    if not _holds(file, data):
        write_atomically(file, data)


def _holds(file: Path, data: bytes) -> bool:
    try:
        return file.stat().st_size == len(data) and file.read_bytes() == data
    except OSError:
        return False
