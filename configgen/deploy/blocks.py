"""YAML written from data, with a reason above what needs one; nothing of a plan reaches the text unescaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configgen.deploy.config import yaml_scalar
from probe.errors import one_line


class Said(str):
    """A key with its reason, which stands above it as a comment; for all else it is the key."""

    __slots__ = ("reason",)
    reason: str

    def __new__(cls, key: str, reason: str) -> Said:
        said = super().__new__(cls, key)
        said.reason = reason
        return said


class Lines(str):
    """A text of several lines that stands in the document as it is; made by `yaml_text`, so printable throughout."""

    __slots__ = ()


def yaml_text(document: Mapping[str, Any]) -> str:
    """One document in block style; each value reads back as it was given."""
    return "\n".join(_lines(document, "")) + "\n"


def yaml_documents(head: Sequence[str], documents: Sequence[Mapping[str, Any]]) -> str:
    """Documents of one file below what is to be said of them all."""
    comments = "".join(f"# {one_line(line)}\n" for line in head)
    return comments + "---\n".join(yaml_text(document) for document in documents)


def _lines(value: Any, pad: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, Said):
                yield f"{pad}# {one_line(key.reason)}"
            name = yaml_scalar(str(key))
            if isinstance(item, Lines):
                yield f"{pad}{name}: |"
                yield from (f"{pad}  {line}" for line in item.splitlines())
            elif _is_nested(item):
                yield f"{pad}{name}:"
                yield from _lines(item, pad + "  ")
            else:
                yield f"{pad}{name}: {_leaf(item)}"
        return
    for item in value:
        if not _is_nested(item):
            yield f"{pad}- {_leaf(item)}"
            continue
        inner = list(_lines(item, pad + "  "))
        first = next(i for i, line in enumerate(inner) if not line.lstrip().startswith("# "))
        yield from (pad + line.lstrip() for line in inner[:first])
        yield f"{pad}- {inner[first][len(pad) + 2 :]}"
        yield from inner[first + 1 :]


def _is_nested(item: Any) -> bool:
    return isinstance(item, (Mapping, list, tuple)) and len(item) > 0


def _leaf(item: Any) -> str:
    if isinstance(item, Mapping):
        return "{}"
    return "[]" if isinstance(item, (list, tuple)) else yaml_scalar(item)
