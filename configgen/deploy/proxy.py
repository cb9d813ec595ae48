"""A reverse proxy before the servers of a Launch: requests go to the one with the fewest open connections."""

from __future__ import annotations

from configgen.launch import Launch, Process, is_hostname
from configgen.templates import fill

PORT = 8080


def proxy_file(launch: Launch) -> dict[str, str]:
    """'proxy.conf' -> the text of an nginx configuration; nothing where one server stands alone."""
    servers = [process for process in launch.processes if process.port is not None]
    if len(servers) < 2:
        return {}
    nodes = {process.node for process in launch.processes}
    addresses = [f"{_host(process, len(nodes) == 1)}:{process.port}" for process in servers]
    return {"proxy.conf": fill("proxy.conf.j2", launch=launch, addresses=addresses, port=PORT)}


def _host(process: Process, alone: bool) -> str:
    """The node's name where it is one that a resolver takes; 'node3' stands for one that nobody told."""
    if alone:
        return "127.0.0.1"
    return process.hostname if process.hostname and is_hostname(process.hostname) else f"node{process.node}"
