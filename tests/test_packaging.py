"""What is shipped: the wheel made from the sdist holds everything, and the command works from it and from the tree."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
from command import environment, wirelore

from configgen.templates import templates_folder

ROOT = Path(__file__).resolve().parent.parent

RUN = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import configgen, probe
print(configgen.__file__, probe.__file__, file=sys.stderr)
from configgen.cli import main
main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built by way of the sdist as an index would have it."""
    missing = [name for name in ("build", "hatchling") if find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: NOTHING of the wheel is tested")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(folder.glob("wirelore-*.tar.gz"))
    (made,) = folder.glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def run_from(folder: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command from that folder: isolated, so that neither the working directory nor a variable adds the tree."""
    command = [sys.executable, "-I", "-c", RUN, str(folder), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=30, check=False)


def test_the_wheel_holds_data_and_types(wheel: Path) -> None:
    for name in (
        "configgen/_templates/launch.sh.j2",
        "configgen/models.json",
        "configgen/py.typed",
        "probe/catalog.json",
        "probe/py.typed",
    ):
        assert (wheel / name).is_file(), name
    assert list(wheel.glob("wirelore-*.dist-info/licenses/LICENSE"))
    tops = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"configgen", "probe"}, "nothing else lands in site-packages"


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    files = [p for package in ("probe", "configgen") for p in (ROOT / package).rglob("*") if p.is_file()]
    known = {p.relative_to(ROOT).as_posix() for p in files if "__pycache__" not in p.parts and p.suffix != ".pyc"}
    known |= {
        f"configgen/_templates/{p.relative_to(ROOT / 'templates').as_posix()}"
        for p in (ROOT / "templates").rglob("*.*")
    }
    shipped = {p.relative_to(wheel).as_posix() for p in wheel.rglob("*") if p.is_file() and ".dist-info" not in str(p)}
    assert known <= shipped


def test_the_metadata(wheel: Path) -> None:
    (folder,) = wheel.glob("wirelore-*.dist-info")
    told = Parser().parsestr((folder / "METADATA").read_text())
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Requires-Python"] == ">=3.10"
    needed = told.get_all("Requires-Dist") or []
    always = {text.partition(";")[0].strip().partition(">")[0] for text in needed if "extra ==" not in text}
    assert "nvidia-ml-py" in always
    assert "pynvml" not in always, "the distribution of that name hides the bindings"
    assert "torch" not in always
    assert any(text.startswith("torch") and "measure" in text for text in needed)
    assert "wirelore = configgen.cli:main" in (folder / "entry_points.txt").read_text()


def test_the_command_works_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    planned = run_from(wheel, "plan", "llama-3.1-405b", "--from", "machine:2xhgx-h100", "-o", "plan.json", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert planned.stderr.startswith(f"{wheel}/configgen/__init__.py {wheel}/probe/__init__.py\n")
    assert json.loads((tmp_path / "plan.json").read_text())["tensor_parallel_size"] == 8
    emitted = run_from(wheel, "emit", "plan.json", "-o", "scripts", cwd=tmp_path)
    assert emitted.returncode == 0, emitted.stderr
    assert (tmp_path / "scripts" / "node1.sh").read_text().startswith("#!/bin/sh\n")
    from_tree = wirelore("emit", "plan.json", "-o", "from-tree", cwd=tmp_path)
    assert from_tree.code == 0
    assert (tmp_path / "from-tree" / "node1.sh").read_text() == (tmp_path / "scripts" / "node1.sh").read_text()


def test_the_command_works_from_an_editable_install(tmp_path: Path) -> None:
    told = json.loads(distribution("wirelore").read_text("direct_url.json") or "{}")
    if not told.get("dir_info", {}).get("editable"):
        pytest.skip("this environment has no editable install: NOTHING of it is tested")
    assert told["url"] == ROOT.as_uri()
    wirelore("plan", "llama-3.1-8b", "--from", "machine:h100-1", "-o", "plan.json", cwd=tmp_path).data()
    assert wirelore("emit", "plan.json", cwd=tmp_path).data().startswith("#!/bin/sh\n")
    assert templates_folder() == ROOT / "templates", "what is edited there is what is used"
