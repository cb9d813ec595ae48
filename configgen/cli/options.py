"""Options that several commands share, and what they mean."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from configgen.launch import Launch
from configgen.plan import Plan
from probe.errors import UsageError, one_line
from probe.measurement import Survey
from probe.topology import Topology

_PLAN_LIMIT_BYTES = 64 << 20

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the topology comes from: --from (several make one cluster), and what --gpu-model and --gpu-memory told."""

    given: tuple[str, ...]
    gpu_model: str | None
    gpu_memory: str | None

    def topology(self) -> Topology:
        """The sources as one topology, with what the person told. Raises WireloreError."""
        from probe.merge import merge_topologies
        from probe.sources.registry import read_source

        self._check()
        parts = [read_source(source) for source in self.given] or [read_source(None)]
        return self.told(merge_topologies(parts))

    def survey(self, *, cache: bool = True, elsewhere: bool = True) -> Survey:
        """The sources as one survey, with what was measured on them, and the origin of the curves told.

        What this user measured earlier on equal wires comes from the cache, unless a source brings its own figures;
        `elsewhere` says whether that may have been on other GPUs. Raises WireloreError.
        """
        from probe.merge import merge_topologies
        from probe.sources.registry import read_source, read_survey

        self._check()
        parts = [read_survey(source) for source in self.given] or [Survey(read_source(None))]
        if len(parts) == 1:
            survey = parts[0]
        elif any(part.is_measured for part in parts):
            from probe.fleet import merge_surveys

            survey = merge_surveys(parts)
        else:
            survey = Survey(merge_topologies([part.topology for part in parts]))
        if survey.is_measured:
            from probe.cache import with_origin

            survey = with_origin(survey, " and ".join(self.given[:3]))
        elif cache:
            from probe.cache import known

            recalled, notices = known(survey.topology, elsewhere=elsewhere)
            survey = recalled if recalled.is_measured else survey
            for notice in notices:
                note(notice.message)
        return replace(survey, topology=self.told(survey.topology))

    def _check(self) -> None:
        if self.given.count("-") > 1:
            raise UsageError("standard input can be read once", cure="Give --from - only once.")

    def told(self, topology: Topology) -> Topology:
        """The topology with what --gpu-model and --gpu-memory told. Raises UsageError."""
        from probe.sources.told import with_told

        return with_told(topology, gpu_model=self.gpu_model, gpu_memory=self.gpu_memory)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --from, --gpu-model and --gpu-memory; the command gets them as `sources`."""

    # "from" is a keyword, and the option's name must stay what is typed: WIRELORE_PLAN_FROM comes from it.
    @click.option(
        "--from",
        metavar="SRC",
        multiple=True,
        help="A file, '-' or machine:NAME instead of this machine; several make one cluster.",
    )
    @click.option("--gpu-model", metavar="NAME", help="GPU model where the source names none, e.g. 'NVIDIA L40S'.")
    @click.option("--gpu-memory", metavar="SIZE[,SIZE...]", help="Memory of the GPUs: 24GiB, or one size per GPU.")
    @wraps(command)
    def with_sources(*, gpu_model: str | None, gpu_memory: str | None, **others: Any) -> Any:
        return command(sources=Sources(others.pop("from"), gpu_model, gpu_memory), **others)

    return with_sources


def output_option(command: Command) -> Command:
    decorate = click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path, readable=False),
        help="Write here, atomically, instead of standard output; JSON where no other --format is named.",
    )
    return decorate(command)


def require_folder(output: Path | None) -> None:
    """Raises UsageError, before any work is done, where the file that is to be written has no folder."""
    if output is not None and not output.parent.is_dir():
        raise UsageError(f"there is no folder {output.parent} for {output.name}", cure="Create it, or name another.")


def put(data: bytes, output: Path | None) -> None:
    """Data to a file, atomically, or to standard output."""
    if output is None:
        click.echo(data, nl=False)
        return
    from probe.store import write_atomically

    write_atomically(output, data)
    click.echo(f"wrote {one_line(str(output))}", err=True)


def read_plan(path: Path) -> Plan:
    """What `wirelore plan -o FILE` wrote. Raises UsageError."""
    from configgen.document import decode_plan

    cure = "Give what `wirelore plan -o FILE` wrote."
    try:
        with path.open("rb") as stream:
            data = stream.read(_PLAN_LIMIT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", cure=cure) from error
    if len(data) > _PLAN_LIMIT_BYTES:
        raise UsageError(f"{path} is larger than {_PLAN_LIMIT_BYTES >> 20} MiB", cure=cure)
    return decode_plan(data, where=str(path))


def note(text: str) -> None:
    """Something to know, on standard error."""
    click.echo(f"wirelore: note: {one_line(text, 600)}", err=True)


def flags_line(launch: Launch) -> str:
    """One line fit for `vllm serve MODEL $(...)`. Raises UsageError where one line can't say the launch."""
    because = launch.not_one_line_because
    if any(shlex.quote(word) != word for word in launch.one_line or ()):
        because = "a value holds blanks or characters that a shell reads"
    if launch.one_line is None or because is not None:
        raise UsageError(
            f"one line of flags cannot say this plan: {because}",
            cure="Save the plan with -o plan.json and run `wirelore emit --target shell plan.json`.",
        )
    return " ".join(launch.one_line)
