"""Where `wirelore agent` is heard, whatever a pod's network, its name service and its clients are like."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ports import free_port

from configgen.cli.agent import agent_command
from configgen.run.agent import State
from configgen.run.serve import Server


@contextmanager
def listening(address: str) -> Iterator[tuple[int, list[str]]]:
    said: list[str] = []
    state = State(60.0, since_s=time.monotonic())
    server = Server(address, free_port(), lambda: state, said.append)
    server.start(poll_s=0.05)
    try:
        yield server.server_port, said
    finally:
        server.shutdown()
        server.server_close()


def ask(host: str, port: int, path: str = "/healthz", accept: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", path, headers={"Accept": accept})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type") or ""
    finally:
        connection.close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here: what pods of IPv6 are asked is NOT tried")
def test_unless_it_is_told_it_is_heard_at_addresses_of_both_kinds() -> None:
    (told,) = (parameter.default for parameter in agent_command.params if parameter.name == "address")
    with listening(str(told)) as (port, _):
        assert ask("127.0.0.1", port)[0] == ask("::1", port)[0] == 200


def test_without_ipv6_it_is_heard_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with listening("::") as (port, _):
        assert ask("127.0.0.1", port)[0] == 200


def test_no_name_service_is_asked_before_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that doesn't answer would hold the first look, and the answer to SIGTERM, for half a minute."""

    def asked(*of: object) -> str:
        raise AssertionError(f"asked of {of}")

    monkeypatch.setattr(socket, "getfqdn", asked)
    monkeypatch.setattr(socket, "gethostbyaddr", asked)
    with listening("127.0.0.1") as (port, _):
        assert ask("127.0.0.1", port)[0] == 200


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=abc",
        "application/openmetrics-text; version=1..0",
        "text/plain; version=9.x; escaping=any",
        "application/openmetrics-text; version=" + "9" * 5000,
    ],
)
def test_a_client_that_asks_for_nonsense_gets_plain_text_and_no_line_in_the_log(accept: str) -> None:
    with listening("127.0.0.1") as (port, said):
        status, kind = ask("127.0.0.1", port, "/metrics", accept)
    assert status == 200
    assert kind.startswith("text/plain; ")
    assert said == []
