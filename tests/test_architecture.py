"""The rules of the house: who may import what, what nobody may call, and how long a file may grow."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("probe", "configgen")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LINES = 400

RANK_SIDE = {f"probe/bench/{name}.py" for name in ("node", "board", "worker", "device", "collectives", "compute")}
"""What runs in the process of a node alone, which is started for it; nothing else imports these."""

DOORS = {
    "pynvml": {"probe/sources/nvml_reader.py"},
    "psutil": {"probe/sources/host.py"},
    "torch": {*RANK_SIDE, "probe/bench/verify.py"},
    "ray": {"probe/bench/ray_nodes.py"},
    "click": {"configgen/cli/"},
    "yaml": {"configgen/cli/yaml_file.py", "configgen/deploy/config.py"},  # reading options, writing engines' files
    "jinja2": {"configgen/templates.py"},
    "rich": {"configgen/report/terminal.py"},
    "huggingface_hub": {"configgen/hub.py"},
    "msgspec": {"probe/", "configgen/"},
    "defusedxml": {"probe/sources/xml.py"},
}
"""Every import from outside the standard library, and the only places that may have it."""

LAZY = ("torch", "ray", "jinja2", "huggingface_hub", "psutil", "pynvml", "yaml", "defusedxml", "sqlite3")
"""Imported inside the function that needs it: its module is on the path of commands that don't."""

PURE = {
    *("probe.topology", "probe.islands", "probe.measurement", "probe.catalog", "probe.errors", "probe.units"),
    *("probe.statistics", "probe.curve", "probe.stability", "probe.finding"),
    *("probe.drift", "probe.outliers", "probe.fleet_audit"),
    *("probe.rails", "probe.tiling", "probe.bench.candidates", "probe.bench.schedule"),
    *("probe.audit", "probe.finding", "probe.counters", "probe.fabric_health"),
    *(f"probe.checks.{name}" for name in ("view", "driver", "notices", "gpus", "nvlink", "fabric", "pcie", "nics")),
    *(f"probe.checks.{name}" for name in ("code", "codes", "codes_links", "codes_gpu", "codes_host", "codes_run")),
    *("probe.checks.codes_input", "probe.checks.codes_measured", "probe.links"),
    *(f"probe.checks.{name}" for name in ("measured", "reading", "bandwidth", "siblings", "used", "rates", "gaps")),
    *(f"probe.checks.{name}" for name in ("expectation", "group", "network", "reach")),
    *("probe.bench.seen", "probe.bench.conductor", "probe.bench.rehearsal", "probe.bench.generations"),
    *("configgen.plan", "configgen.search", "configgen.decide", "configgen.memory", "configgen.model"),
    *("configgen.placement", "configgen.judge", "configgen.explain", "configgen.laws", "configgen.launch"),
    "configgen.weights",
    *("configgen.quantization", "configgen.families", "configgen.fields"),
    *("configgen.cost", "configgen.passes", "configgen.roofline", "configgen.rates", "configgen.wires"),
    *("configgen.forecast", "configgen.whatif"),
    *("configgen.checked", "configgen.check", "configgen.crossings"),
    *("configgen.engines.language", "configgen.engines.spellings", "configgen.engines.shell"),
    *("configgen.engines.reading", "configgen.engines.asked"),
    *("configgen.comparison", "configgen.facts", "configgen.contrasts", "configgen.carryover", "configgen.compare"),
}
IO = {
    "io",
    "os",
    "pathlib",
    "subprocess",
    "socket",
    "shutil",
    "tempfile",
    "urllib",
    "http",
    "time",
    "random",
    "logging",
}
READS_ITS_OWN_DATA = {"probe.catalog": {"pathlib"}}

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "pdb"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {path: ast.parse(path.read_text("utf-8"), filename=str(path)) for path in FILES}
each_file = pytest.mark.parametrize("path", FILES, ids=name_of)


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported anywhere in a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_at_start(tree: ast.Module) -> Iterator[str]:
    for statement in tree.body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            yield from imports(statement)


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 40
    known = {module_of(path) for path in FILES}
    assert known >= PURE, "a pure file was renamed: name it here again"
    doors = {place for places in DOORS.values() for place in places} - {"probe/sources/xml.py"}
    assert all((ROOT / place).exists() for place in doors), "a door was renamed: name it here again"


