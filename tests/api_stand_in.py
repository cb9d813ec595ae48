"""A stand-in for a cluster: it answers kubectl's and Helm's questions, keeps what they give, and makes the pods of it.

It is no Kubernetes. It discovers and validates as an API server does (by Kubernetes' own schemas, unknown keys
forbidden), and has the least of the controllers: the pods that a Deployment, a Job or a JobSet would start are there at
once, run or have ended well, and say in their logs what the test lets their container say. It has no admission and no
scheduler, and no byte passes through a forwarded port.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from cluster_plans import Manifest
from manifest_faults import schema_faults

KINDS = {
    "v1": "Namespace Node Pod Secret Service ServiceAccount",
    "apps/v1": "DaemonSet Deployment",
    "batch/v1": "Job",
    "rbac.authorization.k8s.io/v1": "ClusterRole ClusterRoleBinding",
    "jobset.x-k8s.io/v1alpha2": "JobSet",
    "leaderworkerset.x-k8s.io/v1": "LeaderWorkerSet",
}
OF_ALL = ("Namespace", "Node", "ClusterRole", "ClusterRoleBinding")
"""Kinds that are in no namespace."""

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: stand-in
contexts: [{{name: stand-in, context: {{cluster: stand-in, user: operator}}}}]
clusters: [{{name: stand-in, cluster: {{server: "{url}"}}}}]
users: [{{name: operator, user: {{token: a-token}}}}]
"""
PATH = re.compile(r"/apis?/(?P<version>(?:[a-z0-9.-]+/)?v\w+)(?:/namespaces/(?P<space>[^/]+)(?=/))?(?:/(?P<kind>\w+))?"
                  r"(?:/(?P<name>[^/]+))?(?:/(?P<part>\w+))?")  # fmt: skip


def plural(kind: str) -> str:
    return f"{kind.lower()}s"


@dataclass
class StandIn:
    """What the cluster holds, by kind, namespace and name; what was asked of it; what containers say."""

    url: str = ""
    held: dict[tuple[str, str, str], Manifest] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    forwarded: list[str] = field(default_factory=list)

    @property
    def kubeconfig(self) -> str:
        return KUBECONFIG.format(url=self.url)

    def named(self, kind: str, space: str = "default") -> list[str]:
        return sorted(name for of, at, name in self.held if (of, at) == (kind, space))

    def keep(self, document: Manifest, space: str) -> Manifest:
        """The document with what a server adds, and all that controllers make of it."""
        kind, name = document["kind"], document["metadata"]["name"]
        space = "" if kind in OF_ALL else space
        number = str(len(self.held) + 1)
        document["metadata"] |= {"uid": f"uid-{number}", "resourceVersion": number, "namespace": space}
        document["metadata"]["creationTimestamp"] = "2026-11-01T00:00:00Z"
        self.held[kind, space, name] = document
        if kind == "Deployment":
            for i in range(document["spec"]["replicas"]):
                self._pod(f"{name}-{i}", space, document["spec"]["template"], {}, "Running")
        elif kind == "Job":
            marks = {"batch.kubernetes.io/controller-uid": f"uid-{number}", "batch.kubernetes.io/job-name": name}
            document["spec"]["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": f"uid-{number}"}}
            document["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
            for i in range(document["spec"]["completions"]):
                index = {"batch.kubernetes.io/job-completion-index": str(i)}
                self._pod(f"{name}-{i}", space, document["spec"]["template"], marks | index, "Succeeded")
        elif kind == "JobSet":
            for job in document["spec"]["replicatedJobs"]:
                for i in range(job.get("replicas", 1)):
                    made = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": f"{name}-{job['name']}-{i}"}}
                    self.keep({**made, "spec": json.loads(json.dumps(job["template"]["spec"]))}, space)
        return document

    def _pod(self, name: str, space: str, template: Manifest, marks: dict[str, str], phase: str) -> None:
        labels = {**template["metadata"]["labels"], **marks}
        ready = [{"type": "Ready", "status": "True"}] if phase == "Running" else []
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}}
        self.keep({**pod, "spec": template["spec"], "status": {"phase": phase, "conditions": ready}}, space)

    def listed(self, kind: str, space: str | None, query: dict[str, str]) -> list[Manifest]:
        """Those that the query's selectors, which know `=` alone, fit."""
        wanted = dict(word.split("=", 1) for word in query.get("labelSelector", "").split(",") if word)
        name = query.get("fieldSelector", "").removeprefix("metadata.name=")
        return [
            document
            for (of, at, own), document in sorted(self.held.items())
            if of == kind
            and space in (None, at)
            and name in ("", own)
            and wanted.items() <= document["metadata"].get("labels", {}).items()
        ]


