"""`wirelore emit`: a plan as launch commands."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from configgen.cli.options import flags_line, note, read_plan
from configgen.engines.launcher import launch_of
from configgen.engines.rules import engine_traits
from configgen.launch import Launch
from configgen.plan import Plan
from probe.errors import UsageError, one_line
from probe.units import count, some

if TYPE_CHECKING:
    from configgen.deploy.service import Wishes

LOCAL = ("flags", "shell", "yaml", "env", "json")
CLUSTERS = ("kubernetes", "slurm", "compose", "systemd")
KINDS = ("deployment", "lws", "jobset", "kserve", "rayservice", "llm-d")


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what a cluster is told beside the plan; the command gets it as a dict, `asked`."""

    @click.option(
        "--kind", type=click.Choice(KINDS), help="What of Kubernetes. [default: deployment or lws, and a probe]"
    )
    @click.option("--name", metavar="NAME", help="Name of what is written. [default: from the model's]")
    @click.option("--namespace", metavar="NAME", help="Namespace. [default: that of whoever applies it]")
    @click.option("--image", metavar="IMAGE", help="Image with wirelore, for the init container.")
    @click.option("--engine-image", metavar="IMAGE", help="Image with the engine.")
    @click.option(
        "--model-claim", metavar="CLAIM", help="Volume claim that keeps what is downloaded, or holds the model."
    )
    @click.option("--token-secret", metavar="SECRET", help="Secret whose key 'token' is for the model hub.")
    @click.option("--runtime-class", metavar="NAME", help="Runtime class of the pods.")
    @click.option("--gpu-resource", metavar="RESOURCE", help="What a pod asks for. [default: nvidia.com/gpu]")
    @click.option(
        "--rdma", metavar="NAME[=N]", help="The RDMA devices' resource, or none. [default: rdma/ib, where NICs]"
    )
    @click.option(
        "--read-only-root", is_flag=True, help="Read-only root filesystems, where your GPU runtime allows them."
    )
    @click.option(
        "--cache-host-path", metavar="DIR", help="A folder of the nodes that keeps what is measured. [default: none]"
    )
    @wraps(command)
    def with_asked(**options: Any) -> Any:
        names = ("kind", "name", "namespace", "image", "engine_image", "model_claim", "token_secret", "runtime_class")
        asked = {
            name: options.pop(name) for name in (*names, "gpu_resource", "rdma", "read_only_root", "cache_host_path")
        }
        return command(asked={name: value for name, value in asked.items() if value not in (None, False)}, **options)

    return with_asked


_HEAD_BYTES = 8192


@click.command("emit")
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path, readable=False))
@click.option("--engine", metavar="NAME[@VERSION]", help="The engine that the plan must be for; others need their own.")
@click.option("--target", type=click.Choice(LOCAL + CLUSTERS), default="shell", show_default=True, help="Form.")
@cluster_options
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(path_type=Path, readable=False), help="Folder to write into."
)
def emit_command(plan_file: Path, engine: str | None, target: str, asked: dict[str, Any], output: Path | None) -> None:
    """Write PLAN (from `wirelore plan -o plan.json`) as launch commands: one line of flags, a script per node, or what
    a cluster runs."""
    plan = read_plan(plan_file)
    if engine is not None and engine_traits(engine) != plan.engine:
        raise UsageError(
            f"the plan was made under the laws of {plan.engine.engine} {plan.engine.version}, not {engine[:40]}",
            cure=f"Plan again with --engine {engine[:40]}.",
        )
    _check(target, asked)
    launch = launch_of(plan)
    if target == "flags":
        click.echo(flags_line(launch))
        return
    files = _cluster_files(plan, launch, target, asked) if target in CLUSTERS else _files(launch, target)
    if output is None:
        if len(files) > 1:
            raise UsageError(f"the plan needs {count(len(files), 'file')}", cure="Give a folder with -o DIR.")
        click.echo(next(iter(files.values())), nl=False)
        return
    from probe.store import write_atomically

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {output}: {error.strerror}", cure="Name a folder you can write to.") from error
    if left := _left(output, files, target):
        raise UsageError(
            f"{output} has {some(left, 4)} of another plan, which would start beside this one",
            cure=f"Remove {'it' if len(left) == 1 else 'them'}, or name another folder.",
        )
    for name, text in files.items():
        write_atomically(output / name, text.encode(), executable=name.endswith(".sh"))
    click.echo(f"wrote {count(len(files), 'file')} into {one_line(str(output))}", err=True)


def _check(target: str, asked: dict[str, Any]) -> None:
    """Raises UsageError for an option that this target has no place for."""
    here = {"kubernetes": set(asked), "compose": {"name", "image", "engine_image"}}.get(target, {"name"})
    strange = sorted(set(asked) - (here if target in CLUSTERS else set()))
    if strange:
        option = "--" + strange[0].replace("_", "-")
        raise UsageError(
            f"--target {target} has no place for {option}", cure="Leave it away, or use --target kubernetes."
        )


def _cluster_files(plan: Plan, launch: Launch, target: str, asked: dict[str, Any]) -> dict[str, str]:
    """File name -> text; each form is loaded when it is asked for."""
    from configgen.deploy.service import Wishes

    kind = asked.pop("kind", None)
    wishes = Wishes(**asked)
    _note_placeholders(target, wishes)
    match target:
        case "kubernetes":
            from configgen.deploy.kubernetes import kubernetes_files

            return kubernetes_files(plan, launch, wishes, kind)
        case "slurm":
            from configgen.deploy.slurm import slurm_files

            return slurm_files(plan, launch, wishes)
        case "compose":
            from configgen.deploy.compose import compose_files

            return compose_files(plan, launch, wishes)
    from configgen.deploy.systemd import systemd_files

    return systemd_files(plan, launch, wishes)


def _note_placeholders(target: str, wishes: Wishes) -> None:
    missing = [
        option for option, told in (("--image", wishes.image), ("--engine-image", wishes.engine_image)) if not told
    ]
    if missing and target in ("kubernetes", "compose"):
        note(f"image names stand for your own: give {' and '.join(missing)}")


_NAMES = {
    "shell": r"node[0-9]+\.sh|replica[0-9]+\.yaml|proxy\.conf",
    "yaml": r"(node[0-9]+-)?replica[0-9]+\.yaml",
    "env": r"node[0-9]+-replica[0-9]+\.env",
    "json": "launch.json",
    "kubernetes": r"(deployment|leaderworkerset|llminferenceservice|rayservice)\.yaml",
    "slurm": r"job\.sbatch",
    "compose": r"compose\.yaml|proxy\.conf",
    "systemd": r"[a-z0-9-]+\.service|proxy\.conf",
}
"""What the files of a target are called."""


def _left(folder: Path, files: dict[str, str], target: str) -> list[str]:
    """Files of this target that an earlier plan left there and this one would not replace; a person's own are none."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.name not in files and path.is_file())
        named = [name for name in names if re.fullmatch(_NAMES[target], name)]
        return [name for name in named if _is_ours(folder / name)]
    except OSError:  # a folder that may be written and not read
        return []


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return b", written by wirelore" in file.read(_HEAD_BYTES)


def _files(launch: Launch, target: str) -> dict[str, str]:
    """File name -> text; each form is loaded when it is asked for."""
    match target:
        case "shell":
            from configgen.deploy.shell import shell_scripts

            return shell_scripts(launch)
        case "yaml":
            from configgen.deploy.config import flags_as_files

            return flags_as_files(launch)
        case "env":
            from configgen.deploy.env import env_files

            return env_files(launch)
    from configgen.deploy.listing import listing

    return {"launch.json": listing(launch)}
