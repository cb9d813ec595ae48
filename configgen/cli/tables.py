"""`wirelore models`, `machines` and `schema`: what is built in."""

from __future__ import annotations

import click


@click.command("models")
def models_command() -> None:
    """List the models whose facts are built in; any Hugging Face name or folder with config.json works too."""
    from configgen.hub import known_models
    from configgen.report.terminal import print_table
    from probe.units import parameters

    rows = ((m.name, _short(m.aliases), parameters(m.parameters), m.date) for m in known_models())
    print_table(("model", "short name", "parameters", "facts of"), rows)


def _short(aliases: tuple[str, ...]) -> str:
    return next((alias for alias in aliases if "/" not in alias), "")


@click.command("machines")
def machines_command() -> None:
    """List the synthetic machines for --from machine:NAME."""
    from configgen.report.terminal import print_table
    from probe.sources.machines import MACHINES

    print_table(("name", "what it is"), ((name, kind.about) for name, kind in sorted(MACHINES.items())))


@click.command("schema")
@click.argument(
    "document",
    type=click.Choice(["topology", "survey", "plan", "comparison", "check", "audit", "history", "fleet"]),
    default="topology",
)
def schema_command(document: str) -> None:
    """Print the JSON Schema of a document."""
    from configgen.audit_document import audit_schema
    from configgen.check_document import check_schema
    from configgen.compare_document import comparison_schema
    from configgen.document import plan_schema
    from configgen.fleet_document import fleet_schema
    from configgen.history_document import history_schema
    from probe.store import survey_schema, to_json, topology_schema

    schemas = {
        "topology": topology_schema,
        "survey": survey_schema,
        "plan": plan_schema,
        "comparison": comparison_schema,
        "check": check_schema,
        "audit": audit_schema,
        "history": history_schema,
        "fleet": fleet_schema,
    }
    click.echo(to_json(schemas[document]()), nl=False)
