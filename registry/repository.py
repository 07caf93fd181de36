"""A mirrored Git repository: its tags, and the files of its revisions.

    MIRROR/
      repository.git    the bare mirror: refs/heads and refs/tags of the origin, nothing else
      lock              whoever fetches holds it, and so does every process that Git starts for it
      tags-<digest>     the tags of one state of the origin; <digest> is the SHA-256 of the file
      state             what was last seen at the origin, when, and which tags file tells it

Processes share the mirror. One of them looks at the origin; the others find what it saw in `state`,
which is replaced as a whole and last, so that nobody ever reads the tags of half a fetch.

This is the only importer of GitPython. Its objects (Repo, Remote) are not used: a long list of
advisories is about the options and URLs that they let through to a command line. `Git.execute`
starts a process with the arguments it is given, which are fixed lists here. Nothing is checked out,
and nothing that the origin holds is run.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from git.cmd import Git
from git.exc import GitError

from registry import gto
from registry.domain import RelPath, Revision, parse_revision
from registry.errors import (
    InvalidMetadata,
    MirrorNotReady,
    OriginUnavailable,
    PathNotFound,
    UnsafePath,
)

logger = logging.getLogger(__name__)

READ_LIMIT = 4.0
"""Seconds a read of the mirror may take; DVC's client gives up after 5 s without a byte."""
LOOK_LIMIT = 30.0
"""Seconds the origin may take to list its refs."""
FETCH_LIMIT = 600.0
"""Seconds a fetch may take."""
_POLL = 0.05
_SHORTEST_PAUSE, _LONGEST_PAUSE = 5, 60
_MANY_PACKS = 50

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Snapshot:
    """The tags of the origin at `checked`, the Unix time of the last successful look at it."""

    index: gto.Index
    checked: float


class _GitFailed(Exception):
    """Git said no, or died; the text is fit to be shown."""


class _GitSilent(_GitFailed):
    """Git did not answer in time."""


# ---------------------------------------------------------------------------- where it comes from

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_URL_PATH = re.compile(r"/[A-Za-z0-9._~/%+@=,:-]+")
_SCP_LIKE = re.compile(r"(?:([^@:/]+)@)?([^@:/]+):([A-Za-z0-9._~/][A-Za-z0-9._~/+@=,-]*)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")


@dataclass(frozen=True)
class _Origin:
    """A checked URL, rebuilt from its parts, and what Git needs to know to use it.

    `protocol` is the one that Git may speak; `config` and `environment` may hold secrets.
    """

    url: str
    protocol: str
    config: Mapping[str, str] = field(default_factory=dict, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, text: str) -> "_Origin":
        """https, http, ssh, scp-like, an absolute path or file://. Raises ValueError."""
        if _UNPRINTABLE.search(text) or text != text.strip():
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
    def _local(cls, path: str) -> "_Origin":
        if path.startswith("//") or ".." in path.split("/") or _UNPRINTABLE.search(path):
            raise ValueError("a local path is absolute, without '..' and control characters")
        return cls(path, "file")

    @classmethod
    def _scp_like(cls, text: str) -> "_Origin":
        found = _SCP_LIKE.fullmatch(text)
        if not found or not _HOST.fullmatch(found[2]) or ".." in found[3].split("/"):
            raise ValueError("use https, http, ssh, user@host:path, or an absolute path")
        if found[1] and not _USER.fullmatch(found[1]):
            raise ValueError("the user name holds a character that is not allowed")
        user = f"{found[1]}@" if found[1] else ""
        return cls(f"{user}{found[2]}:{found[3]}", "ssh")

    @classmethod
    def _network(cls, text: str) -> "_Origin":
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

    def with_password(self, username: str, password: str) -> "_Origin":
        """With Basic authentication, for this URL alone. Raises ValueError."""
        if self.protocol not in ("https", "http"):
            raise ValueError("a password goes with https; use ssh_key for ssh")
        if ":" in username or _UNPRINTABLE.search(username):
            raise ValueError("the user name holds a character that is not allowed")
        basic = b64encode(f"{username}:{password}".encode()).decode()
        header = {f"http.{self.url}.extraHeader": f"Authorization: Basic {basic}"}
        return replace(self, config={**self.config, **header})

    def with_ssh(self, key: Path | None, known_hosts: Path | None) -> "_Origin":
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
    if ":" in text:
        return f"[{IPv6Address(text)}]"
    if not _HOST.fullmatch(text):
        raise ValueError("the host is missing, or holds a character that is not allowed")
    return text


