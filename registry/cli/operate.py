"""The verbs of whoever runs the service: serve, check, tags and demo."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

import click

from registry import check as checks
from registry import demo as demos
from registry.cli.opened import (
    access_of,
    audit_of,
    config_option,
    issued_of,
    services_of,
    upgrade_tracking,
)
from registry.cli.terminal import json_option, print_json, print_table
from registry.repository.commands import require_git
from registry.services import Services
from registry.settings import Settings


@click.command()
@config_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8080, show_default=True, help="Where to listen.")
@click.option("--workers", default=2, show_default=True, help="Worker processes.")
def serve(config: Path, host: str, port: int, workers: int) -> None:
    """Start the service: gunicorn on the configuration."""
    _open_standard_streams()
    # What is wrong is said here, once, and not by every worker.
    require_git()
    settings = Settings.load(config)
    Services.of(settings)
    access_of(settings)
    audit_of(settings)
    upgrade_tracking(settings)
    issued_of(settings)
    command = gunicorn_command(host, port, workers)
    os.execve(command[0], command, _environment(config))  # noqa: S606 no shell on purpose


def _open_standard_streams() -> None:
    """Gives a closed standard stream somewhere to go, for the server and all it starts.

    The next file that is opened, such as the database, would take its place, and with it whatever
    is printed there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free: this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


@click.command()
@config_option
@json_option
def check(config: Path, as_json: bool) -> None:
    """Validate the configuration, reach what it names, and get a byte of every location."""
    require_git()
    services = services_of(config)
    findings = list(checks.run(services))
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        print_table(
            ("", "KIND", "NAME", "RESULT"),
            [("ok" if item.ok else "FAIL", item.kind, item.name, item.result) for item in findings],
        )
    if not all(finding.ok for finding in findings):
        sys.exit(1)


@click.command()
@config_option
@click.option(
    "--changed",
    is_flag=True,
    required=True,
    help="List the version tags that their origin changed after they were first seen.",
)
@json_option
def tags(config: Path, changed: bool, as_json: bool) -> None:  # noqa: ARG001 asked for by name
    """List the version tags that were moved or deleted, as the mirrors of this machine saw it."""
    services = services_of(config)
    found = [
        (mirrored.repository.name, change)
        for mirrored in services.repositories
        for change in mirrored.repository.changes()
    ]
    if as_json:
        listed = [{"repository": name, **asdict(change)} for name, change in found]
        print_json(listed)
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
    print_table(
        ("REPOSITORY", "TAG", "EVENT", "FIRST SEEN AS", "AT THE ORIGIN", "SINCE (UTC)"), rows
    )


@click.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path("var/demo"),
    show_default=True,
    help="Where the demo lives. What is there is kept.",
)
@click.option("--port", default=8080, show_default=True, help="Where a new demo listens.")
def demo(directory: Path, port: int) -> None:
    """Start the service on a small embedded demo, and print commands to try."""
    require_git()
    settings = demos.create(directory, f"http://localhost:{port}")
    address = urlsplit(settings.public_url)
    secret = demos.token(directory, access_of(settings))
    audit_of(settings)
    issued_of(settings)
    upgrade_tracking(settings)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # from now on, the server ends with us
    server = subprocess.Popen(
        gunicorn_command(address.hostname or "localhost", address.port or 80, workers=2),
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


def gunicorn_command(host: str, port: int, workers: int) -> list[str]:
    """What starts the server. All that gunicorn needs to know besides stands in registry/server.py.

    What is said here is the last word: GUNICORN_CMD_ARGS overrides the rest.
    """
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    options = ["--config", "python:registry.server", "--bind", bind, "--workers", str(workers)]
    return [sys.executable, "-m", "gunicorn", *options, "registry.wsgi:app"]


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
    query = f"repo={demos.REPOSITORY}&name={demos.ARTIFACT}&stage=prod"
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

Or have both done, and the next time only what is missing:

  REGISTRY_URL={url} REGISTRY_TOKEN={secret} \\
    registry get {demos.REPOSITORY} {demos.ARTIFACT} --stage prod -o models

Stop with Ctrl-C; what is in {directory} is kept for the next start.
"""
