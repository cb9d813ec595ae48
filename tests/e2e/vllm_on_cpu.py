"""Stands before vLLM on PATH under its name: the emitted command on a machine without GPUs.

Leaves out what only CUDA has, adds what a CPU needs, writes both down, and becomes vLLM. Nothing else is changed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

CUDA_ONLY = {"--device-ids": 1, "--gpu-memory-utilization": 1, "--disable-custom-all-reduce": 0}
"""Flags without meaning on a CPU, and how many words follow them."""
CPU_NEEDS = ("-cc.mode=2", "-cc.backend=eager", "--dtype", "float32", "--distributed-executor-backend", "mp")
"""No compiler, exact arithmetic, so that tokens can be compared, and workers as on GPUs."""


def on_cpu(words: list[str]) -> tuple[list[str], list[str]]:
    """The words that stay, and those that are left out."""
    kept: list[str] = []
    left_out: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in CUDA_ONLY:
            left_out += [word, *(next(rest) for _ in range(CUDA_ONLY[word]))]
        else:
            kept.append(word)
    return kept, left_out


def main() -> None:
    kept, left_out = on_cpu(sys.argv[1:])
    added = (
        list(CPU_NEEDS) if "--headless" in kept else [*CPU_NEEDS, "--host", "127.0.0.1", "--port", os.environ["PORT"]]
    )
    told = {"emitted": sys.argv[1:], "left_out": left_out, "added": added}
    Path(os.environ["RECORDS"], f"{os.getpid()}.json").write_text(json.dumps(told))
    os.execv(os.environ["REAL_VLLM"], ["vllm", *kept, *added])


if __name__ == "__main__":
    main()
