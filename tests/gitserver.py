"""Serves Git repositories on loopback, as hosting sites do: smart HTTP and ssh, and badly."""

import os
import socket
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from getpass import getuser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which

_PATH = os.environ["PATH"]
SSHD = which("sshd", path=f"{_PATH}:/usr/sbin:/usr/local/sbin")
"""The ssh server, if this machine has one."""


@dataclass
class HttpGit:
    """A running server of all repositories below a directory. `requests` has a line for each
    request: method, path, and whether the credentials were right.
    """

    url: str
    port: int
    requests: list[str] = field(default_factory=list)
    broken: bool = False
    """Answers 503 to everything while it is set."""
    denies: bool = False
    """Answers 401 to everybody while it is set."""
    forged: tuple[bytes, bytes] | None = None
    """Says the second where Git says the first, which is as long, while it is set."""
    redirect: str | None = None
    """Redirects everything to this URL while it is set."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the base's name
        pass

    def _serve(self) -> None:
        served, expected = self.server.served, self.server.authorization
        welcome = expected in (None, self.headers.get("Authorization")) and not served.denies
        served.requests.append(f"{self.command} {self.path} {'ok' if welcome else 'denied'}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if served.redirect:
            self._answer(301, {"Location": served.redirect + self.path}, b"")
        elif served.broken:
            self._answer(503, {}, b"")
        elif not welcome:
            self._answer(401, {"WWW-Authenticate": 'Basic realm="Git"'}, b"")
        else:
            self._backend(body)

    def _backend(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": _PATH,
            "HOME": "/nonexistent",
            "GIT_PROJECT_ROOT": str(self.server.directory),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(
            ["git", "http-backend"], input=body, capture_output=True, env=environment, check=True
        )
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        pairs = (line.partition(": ") for line in head.decode().splitlines())
        headers = {name: value for name, _, value in pairs}
        status = int(headers.pop("Status", "200").split()[0])
        if self.server.served.forged:
            answer = answer.replace(*self.server.served.forged)
        self._answer(status, headers, answer)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    def __init__(self, directory: Path, authorization: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory = directory
        self.authorization = authorization
        self.served = HttpGit(f"http://127.0.0.1:{self.server_port}", self.server_port)


@contextmanager
def serve_http(
    directory: Path, username: str | None = None, password: str | None = None
) -> Iterator[HttpGit]:
    """`git http-backend` behind Basic authentication, when a password is given."""
    basic = f"Basic {b64encode(f'{username}:{password}'.encode()).decode()}"
    server = _Server(directory, basic if password is not None else None)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def hung() -> Iterator[str]:
    """The URL of a server that takes every connection, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def refusing() -> Iterator[str]:
    """The URL of a port that refuses every connection, and stays reserved meanwhile."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


@dataclass(frozen=True)
class SshGit:
    """A running ssh server: `url` goes before the absolute path of a repository."""

    url: str
    key: Path
    known_hosts: Path


@contextmanager
def serve_ssh(directory: Path) -> Iterator[SshGit]:
    """sshd for the account that runs the tests, with keys of its own made in `directory`."""
    assert SSHD
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("host", "client"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(command, check=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists, as root
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    host_key = (directory / "host.pub").read_text().split()[:2]
    known_hosts = directory / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    config = directory / "sshd_config"
    config.write_text(
        f'Port {port}\nListenAddress 127.0.0.1\nHostKey "{directory}/host"\nPidFile none\n'
        f'AuthorizedKeysFile "{directory}/client.pub"\nStrictModes no\nUsePAM no\n'
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
    )
    with open(directory / "log", "wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=log)
        try:
            _await_port(port, server, directory / "log")
            yield SshGit(f"ssh://{getuser()}@127.0.0.1:{port}", directory / "client", known_hosts)
        finally:
            server.terminate()
            server.wait()


def _await_port(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"sshd did not start: {log.read_text()}")
