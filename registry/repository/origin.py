"""Where a mirror comes from: a URL that was parsed, checked and rebuilt from its parts."""

import re
import shlex
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from pathlib import Path
from urllib.parse import unquote, urlsplit

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_URL_PATH = re.compile(r"/[A-Za-z0-9._~/%+@=,:-]+")
_SCP_LIKE = re.compile(r"(?:([^@:/]+)@)?([^@:/]+):([A-Za-z0-9._~/][A-Za-z0-9._~/+@=,-]*)")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")


@dataclass(frozen=True)
class Origin:
    """A checked URL, rebuilt from its parts, and what Git needs to know to use it.

    `protocol` is the one that Git may speak, or several between colons; `config` and `environment`
    may hold secrets. `personal`: Git reads the configuration of whoever runs it, with their
    credential helpers and their SSH.
    """

    url: str
    protocol: str
    personal: bool = False
    config: Mapping[str, str] = field(default_factory=dict, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, text: str) -> "Origin":
        """https, http, ssh, scp-like, an absolute path or file://. Raises ValueError."""
        if UNPRINTABLE.search(text) or text != text.strip():
            raise ValueError("a backslash, a control character or space around the URL")
        if text.startswith("/"):
            return cls._local(text)
        scheme, found, _ = text.partition("://")
        if not found:
            return cls._scp_like(text)
        if scheme == "file":
            parts = urlsplit(text)
            if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
                raise ValueError("file URLs have three slashes, and end with the path")
            return cls._local(unquote(parts.path))
        if scheme in ("https", "http", "ssh"):
            return cls._network(text)
        raise ValueError("use https, http, ssh, user@host:path, or an absolute path")

    @classmethod
    def _local(cls, path: str) -> "Origin":
        if path.startswith("//") or ".." in path.split("/") or UNPRINTABLE.search(path):
            raise ValueError("a local path is absolute, without '..' and control characters")
        return cls(path, "file")

    @classmethod
    def _scp_like(cls, text: str) -> "Origin":
        found = _SCP_LIKE.fullmatch(text)
        if not found or not _HOST.fullmatch(found[2]) or ".." in found[3].split("/"):
            raise ValueError("use https, http, ssh, user@host:path, or an absolute path")
        if found[1] and not _USER.fullmatch(found[1]):
            raise ValueError("the user name holds a character that is not allowed")
        user = f"{found[1]}@" if found[1] else ""
        return cls(f"{user}{found[2]}:{found[3]}", "ssh")

    @classmethod
    def _network(cls, text: str) -> "Origin":
        parts = urlsplit(text)  # raises ValueError itself, as does `port`
        host, port = _host(parts.hostname or ""), parts.port
        if parts.query or parts.fragment or not _URL_PATH.fullmatch(parts.path):
            raise ValueError("the path is missing, or holds a character that is not allowed")
        if ".." in unquote(parts.path).split("/"):
            raise ValueError("the path leads out of itself")
        user = parts.username
        if parts.password is not None or (user is not None and parts.scheme != "ssh"):
            raise ValueError("no credentials in the URL: use the keys username and password")
        if user is not None and not _USER.fullmatch(user):
            raise ValueError("the user name holds a character that is not allowed")
        authority = f"{user}@{host}" if user else host
        if port is not None:
            authority += f":{port}"
        return cls(f"{parts.scheme}://{authority}{parts.path}", parts.scheme)

    def as_myself(self) -> "Origin":
        """For whoever runs this, with their configuration, which may even rewrite the URL."""
        return replace(self, personal=True, protocol=f"{self.protocol}:https:ssh")

    def with_password(self, username: str, password: str) -> "Origin":
        """With Basic authentication, for this URL alone. Raises ValueError."""
        if self.protocol not in ("https", "http"):
            raise ValueError("a password goes with https; use ssh_key for ssh")
        if ":" in username or UNPRINTABLE.search(username):
            raise ValueError("the user name holds a character that is not allowed")
        basic = b64encode(f"{username}:{password}".encode()).decode()
        header = {f"http.{self.url}.extraHeader": f"Authorization: Basic {basic}"}
        return replace(self, config={**self.config, **header})

    def with_ssh(self, key: Path | None, known_hosts: Path | None) -> "Origin":
        """With a fixed ssh command, which reads nobody's configuration. Raises ValueError."""
        if self.protocol != "ssh":
            if key or known_hosts:
                raise ValueError("ssh_key and ssh_known_hosts go with ssh")
            return self
        options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes"]
        options += ["ConnectTimeout=10", "ServerAliveInterval=10", "ServerAliveCountMax=2"]
        options += ["ControlPath=none", "ForwardAgent=no", "UpdateHostKeys=no"]
        if key:
            options.append(f"IdentityFile={_ssh_path(key)}")
        if known_hosts:
            options.append(f"UserKnownHostsFile={_ssh_path(known_hosts)}")
            options.append("GlobalKnownHostsFile=/dev/null")
        command = ["ssh", "-F", "/dev/null"]
        for option in options:
            command += ["-o", option]
        environment = {"GIT_SSH_COMMAND": shlex.join(command), "GIT_SSH_VARIANT": "ssh"}
        return replace(self, environment={**self.environment, **environment})


def _host(text: str) -> str:
    if ":" in text and "%" not in text:  # a zone may hold anything
        return f"[{IPv6Address(text)}]"
    if not _HOST.fullmatch(text):
        raise ValueError("the host is missing, or holds a character that is not allowed")
    return text


def _ssh_path(path: Path) -> str:
    """A path as ssh's options read it: quoted, and with `%` standing for itself, as `${` cannot."""
    text = str(path.absolute())
    if '"' in text or "${" in text or UNPRINTABLE.search(text):
        raise ValueError("a path for ssh holds a character that is not allowed")
    return f'"{text.replace("%", "%%")}"'
