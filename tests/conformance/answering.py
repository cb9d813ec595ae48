"""Runs inside an engine's environment: each line of standard input is a request, each line of the output its answer."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from linecache import getline
from traceback import walk_tb
from typing import Any, NoReturn

Request = dict[str, Any]
Answer = dict[str, Any]


class Refused(Exception):
    """The engine's own parser said no."""


def strict_parsers() -> None:
    """No abbreviations, which both engines would take ('--tensor-par 2'), and a refusal is an exception."""
    made = argparse.ArgumentParser.__init__

    def strict(self: argparse.ArgumentParser, *arguments: Any, **named: Any) -> None:
        named["allow_abbrev"] = False
        made(self, *arguments, **named)

    def refuse(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise Refused(message)

    argparse.ArgumentParser.__init__ = strict  # type: ignore[method-assign]
    argparse.ArgumentParser.error = refuse  # type: ignore[method-assign]


@contextmanager
def variables(told: dict[str, str]) -> Iterator[None]:
    """The process's environment with these variables, for as long as one request takes."""
    before = dict(os.environ)
    os.environ.update(told)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def answer_all(version: str, check: Callable[[Request], Answer]) -> None:
    """Answers until standard input ends. What the engine prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"version": version}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            with variables(request.get("environment", {})):
                answer = {"accepted": True, "resolved": check(request)}
        except (Exception, SystemExit) as error:
            *_, (frame, line) = walk_tb(error.__traceback__)
            file = frame.f_code.co_filename
            said = str(error) or getline(file, line).strip()  # an assert without a message is its own
            answer = {"accepted": False, "message": f"{type(error).__name__}: {said}", "place": f"{file}:{line}"}
        print(json.dumps(answer), file=answers, flush=True)
