"""The image: what it is, that it is the same each time, and that nothing of the builder is in it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest
from pods import BASE, HOME, ROOT, Podman

CONTEXT = ("LICENSE", "README.md", "pyproject.toml", "configgen", "locks", "probe", "scripts", "templates")
MOST_BYTES = 70_000_000
"""Of all that the image adds to its base: the packages, a quarter of them the model hub's client."""

PYTHON = "/opt/wirelore/bin/python3"


def printed(podman: Podman, image: str, *command: str) -> str:
    program, *words = command
    return podman(
        "run", "--rm", "--network=none", "--read-only", "--cap-drop=all", f"--entrypoint={program}", image, *words
    )


def packages(podman: Podman, image: str) -> dict[str, str]:
    code = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()), sep='\\n')"
    lines = printed(podman, image, PYTHON, "-c", code).split()
    return {
        re.sub("[-_.]+", "-", name.lower()): version for name, _, version in (line.partition("==") for line in lines)
    }


def test_it_runs_as_a_user_without_rights_and_says_what_it_is(podman: Podman, image: str) -> None:
    told = podman.inspected("image", image)["Config"]
    assert (told["User"], told["Entrypoint"]) == ("65532:65532", ["wirelore"]), "a number, for runAsNonRoot"
    labels = {name.rpartition(".")[2]: text for name, text in told["Labels"].items() if name.startswith("org.opencont")}
    assert labels["title"] == "wirelore"
    assert labels["licenses"] == "Apache-2.0"
    assert f'version = "{labels["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert re.match("[0-9a-f]{40}(-dirty)?$", labels["revision"])
    assert labels["description"]
    names = [word.partition("=")[0] for word in told["Env"]]
    assert sorted(names) == ["NVIDIA_DRIVER_CAPABILITIES", "PATH"], "which GPUs it sees is the scheduler's to say"


def test_it_plans_with_no_right_and_no_network(podman: Podman, image: str) -> None:
    words = ("plan", "llama-3.1-8b", "--from", "machine:l4-2", "--format", "flags")
    assert "--tensor-parallel-size 2" in printed(podman, image, "wirelore", *words)


def test_it_is_small(podman: Podman, image: str) -> None:
    size, base = (podman.inspected("image", name)["Size"] for name in (image, BASE))
    assert size - base < MOST_BYTES
    assert not {"torch", "ray", "pip", "hatchling"} & packages(podman, image).keys()


def test_everything_in_it_is_compiled(podman: Podman, image: str) -> None:
    """Nothing can be written where it runs, so what is left out costs time at every start."""
    code = (
        "import configgen.decide as d, pathlib, sys; "
        "assert pathlib.Path(d.__cached__).is_file(); print(pathlib.Path(d.__cached__).read_bytes()[4])"
    )
    assert printed(podman, image, PYTHON, "-c", code) == "1\n", "by hash and unchecked (PEP 552)"


def test_its_bill_of_materials_names_what_is_in_it(podman: Podman, image: str) -> None:
    told = subprocess.run(
        ["make", "-s", "sbom", f"IMAGE={image}"], cwd=ROOT, env=dict(podman.environ), capture_output=True, check=True
    )
    bill = json.loads(told.stdout)
    assert bill["bomFormat"] == "CycloneDX"
    named = {re.sub("[-_.]+", "-", part["name"].lower()): part["version"] for part in bill["components"]}
    named["wirelore"] = bill["metadata"]["component"]["version"]
    assert named == packages(podman, image)


def tree_of(podman: Podman, image: str) -> bytes:
    """The file system, with owners, modes and times, as podman exports it."""
    name = f"wirelore-tree-{secrets.token_hex(4)}"
    podman("create", "--name", name, "--network=none", image)
    try:
        exported = subprocess.run(["podman", "export", name], env=dict(podman.environ), capture_output=True, check=True)
    finally:
        podman("rm", name)
    return exported.stdout


