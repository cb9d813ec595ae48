"""A Launch as one shell script per node: every flag on its own line, quoted, with its reason as a comment."""

from __future__ import annotations

from configgen.deploy.config import config_files
from configgen.deploy.proxy import proxy_file
from configgen.launch import HERE, MEANINGS, Given, Launch, Process
from configgen.templates import fill


def shell_scripts(launch: Launch) -> dict[str, str]:
    """File name -> text: a script per node ('node0.sh', 'node1.sh' ...), and the files that it needs beside it."""
    by_node: dict[int, list[Process]] = {}
    for process in launch.processes:
        by_node.setdefault(process.node, []).append(process)
    scripts = {
        f"node{node}.sh": fill(
            "launch.sh.j2",
            launch=launch,
            node=node,
            hostname=processes[0].hostname,
            processes=processes,
            needs_folder=HERE in given(processes),
            meanings=MEANINGS,
            needed=sorted(given(processes) - {HERE}),
            counts_all_gpus=any(process.counts_all_gpus for process in processes),
        )
        for node, processes in sorted(by_node.items())
    }
    return scripts | config_files(launch) | proxy_file(launch)


def given(processes: list[Process]) -> set[str]:
    """Names of the variables that the starting environment must tell."""
    return {word.name for process in processes for word in process.argv if isinstance(word, Given)}
