"""The `registry` command: thin verbs over the same core as the service.

Exit codes: 0 all is well · 1 something that was looked at is not · 2 wrong usage or configuration.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import click

from registry import __version__, check, demo
from registry.access import SCOPES, Access, Token
from registry.audit import AuditLog
from registry.errors import RegistryError, SettingsError
from registry.repository.commands import require_git
from registry.services import Services
from registry.settings import DEFAULT_FILE, Settings

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST_LIFE = timedelta(days=36_500)


_config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="REGISTRY_CONFIG",
    default=DEFAULT_FILE,
    show_default=True,
    help="The configuration file.",
)


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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="registry")
def cli() -> None:
    """A model registry that lives in Git: one-hour download links for one token."""


@cli.command()
@_config_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8080, show_default=True, help="Where to listen.")
@click.option("--workers", default=2, show_default=True, help="Worker processes.")
def serve(config: Path, host: str, port: int, workers: int) -> None:
    """Start the service: gunicorn on the configuration."""
    # What is wrong is said here, once, and not by every worker.
    require_git()
    settings = Settings.load(config)
    Services.of(settings)
    _access(settings)
    _audit(settings)
    command = _gunicorn(host, port, workers)
    os.execve(command[0], command, _environment(config))  # noqa: S606 no shell on purpose


@cli.command(name="check")
@_config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def check_command(config: Path, as_json: bool) -> None:
    """Validate the configuration, reach every repository, and get one byte from every location."""
    require_git()
    services = _services(config)
    findings = list(check.run(services))
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        _table(
            ("", "KIND", "NAME", "RESULT"),
            [("ok" if item.ok else "FAIL", item.kind, item.name, item.result) for item in findings],
        )
    if not all(finding.ok for finding in findings):
        sys.exit(1)


@cli.group()
def token() -> None:
    """Create, list and revoke the tokens of pipelines and scripts."""


@token.command(name="create")
@_config_option
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
    access = _access(Settings.load(config))
    until = datetime.now(timezone.utc) + expires
    record, text = access.create(name, list(scopes), list(repositories), until)
    if as_json:
        click.echo(json.dumps({**_as_dict(record), "token": text}, indent=2))
    else:
        click.echo(text)
        click.echo(
            f"Token {record.id} for {', '.join(repositories)}, good until {until:%Y-%m-%d %H:%M} "
            "UTC. Keep it now: it is not shown again.",
            err=True,
        )


@token.command(name="list")
@_config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_tokens(config: Path, as_json: bool) -> None:
    """List every token that was ever created. The tokens themselves are not kept."""
    records = _access(Settings.load(config)).tokens()
    if as_json:
        click.echo(json.dumps([_as_dict(record) for record in records], indent=2))
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
    _table(("ID", "NAME", "SCOPES", "REPOSITORIES", "EXPIRES", "STATE"), rows)


@token.command(name="revoke")
@_config_option
@click.argument("token_id", metavar="ID")
def revoke_token(config: Path, token_id: str) -> None:
    """Revoke a token: no worker accepts it 5 s later."""
    record = _access(Settings.load(config)).revoke(token_id)
    click.echo(f"Token {record.id} ({record.principal.name}) is revoked.")


@cli.command(name="tags")
@_config_option
@click.option(
    "--changed",
    is_flag=True,
    required=True,
    help="List the version tags that their origin changed after they were first seen.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_tags(config: Path, changed: bool, as_json: bool) -> None:  # noqa: ARG001 asked for by name
    """List the version tags that were moved or deleted, as the mirrors of this machine saw it."""
    services = _services(config)
    found = [
        (mirrored.repository.name, change)
        for mirrored in services.repositories
        for change in mirrored.repository.changes()
    ]
    if as_json:
        listed = [{"repository": name, **asdict(change)} for name, change in found]
        click.echo(json.dumps(listed, indent=2))
        return
    rows = [
        (
            name,
            change.tag,
            change.event,
            change.kept[:10],
            (change.origin or "-")[:10],
            f"{datetime.fromtimestamp(change.seen, timezone.utc):%Y-%m-%d %H:%M}",
        )
        for name, change in found
    ]
    _table(("REPOSITORY", "TAG", "EVENT", "FIRST SEEN AS", "AT THE ORIGIN", "SINCE (UTC)"), rows)


@cli.group()
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
@_config_option
@_day_option
def verify_audit(config: Path, day: str | None) -> None:
    """Find rows that were changed, removed or inserted. Exit code 1 if there are any."""
    problems = list(_audit(Settings.load(config)).verify(day))
    for problem in problems:
        click.echo(problem)
    if problems:
        sys.exit(1)
    click.echo(f"The audit log{f' of {day}' if day else ''} is whole.")


@audit.command(name="show")
@_config_option
@_day_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line, not a table.")
def show_audit(config: Path, day: str | None, as_json: bool) -> None:
    """List what was granted and refused, oldest first."""
    rows = _audit(Settings.load(config)).rows(day)
    if as_json:
        for row in rows:
            click.echo(row.record)
        return
    columns = ("at", "token", "address", "decision", "repository", "selector", "revision", "reason")
    records = [json.loads(row.record) for row in rows]
    _table(
        tuple(name.upper() for name in columns),
        [tuple(str(record.get(name) or "") for name in columns) for record in records],
    )


@cli.command(name="demo")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path("var/demo"),
    show_default=True,
    help="Where the demo lives. What is there is kept.",
)
@click.option("--port", default=8080, show_default=True, help="Where a new demo listens.")
def demo_command(directory: Path, port: int) -> None:
    """Start the service on a small embedded demo, and print commands to try."""
    require_git()
    settings = demo.create(directory, f"http://localhost:{port}")
    address = urlsplit(settings.public_url)
    secret = demo.token(directory, _access(settings))
    _audit(settings)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # from now on, the server ends with us
    server = subprocess.Popen(
        _gunicorn(address.hostname or "localhost", address.port or 80, workers=2),
        env=_environment(directory / "registry.yaml"),
    )
    try:
        if _is_up(server, settings.public_url):
            click.echo(_guide(settings.public_url, secret, directory))
        sys.exit(server.wait())
    except KeyboardInterrupt:
        sys.exit(0)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """The entry point: a failure of ours is one line on stderr that says what to do."""
    try:
        cli()
    except RegistryError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    click.echo(f"{click.style('Error:', fg='red')} {message}", err=True)
    sys.exit(2)


def _make_data_dir(settings: Settings) -> None:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"must be a directory, or a place to make one: {error.strerror}"
        raise SettingsError("data_dir", problem) from None
    if not os.access(settings.data_dir, os.W_OK | os.X_OK):
        raise SettingsError("data_dir", "must be a directory that this account may write to")


def _services(config: Path) -> Services:
    settings = Settings.load(config)
    _make_data_dir(settings)
    services = Services.of(settings)
    click.get_current_context().call_on_close(services.close)
    return services


def _access(settings: Settings) -> Access:
    _make_data_dir(settings)
    access = Access(settings.database, settings.secret_keys)
    click.get_current_context().call_on_close(access.close)
    access.create_tables()
    return access


def _audit(settings: Settings) -> AuditLog:
    _make_data_dir(settings)
    audit = AuditLog(settings.database, settings.secret_keys, settings.audit)
    click.get_current_context().call_on_close(audit.close)
    audit.create_tables()
    return audit


def _environment(config: Path) -> dict[str, str]:
    """For a server. Its workers add up their metrics in a directory, which ends with the server.

    Not below data_dir: the files are mapped into memory, and a full disk would kill who writes.
    """
    key = "PROMETHEUS_MULTIPROC_DIR"
    shared = Path(os.environ.get(key) or tempfile.mkdtemp(prefix="registry-metrics-"))
    shared.mkdir(parents=True, exist_ok=True)
    for left_by_another in shared.glob("*.db"):
        left_by_another.unlink(missing_ok=True)
    return {**os.environ, "REGISTRY_CONFIG": str(config.absolute()), key: str(shared)}


def _gunicorn(host: str, port: int, workers: int) -> list[str]:
    """Threads, since requests wait for Git and storage; links fit into the longest request line.

    There is no access log of gunicorn's: its lines would hold gateway links, which are secrets.
    """
    options = {
        "config": "python:registry.server",
        "bind": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "workers": workers,
        "worker-class": "gthread",
        "threads": 16,
        "timeout": 60,
        "graceful-timeout": 30,
        "keep-alive": 75,
        "limit-request-line": 8190,
        "log-level": "warning",
    }
    arguments = [item for key, value in options.items() for item in (f"--{key}", str(value))]
    return [sys.executable, "-m", "gunicorn", *arguments, "registry.wsgi:app"]


def _is_up(server: "subprocess.Popen[bytes]", url: str) -> bool:
    for _ in range(300):
        if server.poll() is not None:
            return False
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=1):  # noqa: S310 our own URL
                return True
        except OSError:
            time.sleep(0.1)
    return False


def _guide(url: str, secret: str, directory: Path) -> str:
    query = f"repo={demo.REPOSITORY}&name={demo.ARTIFACT}&stage=prod"
    endpoint = f"{url}/api/model-registry/get-download-uris?{query}"
    request = urllib.request.Request(endpoint, headers={"Authorization": f"token {secret}"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 our own URL
        answer = response.read().decode()
    ((path, link),) = json.loads(answer).items()
    with urllib.request.urlopen(link, timeout=10) as response:  # noqa: S310 our own URL
        md5 = response.headers["ETag"].strip('"')
    return f"""
The registry answers at {url} from {directory / "origin.git"}. Ask for the model in `prod`:

  curl -s -H 'Authorization: token {secret}' \\
    '{endpoint}'

It answers

  {answer}

Download the file and check it:

  curl -fsS -o {path} '{link}' \\
    && echo '{md5}  {path}' | md5sum -c

Stop with Ctrl-C; what is in {directory} is kept for the next start.
"""


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


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
