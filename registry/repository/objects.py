"""Objects of a mirror, by one `git cat-file` that stays."""

import hashlib
import os
import re
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from git.cmd import Git

from registry.domain import Revision
from registry.errors import InvalidMetadata
from registry.repository.commands import Commands, GitFailed, GitSilent, kill, process_of

READ_LIMIT = 4.0
"""Seconds a read of the mirror may take; DVC's client gives up after 5 s without a byte."""

_AT_ONCE = 200
"""Questions that are asked before the first answer is read: a pipe has room for all of them, with
the longest names that GTO knows."""
_LARGEST_HEADER = 1 << 16
_TARGET = re.compile(rb"object ([0-9a-f]{40,64})\ntype ([a-z]+)\n")
_TIME = re.compile(rb"^tagger [^\n]*?> *([0-9]+)", re.MULTILINE)

Answer = TypeVar("Answer")


class Header(NamedTuple):
    """What there is to know of an object without its bytes."""

    oid: str
    kind: str
    size: int


class Target(NamedTuple):
    """What a tag points to: the commit that it leads to in the end, if there is one, and the
    tagger's time, in Unix seconds, 0 when there is no tagger. A lightweight tag is no object of
    its own: nothing is said of what it points to.
    """

    commit: Revision | None
    time: int
    annotated: bool