@each_file
def test_facts_never_import_decisions(path: Path) -> None:
    if path.is_relative_to(ROOT / "probe"):
        assert not [name for name in imports(TREES[path]) if name.partition(".")[0] == "configgen"]


@each_file
def test_every_library_has_one_door(path: Path) -> None:
    known = {*PACKAGES, *sys.stdlib_module_names}
    for library in {name.partition(".")[0] for name in imports(TREES[path])} - known:
        assert library in DOORS, f"{library} is no dependency of this project"
        assert name_of(path).startswith(tuple(DOORS[library])), f"{library} has its door at {DOORS[library]}"


@each_file
def test_heavy_imports_wait_until_they_are_needed(path: Path) -> None:
    at_start = {name.partition(".")[0] for name in imports_at_start(TREES[path])}
    if name_of(path) not in DOORS["pynvml"] | DOORS["defusedxml"] | RANK_SIDE:  # processes and modules of their own
        assert not at_start & set(LAZY)


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_files_know_only_pure_files(module: str) -> None:
    tree = TREES[ROOT / (module.replace(".", "/") + ".py")]
    everything = {module_of(path) for path in FILES}
    for name in imports(tree):
        top = name.partition(".")[0]
        if top in PACKAGES:
            assert name not in everything or name in PURE, f"{module} is pure, {name} is not"
        else:
            assert top in sys.stdlib_module_names, f"{module} is pure and knows no {top}"
            assert top not in IO - READS_ITS_OWN_DATA.get(module, set()), f"{module} is pure and does no I/O"
    if module not in READS_ITS_OWN_DATA:
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "open"]


@each_file
def test_nothing_runs_what_it_reads(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imports(TREES[path])} & FORBIDDEN_MODULES
    for call in (node for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)):
        function = call.func
        called = function.id if isinstance(function, ast.Name) else ""
        literal = called == "__import__" and isinstance(call.args[0], ast.Constant)
        assert literal or called not in FORBIDDEN_CALLS, f"line {call.lineno} calls {called}"
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            whole = f"{function.value.id}.{function.attr}"
            assert whole not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"), whole
        for keyword in call.keywords:
            shell = keyword.arg == "shell" and getattr(keyword.value, "value", None) is not False
            assert not shell, f"line {call.lineno} starts a shell"


@each_file
def test_what_imports_torch_is_imported_by_nothing_else(path: Path) -> None:
    if name_of(path) not in RANK_SIDE:
        modules = {name.removesuffix(".py").replace("/", ".") for name in RANK_SIDE}
        assert not modules & set(imports(TREES[path]))


@each_file
def test_only_the_command_prints_or_exits(path: Path) -> None:
    processes = ("probe/sources/nvml_reader.py", "probe/bench/node.py", "probe/bench/channel.py")
    if name_of(path).startswith(("configgen/cli/", "configgen/report/terminal.py", *processes)):
        return
    for call in (node for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)):
        called = ast.unparse(call.func)
        assert called not in ("print", "sys.exit", "exit", "os._exit", "sys.stdout.write"), (
            f"line {call.lineno}: {called}"
        )


@each_file
def test_no_file_grows_past_its_limit(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LINES


@each_file
def test_every_module_says_what_it_is_for(path: Path) -> None:
    told = ast.get_docstring(TREES[path])
    assert told, "a module docstring"
    if path.name == "__init__.py":
        first = told.split("\n")[0]
        assert first.endswith("."), "one sentence"
        assert len(told.splitlines()) == 1, "one sentence"


def test_every_package_has_an_init() -> None:
    for folder in {path.parent for path in FILES}:
        assert (folder / "__init__.py").is_file()
