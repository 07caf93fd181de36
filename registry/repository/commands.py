"""The git binary: fixed arguments, an environment without surprises, and a limit on time.

The only importer of GitPython. Its objects (Repo, Remote) are not used: a long list of advisories
is about the options and URLs that they let through to a command line. `Git.execute` starts a
process with the arguments it is given, which are fixed lists here. Nothing is checked out, and
nothing that the origin holds is run.
"""

import os
import re
import select
import signal
import subprocess
import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from copy import copy
from pathlib import Path
from shutil import which

from git.cmd import Git
from git.exc import GitError

from registry.errors import SettingsError
from registry.repository.origin import UNPRINTABLE, Origin


class GitFailed(Exception):
    """Git said no, or died; the text is fit to be shown."""


class GitSilent(GitFailed):
    """Git did not answer in time, or could not even be asked: that says nothing of the mirror."""


class Unfit(GitFailed):
    """What the origin has is not fit to be taken: asking again will not help."""


class ObjectLost(GitFailed):
    """The mirror lacks an object that it had."""


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
    "LC_ALL": "C",  # what Git says is read by us
    "XDG_CONFIG_HOME": "/nonexistent",
}
_PERSONAL = frozenset(
    {
        *("credential.helper", "http.followRedirects", "HOME", "XDG_CONFIG_HOME"),
        *("GIT_CONFIG_NOSYSTEM", "GIT_CONFIG_GLOBAL", "GIT_SSH_COMMAND", "GIT_PROXY_COMMAND"),
        *("GIT_ASKPASS", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE"),
    }
)
"""What people decide for themselves when it is they who reach an origin, and not a service."""
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
_ORPHANED = 2
"""Seconds beyond its limit after which a git ends that nobody is left to end: its origin may be
silent for ever, and whoever started it may have been killed.
"""
_POLITE, _MEEK = ("nice", "-n", "10"), ("nice", "-n", "19")
"""Before a git that fetches, and before all that a clone takes: five hundred of them must leave the
processors to who answers.
"""
_PREFIX = ("env", *(word for name in _UNSET for word in ("-u", name)))
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

_UNFIT = re.compile("fsck error|^error: object [0-9a-f]+: |invalid refspec", re.MULTILINE)


OLDEST_GIT = (2, 36)
"""The first with `cat-file --batch-command`."""


def require_git() -> None:
    """Raises SettingsError when there is no git on the PATH, or one that is too old."""
    wanted = ".".join(map(str, OLDEST_GIT))
    try:
        said = str(Git("/").execute(["git", "--version"]))
    except GitError:
        raise SettingsError("git", f"not found on the PATH: install {wanted} or newer") from None
    found = re.search(r"(\d+)\.(\d+)", said)
    if not found or (int(found[1]), int(found[2])) < OLDEST_GIT:
        raise SettingsError("git", f"{wanted} or newer is needed, and this is {said[:50]!r}")


class Commands:
    """Runs git on one mirror, with arguments of ours and an environment without surprises."""

    def __init__(self, git_dir: Path, origin: Origin) -> None:
        self.git_dir = git_dir
        self._origin = origin
        self._objects: Path | None = None
        self._meek = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = threading.Event()

    def at(self, git_dir: Path, objects: Path | None = None, *, meek: bool = False) -> "Commands":
        """The same on another mirror of the origin, with `objects` elsewhere if that is said, and
        after everything else if it is `meek`; stopping one stops both.
        """
        other = copy(self)
        other.git_dir = git_dir
        other._objects = objects
        other._meek = meek
        return other

    def read(self, *command: str, limit: float, given: bytes = b"") -> bytes:
        """What a command says that needs no network. Raises GitFailed."""
        return self._finish(self.start(*command, piped=bool(given)), limit, given)

    def start(self, *command: str, piped: bool = False) -> Git.AutoInterrupt:
        """Starts a command that needs no network. Raises GitFailed."""
        return self._start(command, {}, {}, piped=piped)

    def stream(self, *command: str, limit: float) -> Generator[bytes, None, None]:
        """What a command says that needs no network, in parts. Raises GitFailed, also when it says
        nothing for `limit` seconds; it ends when this is closed.
        """
        child = self.start(*command)  # which kills its process when it is forgotten
        process = process_of(child)
        self._running.add(process)
        try:
            assert process.stdout
            poll = select.poll()
            poll.register(process.stdout.fileno(), select.POLLIN)
            while True:
                if not poll.poll(limit * 1000):
                    raise GitSilent(f"no answer within {limit:g} s")
                part = os.read(process.stdout.fileno(), 1 << 18)
                if not part:
                    return
                yield part
        finally:
            self._running.discard(process)
            kill(process)

    def ask_origin(
        self, *command: str, refspecs: Iterable[str] = (), limit: float, lock: int | None = None
    ) -> bytes:
        """What a command says that talks to the origin. Raises GitFailed.

        Its children keep `lock` open, and so locked, even when this process is killed.
        """
        child = self._start(
            (*command, "--", self._origin.url, *refspecs),
            self._origin.config,
            {**self._origin.environment, "GIT_ALLOW_PROTOCOL": self._origin.protocol},
            theirs=_PERSONAL if self._origin.personal else frozenset(),
            before=_bounded(limit + _ORPHANED),
            keep=() if lock is None else (lock,),
        )
        return self._finish(child, limit)

    def stop(self) -> None:
        """Kills what is running, and starts nothing more."""
        self._stopped.set()
        for process in tuple(self._running):
            kill(process)

    def _start(
        self,
        command: tuple[str, ...],
        config: Mapping[str, str],
        environment: Mapping[str, str],
        *,
        theirs: frozenset[str] = frozenset(),
        before: tuple[str, ...] = (),
        keep: tuple[int, ...] = (),
        piped: bool = False,
    ) -> Git.AutoInterrupt:
        if self._stopped.is_set():
            raise GitSilent("the service is being stopped")
        ours = {key: value for key, value in _CONFIG.items() if key not in theirs}
        settings = {**ours, **config}
        safe = {key: value for key, value in _ENVIRONMENT.items() if key not in theirs}
        counted = {"GIT_CONFIG_COUNT": str(len(settings))}
        for number, (key, value) in enumerate(settings.items()):
            counted |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        objects = (f"GIT_OBJECT_DIRECTORY={self._objects}",) if self._objects else ()
        polite = _MEEK if self._meek else _POLITE if keep else ()
        git = (*_PREFIX, *objects, *polite, *before, "git")
        git += (f"--git-dir={self.git_dir}", "--literal-pathspecs")
        try:
            return Git("/").execute(
                [*git, *command],
                as_process=True,
                istream=subprocess.PIPE if piped else None,
                shell=False,
                env={**safe, **counted, **environment},
                start_new_session=True,
                pass_fds=keep,
            )
        except (GitError, OSError) as error:
            raise GitSilent(f"git cannot be started ({type(error).__name__})") from None

    def _finish(self, child: Git.AutoInterrupt, limit: float, given: bytes = b"") -> bytes:
        process = process_of(child)
        self._running.add(process)
        try:
            if self._stopped.is_set():
                raise GitSilent("the service is being stopped")
            output, errors = process.communicate(given or None, timeout=limit)
        except subprocess.TimeoutExpired:
            kill_group(process)  # its children may live on when it died itself
            raise GitSilent(f"no answer within {limit:g} s") from None
        finally:
            self._running.discard(process)
            kill(process)
        if process.returncode:
            said = errors.decode(errors="replace")
            raise (Unfit if _UNFIT.search(said) else GitFailed)(self._reason(said))
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
        text = re.sub(r"//[^/@\s]*@", "//", UNPRINTABLE.sub(" ", text))
        return text[:200].rstrip(".")


def _bounded(seconds: float) -> tuple[str, ...]:
    """Words before a command that end it then, with all it started; none where there are none."""
    return ("timeout", "-s", "KILL", f"{seconds:g}") if which("timeout") else ()  # not on macOS


def process_of(child: Git.AutoInterrupt) -> "subprocess.Popen[bytes]":
    assert child.proc
    return child.proc


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kills the process with all it started, if it still runs, and reaps it."""
    if process.poll() is None:
        kill_group(process)
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            with suppress(BrokenPipeError):
                stream.close()


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kills all that the process started, and the process: only while one of them surely lives."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
