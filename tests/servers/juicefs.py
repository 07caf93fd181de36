"""S3 as the JuiceFS gateway speaks it, which checks signatures with MinIO's code: the strictest."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import s3
from servers.process import HOST, NotStarted, executable, free_ports, running

_KEYS = s3.Keys("AKIATEST0000000JUICE", "testsecretkey/0000000000000000000000000+")


@contextmanager
def start(directory: Path) -> Iterator[s3.Server]:
    """Starts a gateway over a directory."""
    juicefs = executable("juicefs")
    metadata = f"badger://{directory / 'metadata'}"
    made = subprocess.run(
        [
            *(juicefs, "format", "--storage", "file", "--bucket", f"{directory / 'objects'}/"),
            *("--trash-days", "0", metadata, "tests"),
        ],
        env={"HOME": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise NotStarted(made.stderr)
    port, metrics = free_ports(2)
    command = [
        *(juicefs, "gateway", metadata, f"{HOST}:{port}", "--multi-buckets", "--keep-etag"),
        *(
            "--no-agent",
            "--no-banner",
            "--no-usage-report",
            "--cache-dir",
            str(directory / "cache"),
        ),
        *("--log", str(directory / "gateway.log"), "--metrics", f"{HOST}:{metrics}"),
    ]
    environ = {
        "MINIO_ROOT_USER": _KEYS.access_key_id,
        "MINIO_ROOT_PASSWORD": _KEYS.secret_access_key,
        # Without it any region would do.
        "MINIO_REGION": s3.REGION,
    }
    url, log = f"http://{HOST}:{port}", directory / "juicefs.log"
    with s3.connect(url, _KEYS) as client:
        server = s3.Server(url, _KEYS, client)
        with running(command, server.probe, log=log, environ=environ):
            yield server