def test_another_builder_makes_the_same_bytes_and_leaves_none_of_its_own(
    podman: Podman, image: str, tmp_path: Path
) -> None:
    """Another folder, other times and modes of files, no cache; and secrets wherever a builder has some."""
    planted = [f"planted{secrets.token_hex(16)}" for _ in range(5)]
    for name in CONTEXT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tmp_path / name)
    for name in ("Containerfile", ".containerignore"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / ".env").write_text(f"TOKEN={planted[0]}\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text(f"[http]\nextraHeader = {planted[1]}\n")
    (tmp_path / "notes.txt").write_text(planted[2])
    mirror = tmp_path / "pip.conf"
    mirror.write_text(f"{(HOME / 'pip.conf').read_text()}# https://user:{planted[3]}@mirror.example/\n")
    revision = podman.inspected("image", image)["Config"]["Labels"]["org.opencontainers.image.revision"]
    tag = "localhost/wirelore-test-again"
    podman.build(
        tag,
        *(f"--secret=id=pip.conf,src={mirror}", f"--build-arg=REVISION={revision}"),
        tree=tmp_path,
        HF_TOKEN=planted[4],
    )
    first, second = (podman.inspected("image", name) for name in (image, tag))
    assert first["RootFS"]["Layers"] == second["RootFS"]["Layers"]
    assert first["Config"] == second["Config"]
    everything = tree_of(podman, tag) + json.dumps(second).encode() + podman("history", "--no-trunc", tag).encode()
    assert not [secret for secret in planted if secret.encode() in everything]
    assert b"PIP_" not in podman("history", "--no-trunc", tag).encode(), "nor how the packages were fetched"


@pytest.fixture(scope="module")
def measuring_image(podman: Podman, engine_image: str) -> str:
    tag = "localhost/wirelore-test-engine"
    podman.build(
        tag,
        *("--no-cache=false", "-f", "Containerfile.engine", "--build-arg", f"ENGINE_IMAGE={engine_image}"),
        *("--build-arg", "ENGINE_PYTHON=/opt/engine/bin/python3"),
    )
    return tag


def test_an_engines_image_lends_its_torch_and_stays_as_it_is(
    podman: Podman, engine_image: str, measuring_image: str
) -> None:
    code = "import torch, click; print(torch.__version__, click.__file__.startswith('/opt/wirelore/'))"
    assert printed(podman, measuring_image, PYTHON, "-c", code) == "2.99.0+stub True\n"
    assert printed(podman, measuring_image, "wirelore", "--version").startswith("wirelore ")
    engines = ("find", "/opt/engine", "-type", "f", "-exec", "sha256sum", "{}", "+")
    before, after = (sorted(printed(podman, name, *engines).splitlines()) for name in (engine_image, measuring_image))
    assert before == after
    own = podman.inspected("image", measuring_image)["Config"]
    was = podman.inspected("image", engine_image)["Config"]
    assert own["Env"] == was["Env"], "its programs are found where they were"
    assert own["Cmd"] == was["Cmd"]
    assert own.get("Entrypoint") == was.get("Entrypoint")
    assert not printed(podman, measuring_image, "ls", "/tmp")


@pytest.mark.parametrize("which", ["image", "measuring_image"])
def test_a_fresh_volume_in_it_is_for_every_user(podman: Podman, request: pytest.FixtureRequest, which: str) -> None:
    """Volumes take the mode of the image's folder; podman alone also gives them to the user who comes first."""
    volume = f"wirelore-fresh-{os.getpid()}"
    for folder in ("/plan", "/cache"):
        podman("volume", "create", volume)
        mounted = ("--user", "1000:1000", "--volume", f"{volume}:{folder}", "--entrypoint", "sh")
        words = (request.getfixturevalue(which), "-c", f"touch {folder}/written && stat -c %a {folder}")
        try:
            assert podman("run", "--rm", "--network", "none", *mounted, *words).strip() == "1777"
        finally:
            podman("volume", "rm", "--force", volume)