class Objects:
    """One `git cat-file` that stays, asked by one thread at a time."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._lock = threading.Lock()
        self._child: Git.AutoInterrupt | None = None
        self._pid = os.getpid()
        self._pending = bytearray()

    def size(self, name: str) -> tuple[str, int] | None:
        """The id and the size in bytes of the object that `name` means. Raises GitFailed."""
        found = self._ask(lambda deadline: self._headers((name,), deadline))[0]
        return (found.oid, found.size) if found else None

    def blob(self, oid: str, limit: int) -> bytes | None:
        """The bytes of an object; None when there is no such object. Raises GitFailed,
        and InvalidMetadata when it is larger than `limit` bytes.
        """

        def ask(deadline: float) -> tuple[int, bytes] | None:
            found = self._headers((oid,), deadline)[0]
            if found is None or found.size > limit:
                return (found.size, b"") if found else None
            return found.size, next(self._contents((oid,), found.size, deadline))

        found = self._ask(ask)
        if found and found[0] > limit:
            problem = f"it has {found[0]} bytes, and {limit} are allowed"
            raise InvalidMetadata(f"object {oid[:10]}", problem)
        return found[1] if found else None

    def batch(self, names: Sequence[str], limit: int) -> list[bytes | None]:
        """The bytes of many objects; None for one that is absent, or larger than `limit` bytes.
        Raises GitFailed.
        """
        found: list[bytes | None] = []
        for start in range(0, len(names), _AT_ONCE):  # and others may ask in between
            found += self._ask(partial(self._batch, names[start : start + _AT_ONCE], limit))
        return found

    def targets(self, oids: Sequence[str]) -> list[Target | None]:
        """What tags of these object ids point to, in their order; None for what is not there.
        Raises GitFailed.
        """
        found: list[Target | None] = []
        for start in range(0, len(oids), _AT_ONCE):
            found += self._ask(partial(self._targets, oids[start : start + _AT_ONCE]))
        return found

    def close(self) -> None:
        """Ends the child; the next question starts another."""
        with self._lock:
            self._drop()

    def _ask(self, question: Callable[[float], Answer]) -> Answer:
        if self._pid != os.getpid():
            # After a fork the pipes are the parent's, and the lock may be held by nobody.
            self._pid, self._lock = os.getpid(), threading.Lock()
            self._child, self._pending = None, bytearray()
        deadline = time.monotonic() + READ_LIMIT
        if not self._lock.acquire(timeout=READ_LIMIT):
            raise GitSilent(f"no turn within {READ_LIMIT:g} s")
        try:
            return self._answer(question, deadline)
        except GitSilent:
            raise
        except GitFailed:  # it died; another one may live
            return self._answer(question, deadline)
        finally:
            self._lock.release()

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
        self._child, self._pending = None, bytearray()

    def _batch(self, names: Sequence[str], limit: int, deadline: float) -> list[bytes | None]:
        headers = self._headers(names, deadline)
        fit = [one.oid for one in headers if one and one.size <= limit]
        read = dict(zip(fit, self._contents(fit, limit, deadline), strict=True))
        return [read.get(one.oid) if one else None for one in headers]

    def _targets(self, oids: Sequence[str], deadline: float) -> list[Target | None]:
        headers = self._headers(oids, deadline)
        tags = [header.oid for header in headers if header and header.kind == "tag"]
        read = dict(zip(tags, self._contents(tags, _LARGEST_HEADER, deadline), strict=True))
        # Of most tags the object says all; what is a tag again is peeled to the bottom.
        pointing = {oid: _TARGET.match(data) for oid, data in read.items()}
        nested = [oid for oid, found in pointing.items() if not found or found[2] == b"tag"]
        peeled = self._headers([f"{oid}^{{commit}}" for oid in nested], deadline)
        commits = dict(zip(nested, (one.oid if one else None for one in peeled), strict=True))
        for oid, found in pointing.items():
            if found and found[2] == b"commit":
                commits[oid] = found[1].decode()
        targets: list[Target | None] = []
        for header in headers:
            if header is None or header.kind != "tag":
                targets.append(Target(None, 0, annotated=False) if header else None)
                continue
            commit, time = commits.get(header.oid), _TIME.search(read[header.oid])
            targets.append(
                Target(Revision(commit) if commit else None, int(time[1]) if time else 0, True)
            )
        return targets

    def _headers(self, names: Sequence[str], deadline: float) -> list[Header | None]:
        """What the names mean; None where there is no such object."""
        self._say("".join(f"info {name}\n" for name in names))
        return [self._header(deadline) for _ in names]

    def _contents(self, oids: Sequence[str], limit: int, deadline: float) -> Iterator[bytes]:
        """The first `limit` bytes of each of the objects, all of which are there. Raises GitFailed
        for what is not what its id says.
        """
        self._say("".join(f"contents {oid}\n" for oid in oids))
        for _ in oids:
            header = self._header(deadline)
            if header is None:
                raise GitFailed("an object is missing that was there")
            data = self._take(header.size, limit, deadline)
            if len(data) == header.size and not _is_whole(header, data):
                raise GitFailed(f"object {header.oid[:10]} is damaged")
            yield data

    def _say(self, commands: str) -> None:
        if self._child is None:
            self._child = self._commands.start("cat-file", "--batch-command", piped=True)
        stdin = process_of(self._child).stdin
        assert stdin
        os.write(stdin.fileno(), commands.encode())

    def _header(self, deadline: float) -> Header | None:
        while (end := self._pending.find(b"\n")) < 0:
            self._receive(deadline)
        words = self._pending[:end].decode(errors="replace").split(" ")
        del self._pending[: end + 1]
        if len(words) == 3 and words[2].isdigit():
            return Header(words[0], words[1], int(words[2]))
        return None

    def _take(self, size: int, limit: int, deadline: float) -> bytes:
        """The first `limit` of the next `size` bytes, and a line end, which is dropped."""
        kept, missing = bytearray(), size + 1
        while missing > 0:
            if not self._pending:
                self._receive(deadline)
            count = min(missing, len(self._pending))
            kept += self._pending[: min(count, limit - len(kept))]
            del self._pending[:count]
            missing -= count
        return bytes(kept[:size])

    def _receive(self, deadline: float) -> None:
        """Adds what the child says next. What it complains about is read and dropped."""
        assert self._child
        process = process_of(self._child)
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


def _is_whole(header: Header, data: bytes) -> bool:
    """Whether these are the bytes: Git itself believes the index of a pack, damaged or not."""
    algorithm = "sha1" if len(header.oid) == 40 else "sha256"
    found = hashlib.new(algorithm, f"{header.kind} {header.size}\0".encode(), usedforsecurity=False)
    found.update(data)
    return found.hexdigest() == header.oid
