"""Every error that a user can cause or meet.

    WireloreError            exit code
    ├── UsageError           2   an option, a file or a configuration is wrong
    │   └── ModelError       2   a model that is unknown or says too little of itself
    ├── NoPlanError          3   no legal plan exists; the message names the law
    ├── SourceError          4   an input that describes no readable machine
    ├── NoGpuError           4   no GPU, no driver, no answer
    ├── MeasureError         4   a measurement that ended before it was done; what was finished is kept
    └── GroupError           4   members of a group that cannot know whether they are agreed on one plan

A message says in one line what is wrong and where; `cure` says what to do. `str(error)` joins both.
"""

from __future__ import annotations


class WireloreError(Exception):
    """Root of the tree. `exit_code` is what the command ends with."""

    exit_code = 70

    def __init__(self, problem: str, *, cure: str) -> None:
        super().__init__(problem, cure)
        self.problem = one_line(problem)
        self.cure = one_line(cure)

    def __str__(self) -> str:
        return f"{self.problem.rstrip('.')}. {self.cure}"


class UsageError(WireloreError):
    exit_code = 2


class SourceError(WireloreError):
    exit_code = 4


class ModelError(UsageError):
    pass


class NoPlanError(WireloreError):
    exit_code = 3


class NoGpuError(WireloreError):
    exit_code = 4


class MeasureError(WireloreError):
    exit_code = 4


class GroupError(WireloreError):
    exit_code = 4


def one_line(text: str, limit: int = 400) -> str:
    """Hostile text made fit for a terminal line: no control characters, bounded length."""
    clean = " ".join(printable(text[: limit * 4]).split())
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def printable(text: str) -> str:
    """The same text with a blank for every control character."""
    return "".join(c if c.isprintable() else " " for c in text)
