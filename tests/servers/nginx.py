"""nginx as a store: open to all, behind a password, or behind links that are signed for it.

And nginx before the registry, with the configuration that is shipped.
"""

import base64
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from hashlib import sha1
from pathlib import Path

import pytest
import urllib3

from servers import certificate
from servers.process import HOST, ROOT, executable, free_ports, running

_MODULES = ("http_secure_link_module", "http_dav_module")

_CONFIG = """\
daemon off;
pid nginx.pid;
%(user)s
worker_processes 1;
events { worker_connections 64; }
http {
  access_log off;
  default_type application/octet-stream;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  client_max_body_size 0;
  server {
    listen %(host)s:%(port)d;
    location /public/ { alias %(files)s/; }
    location /private/ {
      alias %(files)s/;
      auth_basic private;
      auth_basic_user_file users;
      dav_methods PUT;
      create_full_put_path on;
    }
    location /signed/ {
      alias %(files)s/;
      secure_link $arg_md5,$arg_expires;
      secure_link_md5 "$secure_link_expires$uri %(secret)s";
      if ($secure_link = "") { return 403; }
      if ($secure_link = "0") { return 410; }
    }
  }
}
"""


@dataclass(frozen=True)
class Nginx:
    """A running server, with the same files below `/public/`, `/private/` and `/signed/`.

    `/private/` takes `username` and `password`, and PUT besides GET; `/signed/` links that were
    signed with `secret`.
    """

    url: str
    files: Path = field(repr=False)
    username: str = "reader"
    password: str = field(default="pass word:1", repr=False)
    secret: str = field(default="a secret of the tests", repr=False)

    def put(self, key: str, data: bytes) -> None:
        """Writes a file."""
        path = self.files / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def get(self, key: str) -> bytes:
        """Reads a file."""
        return (self.files / key).read_bytes()

    def probe(self) -> None:
        """Gets a file, as the tests will do; raises until that works."""
        answer = urllib3.request("GET", f"{self.url}/public/probe", retries=False)
        if answer.data != b"1":
            raise ConnectionError(f"nginx answers {answer.status}")


@contextmanager
def start(directory: Path) -> Iterator[Nginx]:
    """Starts nginx over a directory of its own."""
    program = executable("nginx")
    built = subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stderr
    for module in _MODULES:
        if module not in built:
            pytest.skip(f"nginx was built without {module}")
    (port,) = free_ports(1)
    server = Nginx(f"http://{HOST}:{port}", directory / "files")
    server.put("probe", b"1")
    hashed = base64.b64encode(sha1(server.password.encode()).digest()).decode()
    (directory / "users").write_text(f"{server.username}:{{SHA}}{hashed}\n")
    config = _CONFIG % {
        "user": "user root root;" if os.geteuid() == 0 else "",
        "host": HOST,
        "port": port,
        "files": str(server.files),
        "secret": server.secret,
    }
    (directory / "nginx.conf").write_text(config)
    command = [program, "-p", f"{directory}/", "-c", "nginx.conf", "-e", "stderr"]
    with running(command, server.probe, log=directory / "nginx.log"):
        yield server


_SHIPPED = ROOT / "config/nginx.conf"
_PLACES = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@dataclass(frozen=True)
class Front:
    """nginx before the registry: `url` is where clients find it, `tls_url` where they find it over
    TLS and trust `certificate`, and `files` what it sends for X-Accel-Redirect. `log` is all that
    it says, and `access_log` what it was asked.
    """

    url: str
    tls_url: str
    certificate: Path
    files: Path
    log: Path
    access_log: Path
    _ports: tuple[int, int] = field(repr=False)

    @classmethod
    def below(cls, directory: Path) -> "Front":
        """One that is still to be started, so that the hosts can be told its URL."""
        port, tls_port = free_ports(2)
        for name in ("logs", "files"):
            (directory / name).mkdir()
        now = datetime.now(timezone.utc)
        return cls(
            f"http://{HOST}:{port}",
            f"https://localhost:{tls_port}",
            certificate.write(directory, now)[0],
            directory / "files",
            directory / "nginx.log",
            directory / "logs/registry.log",
            (port, tls_port),
        )

    @contextmanager
    def running(self, hosts: Sequence[str]) -> Iterator[None]:
        """Runs it before the hosts, `address:port` each, until the end of the block."""
        directory = self.log.parent
        (directory / "nginx.conf").write_text(self._configuration(hosts))
        program = executable("nginx")
        command = [program, "-p", f"{directory}/", "-c", "nginx.conf", "-e", "stderr"]

        def ready() -> None:
            urllib3.request("GET", f"{self.url}/metrics", retries=False)

        with running([*command, "-g", "daemon off;"], ready, log=self.log):
            yield

    def _configuration(self, hosts: Sequence[str]) -> str:
        """The file that is shipped, with other addresses and paths and nothing else changed."""
        directory, (port, tls_port) = self.log.parent, self._ports
        text = _SHIPPED.read_text()
        temporary = "".join(f"    {name}_temp_path {directory}/{name};\n" for name in _PLACES)
        servers = [f"server {host} max_fails=1 fail_timeout=5s;" for host in hosts]
        for pattern, new in (
            (r"^user www-data;$", "user root root;" if os.geteuid() == 0 else ""),
            (r"^pid .*;$", f"pid {directory}/nginx.pid;"),
            (r"^error_log /var/log/nginx/error.log error;$", "error_log stderr error;"),
            (r"/var/log/nginx/registry\.log", str(self.access_log)),
            (r"^http \{\n", f"http {{\n{temporary}"),
            (r"server 192\.0\.2\.11:8080 max_fails=1 fail_timeout=5s;", servers[0]),
            (r"server 192\.0\.2\.12:8080 max_fails=1 fail_timeout=5s;", servers[1]),
            (r"alias /srv/dvc-store/;", f"alias {self.files}/;"),
            (r"listen 80;", f"listen {HOST}:{port};"),
            (r"# tls listen 443 ssl;", f"listen {HOST}:{tls_port} ssl;"),
            (r"/etc/ssl/certs/registry\.pem", str(self.certificate)),
            (r"/etc/ssl/private/registry\.key", str(self.certificate.with_name("key.pem"))),
        ):
            text, changed = re.subn(pattern, lambda _, new=new: new, text, flags=re.MULTILINE)
            assert changed == 1, f"config/nginx.conf has {changed} times {pattern}"
        return text.replace("# tls ", "")
