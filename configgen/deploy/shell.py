"""A Launch as one shell script per node: every flag on its own line, quoted, with its reason as a comment."""

from __future__ import annotations

from configgen.engines.vllm import MASTER_ADDRESS
from configgen.launch import Launch, Process
from configgen.templates import fill


def shell_scripts(launch: Launch) -> dict[str, str]:
    """File name -> text, one script per node: 'node0.sh', 'node1.sh' ..."""
    by_node: dict[int, list[Process]] = {}
    for process in launch.processes:
        by_node.setdefault(process.node, []).append(process)
    return {
        f"node{node}.sh": fill(
            "launch.sh.j2",
            launch=launch,
            node=node,
            hostname=processes[0].hostname,
            processes=processes,
            master_address=MASTER_ADDRESS,
            needs_master=any(MASTER_ADDRESS in flag.words for p in processes for flag in p.flags),
        )
        for node, processes in sorted(by_node.items())
    }
