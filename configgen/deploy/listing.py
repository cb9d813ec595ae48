"""A Launch as JSON: what each process is started with, and why, for programs that start it themselves."""

from __future__ import annotations

import json
from typing import Any

from configgen.launch import Given, Launch, Process

SCHEMA_VERSION = 1


def listing(launch: Launch) -> str:
    """The launch document. Words that only the start knows are {"from_environment", "then"}."""
    return (
        json.dumps(
            {
                "schema_version": SCHEMA_VERSION,
                "engine": launch.engine,
                "engine_version": launch.engine_version,
                "processes": [_process(process) for process in launch.processes],
                "notes": list(launch.notes),
            },
            indent=2,
        )
        + "\n"
    )


def _process(process: Process) -> dict[str, Any]:
    return {
        "node": process.node,
        "hostname": process.hostname,
        "replica": process.replica,
        "port": process.port,
        "command": [_word(word) for word in process.command],
        "flags": [{"words": [_word(w) for w in flag.words], "reason": flag.reason} for flag in process.flags],
        "environment": [{"name": v.name, "value": v.value, "reason": v.reason} for v in process.environment],
        "files": [
            {"name": f.name, "settings": [{"key": s.key, "value": s.value, "reason": s.reason} for s in f.settings]}
            for f in process.files
        ],
    }


def _word(word: str) -> str | dict[str, str]:
    return {"from_environment": word.name, "then": word.rest} if isinstance(word, Given) else word