def _ssh_path(path: Path) -> str:
    """A path as ssh's options read it: quoted, and with `%` standing for itself, as `${` cannot."""
    text = str(path.absolute())
    if '"' in text or "${" in text or _UNPRINTABLE.search(text):
        raise ValueError("a path for ssh holds a character that is not allowed")
    return f'"{text.replace("%", "%%")}"'


# --------------------------------------------------------------------------------- the git binary

_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.symlinks": "false",
    "core.fsmonitor": "false",
    "transfer.fsckObjects": "true",
    "transfer.bundleURI": "false",
    "protocol.allow": "never",
    "credential.helper": "",
    "http.followRedirects": "false",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "20",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "submodule.recurse": "false",
    # Mistakes of old versions of Git and its imitations, common in old repositories, harmless here.
    **{
        f"{command}.{mistake}": "ignore"
        for command in ("fsck", "fetch.fsck")
        for mistake in (
            "badTimezone",
            "missingEmail",
            "missingSpaceBeforeDate",
            "missingTaggerEntry",
            "zeroPaddedDate",
            "zeroPaddedFilemode",
        )
    },
}
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/false",
    "SSH_ASKPASS": "/bin/false",
    "SSH_ASKPASS_REQUIRE": "never",
    "GIT_SSH_COMMAND": "/bin/false",
    "GIT_PROXY_COMMAND": "/bin/false",
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "HOME": "/nonexistent",
    "XDG_CONFIG_HOME": "/nonexistent",
}
_UNSET = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CURL_VERBOSE",
    "GIT_DEFAULT_HASH",
    "GIT_EXEC_PATH",
    "GIT_GRAFT_FILE",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_QUARANTINE_PATH",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_SSL_NO_VERIFY",
    "GIT_TEMPLATE_DIR",
    "GIT_TRACE",
    "GIT_TRACE2",
    "GIT_TRACE2_EVENT",
    "GIT_TRACE2_PERF",
    "GIT_TRACE_CURL",
    "GIT_TRACE_PACKET",
    "GIT_TRACE_PACKFILE",
    "GIT_TRACE_SETUP",
    "GIT_WORK_TREE",
)
"""GitPython hands down the environment of the service; of some variables, even an empty one counts.
A service may well be started by a hook of Git, which sets several of them."""
_PREFIX = ("env", *(word for name in _UNSET for word in ("-u", name)), "git")
_REASONS = {
    "could not read (Username|Password)": "it asks for credentials, or refuses those configured",
    "Authentication failed": "it refuses the credentials that are configured",
    r"Permission denied \(": "it refuses the SSH key",
    "Host key verification failed": "its SSH host key is not among the known hosts",
    "Could not resolve host": "its host name cannot be resolved",
    "url base from redirection": "it redirects to another URL: configure that one",
    "[Rr]epository .*not found": "there is no repository at its URL, or credentials are needed",
    "does not appear to be a git repository": "there is no repository at its URL",
    "No space left on device": "no space is left for the mirror",
}
"""What Git says, by regular expression, and what we make of it."""


