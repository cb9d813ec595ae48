"""The documents tell the truth: every command in them runs and prints what they show, and every option is in them."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from command import wirelore
from docs_commands import PAGES, examples

from configgen.cli.root import wirelore as root

OMITTED = "..."
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def is_shown(printed: list[str], shown: list[str]) -> bool:
    """Whether the shown lines are what is printed, where a line `...` stands for any number of lines."""
    if OMITTED not in shown:
        return printed == shown
    place = shown.index(OMITTED)
    if printed[:place] != shown[:place]:
        return False
    rest = shown[place + 1 :]
    return not rest or any(is_shown(printed[i:], rest) for i in range(place, len(printed) + 1))


@each_page
def test_commands_run_and_print_what_is_shown(page: Path, tmp_path: Path) -> None:
    for example in examples(page.read_text("utf-8")):
        words = shlex.split(example.command)
        assert words[0] == "wirelore", "what else there is stands in a bash block"
        ended = wirelore(*words[1:], cwd=tmp_path)
        where = f"{page.name}:{example.line}: {example.command}"
        assert ended.code == 0, f"{where}\n{ended.err}"
        printed, shown = ended.out.rstrip("\n").split("\n"), list(example.shown)
        if shown and not is_shown(printed, shown):
            changes = "\n".join(difflib.unified_diff(shown, printed, "shown", "printed", lineterm="", n=1))
            pytest.fail(f"{where}\n{changes}")


def test_there_are_examples_to_run() -> None:
    found = {page.name: sum(1 for _ in examples(page.read_text("utf-8"))) for page in PAGES}
    assert found["README.md"] >= 2
    assert found["operate.md"] >= 2
    assert found["decide.md"] >= 1


def test_omitted_lines() -> None:
    assert is_shown(["a", "b", "c"], ["a", "b", "c"])
    assert is_shown(["a", "b", "c"], ["a", "...", "c"])
    assert is_shown(["a", "b", "c"], ["...", "b", "..."])
    assert is_shown(["a", "..."], ["a", "..."])
    assert not is_shown(["a", "b", "c"], ["a", "b"])
    assert not is_shown(["a", "b", "c"], ["a", "...", "b"])
    assert not is_shown(["a", "b"], ["b", "..."])


def test_running_text_names_only_commands_that_exist() -> None:
    context = click.Context(root)
    for page in PAGES:
        for line in page.read_text("utf-8").splitlines():
            for name in re.findall(r"(?:^|[`$(] ?)wirelore ([a-z]+)", line):
                assert root.get_command(context, name), f"{page.name} calls `wirelore {name}`: {line}"


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(root)
    yield "wirelore", root
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None
        yield name, command


@pytest.mark.parametrize(("name", "command"), [*commands()], ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_and_option_is_documented(name: str, command: click.Command) -> None:
    text = "\n".join(page.read_text("utf-8") for page in PAGES if page.parent.name == "docs")
    assert re.search(rf"`(?:wirelore )?{name}[` ]", text), f"no page in docs/ names the command {name}"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            spelled = max(parameter.opts, key=len)
            assert re.search(rf"{spelled}(?![a-z-])", text), f"no page in docs/ names {name} {spelled}"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"
