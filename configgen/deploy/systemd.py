"""systemd units: one per node of the plan, which plans anew at each start and becomes the engine."""

from __future__ import annotations

import re

from configgen.deploy.proxy import proxy_file
from configgen.deploy.service import DEADLINE_S, Wishes, heading, init_options, name_of, service_of
from configgen.launch import Launch, is_hostname
from configgen.plan import Plan
from configgen.templates import fill
from probe.errors import UsageError

_PLAIN_FOLDER = re.compile(r"/[A-Za-z0-9._/@+-]+")
"""What BindReadOnlyPaths= reads as it stands; it has no escapes for all others."""


def systemd_files(plan: Plan, launch: Launch, wishes: Wishes) -> dict[str, str]:
    """File name -> text of a unit, one per node that the plan uses, and of the proxy's before several servers."""
    service = service_of(plan, launch, wishes)
    name = wishes.name or name_of(plan.model.name)
    used = sorted({ref.node for replica in plan.replicas for ref in replica.gpus})
    hostname = plan.hostnames[used[0]]
    master = hostname if is_hostname(hostname) else "node0"
    # no scheduler bounds a host: what the plan leaves idle may be somebody else's
    limit = ["--gpus", str(len(plan.replicas) * service.nodes * service.gpus)]
    words = [*(["--nodes", str(len(used))] if len(used) > 1 else []), *limit, *init_options(plan)]
    files = {}
    for rank in range(len(used)):
        unit = f"{name}-node{rank}.service" if len(used) > 1 else f"{name}.service"
        files[unit] = fill(
            "engine.service.j2",
            unit=name,
            head=heading(service),
            words=[systemd_word(word) for word in words],
            start_words=[systemd_word(word) for word in service.start_words],
            nodes=len(used),
            rank=rank,
            master=master,
            told=is_hostname(hostname),
            rdma=service.rdma is not None,
            folder=service.model if service.is_folder and _PLAIN_FOLDER.fullmatch(service.model) else None,
            patience_s=DEADLINE_S + 30,
        )
    return files | proxy_file(launch)


def systemd_word(word: str) -> str:
    """A word as systemd reads it back from ExecStart=, where %, $ and \\ have meanings (systemd.service(5)).

    Raises UsageError for a NUL, which no program can be given.
    """
    if "\0" in word:
        raise UsageError("the plan has a word with a NUL, which no program can be given", cure="Plan again.")
    escaped = "".join(_escaped(c) for c in word.replace("%", "%%").replace("$", "$$"))
    return f'"{escaped}"'


def _escaped(c: str) -> str:
    if c in '\\"':
        return f"\\{c}"
    return c if c.isprintable() else "".join(f"\\x{byte:02x}" for byte in c.encode())