class _Commands:
    """Runs git on one mirror, with arguments of ours and an environment without surprises."""

    def __init__(self, git_dir: Path, origin: _Origin) -> None:
        self.git_dir = git_dir
        self._origin = origin
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = threading.Event()

    def at(self, git_dir: Path) -> "_Commands":
        """The same on another mirror of the origin; stopping one stops both."""
        other = copy(self)
        other.git_dir = git_dir
        return other

    def read(self, *command: str, limit: float, given: bytes = b"") -> bytes:
        """What a command says that needs no network. Raises _GitFailed."""
        return self._finish(self.start(*command, piped=bool(given)), limit, given)

    def start(self, *command: str, piped: bool = False) -> Git.AutoInterrupt:
        """Starts a command that needs no network. Raises _GitFailed."""
        return self._start(command, {}, {}, piped=piped)

    def ask_origin(
        self, *command: str, refspecs: Iterable[str] = (), limit: float, lock: int | None = None
    ) -> bytes:
        """What a command says that talks to the origin. Raises _GitFailed.

        Its children keep `lock` open, and so locked, even when this process is killed.
        """
        child = self._start(
            (*command, "--", self._origin.url, *refspecs),
            self._origin.config,
            {**self._origin.environment, "GIT_ALLOW_PROTOCOL": self._origin.protocol},
            keep=() if lock is None else (lock,),
        )
        return self._finish(child, limit)

    def stop(self) -> None:
        """Kills what is running, and starts nothing more."""
        self._stopped.set()
        for process in tuple(self._running):
            _kill(process)

    def _start(
        self,
        command: tuple[str, ...],
        config: Mapping[str, str],
        environment: Mapping[str, str],
        *,
        keep: tuple[int, ...] = (),
        piped: bool = False,
    ) -> Git.AutoInterrupt:
        if self._stopped.is_set():
            raise _GitFailed("the service is being stopped")
        settings = {**_CONFIG, **config}
        counted = {"GIT_CONFIG_COUNT": str(len(settings))}
        for number, (key, value) in enumerate(settings.items()):
            counted |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        try:
            return Git("/").execute(
                [*_PREFIX, f"--git-dir={self.git_dir}", "--literal-pathspecs", *command],
                as_process=True,
                istream=subprocess.PIPE if piped else None,
                shell=False,
                env={**_ENVIRONMENT, **counted, **environment},
                start_new_session=True,
                pass_fds=keep,
            )
        except (GitError, OSError) as error:
            raise _GitFailed(f"git cannot be started ({type(error).__name__})") from None

    def _finish(self, child: Git.AutoInterrupt, limit: float, given: bytes = b"") -> bytes:
        process = _process(child)
        self._running.add(process)
        try:
            if self._stopped.is_set():
                raise _GitFailed("the service is being stopped")
            output, errors = process.communicate(given or None, timeout=limit)
        except subprocess.TimeoutExpired:
            raise _GitSilent(f"no answer within {limit:g} s") from None
        finally:
            self._running.discard(process)
            _kill(process)
        if process.returncode:
            raise _GitFailed(self._reason(errors.decode(errors="replace")))
        return bytes(output)

    def _reason(self, errors: str) -> str:
        """What Git complains about: one line, without our paths, URLs and credentials."""
        for sign, reason in _REASONS.items():
            if re.search(sign, errors):
                return reason
        lines = errors.splitlines()
        telling = [line for line in lines if line.startswith("ssh: ")] or [
            line for line in reversed(lines) if line.startswith(("fatal: ", "error: "))
        ]
        text = telling[0].partition(": ")[2] if telling else "git failed without a word"
        text = text.replace(self._origin.url, "the origin").replace(str(self.git_dir), "the mirror")
        text = re.sub(r"//[^/@\s]*@", "//", _UNPRINTABLE.sub(" ", text))
        return text[:200].rstrip(".")


def _process(child: Git.AutoInterrupt) -> "subprocess.Popen[bytes]":
    assert child.proc
    return child.proc


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kills the process with all it started, if it still runs, and reaps it."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            with suppress(BrokenPipeError):
                stream.close()


