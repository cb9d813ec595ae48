"""Small YAML files that people write: options per command, and options of engines; bounded in size and depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probe.errors import UsageError

_LIMIT_BYTES = 1 << 16
_DEPTH = 3


def read_yaml(path: Path, cure: str) -> dict[Any, Any]:
    """The mapping that the file holds. Raises UsageError on anything else."""
    import yaml

    try:
        with path.open("rb") as stream:
            data = stream.read(_LIMIT_BYTES + 1)
        if len(data) > _LIMIT_BYTES:
            raise UsageError(f"{path} is larger than {_LIMIT_BYTES >> 10} KiB", cure=cure)
        depth = 0
        for event in yaml.parse(data, yaml.SafeLoader):
            # Aliases can grow without bound, and the time to read nested brackets grows with the square of their depth.
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEPTH:
                raise UsageError(f"{path} uses YAML aliases or is nested too deep", cure=cure)
        told = yaml.safe_load(data) or {}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", cure=cure) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UsageError(f"{path} is no readable YAML", cure=cure) from error
    if not isinstance(told, dict):
        raise UsageError(f"{path} holds no options", cure=cure)
    return told
