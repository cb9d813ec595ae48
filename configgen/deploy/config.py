"""Configuration files in the engines' own formats, each entry with its reason as a comment."""

from __future__ import annotations

import re

from configgen.launch import VISIBLE, ConfigFile, Given, Launch, Process, Setting, Value
from configgen.templates import shell_word
from probe.errors import UsageError, one_line

_PLAIN = re.compile(r"(--)?[A-Za-z/][A-Za-z0-9._/@-]{1,100}")
"""Two characters at least, for Go's YAML takes 'y' and 'n' for true and false, and Python's does not."""


def config_files(launch: Launch) -> dict[str, str]:
    """File name -> text of the files that processes are started with."""
    return {file.name: config_text(launch, file) for process in launch.processes for file in process.files}


def flags_as_files(launch: Launch) -> dict[str, str]:
    """File name -> text, one per process: its own files, or else all its flags in the engine's format of --config.

    A file has no place for the environment, which picks the GPUs: how to start with both stands above it, as a comment.
    Raises UsageError where the engine has no such format, or a flag's value is known only where it starts.
    """
    own = {f.name: _start(p, p.argv, f) + config_text(launch, f) for p in launch.processes for f in p.files}
    if own:
        return own
    if launch.config_flag is None:
        raise UsageError(
            f"{launch.engine} reads no configuration file that could hold this plan",
            cure="Use --target shell, env or json.",
        )
    files = ((p, ConfigFile(_name(p), tuple(flag_settings(p)))) for p in launch.processes)
    flag = launch.config_flag
    return {f.name: _start(p, _with_file(p, flag, f), f) + config_text(launch, f) for p, f in files}


def config_text(launch: Launch, file: ConfigFile) -> str:
    """YAML, or JSON where the name ends so, which has no comments."""
    if file.name.endswith(".json"):
        import json

        return json.dumps({s.key: s.value for s in file.settings}, indent=2) + "\n"
    import yaml

    head = f"# {one_line(launch.engine)} {one_line(launch.engine_version)}, written by wirelore\n"
    return head + "".join(
        f"# {one_line(s.reason)}\n{yaml.safe_dump({s.key: s.value}, sort_keys=False, allow_unicode=False)}"
        for s in file.settings
    )


def yaml_scalar(value: str | int | float | bool) -> str:
    """One value as YAML of any version reads it back, on one line: what isn't plainly a word is quoted and escaped."""
    import yaml

    if not isinstance(value, str):
        return yaml.safe_dump(value).partition("\n")[0]
    if _PLAIN.fullmatch(value) and yaml.safe_dump([value], default_flow_style=True) == f"[{value}]\n":
        return value
    quoted: str = yaml.safe_dump(value, default_style='"', width=float("inf"), allow_unicode=False)
    return quoted.removesuffix("\n")


def _with_file(process: Process, flag: str, file: ConfigFile) -> tuple[str, ...]:
    """The command with its model, since not every engine looks for it in the file, and what the start alone knows."""
    told = [f.words for f in process.flags if any(isinstance(word, Given) for word in f.words)]
    return (*process.command, flag, file.name, *(word for words in told for word in words))


def _start(process: Process, words: tuple[str, ...], file: ConfigFile) -> str:
    """How to start with the file, as a comment; where none can hold the words as they are, who can."""
    if file.name.endswith(".json"):
        return ""
    cleared = ["env", "-u", VISIBLE] if process.counts_all_gpus else []
    variables = [f"{v.name}={shell_word(v.value)}" for v in process.environment]
    line = " ".join([*cleared, *variables, *map(shell_word, words)])
    return f"# {line}\n" if one_line(line, 2000) == line else "# Start it as `wirelore emit --target shell` does.\n"


def _name(process: Process) -> str:
    return f"node{process.node}-replica{process.replica}.yaml"


def flag_settings(process: Process) -> list[Setting]:
    """Flags as entries: '--tensor-parallel-size 8' is 'tensor-parallel-size: 8', a flag without a value is true.

    What only the starting environment knows stays on the command line.
    """
    return [
        *process.said_by_command,
        *(
            Setting(flag.words[0].lstrip("-"), _value(flag.words[1:]), flag.reason)
            for flag in process.flags
            if not any(isinstance(word, Given) for word in flag.words)
        ),
    ]


def _value(words: tuple[str, ...]) -> Value:
    if not words:
        return True
    values: list[Value] = [_scalar(word) for word in words]
    return values[0] if len(values) == 1 else values


def _scalar(word: str) -> Value:
    for kind in (int, float):
        try:
            return kind(word) if word.isascii() else word
        except ValueError:
            continue
    return word
