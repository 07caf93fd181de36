"""The registry itself, started as an operator starts it."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import urllib3

from servers.process import HOST, free_ports, running


@dataclass(frozen=True)
class Service:
    """A running service, and the configuration that it was started with. `pid` is the process
    that all others of the service descend from.
    """

    url: str
    config: Path
    log: Path
    pid: int = 0

    def token(self, *options: str) -> str:
        """A new token that sees every repository, made on the command line."""
        return self.command("token", "create", "--name", "ci", *options).strip()

    def command(self, *words: str) -> str:
        """What `registry ...` prints with this configuration. Raises CalledProcessError."""
        command = [sys.executable, "-m", "registry", *words, "--config", str(self.config)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def probe(self) -> None:
        """Raises until the service answers."""
        with urllib3.PoolManager(retries=False) as pool:
            if pool.request("GET", f"{self.url}/healthz").status != 200:
                raise ConnectionError("the service is not healthy")


@contextmanager
def start(
    directory: Path,
    repositories: Sequence[Mapping[str, object]],
    storage: Sequence[Mapping[str, object]],
    *,
    workers: int = 2,
    prefix: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    port: int | None = None,
    **settings: object,
) -> Iterator[Service]:
    """Starts `registry serve` with these parts of the configuration, and whatever else `settings`
    say. `prefix` goes before the command, such as `prlimit --nofile=64`; `port` is a free one
    unless it is given.
    """
    port = port or free_ports(1)[0]
    url = f"http://{HOST}:{port}"
    service = Service(url, directory / "registry.yaml", directory / "registry.log")
    document = {
        "data_dir": str(directory / "data"),
        "public_url": service.url,
        "secret_key": "a secret key of the tests, long enough",
        "repositories": list(repositories),
        "storage": list(storage),
        **settings,
    }
    # JSON is YAML.
    service.config.write_text(json.dumps(document))
    command = [*prefix, sys.executable, "-m", "registry", "serve", "--config", str(service.config)]
    command += ["--host", HOST, "--port", str(port), "--workers", str(workers)]
    with running(command, service.probe, log=service.log, environ=environ) as process:
        yield replace(service, pid=process.pid)
