"""What is measured, made by the program itself: repositories, a store, servers. Nothing of it is
outside the directory it is made in, and nothing speaks to anything but this machine.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import yaml

from registry import server as settings
from registry.access import Access
from registry.audit import AuditLog
from registry.cli.operate import gunicorn_command
from registry.dvc.manifest import object_key
from registry.issued import Issued
from registry.settings import Settings

ENDPOINT = "/api/model-registry/get-download-uris"
PATHS = "images/{}/class_{:03d}/sample_{:07d}.png"
"""Paths of some 42 characters, as data sets have them."""


class World:
    """Repositories `one` (a tag, and artifacts of a file and two directories) and, when asked for,
    `many` (a hundred thousand tags), with the store their objects lie in.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = directory / "store"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.store))
        Thread(target=self._server.serve_forever, daemon=True).start()
        self.settings: Settings
        self.token = ""

    def close(self) -> None:
        """Stops the store."""
        self._server.shutdown()
        self._server.server_close()

    def configure(self, *names: str, storage: Mapping[str, object] | None = None) -> Path:
        """Writes the configuration over the repositories of these names, and makes a token. Their
        objects are in the store of this world, unless `storage` says where.
        """
        document = {
            "data_dir": str(self.directory / "var"),
            "secret_key": "a key for measuring, and long enough for it",
            "repositories": [
                {
                    "url": str(self.directory / f"{name}.git"),
                    "name": f"bench/{name}",
                    "aliases": [f"https://git.example/bench/{name}.git"],
                }
                for name in names
            ],
            "storage": [
                storage
                or {
                    "url": "s3://team-models/dvc",
                    "repositories": ["bench/*"],
                    "region": "eu-west-1",
                    "endpoint_url": f"http://127.0.0.1:{self._server.server_port}",
                    "public_endpoint_url": "https://s3.eu-west-1.amazonaws.com",
                    "access_key_id": "AKIAEXAMPLE",
                    "secret_access_key": "secret",
                }
            ],
        }
        file = self.directory / "registry.yaml"
        file.write_text(yaml.safe_dump(document))
        self.settings = Settings.load(file)
        self.settings.data_dir.mkdir(exist_ok=True)
        access = Access(self.settings.database, self.settings.secret_keys)
        access.create_tables()
        until = datetime.now(timezone.utc) + timedelta(days=1)
        _, self.token = access.create("bench", ["models:read"], ["*"], until)
        access.close()
        audit = AuditLog(self.settings.database, self.settings.secret_keys, self.settings.audit)
        audit.create_tables()
        audit.close()
        issued = Issued(self.settings.database)
        issued.create_tables()
        issued.close()
        return file

    def path(self, name: str, repository: str = "one", **query: str) -> str:
        """What to ask the registry for, from `/` on."""
        more = "".join(f"&{key}={value}" for key, value in query.items())
        return f"{ENDPOINT}?repo=https://git.example/bench/{repository}.git&name={name}{more}"

    def make_one(self, directories: Mapping[str, int]) -> None:
        """The repository with one tag: artifact `model` in `prod`, and directories of files."""
        self._sizes = dict(directories)
        outputs = {"model": self._put(b"weights " * 8192)}
        for name, count in directories.items():
            outputs[name] = self._put(_listing(name, count), ".dir")
        self.make("one", outputs, "s3://team-models/dvc", "model#prod#1")

    def make(self, name: str, outputs: Mapping[str, str], url: str, *tags: str) -> None:
        """A repository with an artifact for each output, name -> MD5, in its first version."""
        artifacts = {output: {"path": output, "type": "model"} for output in outputs}
        files = {
            "dvc.yaml": yaml.safe_dump({"artifacts": artifacts}),
            ".dvc/config": f"[core]\n    remote = s\n['remote \"s\"']\n    url = {url}\n",
        }
        for path, md5 in outputs.items():
            files[f"{path}.dvc"] = yaml.safe_dump(
                {"outs": [{"md5": md5, "hash": "md5", "path": path}]}
            )
        self._import(name, files, [*(f"{output}@v1.0.0" for output in outputs), *tags])

    def make_many(self, count: int) -> None:
        """The repository with `count` tags: a hundred artifacts, a tenth of their tags stages."""
        each, tags = count // 100, []
        for artifact in range(100):
            versions = each - each // 10
            tags += [f"a{artifact}@v{n // 100}.{n % 100}.0" for n in range(versions)]
            tags += [f"a{artifact}#prod#{n + 1}" for n in range(each // 10)]
        artifacts = {f"a{n}": {"path": "model.pkl"} for n in range(100)}
        self._import("many", {"dvc.yaml": yaml.safe_dump({"artifacts": artifacts})}, tags)

    def add_tag(self, repository: str, name: str, when: int) -> None:
        """One more annotated tag at the head of the repository."""
        who = {"GIT_COMMITTER_DATE": f"{when} +0000", "GIT_COMMITTER_NAME": "b"}
        git = ["git", f"--git-dir={self.directory / f'{repository}.git'}"]
        environment = {**os.environ, **who, "GIT_COMMITTER_EMAIL": "b@example.com"}
        subprocess.run([*git, "tag", "-am", name, name, "main"], check=True, env=environment)

    def listing(self, name: str) -> bytes:
        """The `.dir` object of a directory."""
        return _listing(name, self._sizes[name])

    def _put(self, data: bytes, suffix: str = "") -> str:
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest() + suffix
        file = self.store / "team-models" / "dvc" / object_key(md5, legacy=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return md5

    def _import(self, name: str, files: Mapping[str, str], tags: list[str]) -> None:
        origin = self.directory / f"{name}.git"
        who = "bench <bench@example.com>"
        lines = [f"commit refs/heads/main\nmark :1\ncommitter {who} 1700000000 +0000\ndata 1\nx\n"]
        for path, text in files.items():
            lines.append(f"M 100644 inline {path}\ndata {len(text.encode())}\n{text}\n")
        for number, tag in enumerate(tags):
            when = 1_700_000_001 + number
            lines.append(f"tag {tag}\nfrom :1\ntagger {who} {when} +0000\ndata 1\nx\n")
        subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", origin], check=True)
        git = ["git", f"--git-dir={origin}"]
        stream = "".join(lines).encode()
        subprocess.run([*git, "fast-import", "--quiet"], input=stream, check=True)
        subprocess.run([*git, "pack-refs", "--all"], check=True)


def _listing(name: str, count: int) -> bytes:
    """A `.dir` object as DVC writes it."""
    files = (
        {
            "md5": hashlib.md5(b"%d" % n).hexdigest(),
            "relpath": PATHS.format(name, n * 1000 // count, n),
        }
        for n in range(count)
    )
    return json.dumps(list(files)).encode()


def _handler(root: Path) -> type[BaseHTTPRequestHandler]:
    class Store(BaseHTTPRequestHandler):
        """Serves objects by their path, and does not look at signatures."""

        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            file = root / self.path.partition("?")[0].lstrip("/")
            data = file.read_bytes() if file.is_file() else b""
            self.send_response(200 if data else 404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with suppress(ConnectionError):  # who only wanted to know how large it is hangs up
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    return Store


class Server:
    """A gunicorn that answers on `port`."""

    def __init__(
        self, command: Callable[[str, int], list[str]], environment: Mapping[str, str]
    ) -> None:
        """`command` is told a host and a port to listen on."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._process = subprocess.Popen(
            command("127.0.0.1", self.port),
            env={**os.environ, **environment},
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.DEVNULL,  # a line of log for every request
            stderr=subprocess.DEVNULL,
        )
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        time.sleep(0.5)  # until the last worker is up

    @property
    def pid(self) -> int:
        """The process that all others of the server descend from."""
        return self._process.pid

    def workers(self) -> list[int]:
        """The ids of the worker processes."""
        task = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in task.read_text().split()]

    def memory(self, what: str) -> list[int]:
        """`Rss` or `Pss` of each worker, in bytes."""
        return [_memory(pid, what) for pid in self.workers()]

    def peak(self) -> int:
        """The most that one worker ever held, in bytes (VmHWM)."""
        found = [Path(f"/proc/{pid}/status").read_text() for pid in self.workers()]
        lines = (line for text in found for line in text.splitlines() if line.startswith("VmHWM"))
        return max(int(line.split()[1]) << 10 for line in lines)

    def get(self, path: str, token: str) -> bytes:
        """An answer, whatever it takes."""
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, headers={"Authorization": f"token {token}"})
        with urllib.request.urlopen(request, timeout=120) as response:
            body: bytes = response.read()
        return body

    def close(self) -> None:
        """Stops it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


@contextmanager
def registry_server(config: Path, workers: int = 2) -> Iterator[Server]:
    """The registry on this configuration."""
    metrics = config.parent / "metrics"
    metrics.mkdir(exist_ok=True)
    environment = {"REGISTRY_CONFIG": str(config), "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    server = Server(lambda host, port: gunicorn_command(host, port, workers), environment)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def bare_server(answer: str, workers: int = 2) -> Iterator[Server]:
    """A bare Flask view that returns this JSON, on gunicorn as it comes with the same settings."""

    def command(host: str, port: int) -> list[str]:
        options = {
            "bind": f"{host}:{port}",
            "workers": workers,
            "worker-class": "gthread",
            "threads": settings.threads,
            "keep-alive": settings.keepalive,
            "timeout": settings.timeout,
            "log-level": settings.loglevel,
        }
        given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return [sys.executable, "-m", "gunicorn", *given, "benchmarks.bare:app"]

    server = Server(command, {"BARE_ANSWER": answer})
    try:
        yield server
    finally:
        server.close()


def _memory(pid: int, what: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) << 10
    raise ValueError(what)


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    task = Path(f"/proc/{pid}/task/{pid}/children")
    return [pid, *(one for child in task.read_text().split() for one in tree(int(child)))]


def memory_of(pids: list[int]) -> int:
    """What they hold together, in bytes: what several share counts once (PSS)."""
    return sum(_memory(pid, "Pss") for pid in pids)