class _Objects:
    """One `git cat-file` that stays, asked by one thread at a time."""

    def __init__(self, commands: _Commands) -> None:
        self._commands = commands
        self._lock = threading.Lock()
        self._child: Git.AutoInterrupt | None = None
        self._pid = os.getpid()
        self._pending = b""

    def size(self, name: str) -> tuple[str, int] | None:
        """The id and the size in bytes of the object that `name` means. Raises _GitFailed."""
        return self._ask(lambda deadline: self._header(f"info {name}", deadline))

    def blob(self, oid: str, limit: int) -> bytes | None:
        """The bytes of an object; None when there is no such object. Raises _GitFailed,
        and InvalidMetadata when it is larger than `limit` bytes.
        """

        def ask(deadline: float) -> tuple[int, bytes] | None:
            found = self._header(f"info {oid}", deadline)
            if found is None or found[1] > limit:
                return (found[1], b"") if found else None
            self._header(f"contents {oid}", deadline)
            return found[1], self._take(found[1] + 1, deadline)[:-1]

        found = self._ask(ask)
        if found and found[0] > limit:
            problem = f"it has {found[0]} bytes, and {limit} are allowed"
            raise InvalidMetadata(f"object {oid[:10]}", problem)
        return found[1] if found else None

    def stop(self) -> None:
        """Ends the child; the next question starts another."""
        with self._lock:
            self._drop()

    def _ask(self, question: Callable[[float], Answer]) -> Answer:
        if self._pid != os.getpid():
            # After a fork the pipes are the parent's, and the lock may be held by nobody.
            self._pid, self._lock = os.getpid(), threading.Lock()
            self._child, self._pending = None, b""
        with self._lock:
            deadline = time.monotonic() + READ_LIMIT
            try:
                return self._answer(question, deadline)
            except _GitSilent:
                raise
            except _GitFailed:  # it died; another one may live
                return self._answer(question, deadline)

    def _answer(self, question: Callable[[float], Answer], deadline: float) -> Answer:
        """One attempt. A child that was not heard to the end is of no more use."""
        try:
            return question(deadline)
        except OSError as error:
            self._drop()
            raise _GitFailed(f"its reader failed: {error.strerror}") from None
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._child:
            _kill(_process(self._child))
        self._child, self._pending = None, b""

    def _header(self, command: str, deadline: float) -> tuple[str, int] | None:
        """The id and the size that the child answers with; None when there is no such object."""
        if self._child is None:
            self._child = self._commands.start("cat-file", "--batch-command", piped=True)
        process = _process(self._child)
        assert process.stdin
        os.write(process.stdin.fileno(), f"{command}\n".encode())
        while b"\n" not in self._pending:
            self._receive(process, deadline)
        line, _, self._pending = self._pending.partition(b"\n")
        words = line.decode(errors="replace").split(" ")
        if len(words) == 3 and words[2].isdigit():
            return words[0], int(words[2])
        return None

    def _take(self, count: int, deadline: float) -> bytes:
        assert self._child
        process = _process(self._child)
        parts, missing = [self._pending], count - len(self._pending)
        while missing > 0:
            self._pending = b""
            self._receive(process, deadline)
            parts.append(self._pending)
            missing -= len(self._pending)
        data = b"".join(parts)
        self._pending = data[count:]
        return data[:count]

    def _receive(self, process: "subprocess.Popen[bytes]", deadline: float) -> None:
        """Adds what the child says next. What it complains about is read and dropped."""
        assert process.stdout
        assert process.stderr
        output, errors = process.stdout.fileno(), process.stderr.fileno()
        poll = select.poll()
        poll.register(output, select.POLLIN)
        poll.register(errors, select.POLLIN)
        ready = dict(poll.poll(max(0, deadline - time.monotonic()) * 1000))
        if not ready:
            raise _GitSilent(f"no answer within {READ_LIMIT:g} s")
        data = os.read(output if output in ready else errors, 1 << 20)
        if not data:
            raise _GitFailed("its reader died")
        if output in ready:
            self._pending += data


# ------------------------------------------------------------------------------ the mirror on disk

_REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_TAG_FORMAT = (
    "%(refname:strip=2) %(objecttype) %(objectname) %(*objecttype) %(*objectname)"
    " %(taggerdate:unix)"
)


@dataclass(frozen=True)
class _State:
    """What was seen at the origin: `url` of the origin, `refs` the digest of its list of refs,
    `tags` the digest of the tags file, `checked` and `cloned` Unix times.
    """

    url: str
    refs: str
    tags: str
    checked: float
    cloned: float


