"""The environment of each process as KEY=value lines, as systemd's EnvironmentFile and container runtimes read them."""

from __future__ import annotations

from configgen.launch import Launch
from probe.errors import UsageError, one_line


def env_files(launch: Launch) -> dict[str, str]:
    """File name -> text, one per process. Raises UsageError where a value has a line break, which no reader takes."""
    files = {}
    for process in launch.processes:
        lines = [f"# {one_line(launch.engine)} {one_line(launch.engine_version)}, written by wirelore"]
        for variable in process.environment:
            if not variable.value.isprintable():
                raise UsageError(
                    f"{variable.name} has a value that no environment file can hold", cure="Use --target shell."
                )
            lines += [f"# {one_line(variable.reason)}", f"{variable.name}={variable.value}"]
        files[f"node{process.node}-replica{process.replica}.env"] = "\n".join(lines) + "\n"
    return files
