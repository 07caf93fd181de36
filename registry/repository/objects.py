"""Objects of a mirror, by one `git cat-file` that stays."""

import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from git.cmd import Git

from registry.errors import InvalidMetadata
from registry.repository.commands import Commands, GitFailed, GitSilent, kill, process_of

READ_LIMIT = 4.0
"""Seconds a read of the mirror may take; DVC's client gives up after 5 s without a byte."""

Answer = TypeVar("Answer")


class Objects:
    """One `git cat-file` that stays, asked by one thread at a time."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._lock = threading.Lock()
        self._child: Git.AutoInterrupt | None = None
        self._pid = os.getpid()
        self._pending = b""

    def size(self, name: str) -> tuple[str, int] | None:
        """The id and the size in bytes of the object that `name` means. Raises GitFailed."""
        return self._ask(lambda deadline: self._header(f"info {name}", deadline))

    def blob(self, oid: str, limit: int) -> bytes | None:
        """The bytes of an object; None when there is no such object. Raises GitFailed,
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

    def batch(self, names: Sequence[str], limit: int) -> list[bytes | None]:
        """The bytes of many objects, within the time of one read; None for one that is absent, or
        larger than `limit` bytes. Raises GitFailed.
        """

        def ask(deadline: float) -> list[bytes | None]:
            found: list[bytes | None] = []
            for name in names:
                known = self._header(f"info {name}", deadline)
                if known is None or known[1] > limit:
                    found.append(None)
                    continue
                self._header(f"contents {name}", deadline)
                found.append(self._take(known[1] + 1, deadline)[:-1])
            return found

        return self._ask(ask)

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
            except GitSilent:
                raise
            except GitFailed:  # it died; another one may live
                return self._answer(question, deadline)

    def _answer(self, question: Callable[[float], Answer], deadline: float) -> Answer:
        """One attempt. A child that was not heard to the end is of no more use."""
        try:
            return question(deadline)
        except OSError as error:
            self._drop()
            raise GitFailed(f"its reader failed: {error.strerror}") from None
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._child:
            kill(process_of(self._child))
        self._child, self._pending = None, b""

    def _header(self, command: str, deadline: float) -> tuple[str, int] | None:
        """The id and the size that the child answers with; None when there is no such object."""
        if self._child is None:
            self._child = self._commands.start("cat-file", "--batch-command", piped=True)
        process = process_of(self._child)
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
        process = process_of(self._child)
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
            raise GitSilent(f"no answer within {READ_LIMIT:g} s")
        data = os.read(output if output in ready else errors, 1 << 20)
        if not data:
            raise GitFailed("its reader died")
        if output in ready:
            self._pending += data
