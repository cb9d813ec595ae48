"""The real engines, each in an environment of its own: `scripts/setup-engines` makes them, these ask them."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configgen.engines.rules import engine_traits
from configgen.plan import EngineTraits

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TIMEOUT_S = 500


def home() -> Path:
    """The folder of the environments."""
    return Path(os.environ.get("ENGINES_HOME", ROOT / ".engines")).resolve()


@dataclass(frozen=True)
class Engine:
    """One version of an engine and how its own code is asked; `path` lies before its environment's packages."""

    name: str
    version: str
    environment: str
    checker: str
    path: str | None = None

    @property
    def traits(self) -> EngineTraits:
        """What rules.py says of it."""
        return engine_traits(f"{self.name}@{self.version}")

    @property
    def python(self) -> Path:
        return home() / self.environment / "bin" / "python"

    def missing(self) -> str | None:
        """Why it can't be asked here."""
        needed = [self.python, *([home() / self.path] if self.path else [])]
        absent = [str(path) for path in needed if not path.exists()]
        return f"{' and '.join(absent)} not there; scripts/setup-engines makes it" if absent else None

    def ask(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The answers, in order, from one process: its imports take most of the time."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "VLLM_", "HF_"))}
        environ |= {"VLLM_CACHE_ROOT": str(home() / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
        environ.pop("PYTHONPATH", None)
        if self.path is not None:
            environ["PYTHONPATH"] = str(home() / self.path)
        with tempfile.TemporaryFile("w+") as said:
            ended = subprocess.run(
                [str(self.python), str(HERE / self.checker)],
                input="".join(json.dumps(request) + "\n" for request in requests),
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=environ,
                timeout=TIMEOUT_S,
                check=False,
            )
            said.seek(0)
            tail = said.read()[-3000:]
        first, *answers = [json.loads(line) for line in ended.stdout.splitlines()] or [{}]
        assert len(answers) == len(requests), f"{self.name} ended early, with {ended.returncode}:\n{tail}"
        told = str(first["version"]).partition("+")[0]
        assert told == self.version, f"this environment holds {self.name} {told}, not {self.version}"
        return answers


VLLM = (
    Engine("vllm", "0.33.0", "vllmenv", "check_vllm.py", path="vllm033"),
    Engine("vllm", "0.32.0", "vllmenv", "check_vllm.py"),
)
SGLANG = Engine("sglang", "0.5.23", "sglenv", "check_sglang.py")
