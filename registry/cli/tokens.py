"""`registry token`: create, list and revoke the tokens of pipelines and scripts."""

import re
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import click

from registry.access import SCOPES, Token
from registry.cli.opened import access_of, config_option
from registry.cli.terminal import json_option, print_json, print_table
from registry.settings import Settings

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST_LIFE = timedelta(days=36_500)


def _duration(_: click.Context, parameter: click.Parameter, value: str) -> timedelta:
    """`90d`, `12h`, `30m`, `2w` -> a timedelta; click's usage error for anything else."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", value)
    if not found:
        problem = f"{value!r} is not a number followed by m, h, d or w, such as 90d"
        raise click.BadParameter(problem, param=parameter)
    duration = timedelta(seconds=int(found[1]) * _UNITS[found[2]])
    if duration > _LONGEST_LIFE:
        raise click.BadParameter(f"{value!r} is more than a hundred years", param=parameter)
    return duration


@click.group()
def token() -> None:
    """Create, list and revoke the tokens of pipelines and scripts."""


@token.command(name="create")
@config_option
@click.option("--name", required=True, help="What the token is for, such as ci.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    default=["models:read"],
    show_default=True,
    help="What it allows. May be given more than once.",
)
@click.option(
    "--repository",
    "repositories",
    multiple=True,
    default=["*"],
    show_default=True,
    help="A pattern of repository names it is good for. May be given more than once.",
)
@click.option(
    "--expires", default="90d", show_default=True, callback=_duration, help="When: 12h, 90d, 52w."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the bare token.")
def create_token(
    config: Path,
    name: str,
    scopes: tuple[str, ...],
    repositories: tuple[str, ...],
    expires: timedelta,
    as_json: bool,
) -> None:
    """Create a token. It is printed this once and cannot be shown again."""
    access = access_of(Settings.load(config))
    until = datetime.now(timezone.utc) + expires
    record, text = access.create(name, list(scopes), list(repositories), until)
    if as_json:
        print_json({**_as_dict(record), "token": text})
    else:
        click.echo(text)
        click.echo(
            f"Token {record.id} for {', '.join(repositories)}, good until {until:%Y-%m-%d %H:%M} "
            "UTC. Keep it now: it is not shown again.",
            err=True,
        )


@token.command(name="list")
@config_option
@json_option
def list_tokens(config: Path, as_json: bool) -> None:
    """List every token there was; those of CI jobs go a week after their end. None is shown."""
    records = access_of(Settings.load(config)).tokens()
    if as_json:
        print_json([_as_dict(record) for record in records])
        return
    now = time.time()
    rows = [
        (
            record.id,
            record.principal.name,
            ",".join(sorted(record.principal.scopes)),
            ",".join(record.principal.repositories),
            f"{record.expires:%Y-%m-%d}",
            record.problem(now) or "active",
        )
        for record in records
    ]
    print_table(("ID", "NAME", "SCOPES", "REPOSITORIES", "EXPIRES", "STATE"), rows)


@token.command(name="revoke")
@config_option
@click.argument("token_id", metavar="ID")
@json_option
def revoke_token(config: Path, token_id: str, as_json: bool) -> None:
    """Revoke a token: no worker accepts it 5 s later."""
    record = access_of(Settings.load(config)).revoke(token_id)
    if as_json:
        print_json(_as_dict(record))
        return
    click.echo(f"Token {record.id} ({record.principal.name}) is revoked.")


def _as_dict(record: Token) -> dict[str, object]:
    return {
        "id": record.id,
        "name": record.principal.name,
        "scopes": sorted(record.principal.scopes),
        "repositories": list(record.principal.repositories),
        "created": record.created.isoformat(),
        "expires": record.expires.isoformat(),
        "revoked": record.revoked.isoformat() if record.revoked else None,
    }
