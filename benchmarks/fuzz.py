"""Damaged descriptions by the hundred thousand: each must become a Topology or one line of refusal, soon and in bounds.

    benchmarks/fuzz.py [--inputs 200000] [--seeds DIR] [--seed 1]

Seeds are all files below DIR (../shared/topologies by default, where it exists) and documents of our own; each input
is a seed with 1 to 8 random damages. Deterministic for one --seed. Reports tracebacks, inputs slower than 1 s and the
peak memory of the workers; exits 1 where there is a traceback, a hang, or more than 300 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from probe.errors import WireloreError
from probe.sources.machines import MACHINES, machine
from probe.sources.registry import read_bytes
from probe.store import encode_topology

DEFAULT_SEEDS = Path(__file__).resolve().parent.parent.parent / "shared" / "topologies"
SLOW_S = 1.0
PEAK_MB = 300
CHUNK = 500
_WORDS = [b"GPU0", b"NIC0", b"NV18", b"SYS", b"X", b"<gpu>", b"</pci>", b'"nodes"', b"null", b"-1", b"9" * 30, b"&amp;",
          b"\x1b[4m", b"\r", b"\t", b"NaN", b"1e999", b"[[[[", b"{}", b"]]>", b"\xff\xfe", b"\xc2\xa0"]  # fmt: skip


def damage(data: bytes, dice: random.Random) -> bytes:
    """The data with one random damage."""
    if not data:
        return dice.choice(_WORDS)
    a, b = sorted((dice.randrange(len(data)), min(len(data), dice.randrange(len(data)) + 1)))
    b = min(b, a + dice.choice((1, 2, 8, 64, 1024)))
    kind = dice.randrange(8)
    if kind == 0:
        return data[:a] + data[b:]
    if kind == 1:
        return data[:a] + data[a:b] * 2 + data[b:]
    if kind == 2:
        return data[:a]
    if kind == 3:
        return data[:a] + dice.choice(_WORDS) + data[a:]
    if kind == 4:
        return data[:a] + bytes(dice.randrange(256) for _ in range(b - a)) + data[b:]
    if kind == 5:
        digits = [i for i in range(a, min(len(data), a + 400)) if 48 <= data[i] <= 57]
        i = dice.choice(digits) if digits else a
        return data[:i] + str(dice.choice((0, 1, 7, 99, 2**31, 2**64))).encode() + data[i + 1 :]
    if kind == 6:
        lines = data.split(b"\n")
        i, j = dice.randrange(len(lines)), dice.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
        return b"\n".join(lines)
    return data[b:] + data[:a]


def own_seeds() -> list[bytes]:
    """Documents of our own: every synthetic machine of one node as JSON, and a record of two GPUs."""
    facts: list[dict[str, object]] = [
        {"fact": "bindings", "value": "pynvml.py"}, {"fact": "init", "value": True}, {"fact": "count", "value": 2},
        {"fact": "driver", "value": "580.95.05"}, {"fact": "ancestor", "at": [0, 1], "value": 50},
        *({"fact": "read", "at": [i], "value": True} for i in range(2)),
        *({"fact": "name", "at": [i], "value": "NVIDIA L40S"} for i in range(2)),
        *({"fact": "pci", "at": [i], "value": f"00000000:{16 + i:02X}:00.0"} for i in range(2)),
        *({"fact": "memory", "at": [i], "value": {"total": 48 << 30, "free": 47 << 30}} for i in range(2)),
        *({"fact": "p2p", "at": [0, 1, c], "error": 3, "name": "NotSupported"} for c in range(5)),
        {"fact": "end", "value": True},
    ]  # fmt: skip
    record = {"record_version": 1, "redacted": True, "facts": facts, "host": {}, "environment": {}}
    documents = [encode_topology(machine(name)) for name, kind in MACHINES.items() if kind.nodes == 1]
    return [*documents, *[json.dumps(record, indent=1).encode()] * 5]


def run(chunk: tuple[int, int, list[bytes]]) -> tuple[Counter[str], list[str], float]:
    """One chunk of inputs: how they ended, tracebacks and slow ones, the worker's peak memory in MB."""
    number, count, seeds = chunk
    dice = random.Random(number)
    ends: Counter[str] = Counter()
    bad: list[str] = []
    for _ in range(count):
        data = dice.choice(seeds)
        for _ in range(dice.randrange(1, 9)):
            data = damage(data, dice)
        start = time.perf_counter()
        try:
            read_bytes(data, where="input")
            ends["read"] += 1
        except WireloreError as error:
            ends["refused"] += 1
            if "\n" in str(error):
                bad.append(f"a refusal of several lines: {error}")
        except Exception:
            ends["traceback"] += 1
            bad.append(f"{traceback.format_exc(limit=-3)}\n  input: {data[:200]!r}")
        if (seconds := time.perf_counter() - start) > SLOW_S:
            ends["slow"] += 1
            bad.append(f"{seconds:.1f} s for {len(data)} bytes: {data[:200]!r}")
    return ends, bad, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seeds", type=Path, default=DEFAULT_SEEDS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    files = [p for p in sorted(options.seeds.rglob("*")) if p.is_file() and p.name != "index.jsonl"]
    if not files:
        print(f"no seeds below {options.seeds}: only documents of our own", file=sys.stderr)
    seeds = [p.read_bytes() for p in files]
    seeds += own_seeds()
    chunks = [(options.seed * 1_000_003 + i, CHUNK, seeds) for i in range(-(-options.inputs // CHUNK))]
    ends: Counter[str] = Counter()
    bad: list[str] = []
    peak = 0.0
    start = time.perf_counter()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for more, worse, megabytes in pool.map(run, chunks):
            ends += more
            bad += worse
            peak = max(peak, megabytes)
    for text in bad[:20]:
        print(text, file=sys.stderr)
    for name in ("read", "refused", "traceback", "slow"):
        print(f"{name}: {ends[name]}")
    print(f"inputs: {len(chunks) * CHUNK}\nseeds: {len(seeds)}\nseconds: {time.perf_counter() - start:.0f}")
    print(f"peak_mb: {peak:.0f}")
    return 1 if bad or peak > PEAK_MB else 0


if __name__ == "__main__":
    sys.exit(main())
