"""What kinds of laws there are: how we say each, and how an engine does."""

from __future__ import annotations

import re
from collections.abc import Mapping

KINDS: Mapping[str, tuple[re.Pattern[str], re.Pattern[str]]] = {
    kind: (re.compile(ours), re.compile(theirs))
    for kind, ours, theirs in (
        ("heads", r"attention heads do not divide", r"attention heads .* must be divisible|is not divisible by"),
        ("no copies", r"keeps no copies", r"integer modulo by zero|is not divisible by|num_kv_heads"),
        ("KV heads", r"KV heads neither|key heads of linear", r"is not divisible by|num_kv_heads|num_heads"),
        ("no experts", r"has no experts", r"[Nn]umber of experts|no experts"),
        ("experts", r"experts do not divide", r"experts"),
        ("blocks", r"(block|group) \d+ does not divide", r"block_[nk]|not aligned with the quantized|group|divisible"),
        ("channels", r"channels do not divide", r"is not divisible by|% self\.tp_size"),
        ("vocabulary", r"a vocabulary of", r"is not divisible by"),
        ("pipeline", r"has no pipeline", r"[Pp]ipeline [Pp]aralle"),
        ("gpus", r"GPUs used", r"World size \(\d+\) is larger than the number of available GPUs"),
    )
}

STRICTER: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        "experts": "vLLM gives some ranks one expert more than others; the step then waits for the fullest",
        "blocks": "vLLM cuts FP8 blocks of experts down to what a rank holds, and loses all kernels but Triton's",
    },
}
"""Kinds of laws that we keep though the engine doesn't, and why."""


def kind_of(law: str) -> str:
    """The kind of one of our laws."""
    return next(kind for kind, (ours, _) in KINDS.items() if ours.search(law))
