"""`wirelore audit --fleet`: thousands of surveys, each judged by its equals."""

from __future__ import annotations

from pathlib import Path

from configgen.cli.options import put
from probe.errors import UsageError

FORMATS = ("text", "json", "html")


def audit_fleet(pattern: str, *, format: str = "text", output: Path | None = None) -> bool:
    """Prints the audit of the surveys in a folder, or of those that a pattern names, or writes it to a file; whether
    nothing is wrong. Raises WireloreError."""
    if format not in FORMATS:
        raise UsageError(f"a fleet is not told as {format}", cure=f"Take --format {', '.join(FORMATS)}.")
    from datetime import datetime, timezone

    from configgen.report.fleet import fleet_lines, fleet_page
    from probe.fleet_files import audit_files, fleet_files

    fleet = audit_files(fleet_files(pattern))
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    if format == "json":
        from configgen.fleet_document import encode_fleet

        put(encode_fleet(fleet, audited_at=now), output)
    elif format == "html":
        put(fleet_page(fleet, audited_at=now).encode(), output)
    elif output is not None:
        put("".join(f"{line.text}\n" for line in fleet_lines(fleet)).encode(), output)
    else:
        from configgen.report.terminal import print_lines

        print_lines(fleet_lines(fleet))
    return fleet.passes