class _Mirror:
    """The directory that all processes share. Only the holder of the lock writes to it."""

    def __init__(self, directory: Path, origin: _Origin, fetch_limit: float) -> None:
        self.commands = _Commands(directory / "repository.git", origin)
        self._directory = directory
        self._origin = origin
        self._fetch_limit = fetch_limit

    def open_lock(self) -> BinaryIO:
        """The lock, not yet held; closing it gives it back. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return open(self._directory / "lock", "ab")

    def state(self) -> _State | None:
        """The last state that was seen, if it can be used."""
        try:
            text = (self._directory / "state").read_text(encoding="utf-8")
            state = _State(**json.loads(text))
        except (OSError, ValueError, TypeError):
            return None
        usable = state.url == self._origin.url and (self.commands.git_dir / "HEAD").is_file()
        return state if usable else None

    def tags(self, state: _State) -> list[gto.Tag] | None:
        """The tags of a state; None when the file was replaced meanwhile, or damaged."""
        data = self._tags_data(state)
        return None if data is None else [_parse_tag(line) for line in data.decode().splitlines()]

    def look(self, limit: float) -> bytes:
        """The refs of the origin, as it lists them. Raises _GitFailed."""
        # Away from the mirror, which may be damaged: that is for `update` to find out.
        nowhere = self.commands.at(self._directory / "nowhere.git")
        return nowhere.ask_origin("ls-remote", "--heads", "--tags", "--refs", limit=limit)

    def update(self, now: float, lock: int, damaged: float | None) -> None:
        """Brings the mirror to the state that the origin has now; clones it if need be.

        `damaged` is when a read found the mirror to be damaged. Raises _GitFailed and OSError.
        """
        state = self.state()
        if state and damaged is not None and state.cloned <= damaged:
            state = None
        listing = self.look(LOOK_LIMIT)
        refs = _digest(listing)
        if state is None or state.refs != refs or self._tags_data(state) is None:
            if state is None or not self._fetched(lock):
                self._clone(lock, listing)
                state = _State(self._origin.url, refs, "", now, now)
            self._tidy()
            state = replace(state, refs=refs, tags=self._write_tags())
        _write(self._directory / "state", json.dumps(asdict(replace(state, checked=now))).encode())
        for file in self._directory.glob("tags-*"):
            if file != self._tags_file(state.tags):
                file.unlink()

    def _fetched(self, lock: int) -> bool:
        """Whether the mirror could be fetched into; it is damaged if not. Raises _GitFailed."""
        _sweep(self.commands.git_dir)
        try:
            self._fetch(self.commands, lock)
        except _GitFailed:
            # The origin did answer. Either it is not well, or the mirror is not.
            if self._is_sound():
                raise
            logger.warning("%s is damaged: cloning again", self.commands.git_dir)
            return False
        return True

    def _tidy(self) -> None:
        """Keeps reading fast: a fetch leaves a file for every ref, and often one more pack.

        What the origin no longer reaches is kept: another process may still tell of it.
        """
        self.commands.read("pack-refs", "--all", limit=self._fetch_limit)
        if len(list(self.commands.git_dir.glob("objects/pack/*.pack"))) > _MANY_PACKS:
            repack = ("repack", "-a", "-d", "--keep-unreachable", "--quiet")
            self.commands.read(*repack, limit=self._fetch_limit)

    def _is_sound(self) -> bool:
        try:
            check = ("fsck", "--connectivity-only", "--no-dangling", "--no-progress")
            self.commands.read(*check, limit=self._fetch_limit)
        except _GitFailed:
            return False
        return True

    def _clone(self, lock: int, listing: bytes) -> None:
        """Clones aside, so that what is there can be read until it is replaced."""
        fresh = self.commands.at(self._directory / "incoming.git")
        old = self._directory / "outgoing.git"
        for leftover in (fresh.git_dir, old):
            shutil.rmtree(leftover, ignore_errors=True)
        sha256 = len(listing.partition(b"\t")[0]) == 64
        fresh.git_dir.mkdir(mode=0o700)
        fresh.read(
            "init",
            "--bare",
            "--quiet",
            "--template=",
            f"--object-format={'sha256' if sha256 else 'sha1'}",
            limit=LOOK_LIMIT,
        )
        self._fetch(fresh, lock)
        if self.commands.git_dir.exists():
            self.commands.git_dir.rename(old)
        fresh.git_dir.rename(self.commands.git_dir)
        shutil.rmtree(old, ignore_errors=True)

    def _fetch(self, commands: _Commands, lock: int) -> None:
        commands.ask_origin(
            "fetch",
            "--quiet",
            "--prune",
            "--force",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-auto-gc",
            "--no-recurse-submodules",
            refspecs=_REFSPECS,
            limit=self._fetch_limit,
            lock=lock,
        )

    def _tags_data(self, state: _State) -> bytes | None:
        try:
            data = self._tags_file(state.tags).read_bytes()
        except OSError:
            return None
        return data if _digest(data) == state.tags else None

    def _tags_file(self, digest: str) -> Path:
        return self._directory / f"tags-{digest}"

    def _write_tags(self) -> str:
        data = "".join(f"{line}\n" for line in self._read_tags()).encode()
        digest = _digest(data)
        _write(self._tags_file(digest), data)
        return digest

    def _read_tags(self) -> Iterator[str]:
        """A line for every tag that may be one of GTO's: commit or `-`, time, kind, name."""
        command = ("for-each-ref", f"--format={_TAG_FORMAT}", "refs/tags")
        listed = self.commands.read(*command, limit=LOOK_LIMIT).decode(errors="replace")
        lines = [line.split(" ") for line in listed.splitlines() if "@" in line or "#" in line]
        # Git peels one level; what is still a tag then is peeled to the bottom.
        nested = [line[2] for line in lines if line[3] == "tag"]
        commits = dict(zip(nested, self._peeled(nested), strict=True))
        for name, kind, oid, peeled_kind, peeled, when in lines:
            revision = commits.get(oid, peeled if peeled_kind == "commit" else "-")
            yield f"{revision} {when or 0} {kind} {name}"

    def _peeled(self, tags: list[str]) -> Iterator[str]:
        if not tags:
            return
        names = "".join(f"{oid}^{{commit}}\n" for oid in tags).encode()
        command = ("cat-file", "--batch-check=%(objectname)")
        for answer in self.commands.read(*command, given=names, limit=LOOK_LIMIT).splitlines():
            yield "-" if b" " in answer else answer.decode()


