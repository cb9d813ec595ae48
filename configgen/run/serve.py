"""/metrics and /healthz over HTTP, from the agent's present state; the one door of prometheus_client."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from socketserver import TCPServer
from typing import Any

from configgen.report.prometheus import Labels, Metric, metrics
from configgen.run.agent import Seen, State
from probe import __version__
from probe.errors import UsageError

_MOST_AT_ONCE = 16
_PATIENCE_S = 10.0
"""For a whole request, as long as Prometheus waits by default (scrape_timeout)."""
_EVERYWHERE = "::"
_TEXT = "text/plain; charset=utf-8"
_INDEX = b"wirelore agent: /metrics for Prometheus, /healthz for the kubelet\n"


def own_metrics(state: State) -> Iterator[Metric]:
    """What the agent says of itself; of the last look only once there was one."""
    yield Metric("wirelore_build_info", "The agent's version.", {(("version", __version__),): 1})
    written: dict[Labels, float] = {(("to", outlet),): float(reason is None) for outlet, reason in state.refused}
    yield Metric("wirelore_published", "1 if this outlet could be written after the last look.", written)
    if (seen := state.seen) is not None:
        found = float(seen.failure is None)
        yield Metric("wirelore_probe_success", "1 if the last look at the machine found GPUs.", {(): found})
        yield Metric("wirelore_probe_timestamp_seconds", "When the last look began.", {(): seen.at_s})
        yield Metric("wirelore_probe_duration_seconds", "How long the last look took.", {(): seen.took_s})


class Collector:
    """What prometheus_client asks at each scrape."""

    def __init__(self, state: Callable[[], State]) -> None:
        self.state = state
        self._held: tuple[Seen | None, tuple[Metric, ...]] = (None, ())

    def describe(self) -> tuple[()]:
        """No names beforehand: there is nothing else in the registry that they could meet."""
        return ()

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        state = self.state()
        looks = CounterMetricFamily("wirelore_probes", "Looks at the machine, by how they ended.", labels=["result"])
        looks.add_metric(["ok"], state.looks - state.failed)
        looks.add_metric(["failed"], state.failed)
        yield looks
        yield CounterMetricFamily("wirelore_changes", "Changes that were told in the log.", state.changes)
        for metric in (*own_metrics(state), *self._of_the_machine(state.seen)):
            samples = metric.samples
            family = GaugeMetricFamily(metric.name, metric.about, labels=[n for n, _ in next(iter(samples), ())])
            for labels, value in samples.items():
                family.add_metric([text for _, text in labels], value)
            if samples:
                yield family

    def _of_the_machine(self, seen: Seen | None) -> tuple[Metric, ...]:
        """Worked out once for each look, however often it is scraped, and by how many at once."""
        of, machine = self._held
        if of is not seen:
            machine = metrics(seen.audited) if seen is not None and seen.audited is not None else ()
            self._held = seen, machine
        return machine


class Server(ThreadingHTTPServer):
    """Answers from threads of its own, a bounded number of requests at once, each for a bounded time."""

    daemon_threads = True
    request_queue_size = 64  # socketserver's 5 lets the sixth of a burst wait for a second

    def __init__(self, address: str, port: int, state: Callable[[], State], say: Callable[[str], None]) -> None:
        if find_spec("prometheus_client") is None:
            raise UsageError("the agent needs prometheus_client", cure="pip install 'wirelore[agent]', or use --once.")
        from prometheus_client import CollectorRegistry, ProcessCollector

        if address == _EVERYWHERE and not socket.has_dualstack_ipv6():
            address = "0.0.0.0"  # noqa: S104 - all that there is without IPv6
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.state, self.say = state, say
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(Collector(state))
        ProcessCollector(registry=self.registry)
        self._open: dict[Any, float] = {}
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            problem = f"cannot listen on {address} port {port}: {error.strerror}"
            raise UsageError(problem, cure="Name another with --port and --address.") from error

    def server_bind(self) -> None:
        """Everywhere is IPv6 and IPv4, for pods have addresses of the one, the other or both. HTTPServer's own would
        ask the DNS for this host's name, and wait for it where that doesn't answer."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, self.server_address[0] != _EVERYWHERE)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def start(self, poll_s: float = 1.0) -> None:
        threading.Thread(target=self.serve_forever, args=(poll_s,), name="http", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Where there are too many, the oldest goes: who only holds connections keeps nobody out."""
        held = list(self._open)
        if len(held) >= _MOST_AT_ONCE:
            self._hang_up(held[0])
        self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called at every poll: hangs up on whoever takes too long."""
        late_s = time.monotonic() - _PATIENCE_S
        for request in [request for request, since_s in list(self._open.items()) if since_s < late_s]:
            self._hang_up(request)

    def _hang_up(self, request: Any) -> None:
        """Its thread then ends by itself."""
        self._open.pop(request, None)
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to tell of; anything else is one line, and never a traceback."""
        import sys

        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            self.say(f"this is a bug in wirelore, in an answer: {type(error).__name__}: {error}")


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = f"wirelore/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        status, kind, body = self._answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            encode, kind = _encoder(self.headers.get("Accept", ""))
            return 200, kind, encode(self.server.registry)
        if path == "/healthz":
            reason = self.server.state().unwell(time.monotonic())
            return 200 if reason is None else 503, _TEXT, f"{reason or 'ok'}\n".encode()
        return (200, _TEXT, _INDEX) if path == "/" else (404, _TEXT, b"not found\n")

    def log_message(self, format: str, *arguments: object) -> None:
        """Scrapes are no news."""


def _encoder(accept: str) -> tuple[Callable[[Any], bytes], str]:
    """What the client asked for; Prometheus' plain text where it asked for what no client means."""
    from prometheus_client.exposition import choose_encoder

    try:
        return choose_encoder(accept)
    except Exception:  # of a version that is no number: whatever its comparison raises
        return choose_encoder("")
