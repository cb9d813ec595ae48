"""The command `wirelore`: click only; the one place that prints or exits."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

import click

from configgen.cli.root import wirelore
from probe.errors import WireloreError, one_line

_OUR_BUG = 70


def main() -> None:
    """Entry point: runs the command and turns every ending into one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs with these arguments; returns the exit code. A traceback appears only with --debug."""
    debug = "--debug" in arguments
    try:
        code = wirelore.main(arguments, prog_name="wirelore", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except WireloreError as error:
        if debug:
            raise
        return _end(str(error), error.exit_code)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        return _end("interrupted", 130)
    except click.UsageError as error:
        message = error.format_message()
        hint = f" See `{error.ctx.command_path} --help`." if error.ctx else ""
        return _end(f"{message}{'' if message.endswith(('.', '?')) else '.'}{hint}", 2)
    except click.ClickException as error:
        return _end(error.format_message(), 2)
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    except (BrokenPipeError, SystemExit):  # the reader of standard output went away; click makes SystemExit of that
        _leave_stdout()
        return 0
    except OSError as error:
        if debug:
            raise
        _leave_stdout()
        where = f"{error.filename}: " if error.filename else "the output: "
        return _end(f"cannot read or write {where}{error.strerror}. Check the disk and its permissions.", 2)
    except Exception as error:
        if debug:
            raise
        return _end(
            f"this is a bug in wirelore: {type(error).__name__}: {error}. Run again with --debug and report it.",
            _OUR_BUG,
        )


def _leave_stdout() -> None:
    """So that what is left in its buffer cannot fail a second time when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _end(message: str, code: int) -> int:
    click.echo(f"wirelore: {one_line(message, 600)}", err=True)
    return code
