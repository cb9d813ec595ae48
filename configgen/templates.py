"""The one door of jinja2: finds the templates in the wheel or in the source tree and fills them."""

from __future__ import annotations

from pathlib import Path

from probe.errors import one_line

_HERE = Path(__file__).resolve().parent


def templates_folder() -> Path:
    """`configgen/_templates` of an installed wheel, else `templates/` beside the packages (editable install)."""
    packed = _HERE / "_templates"
    return packed if packed.is_dir() else _HERE.parent / "templates"


def fill(name: str, **values: object) -> str:
    """Fills a template. Shell words go through `quote`, comments through `comment`: nothing reaches a file raw."""
    import shlex

    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - shell, not HTML: the filters below escape
        loader=FileSystemLoader(templates_folder()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = shlex.quote
    environment.filters["word"] = shell_word
    environment.filters["comment"] = one_line
    return environment.get_template(name).render(**values)


def shell_word(word: str) -> str:
    """A word as a shell reads it back: quoted, or a variable's value and what follows it."""
    import shlex

    from configgen.launch import Given

    if not isinstance(word, Given):
        return shlex.quote(word)
    return f'"${word.name}"' + (shlex.quote(word.rest) if word.rest else "")