class Refused(Exception):
    """The server's answer to what it doesn't take."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: StandIn

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        told = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(told.query).items()}
        self.cluster.asked.append(f"{self.command} {self.path}")
        try:
            found = discovered(told.path)
            document = found if found is not None else self.resource(told.path, query, body)
        except Refused as refused:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": str(refused)}
            self.say(refused.code, {**status, "reason": refused.reason, "code": refused.code})
        else:
            if document is not None:
                self.say(201 if self.command == "POST" else 200, document)

    do_GET = do_POST = do_PATCH = do_PUT = answer

    def say(self, code: int, document: Manifest | str) -> None:
        text = document if isinstance(document, str) else json.dumps(document)
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if text is document else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: kubectl says what went wrong."""

    def resource(self, path: str, query: dict[str, str], body: bytes) -> Manifest | str | None:
        met = PATH.fullmatch(path)
        known = {plural(kind): kind for kind in KINDS.get(met["version"], "").split()} if met else {}
        if met is None or met["kind"] not in known:
            raise Refused(404, "NotFound", f"the stand-in knows no {path}")
        kind, space, name, part = known[met["kind"]], met["space"], met["name"], met["part"]
        key = (kind, space or "", name or "")
        if part == "log":
            return self.log(self.cluster.held[key], query)
        if part == "portforward":
            self.forward(key)
            return None
        if "watch" in query:
            self.watched()
            return None
        if self.command == "GET" and name is None:
            items = self.cluster.listed(kind, space, query)
            return {"apiVersion": met["version"], "kind": f"{kind}List", "metadata": {}, "items": items}
        if self.command == "GET" and key in self.cluster.held:
            return self.cluster.held[key]
        if self.command == "GET":
            raise Refused(404, "NotFound", f'{plural(kind)} "{name}" not found')
        return self.change(kind, space or "", query, body)

    def change(self, kind: str, space: str, query: dict[str, str], body: bytes) -> Manifest:
        """Of a new document: a POST, or Helm's server-side apply."""
        if self.command == "PATCH" and "apply-patch" not in self.headers["Content-Type"]:
            raise Refused(415, "UnsupportedMediaType", "the stand-in changes nothing that it has")
        document: Manifest = yaml.safe_load(body)
        if kind != "Namespace":
            faults = list(schema_faults(document))
            if faults:
                raise Refused(400, "BadRequest", "; ".join(faults))
        if kind not in OF_ALL and space != "default" and ("Namespace", "", space) not in self.cluster.held:
            raise Refused(404, "NotFound", f'namespaces "{space}" not found')
        return document if query.get("dryRun") == "All" else self.cluster.keep(document, space)

    def log(self, pod: Manifest, query: dict[str, str]) -> str:
        own = [c["name"] for c in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]]
        name = query.get("container", own[-1])
        if name not in own:
            raise Refused(400, "BadRequest", f"container {name} is not valid for pod {pod['metadata']['name']}")
        lines = self.cluster.logs[name].splitlines(keepends=True)
        return "".join(lines[-int(query["tailLines"]) :] if "tailLines" in query else lines)

    def forward(self, key: tuple[str, str, str]) -> None:
        """Opens the tunnel (RFC 6455), and keeps it open until kubectl goes; what comes through is dropped."""
        self.cluster.forwarded.append(key[2])
        told = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Protocol", self.headers["Sec-WebSocket-Protocol"])
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(told.encode()).digest()).decode())
        self.end_headers()
        self.hold()

    def watched(self) -> None:
        """Nothing here changes by itself."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.hold()

    def hold(self) -> None:
        """Until the other side goes."""
        with contextlib.suppress(ConnectionError):
            while self.rfile.read1(1 << 16):
                pass
        self.close_connection = True


def discovered(path: str) -> Manifest | None:
    """What the server says of itself; None for a path of something it holds."""
    if path == "/version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [{"groupVersion": told, "version": told.partition("/")[2]} for told in KINDS if "/" in told]
        named = [{"name": g["groupVersion"].partition("/")[0], "versions": [g], "preferredVersion": g} for g in groups]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": named}
    if path == "/openapi/v3":
        return {"paths": {api(told)[1:]: {"serverRelativeURL": f"/openapi/v3{api(told)}"} for told in KINDS}}
    for told, kinds in KINDS.items():
        if path == api(told):
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": told, "resources": [
                {"name": plural(kind), "singularName": kind.lower(), "namespaced": kind not in OF_ALL, "kind": kind,
                 "verbs": ["create", "get", "list", "patch", "update", "watch"]} for kind in kinds.split()
            ]}  # fmt: skip
        if path == f"/openapi/v3{api(told)}":
            return {"openapi": "3.0.0", "info": {"title": "stand-in", "version": "1"}, "paths": dict(
                patched(told, kind) for kind in kinds.split()
            )}  # fmt: skip
    return None


def api(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def patched(version: str, kind: str) -> tuple[str, Manifest]:
    """That the server validates, and can be asked what it would do: kubectl looks first, and leaves both to it."""
    group, _, plain = version.rpartition("/")
    told: dict[str, Any] = {"group": group, "version": plain, "kind": kind}
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in ("dryRun", "fieldValidation")]
    place = "" if kind in OF_ALL else "/namespaces/{namespace}"
    operation = {"x-kubernetes-group-version-kind": told, "parameters": parameters, "responses": {}}
    return f"{api(version)}{place}/{plural(kind)}/{{name}}", {"patch": operation}


@contextmanager
def stand_in() -> Iterator[StandIn]:
    cluster = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answer,), {"cluster": cluster}))
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
