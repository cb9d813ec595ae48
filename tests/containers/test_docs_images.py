"""The images of docs/kubernetes.md, built and pushed by the page's own commands.

What a machine without a registry needs lies around them: images that stand in for those of docker.io, and a `podman`
that is given the network of a build, and a folder in place of the registry that it pushes to.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_commands import ROOT, documented, program, run_in_bash
from pods import BASE, HOME, Podman

BUILD_S = 110.0
PODMAN = """#!/bin/sh
# With the options that a build, and a push, need on a machine like this.
case $1 in
build) exec {podman} "$@" {options} ;;
push) exec {podman} "$@" dir:{registry} ;;
*) exit 64 ;;
esac
"""


@pytest.fixture
def builder(podman: Podman, tmp_path: Path) -> dict[str, str]:
    """The environment in which the page's commands run in a clone."""
    mounts = [f"--volume={path}:{path}:ro" for path in ("/etc/resolv.conf", "/etc/ssl/certs")]
    secret = f"--secret=id=pip.conf,src={HOME / 'pip.conf'}"
    # Another build of the same bytes takes what the first one left: that it needs nothing of it is tested elsewhere.
    options = " ".join(["--quiet", "--no-cache=false", "--network=host", f"--build-arg=BASE={BASE}", *mounts, secret])
    text = PODMAN.format(podman=shutil.which("podman"), options=options, registry=tmp_path / "registry")
    program(tmp_path / "bin", "podman", text)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {**podman.environ, "PATH": path, "SOURCE_DATE_EPOCH": "1700000000"}


@pytest.fixture
def tags(podman: Podman) -> Iterator[list[str]]:
    """Names that are taken off after the test."""
    given: list[str] = []
    yield given
    for name in given:
        podman.ended("untag", name, name)


def test_the_image_is_built_and_pushed(
    podman: Podman, image: str, builder: dict[str, str], tags: list[str], tmp_path: Path
) -> None:
    make, push = documented("kubernetes.md", "make image", "podman push")
    name = make.text.partition("IMAGE=")[2]
    tags.append(name)
    run_in_bash(make, ROOT, builder, BUILD_S)
    assert podman.inspected("image", name)["Id"] == podman.inspected("image", image)["Id"]
    run_in_bash(push, ROOT, builder, BUILD_S)
    pushed = json.loads((tmp_path / "registry" / "manifest.json").read_text())
    assert pushed["config"]["digest"] == f"sha256:{podman.inspected('image', name)['Id']}"
    shutil.rmtree(tmp_path / "registry")


def test_the_engines_image_gets_wirelore(
    podman: Podman, engine_image: str, builder: dict[str, str], tags: list[str]
) -> None:
    """Into the stand-in for an engine, which has the name of the real one here."""
    (build,) = documented("kubernetes.md", "scripts/build-image registry.example.com/vllm")
    (engine,) = [word.partition("=")[2] for word in build.words if word.startswith("ENGINE_IMAGE=")]
    tags += [engine, build.words[1]]
    podman("tag", engine_image, engine)
    run_in_bash(build, ROOT, builder, BUILD_S)
    told = podman("run", "--rm", "--network=none", "--entrypoint=wirelore", build.words[1], "--version")
    assert told.startswith("wirelore ")


def test_the_image_can_have_kubernetes_own_client(podman: Podman, builder: dict[str, str], tags: list[str]) -> None:
    (build,) = documented("kubernetes.md", "scripts/build-image registry.example.com/wirelore")
    tags.append(build.words[1])
    run_in_bash(build, ROOT, builder, BUILD_S)
    words = ("agent", "--once", "--node-labels")
    ended = podman.ended("run", "--rm", "--network=none", "--env=NODE_NAME=gpu-7", build.words[1], *words)
    assert "Check the cluster's address" in ended.stderr, "the client is there, and no cluster"
