"""The registry itself, started as an operator starts it."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import urllib3

from servers.process import HOST, free_ports, running


@dataclass(frozen=True)
class Service:
    """A running service, and the configuration that it was started with."""

    url: str
    config: Path

    def token(self) -> str:
        """A new token that sees every repository, made on the command line."""
        command = [sys.executable, "-m", "registry", "token", "create", "--name", "ci"]
        command += ["--config", str(self.config)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

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
) -> Iterator[Service]:
    """Starts `registry serve` with these parts of the configuration."""
    (port,) = free_ports(1)
    service = Service(f"http://{HOST}:{port}", directory / "registry.yaml")
    document = {
        "data_dir": str(directory / "data"),
        "public_url": service.url,
        "secret_key": "a secret key of the tests, long enough",
        "repositories": list(repositories),
        "storage": list(storage),
    }
    # JSON is YAML.
    service.config.write_text(json.dumps(document))
    command = [sys.executable, "-m", "registry", "serve", "--config", str(service.config)]
    command += ["--host", HOST, "--port", str(port)]
    with running(command, service.probe, log=directory / "registry.log"):
        yield service
