"""Published CRDs are brought and read right: shown with small ones of the form in which projects publish theirs."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("kubernetes_validate", reason="kubernetes-validate not installed: NO CRD is read")

import yaml
from cluster_plans import Manifest, decided_case, manifests
from crd_shapes import SPECS, published

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "setup-crds"
GROUP_CRD = """# some/project 0123 config/crd/bases/file.yaml

---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: leaderworkersets.leaderworkerset.x-k8s.io}
spec:
  group: leaderworkerset.x-k8s.io
  names: {kind: LeaderWorkerSet, plural: leaderworkersets}
  versions:
  - name: v1alpha1
    served: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {old: {type: string}}, required: [old]}
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        description: A set
        type: object
        properties:
          apiVersion: {type: string}
          kind: {type: string}
          metadata: {type: object}
          spec:
            type: object
            required: [leaderWorkerTemplate]
            x-kubernetes-validations:
            - {message: immutable, rule: self == oldSelf}
            properties:
              replicas: {type: integer, format: int32, default: 1}
              startupPolicy: {type: string, default: LeaderCreated, enum: [LeaderCreated, LeaderReady]}
              leaderWorkerTemplate:
                type: object
                properties:
                  restartPolicy: {type: string, enum: [RecreateGroupAfterStart, None]}
                  size: {type: integer}
                  leaderTemplate: {type: object, x-kubernetes-preserve-unknown-fields: true}
                  workerTemplate:
                    type: object
                    properties:
                      metadata:
                        type: object
                        properties:
                          labels: {type: object, additionalProperties: {type: string}}
                      spec:
                        type: object
                        x-kubernetes-preserve-unknown-fields: true
                        properties:
                          containers:
                            type: array
                            x-kubernetes-list-type: map
                            x-kubernetes-list-map-keys: [name]
                            items:
                              type: object
                              x-kubernetes-preserve-unknown-fields: true
                              properties:
                                resources:
                                  type: object
                                  properties:
                                    limits:
                                      type: object
                                      additionalProperties:
                                        anyOf: [{type: integer}, {type: string}]
                                        pattern: ^[0-9]+$
                                        x-kubernetes-int-or-string: true
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
spec:
  group: serving.kserve.io
  names: {kind: LLMInferenceService}
  versions:
  - name: v1alpha1
    served: true
    schema: {openAPIV3Schema: {type: object}}
"""


@pytest.fixture
def crds(tmp_path: Path) -> Path:
    (tmp_path / "lws.yaml").write_text(GROUP_CRD)
    return tmp_path


def template(group: Manifest) -> Manifest:
    return group["spec"]["leaderWorkerTemplate"]  # type: ignore[no-any-return]


def limits(group: Manifest) -> Manifest:
    return template(group)["workerTemplate"]["spec"]["containers"][0]["resources"]["limits"]  # type: ignore[no-any-return]


SPOILT: dict[str, tuple[bool, Callable[[Manifest], object]]] = {
    "as-emitted": (True, lambda m: None),
    "key": (False, lambda m: m["spec"].update(size=2)),
    "key-below": (False, lambda m: template(m).update(replicas=2)),
    "top-key": (False, lambda m: m.update(status={})),
    "enum": (False, lambda m: template(m).update(restartPolicy="Always")),
    "missing": (False, lambda m: m["spec"].pop("leaderWorkerTemplate")),
    "type": (False, lambda m: m["spec"].update(replicas="2")),
    "left-open": (True, lambda m: template(m)["leaderTemplate"].update(anything={"at": "all"})),
    "a-map's-key": (True, lambda m: template(m)["workerTemplate"]["metadata"]["labels"].update(more="x")),
    "a-map's-value": (False, lambda m: template(m)["workerTemplate"]["metadata"]["labels"].update(more=1)),
    "quantity-as-text": (True, lambda m: limits(m).update(memory="2")),
    "quantity-as-list": (False, lambda m: limits(m).update(memory=[2])),
    "metadata": (True, lambda m: m["metadata"].update(generation=1)),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_published_schema_takes_what_it_knows_and_nothing_else(crds: Path, spoilt: str) -> None:
    takes, spoil = SPOILT[spoilt]
    manifest = copy.deepcopy(manifests(decided_case("nodes"), "lws")["leaderworkerset.yaml"][0])
    spoil(manifest)
    schema = published("LeaderWorkerSet", crds)
    assert schema is not None
    assert schema.is_valid(manifest) is takes


def test_a_crd_without_our_version_is_no_schema_of_ours(crds: Path) -> None:
    with pytest.raises(
        AssertionError, match=r"lws.yaml has LLMInferenceService as .'v1alpha1'., and we write v1alpha2"
    ):
        published("LLMInferenceService", crds)
    assert published("RayService", crds) is None


def test_the_crds_are_brought_once_and_what_is_missing_is_named(tmp_path: Path) -> None:
    curl = tmp_path / "curl"
    curl.write_text(
        '#!/bin/sh\ncase "$*" in *rayservices*) exit 22 ;; esac\necho "$*" >> calls\necho "url: ${*##* }"\n'
    )
    curl.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def brought() -> subprocess.CompletedProcess[str]:
        command = [str(SCRIPT), str(tmp_path / "crds")]
        return subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=30
        )

    first = brought()
    assert (first.returncode, "Could not be had: kuberay" in first.stderr) == (1, True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == len(SPECS) - 1
    assert all(re.search(r"githubusercontent\.com/[\w-]+/[\w-]+/[0-9a-f]{40}/.+\.yaml$", call) for call in calls)
    for path in (tmp_path / "crds").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["url"].startswith("https://raw.githubusercontent.com/")
    curl.write_text("#!/bin/sh\necho anew >> calls\nexit 22\n")
    assert brought().returncode == 1
    assert (tmp_path / "calls").read_text().splitlines() == [*calls, "anew"], "what is there is not asked for again"
