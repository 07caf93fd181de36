"""The manifests of directories: each is fetched and checked once by all processes of a machine.

    CACHE/
      ab/cdef...    the SHA-256 of the URL of a `.dir` object: its files, by lines

A file begins with a line of `files 1 <count> <SHA-256 of the rest>`; then comes a line for each
file, as Listing has them. What was checked for paths and conflicts once need not be again, and of a
long list nothing is kept in memory but the file, which stays open. The whole directory can be
deleted at any time.
"""

import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile

from registry.domain import RelPath, StorageUrl
from registry.dvc.manifest import Lines, Listing, Text
from registry.errors import ManifestNotReady, ObjectTooLarge

logger = logging.getLogger(__name__)

LARGEST_MANIFEST = 256 << 20
"""Bytes of the largest `.dir` object that is read: about three million files."""
LARGE = 8 << 20
"""Bytes of a `.dir` object beyond which it waits until there is room for it."""
ROOM = 128 << 20
"""Bytes of large `.dir` objects that a process reads at once. Reading takes twice as many."""
PATIENCE = 4.0
"""Seconds that a request waits for a manifest that is read for others, or for room for its own."""
_IN_MEMORY = 1 << 20
_POLL = 0.05
_CHUNK = 1 << 18
_HEADER = re.compile(rb"files 1 ([0-9]{1,7}) ([0-9a-f]{64})\n")
_LONGEST_HEADER = 90


@dataclass(frozen=True)
class Kept:
    """Lines of a file that stays open, from `start` to `end`."""

    descriptor: int
    start: int
    end: int

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        for chunk in _chunks(self.descriptor, self.start, self.end):
            lines = (rest + chunk).splitlines(keepends=True)
            rest = lines.pop()
            yield from lines
        if rest:
            yield rest

    @property
    def weight(self) -> int:
        """More than it takes, as the lines are on disk: files that are open are few, too."""
        return _IN_MEMORY

    def __del__(self) -> None:
        """Nobody else has the descriptor."""
        os.close(self.descriptor)


class Manifests:
    """Those of one process, below the directory `cache`. Safe to share between threads."""

    def __init__(self, cache: Path, room: int = ROOM, patience: float = PATIENCE) -> None:
        self._cache = cache
        self._patience = patience
        self._room = _Room(room)
        self._lock = threading.Lock()
        self._flights: dict[str, Future[Listing | None]] = {}

    def listing(
        self,
        url: StorageUrl,
        read: Callable[[int], bytes | bytearray | None],
        parse: Callable[[bytes | bytearray], Listing],
    ) -> Listing | None:
        """The files that the `.dir` object at `url` lists, with paths and keys as they are listed;
        None when the store does not have it.

        `read` gets it from the store, unless it is larger than so many bytes: then it raises
        ObjectTooLarge. `parse` checks it. Both are called by one thread of one process, and not at
        all when it was done before. Raises what they raise, for whoever waits, and
        ManifestNotReady.
        """
        name = sha256(str(url).encode()).hexdigest()
        with self._lock:
            flight = self._flights.get(name)
            is_first = flight is None
            if flight is None:
                flight = self._flights[name] = Future()
        if not is_first:
            try:
                return flight.result(self._patience)
            except NotInTime:
                raise ManifestNotReady(str(url)) from None
        try:
            flight.set_result(self._listing(self._cache / name[:2] / name[2:], url, read, parse))
        except BaseException as error:
            flight.set_exception(error)
        finally:
            with self._lock:
                del self._flights[name]
        try:
            return flight.result()
        finally:
            # An error remembers where it was raised, and what was read there, as long as it lives.
            del flight

    def _listing(
        self,
        file: Path,
        url: StorageUrl,
        read: Callable[[int], bytes | bytearray | None],
        parse: Callable[[bytes | bytearray], Listing],
    ) -> Listing | None:
        known = _open(file)
        if known:
            return known
        deadline = time.monotonic() + self._patience
        with ExitStack() as stack:
            if not stack.enter_context(_alone(file.parent, deadline)):
                raise ManifestNotReady(str(url))
            known = _open(file)  # a sibling may have been there first
            if known:
                return known
            try:
                data = read(LARGE)
            except ObjectTooLarge as error:
                if not stack.enter_context(self._room.taken(error.size, deadline)):
                    raise ManifestNotReady(str(url)) from None
                _give_back()
                data = read(LARGEST_MANIFEST)
            if data is None:
                return None
            listing = parse(data)
            del data  # before the list is written and opened: it may be a tenth of a gigabyte
            return (_write(file, listing) and _open(file)) or listing


def _give_back() -> None:
    """Gives the system what is free: what one long list left is not added to the next one."""
    import ctypes  # noqa: PLC0415 only where there are long lists

    with suppress(OSError, AttributeError):  # it is glibc's
        ctypes.CDLL(None).malloc_trim(0)


class _Room:
    """For so many bytes at once. What is larger than all of it takes all of it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free = size
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, count: int, deadline: float) -> Iterator[bool]:
        """Whether there was room before the deadline, which is kept until the block ends."""
        wanted = min(count, self._size)
        with self._changed:
            left = max(0.0, deadline - time.monotonic())
            has_room = self._changed.wait_for(lambda: self._free >= wanted, left)
            self._free -= wanted if has_room else 0
        try:
            yield has_room
        finally:
            with self._changed:
                self._free += wanted if has_room else 0
                self._changed.notify_all()


@contextmanager
def _alone(directory: Path, deadline: float) -> Iterator[bool]:
    """Whether no other process reads what is kept in the directory, until the block ends."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # a cache that cannot be written is shared with nobody
        yield True
        return
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(_POLL)
            else:
                break
        try:
            yield True
        finally:
            with suppress(OSError):
                directory.rmdir()  # where nothing came of it
    finally:
        os.close(descriptor)


def _chunks(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    while start < end and (chunk := os.pread(descriptor, min(_CHUNK, end - start), start)):
        start += len(chunk)
        yield chunk


def _open(file: Path) -> Listing | None:
    """What a file holds; None for one that is missing or damaged."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    kept: Lines | None = None
    try:
        header = _HEADER.match(os.pread(descriptor, _LONGEST_HEADER, 0))
        if header is None:
            return None
        start, end = header.end(), os.fstat(descriptor).st_size
        digest, count = sha256(), 0
        for chunk in _chunks(descriptor, start, end):
            digest.update(chunk)
            count += chunk.count(b"\n")
        if count != int(header[1]) or digest.hexdigest() != header[2].decode():
            return None
        if end - start <= _IN_MEMORY:
            lines: Lines = Text(b"".join(_chunks(descriptor, start, end)))
        else:
            lines = kept = Kept(descriptor, start, end)
        return Listing(lines, count, RelPath.ROOT, "")
    except OSError as error:
        logger.warning("the cache of manifests cannot be read: %s", error.strerror)
        return None
    finally:
        if kept is None:
            os.close(descriptor)


def _write(file: Path, listing: Listing) -> bool:
    """Puts a file in place whole or not at all: sibling processes read it without a lock.

    A cache that cannot be written, such as on a full disk, is no reason not to answer.
    """
    digest = sha256()
    for line in listing.lines:
        digest.update(line)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=file.parent, delete=False) as temporary:
            try:
                temporary.write(f"files 1 {len(listing)} {digest.hexdigest()}\n".encode())
                temporary.writelines(listing.lines)
                temporary.flush()
                os.replace(temporary.name, file)
            except OSError:
                os.unlink(temporary.name)
                raise
    except OSError as error:
        logger.warning("the cache of manifests cannot be written: %s", error.strerror)
        return False
    return True
