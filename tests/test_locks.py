"""What the image is made of is named by version and hash, and is what the package asks for."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "locks").glob("*.txt"))


def pins(lock: Path) -> dict[str, set[str]]:
    """Name -> versions, of which each Python takes one; every one of them has its hashes."""
    found: dict[str, set[str]] = {}
    for entry in re.split(r"\n(?=[a-z0-9])", lock.read_text())[1:]:
        told = Requirement(entry.partition("\\")[0])
        (specifier,) = told.specifier
        assert specifier.operator == "=="
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), f"{told.name} has no hash"
        found.setdefault(told.name, set()).add(specifier.version)
    return found


def test_every_lock_is_there() -> None:
    assert [lock.stem for lock in LOCKS] == ["build", "image", "kubernetes", "sbom"]
    assert all(pins(lock) for lock in LOCKS)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no tomllib: NOTHING of the image's lock is tested")
def test_the_image_has_what_the_package_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in project["dependencies"]]
    locked = pins(ROOT / "locks" / "image.txt")
    for requirement in wanted:
        name = requirement.name.lower().replace("_", "-")
        assert name in locked, f"run scripts/lock-image: {name} is new"
        assert all(version in requirement.specifier for version in locked[name]), f"run scripts/lock-image: {name}"
    assert not {"torch", "ray"} & locked.keys()


def test_two_locks_in_one_image_agree() -> None:
    image, kubernetes = (pins(ROOT / "locks" / f"{name}.txt") for name in ("image", "kubernetes"))
    assert {name: image[name] for name in image.keys() & kubernetes.keys()} == {
        name: kubernetes[name] for name in image.keys() & kubernetes.keys()
    }


def test_what_enters_the_build_is_a_list() -> None:
    """A working tree holds keys and notes; the image's context must name what it takes, not what it leaves."""
    lines = [line for line in (ROOT / ".containerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines[1:] if line.startswith("!")} == {
        *("LICENSE", "README.md", "configgen", "locks", "probe", "pyproject.toml", "templates")
    }
