"""A stand-in for an engine: a program of its name that records what an emitted script really starts it with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from command import environment, wirelore

from configgen.document import decode_plan, encode_plan
from configgen.launch import Given, Process
from configgen.plan import Plan

RECORDED = (
    *("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "NCCL_P2P_DISABLE", "MASTER_ADDR"),
    *("VLLM_PP_LAYER_PARTITION", "SGLANG_PP_LAYER_PARTITION", "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"),
)
MASTER = "10.0.0.7"

STUB = f"""#!{sys.executable} -IS
import json, os, sys, time
told = {{"argv": sys.argv[1:], "environment": {{k: os.environ[k] for k in {RECORDED!r} if k in os.environ}}}}
whole = os.path.join(os.environ["RECORDS"], str(os.getpid()))
with open(whole + "-partial", "w") as file:  # then renamed: a neighbour that ends takes it along
    json.dump(told, file)
os.rename(whole + "-partial", whole)
deadline = time.monotonic() + 15  # a server runs on; this one until all its neighbours have started
# Renamed when it is whole: the first neighbour that ends takes this one with it.
started = lambda: sum(name.isdigit() for name in os.listdir(os.environ["RECORDS"]))
while started() < int(os.environ.get("SERVERS", 1)) and time.monotonic() < deadline:
    time.sleep(0.005)
if os.environ.get("FAILING_PORT", "none") in sys.argv:
    sys.exit(3)
if "FAILING_PORT" in os.environ:
    time.sleep(60)
"""

AWKWARD = [
    "two  words",
    'it\'s "quoted"',
    "$(touch pwned)",
    "`touch pwned`",
    "$HOME ${PATH} !! \\ \\n %s",
    "a;touch pwned|b&c>d<e#f*?[a-z]~{x,y}",
    "new\nline",
    "#",
    "größe-模型-🚀",
    "/models/--trust-remote-code",
    "$MASTER_ADDR",
    "{{ launch }} {% raw %}",
    "tab\tand\x1b[31mescape\x7f",
]


def stub_engine(folder: Path, name: str) -> Path:
    """A folder with a program of this name that records how it was called."""
    binaries = folder / "bin"
    binaries.mkdir()
    (binaries / name).write_text(STUB)
    (binaries / name).chmod(0o755)
    return binaries


def run_script(script: Path, engine: Path, *, shell: str = "sh", ends: int = 0, **more: str) -> list[dict[str, Any]]:
    """What each started engine recorded, by port and node rank."""
    records = script.parent / f"records-{script.stem}-{shell}"
    records.mkdir()
    environ = environment(PATH=f"{engine}:{os.environ['PATH']}", RECORDS=str(records), **more)
    ended = subprocess.run(
        [shell, str(script)], env=environ, capture_output=True, cwd=records, timeout=20, check=False, text=True
    )
    assert ended.returncode == ends, ended.stderr
    assert ended.stderr == ""
    told = [json.loads(path.read_text()) for path in sorted(records.iterdir())]
    assert all(path.name.isdigit() for path in records.iterdir()), "a name was run as a command"
    return sorted(told, key=lambda record: str(record["argv"]))


def emitted(decided: Plan, folder: Path) -> list[Path]:
    """The plan through a file and the command, as scripts."""
    (folder / "plan.json").write_bytes(encode_plan(decided))
    ended = wirelore("emit", "plan.json", "--target", "shell", "-o", "scripts", cwd=folder)
    assert ended.data() == ""
    files = list((folder / "scripts").iterdir())
    scripts = sorted((f for f in files if f.suffix == ".sh"), key=lambda path: int(path.stem.removeprefix("node")))
    assert ended.err == f"wrote {len(files)} file{'s' * (len(files) > 1)} into scripts\n"
    return scripts


def expected(processes: list[Process], **more: str) -> list[dict[str, Any]]:
    """What the stub should record; the first word of argv is the stub's own name."""
    told = [
        {
            "argv": [more[w.name] + w.rest if isinstance(w, Given) else w for w in process.argv[1:]],
            "environment": {**{v.name: v.value for v in process.environment}, **more},
        }
        for process in processes
    ]
    return sorted(told, key=lambda record: str(record["argv"]))


def decided_by(*arguments: str, folder: Path) -> Plan:
    wirelore("plan", *arguments, "-o", "plan.json", cwd=folder).data()
    return decode_plan((folder / "plan.json").read_bytes(), where="plan.json")
