"""Starting, awaiting and ending the process of a server."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HOST = "127.0.0.1"

_PATIENCE = 60.0
_POLL = 0.02


class NotStarted(Exception):
    """The server ended, or did not answer in time. The message holds the end of its log."""


def executable(name: str) -> str:
    """The path of a program: beside this Python, on the PATH or where only root's PATH looks.

    Skips the test where there is none.
    """
    beside = Path(sys.executable).parent
    places = os.pathsep.join(
        [str(beside), os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]
    )
    found = shutil.which(name, path=places)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on.

    From below the range that the system takes the ports of outgoing connections from: one of
    those could take the port again before the server does.
    """
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            probe = held.enter_context(socket.socket())
            port = random.randint(15_000, 32_000)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            ports.append(port)
    return ports


@contextmanager
def running(
    command: Sequence[str],
    ready: Callable[[], object],
    *,
    log: Path,
    environ: Mapping[str, str] | None = None,
) -> "Iterator[subprocess.Popen[bytes]]":
    """Runs a server from when `ready` returns without an error until the end of the block.

    `ready` does what the tests will do, such as to store an object, and raises until that works.
    `environ` is all that the server sees of the environment besides PATH; its output goes to
    `log`, and its working directory is that of the log. Raises NotStarted.
    """
    own = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(log.parent), **(environ or {})}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=own,
            start_new_session=True,
        )
    try:
        _wait(process, ready, log)
        yield process
    finally:
        _end(process)


def tail(log: Path, size: int = 4000) -> str:
    """The end of a log, for people."""
    return log.read_bytes()[-size:].decode(errors="replace")


def _wait(process: "subprocess.Popen[bytes]", ready: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            ready()
        except Exception as error:
            problem = error
        else:
            return
        if process.poll() is not None:
            raise NotStarted(f"{log.stem} ended with {process.returncode}:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise NotStarted(f"{log.stem} does not answer, {problem!r}:\n{tail(log)}")
        time.sleep(_POLL)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the process and all that it started, at once: nothing of it is kept."""
    # It leads its group, which lives as long as any of them; macOS refuses for one of zombies.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