def _parse_tag(line: str) -> gto.Tag:
    revision, when, kind, name = line.split(" ", 3)
    return gto.Tag(name, Revision(revision) if revision != "-" else None, int(when), kind == "tag")


def _sweep(git_dir: Path) -> None:
    """Removes what a fetch leaves behind that was killed: locks, and packs without an end."""
    places = ("*.lock", "refs/**/*.lock", "objects/info/**/*.lock")
    leftovers = ("objects/tmp_*", "objects/??/tmp_*", "objects/pack/tmp_*", "objects/incoming-*")
    for pattern in (*places, *leftovers):
        for path in git_dir.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(file: Path, data: bytes) -> None:
    """Replaces a file as a whole, and for good, even when the power fails."""
    temporary = file.with_name(f"{file.name}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


# --------------------------------------------------------------------------------- the repository


@dataclass(frozen=True)
class _Flight:
    """A refresh under way, and since when, in seconds of the monotonic clock."""

    future: "Future[None]"
    since: float


@dataclass(frozen=True)
class _Failure:
    """The last refresh failed: the origin is left in peace from `since` to `until`."""

    error: OriginUnavailable
    since: float
    until: float


class Repository:
    """A mirror of one origin, below the directory `mirror`. Safe to share between threads.

    `username` and `password` are for https, `ssh_key` and `ssh_known_hosts` for ssh; the known
    hosts default to those of the account. Fetches run on `executor`, and take `fetch_limit` seconds
    at most. `clock` gives Unix time. Raises ValueError for a URL that is not allowed.
    """

    def __init__(
        self,
        name: str,
        url: str,
        mirror: Path,
        *,
        username: str | None = None,
        password: str | None = None,
        ssh_key: Path | None = None,
        ssh_known_hosts: Path | None = None,
        executor: Executor,
        clock: Callable[[], float] = time.time,
        fetch_limit: float = FETCH_LIMIT,
    ) -> None:
        origin = _Origin.parse(url).with_ssh(ssh_key, ssh_known_hosts)
        if password is not None:
            origin = origin.with_password(username or "git", password)
        self.name = name
        self._mirror = _Mirror(mirror.absolute(), origin, fetch_limit)
        self._objects = _Objects(self._mirror.commands)
        self._executor = executor
        self._clock = clock
        self._lock = threading.Lock()
        self._adopting = threading.Lock()
        self._known: tuple[_State, Snapshot] | None = None
        self._flight: _Flight | None = None
        self._failure: _Failure | None = None
        self._damaged: float | None = None
        self._closed = threading.Event()

    def snapshot(self, max_age: float, wait: float = 4.0) -> Snapshot:
        """The tags of the origin, as they were no more than `max_age` seconds ago.

        When nobody looked since, the origin is looked at, and that is waited for, no longer than
        `wait` seconds. The last snapshot there is does if that takes longer or fails; `checked`
        tells. Nothing is waited for that was under way for `wait` seconds already. The index is the
        same object as long as nothing changed.

        Raises MirrorNotReady while the first clone is under way, and OriginUnavailable when it
        failed. After a failure the origin is left in peace for some seconds.
        """
        needed = self._clock() - max_age
        deadline = time.monotonic() + wait
        while True:
            snapshot = self._fresh(needed) or self._adopt()
            if snapshot and self._is_fresh(snapshot, needed):
                return snapshot
            flight = self._begin(needed)
            if flight is None:
                break
            until = min(deadline, flight.since + wait) if snapshot else deadline
            if not self._landed(flight, until):
                if snapshot:
                    return snapshot
                raise MirrorNotReady(self.name)
        if snapshot is None:
            raise self._unavailable()
        return snapshot

    def probe(self, wait: float) -> None:
        """Asks the origin for its refs, for `wait` seconds at most. Raises OriginUnavailable."""
        try:
            self._mirror.look(wait)
        except _GitFailed as error:
            raise OriginUnavailable(self.name, str(error)) from None

    def contains(self, revision: Revision) -> bool:
        """Whether the mirror has the commit. Raises OriginUnavailable."""
        found = self._object(lambda: self._objects.size(f"{parse_revision(revision)}^{{commit}}"))
        return found is not None and found[0] == revision

    def files(self, revision: Revision, wanted: Callable[[str], bool]) -> Mapping[RelPath, str]:
        """The regular files whose path is `wanted`: path -> id of the blob. Paths that a client
        must not write to are left out. Raises PathNotFound without the revision, OriginUnavailable.
        """
        found = {}
        for mode, _, oid, text in self._tree(RelPath.ROOT, revision, "-r"):
            if mode.startswith("100") and wanted(text):
                with suppress(UnsafePath):
                    found[RelPath.parse(text)] = oid
        return found

    def find(self, revision: Revision, path: RelPath) -> str | None:
        """The id of the blob of a regular file; None when there is none. Raises as `files` does."""
        mode, _, oid = self._entry(revision, path)
        return oid if mode.startswith("100") else None

    def kind(self, revision: Revision, path: RelPath) -> Literal["file", "directory"] | None:
        """What Git itself tracks there: a submodule counts as a directory, a link as a file.
        Raises as `files` does.
        """
        if not path:
            return "directory"
        _, kind, _ = self._entry(revision, path)
        return None if not kind else "file" if kind == "blob" else "directory"

    def blob(self, oid: str, limit: int) -> bytes:
        """The bytes of a blob. Raises InvalidMetadata for more than `limit` bytes, and
        OriginUnavailable when the mirror lost it: it is cloned again then.
        """
        parse_revision(oid)  # object ids have the form of commit ids
        data = self._object(lambda: self._objects.blob(oid, limit))
        if data is None:
            raise self._unreadable(_GitFailed(f"object {oid[:10]} is missing"))
        return data

    def close(self) -> None:
        """Ends every process that was started. A closed repository fetches no more."""
        self._closed.set()
        self._mirror.commands.stop()
        self._objects.stop()

    # Looking at the origin

    def _is_fresh(self, snapshot: Snapshot, needed: float) -> bool:
        # A check in the future means that the clock was set back: nobody knows how old it is.
        return self._damaged is None and needed <= snapshot.checked <= self._clock()

    def _fresh(self, needed: float) -> Snapshot | None:
        known = self._known
        return known[1] if known and self._is_fresh(known[1], needed) else None

    def _adopt(self) -> Snapshot | None:
        """The last snapshot there is, by this process or another one."""
        with self._adopting:
            known = self._known
            for _ in range(3):  # the tags file may be replaced while it is looked for
                state = self._mirror.state()
                if state is None or (known and state == known[0]):
                    break
                if known and state.tags == known[0].tags:
                    self._known = (state, replace(known[1], checked=state.checked))
                    break
                tags = self._mirror.tags(state)
                if tags is not None:
                    self._known = (state, Snapshot(gto.Index(tags), state.checked))
                    break
            return self._known[1] if self._known else None

    def _begin(self, needed: float) -> _Flight | None:
        """The refresh under way, or a new one; None when the origin is to be left in peace."""
        with self._lock:
            if self._flight and not self._flight.future.done():
                return self._flight
            failure, now = self._failure, self._clock()
            if self._closed.is_set() or (failure and failure.since <= now < failure.until):
                return None
            try:
                future = self._executor.submit(self._refresh, needed)
            except RuntimeError:  # the executor was shut down
                return None
            self._flight = _Flight(future, time.monotonic())
            return self._flight

    def _landed(self, flight: _Flight, until: float) -> bool:
        done, _ = wait([flight.future], max(0.0, until - time.monotonic()))
        if done and not flight.future.cancelled():
            flight.future.result()  # whatever is not ours to handle must not pass unseen
        return bool(done)

    def _refresh(self, needed: float) -> None:
        """Looks at the origin, unless another process does and sees what is `needed`."""
        try:
            with self._mirror.open_lock() as lock:
                while not _locked(lock):
                    snapshot = self._adopt()
                    if (snapshot and self._is_fresh(snapshot, needed)) or self._closed.wait(_POLL):
                        return
                snapshot = self._adopt()
                if not (snapshot and self._is_fresh(snapshot, needed)):
                    self._mirror.update(self._clock(), lock.fileno(), self._damaged)
                    self._damaged = None
            self._adopt()
            self._failure = None
        except (_GitFailed, OSError) as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        problem = str(error)
        if isinstance(error, OSError):
            problem = f"its mirror cannot be written: {error.strerror}"
        last, now = self._failure, self._clock()
        pause = _SHORTEST_PAUSE if last is None else 2 * (last.until - last.since)
        pause = min(int(pause), _LONGEST_PAUSE)
        self._failure = _Failure(OriginUnavailable(self.name, problem, pause), now, now + pause)
        if not self._closed.is_set():
            logger.warning("repository %s cannot be fetched: %s", self.name, problem)

    def _unavailable(self) -> OriginUnavailable:
        if self._failure:
            return replace(self._failure.error)
        return OriginUnavailable(self.name, "the service is being stopped")

    # Reading the mirror

    def _object(self, ask: Callable[[], Answer]) -> Answer:
        try:
            return ask()
        except _GitFailed as error:
            raise self._unreadable(error) from None

    def _entry(self, revision: Revision, path: RelPath) -> tuple[str, str, str]:
        """Mode, type and id of what is at the path; empty texts when nothing is."""
        for mode, kind, oid, text in self._tree(path, revision):
            if text == path:
                return mode, kind, oid
        return "", "", ""

    def _tree(
        self, path: RelPath, revision: Revision, *options: str
    ) -> Iterator[tuple[str, str, str, str]]:
        """Mode, type, id and path of what the revision holds there; names are not ours to trust."""
        if not self.contains(revision):
            raise PathNotFound(path or ".", revision, "the repository has no such commit")
        command = ("ls-tree", "-z", "--full-tree", *options, "--end-of-options", revision)
        paths = ("--", path) if path else ()
        try:
            listed = self._mirror.commands.read(*command, *paths, limit=READ_LIMIT)
        except _GitFailed as error:
            raise self._unreadable(error) from None
        for line in listed.split(b"\0")[:-1]:
            head, _, name = line.partition(b"\t")
            mode, kind, oid = head.decode().split()
            with suppress(UnicodeDecodeError):
                yield mode, kind, oid, name.decode()

    def _unreadable(self, error: _GitFailed) -> OriginUnavailable:
        """Takes note, so that the next refresh clones again; slowness alone is no damage."""
        logger.warning("the mirror of repository %s cannot be read: %s", self.name, error)
        if not isinstance(error, _GitSilent):
            self._damaged = self._clock()
        return OriginUnavailable(self.name, f"its mirror cannot be read: {error}")


def _locked(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
