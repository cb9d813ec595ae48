"""Every command of a ```bash block is run by one test, which takes it out of the page."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_commands import PAGES, Command, commands, documented, fences

TESTS = Path(__file__).resolve().parent
RUN = ("bash", "console")
DATA = ("text", "yaml")


def claims(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """(test, page, start) of every command that a test asks `documented` for."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "documented":
                assert function.name.startswith("test_"), f"{function.name} is no test, and asks for a command"
                page, *starts = [ast.literal_eval(word) for word in call.args]
                yield from ((function.name, page, start) for start in starts)


def all_claims() -> dict[tuple[str, int], list[str]]:
    """Page and line of each command -> the tests that run it."""
    found: dict[tuple[str, int], list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if path == Path(__file__) or "documented" not in (text := path.read_text("utf-8")):
            continue
        for test, page, start in claims(ast.parse(text)):
            (command,) = documented(page, start)
            found.setdefault((page, command.line), []).append(f"{path.relative_to(TESTS)}::{test}")
    return found


def unclaimed(page: str, text: str, claimed: dict[tuple[str, int], list[str]]) -> Iterator[str]:
    for command in commands(page, text):
        tests = claimed.get((page, command.line), [])
        if not tests:
            yield (
                f"{command}\n  is run by no test: take it out of the page in one that runs it, "
                f'`documented("{page}", "{command.words[0]} ...")`, beside the like of it in tests/test_docs_*.py, '
                "tests/launchers or tests/containers"
            )
        elif len(tests) > 1:
            yield f"{command}\n  is run by {' and '.join(tests)}: one is enough"


def test_every_command_is_run_by_one_test() -> None:
    claimed = all_claims()
    assert claimed
    told = [line for page in PAGES for line in unclaimed(page.name, page.read_text("utf-8"), claimed)]
    assert not told, "\n".join(told)


def test_a_command_that_no_test_runs_is_named() -> None:
    (told,) = unclaimed("new.md", "```bash\nls\nrm -r \\\n  x  # gone\n```\n", {("new.md", 2): ["a::b"]})
    assert told.startswith("new.md:3: rm -r x\n  is run by no test: ")
    (told,) = unclaimed("new.md", "```bash\nls\n```\n", {("new.md", 2): ["a::b", "a::c"]})
    assert told.endswith("is run by a::b and a::c: one is enough")


def test_lines_are_joined_and_comments_kept_apart() -> None:
    text = '```bash\n# first\na "b#c" \\\n  --d=e# \\\n  f    # why # so\n\ng\n```\n```sh\nh\n```\n'
    assert list(commands("p", text)) == [Command("p", 3, 'a "b#c" --d=e# f', "why # so"), Command("p", 7, "g")]


def test_a_start_that_fits_none_or_several_is_refused() -> None:
    for start in ("kubectl ", "kubectl shout"):
        with pytest.raises(AssertionError, match="and a test asks for one"):
            documented("kubernetes.md", start)


def escaping(page: str, text: str) -> Iterator[str]:
    """Blocks that nothing runs, though they may hold commands."""
    for language, line, block in fences(text):
        if language not in (*RUN, *DATA):
            yield f"{page}:{line - 1}: a block is one of {', '.join((*RUN, *DATA))}, not `{language}`"
        elif language in DATA and any(line.startswith(("$ ", "wirelore ")) for line in block):
            yield f"{page}:{line - 1}: commands stand in a `bash` or a `console` block, where they are run"


def test_no_command_escapes() -> None:
    assert not [told for page in PAGES for told in escaping(page.name, page.read_text("utf-8"))]
    for language in ("", "sh", "shell", "python"):
        (told,) = escaping("new.md", f"```{language}\nls\n```\n")
        assert told.startswith("new.md:1: a block is one of bash, ")
    (told,) = escaping("new.md", "a\n\n```text\n$ wirelore plan x\n```\n")
    assert told.startswith("new.md:3: commands stand in ")
