"""The commands that the documents give their readers, for the tests that run them: never copied, always read there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from command import WIRELORE, wirelore

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITHIN_S = 60.0


@dataclass(frozen=True)
class Example:
    """A command of a ```console block, the line it stands in, and the output that is shown below it."""

    line: int
    command: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """A command of a ```bash block, its continued lines joined, with the comment that stands behind it."""

    page: str
    line: int
    text: str
    comment: str = ""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    def at(self, place: str, here: str | Path) -> Command:
        """With what a test has in place of what only the reader's machine, or network, has."""
        assert place in self.text, f"{self} names no {place}"
        return replace(self, text=self.text.replace(place, str(here)))

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def fences(text: str) -> Iterator[tuple[str, int, list[str]]]:
    """(language, number of the first line, lines) of every fenced block."""
    language, start, block = None, 0, []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith("```"):
            block.append(line)
        elif language is None:
            language, start, block = line[3:].strip(), number + 1, []
        else:
            yield language, start, block
            language = None
    assert language is None, "a block is not closed"


def examples(text: str) -> Iterator[Example]:
    for language, start, block in fences(text):
        if language != "console":
            continue
        starts = [i for i, line in enumerate(block) if line.startswith("$ ")]
        assert starts[:1] == [0], f"line {start}: a console block begins with a command"
        for i, end in zip(starts, [*starts[1:], len(block)], strict=True):
            yield Example(start + i, block[i][2:], tuple(block[i + 1 : end]))


def commands(name: str, text: str) -> Iterator[Command]:
    """Every command of the page's ```bash blocks, in order."""
    for language, start, block in fences(text):
        if language != "bash":
            continue
        held: list[str] = []
        for number, line in enumerate(block, start=start):
            held.append(line.removesuffix("\\").strip())
            if line.endswith("\\"):
                continue
            told, _, comment = re.sub(r"(^|\s+)#\s+", "\0", " ".join(held), count=1).partition("\0")
            if told:
                yield Command(name, number - len(held) + 1, told, comment)
            held = []
        assert not held, f"{name}:{start}: the block's last line goes on nowhere"


def page_path(name: str) -> Path:
    (path,) = [page for page in PAGES if page.name == name]
    return path


def documented(page: str, *starts: str) -> list[Command]:
    """The page's commands that are or begin so, one for each; whoever asks for one is the test that runs it."""
    known = list(commands(page, page_path(page).read_text("utf-8")))
    return [_one(page, known, start) for start in starts]


def _one(page: str, known: list[Command], start: str) -> Command:
    found = [command for command in known if command.text == start]
    found = found or [command for command in known if f"{command.text} ".startswith(start)]
    assert len(found) == 1, f"{page} has {len(found)} commands that begin with `{start}`, and a test asks for one"
    return found[0]


def follow(page: str, folder: Path, until: Command | None = None) -> None:
    """Does in this folder what a reader has done who came to a command, or to the end: all ```console examples."""
    for example in examples(page_path(page).read_text("utf-8")):
        words = shlex.split(example.command)
        if words[0] == "wirelore" and (until is None or example.line < until.line):
            wirelore(*words[1:], cwd=folder).data()


def run_in_bash(
    command: Command | str, cwd: Path, environ: Mapping[str, str], within_s: float = WITHIN_S
) -> subprocess.CompletedProcess[str]:
    """As a reader pastes it; what it prints stands in the result, errors among it, and it must end well."""
    text = command if isinstance(command, str) else command.text
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=cwd,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=within_s,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done


def program(folder: Path, name: str, text: str) -> Path:
    """A script of this name in a folder for PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def with_wirelore(folder: Path) -> str:
    """PATH with the `wirelore` of these tests in front, then what lies beside their interpreter."""
    program(folder, "wirelore", f'#!/bin/sh\nexec {shlex.join(WIRELORE)} "$@"\n')
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def settings(command: str, **options: str) -> dict[str, str]:
    """Options of a wirelore command that its line does not tell, by environment."""
    return {f"WIRELORE_{command}_{name}".upper(): value for name, value in options.items()}


LAB_AUDIT = settings("audit", **{"from": "machine:l4-1", "backend": "gloo", "budget": "8s"})
"""Of one CPU rank: all of a measurement's chain, in the least time."""


@dataclass(frozen=True)
class Terminal:
    """Where a reader types: a folder that is also the home, and `wirelore` on the path."""

    folder: Path
    environ: dict[str, str]

    def runs(self, command: Command, **more: str) -> str:
        return run_in_bash(command, self.folder, {**self.environ, **more}).stdout
