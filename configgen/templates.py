"""The one door of jinja2: finds the templates in the wheel or in the source tree and fills them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probe.errors import one_line, printable

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).resolve().parent


def templates_folder() -> Path:
    """`configgen/_templates` of an installed wheel, else `templates/` beside the packages (editable install)."""
    packed = _HERE / "_templates"
    return packed if packed.is_dir() else _HERE.parent / "templates"


def fill(name: str, **values: object) -> str:
    """Fills a template. Shell words go through `quote`, comments through `comment`: nothing reaches a file raw."""
    import shlex

    environment = _environment(autoescape=False)  # shell, not HTML: the filters below escape
    environment.filters["quote"] = shlex.quote
    environment.filters["word"] = shell_word
    environment.filters["comment"] = one_line
    return environment.get_template(name).render(**values)


def fill_html(name: str, **values: object) -> str:
    """Fills a template of a page: every text is escaped and without control characters, save what the
    template itself calls `safe`."""
    environment = _environment(autoescape=True)
    environment.finalize = lambda value: printable(value) if type(value) is str else value
    return environment.get_template(name).render(**values)


def part(name: str) -> str:
    """The text of a file beside the templates, as it stands."""
    return (templates_folder() / name).read_text("utf-8")


def _environment(*, autoescape: bool) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        autoescape=autoescape,  # noqa: S701 - what isn't HTML has escapes of its own
        loader=FileSystemLoader(templates_folder()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def shell_word(word: str) -> str:
    """A word as a shell reads it back: quoted, or a variable's value and what follows it."""
    import shlex

    from configgen.launch import Given

    if not isinstance(word, Given):
        return shlex.quote(word)
    return f'"${word.name}"' + (shlex.quote(word.rest) if word.rest else "")
