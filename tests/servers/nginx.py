"""nginx as a store: open to all, behind a password, or behind links that are signed for it."""

import base64
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path

import pytest
import urllib3

from servers.process import HOST, executable, free_ports, running

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
