"""`registry audit`: read and verify the audit log."""

import json
import sys
from datetime import date
from pathlib import Path

import click

from registry.cli.opened import audit_of, config_option
from registry.cli.terminal import json_option, print_json, print_table
from registry.settings import Settings


@click.group()
def audit() -> None:
    """Read and verify the audit log: who was given links to what."""


def _day(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return value and date.fromisoformat(value).isoformat()
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a day like 2027-01-15", param=parameter
        ) from None


_day_option = click.option("--day", callback=_day, help="One day only, such as 2027-01-15 (UTC).")


@audit.command(name="verify")
@config_option
@_day_option
@json_option
def verify_audit(config: Path, day: str | None, as_json: bool) -> None:
    """Find rows that were changed, removed or inserted. Exit code 1 if there are any."""
    problems = list(audit_of(Settings.load(config)).verify(day))
    if as_json:
        print_json({"problems": problems})
    elif problems:
        click.echo("\n".join(problems))
    else:
        click.echo(f"The audit log{f' of {day}' if day else ''} is whole.")
    if problems:
        sys.exit(1)


@audit.command(name="show")
@config_option
@_day_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line, not a table.")
def show_audit(config: Path, day: str | None, as_json: bool) -> None:
    """List what was granted and refused, oldest first."""
    rows = audit_of(Settings.load(config)).rows(day)
    if as_json:
        for row in rows:
            click.echo(row.record)
        return
    columns = (
        *("at", "token", "address", "decision", "repository", "selector", "revision", "reason"),
        "subject",
    )
    records = [json.loads(row.record) for row in rows]
    print_table(
        tuple(name.upper() for name in columns),
        [tuple(str(record.get(name) or "") for name in columns) for record in records],
    )
