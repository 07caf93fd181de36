"""Downloads files: in parallel, resumed where they broke off, checked, never outside the target.

    target/
      models/model.pkl                         whole and checked, or not there at all
      models/.registry-<32 digits>.part        on its way there; the next download goes on with it

What a file is comes from a receipt, where it is to be had from whoever downloads it: a service's
links, or a store itself. Nothing of either is believed: a path is walked part by part without
following a link, sizes are limits, and bytes count when their MD5 does.
"""

import errno
import fcntl
import hashlib
import io
import os
import queue
import random
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import Protocol

from registry.connections import Connections, Download, Later, Overrun, Refused
from registry.domain import RelPath, reject_conflicts
from registry.errors import (
    FileInTheWay,
    ObjectCorrupt,
    ObjectMissing,
    StorageUnavailable,
    TargetUnusable,
    UnsafePath,
)
from registry.receipt import ReceiptFile
from registry.storage import Origin

JOBS = 8
"""Files that are downloaded at once."""
ATTEMPTS = 6
"""How often a file is tried without getting any further."""
RENEWALS = 3
"""How often fresh links are asked for without getting any further."""
CHUNK = 1 << 20
"""Bytes."""

_HASHED_ASIDE = 8 << 20
_AHEAD = 8
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FOLLOW_NOTHING = os.O_NOFOLLOW | os.O_CLOEXEC


class Sources(Protocol):
    """Where files are to be had, for a while."""

    def origin(self, file: ReceiptFile, stale: Origin | None) -> Origin:
        """Where the file can be read now; not at `stale`, which answered that it cannot any more.

        Raises RegistryError. Called from many threads.
        """
        ...


@dataclass(frozen=True)
class Job:
    """What is to be downloaded: `files` from `sources` into the directory `target`, `jobs` at once.

    `force` replaces what is there and is not the file. `advance` is told of bytes as they are got,
    those that were there already included; it is called from many threads.
    """

    files: Sequence[ReceiptFile]
    sources: Sources
    target: Path
    connections: Connections
    jobs: int = JOBS
    force: bool = False
    advance: Callable[[int], object] = lambda _: None

    def run(self) -> list[Path]:
        """The paths of the files, all of them whole and checked.

        A file that is there already is left alone. Raises the first error that stopped it: what was
        got until then stays, and the next run goes on from there. So it does after Ctrl-C.
        """
        reject_conflicts(file.path for file in self.files)
        target = _Target.open(self.target)
        stopped = threading.Event()
        pool = ThreadPoolExecutor(self.jobs, thread_name_prefix="download")
        try:
            missing = self._missing(pool, target, stopped)
            self._make_room(missing, target)
            self._each(pool, target, missing, stopped, self._fetch)
        except BaseException as error:
            stopped.set()
            self.connections.stop()
            # Nobody who pressed Ctrl-C waits for a store that has not begun to answer.
            interrupted = isinstance(error, KeyboardInterrupt)
            pool.shutdown(wait=not interrupted, cancel_futures=True)
            raise
        finally:
            target.close()
        pool.shutdown()
        return [self.target / file.path for file in self.files]

    def _missing(
        self, pool: ThreadPoolExecutor, target: "_Target", stopped: threading.Event
    ) -> list[ReceiptFile]:
        """The files that are not there yet. Raises FileInTheWay before anything is written."""
        if target.is_empty():
            return list(self.files)
        states: dict[RelPath, str] = {}

        def look(walk: _Walk, file: ReceiptFile, stopped: threading.Event) -> None:
            states[file.path] = walk.state(file, stopped)

        self._each(pool, target, self.files, stopped, look)
        missing = []
        for file in self.files:
            state = states[file.path]
            if state == "same":
                self.advance(file.size or 0)
                continue
            if state == "directory" or (state == "other" and not self.force):
                problem = (
                    "it is a directory"
                    if state == "directory"
                    else "it holds something else: pass --force (force=True) to replace it"
                )
                raise FileInTheWay(str(self.target / file.path), problem)
            missing.append(file)
        return missing

    def _each(
        self,
        pool: ThreadPoolExecutor,
        target: "_Target",
        files: Collection[ReceiptFile],
        stopped: threading.Event,
        work: "Callable[[_Walk, ReceiptFile, threading.Event], object]",
    ) -> None:
        """Does the work for every file, `jobs` of them at once. Raises the first error."""
        left, lock = iter(files), threading.Lock()

        def worker() -> None:
            with target.walk() as walk:
                while not stopped.is_set():
                    with lock:
                        file = next(left, None)
                    if file is None:
                        return
                    work(walk, file, stopped)

        working = [pool.submit(worker) for _ in range(min(self.jobs, len(files)))]
        done, _ = wait(working, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()

    def _make_room(self, missing: Collection[ReceiptFile], target: "_Target") -> None:
        needed, free = sum(file.size or 0 for file in missing), disk_usage(self.target).free
        if needed > free:
            with target.walk() as walk:  # what an earlier run has left is there already
                needed -= sum(walk.left(file) for file in missing)
        if needed > free:
            problem = f"{needed:,} bytes are needed, and {free:,} are free"
            raise TargetUnusable(str(self.target), problem)

    def _fetch(self, walk: "_Walk", file: ReceiptFile, stopped: threading.Event) -> None:
        with walk.part(file) as part:
            try:
                _Fetch(self, file, part, stopped).run()
            except OSError as error:
                if error.errno in _FULL:
                    part.remove()
                raise TargetUnusable(str(self.target), error.strerror or "I/O error") from None


class _Fetch:
    """One file on its way: tried again as long as it gets further, or may yet."""

    def __init__(
        self, job: Job, file: ReceiptFile, part: "_Part", stopped: threading.Event
    ) -> None:
        self._job = job
        self._file = file
        self._part = part
        self._stopped = stopped
        self._attempts = 0
        self._renewals = 0
        self._mismatched = False

    def run(self) -> None:
        """Leaves the file in place. Raises RegistryError and OSError."""
        stale = None
        self._job.advance(self._part.resume())
        while True:
            origin = self._job.sources.origin(self._file, stale)
            begun, stale = self._part.size, None
            try:
                with suppress(Overrun):  # all that is left is to find out whether these are they
                    self._read(origin)
                if self._finish(origin):
                    return
            except Refused as refused:
                stale = origin
                self._renewed(refused, origin)
            except Later as later:
                self._pause(later, origin, progressed=self._part.size - begun >= CHUNK)

    def _read(self, origin: Origin) -> None:
        part = self._part
        if part.size and part.size == self._file.size:
            return  # nothing but the check was left
        with self._job.connections.open(origin, part.size) as download:
            if download is None:
                raise ObjectMissing(self._file.path, self._file.md5, origin.place)
            if download.first not in (0, part.size):
                raise Later("it answers with other bytes than it was asked for")
            if download.first != part.size:
                self._restart()
            self._take(download, origin)

    def _take(self, download: Download, origin: Origin) -> None:
        limit = self._file.size
        for chunk in download:
            if self._stopped.is_set():
                raise _Stopped
            self._part.write(chunk)
            if limit is not None and self._part.size > limit:
                self._restart()
                raise ObjectCorrupt(origin.place, self._file.md5 or f"size of {limit} bytes")
            self._job.advance(len(chunk))

    def _finish(self, origin: Origin) -> bool:
        """Puts the file in place if it is right; otherwise, once, everything begins anew."""
        if self._part.is_right():
            self._part.finish()
            return True
        self._restart()
        if self._mismatched:
            raise ObjectCorrupt(origin.place, self._file.md5 or "")
        self._mismatched = True
        return False

    def _restart(self) -> None:
        self._job.advance(-self._part.size)
        self._part.clear()

    def _renewed(self, refused: Refused, origin: Origin) -> None:
        self._renewals += 1
        if self._renewals > RENEWALS:
            raise StorageUnavailable(origin.place, f"it answers {refused.status} to fresh links")

    def _pause(self, later: Later, origin: Origin, *, progressed: bool) -> None:
        if progressed:
            self._attempts = self._renewals = 0
        self._attempts += 1
        if self._attempts >= ATTEMPTS:
            raise StorageUnavailable(origin.place, later.problem) from None
        pause = min(_SHORTEST_PAUSE * 2**self._attempts, _LONGEST_PAUSE)
        pause *= random.uniform(0.5, 1.0)  # noqa: S311 so that many clients do not come back at once
        if self._stopped.wait(max(pause, later.after)):
            raise _Stopped


class _Stopped(Exception):
    """Another file failed, or somebody pressed Ctrl-C."""


class _Target:
    """A directory that files are written below, by descriptors: a link in it leads nowhere."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> "_Target":
        """Makes the directory if need be. Raises TargetUnusable."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            return cls(path, os.open(path, os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise TargetUnusable(str(path), error.strerror or "I/O error") from None

    def close(self) -> None:
        """Closes the descriptor. Walks that have begun go on."""
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1

    def is_empty(self) -> bool:
        """Whether nothing is there yet."""
        return not os.listdir(self._descriptor)

    @contextmanager
    def walk(self) -> "Iterator[_Walk]":
        """For one thread: what it does below the directory."""
        with self._lock:
            if self._descriptor < 0:
                raise _Stopped
            walk = _Walk(self._path, os.dup(self._descriptor))
        try:
            yield walk
        finally:
            walk.close()


class _Walk:
    """One thread's way through a target. It stays in the directory of the last file, which most
    often holds the next one, too.
    """

    def __init__(self, path: Path, root: int) -> None:
        self._path = path
        self._root = self._here = root
        self._where: RelPath | None = RelPath.ROOT

    def close(self) -> None:
        """Closes its descriptors."""
        self._leave()
        os.close(self._root)

    def state(self, file: ReceiptFile, stopped: threading.Event) -> str:
        """What is at the path of the file: nothing, the `same`, an `other`, or a `directory`.

        Raises UnsafePath.
        """
        try:
            directory = self._enter(file.path, make=False)
            found = os.stat(file.path.name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                return "directory"
            if not stat.S_ISREG(found.st_mode) or file.md5 is None:
                return "other"
            if file.size not in (None, found.st_size):
                return "other"
            flags = os.O_RDONLY | _FOLLOW_NOTHING | os.O_NONBLOCK
            descriptor = os.open(file.path.name, flags, dir_fd=directory)
            with os.fdopen(descriptor, "rb", buffering=0) as opened:
                return "same" if has_md5(opened, file.md5, stopped) else "other"
        except FileNotFoundError:
            return "nothing"
        except OSError as error:
            raise TargetUnusable(str(self._path), error.strerror or "I/O error") from None

    @contextmanager
    def part(self, file: ReceiptFile) -> "Iterator[_Part]":
        """The file on its way, which nobody else writes meanwhile.

        Raises UnsafePath, FileInTheWay and TargetUnusable.
        """
        name = _part_of(file)
        try:
            directory = self._enter(file.path, make=True)
            flags = os.O_RDWR | os.O_CREAT | _FOLLOW_NOTHING
            descriptor = os.open(name, flags, 0o666, dir_fd=directory)
            part = _Part(file, directory, name, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not part.begin():
                    problem = f"{name} beside it is not a file of its own: remove that"
                    raise FileInTheWay(str(self._path / file.path), problem)
                yield part
            finally:
                part.close()
        except BlockingIOError:
            problem = "another download of it is under way"
            raise FileInTheWay(str(self._path / file.path), problem) from None
        except OSError as error:
            raise TargetUnusable(str(self._path), error.strerror or "I/O error") from None

    def left(self, file: ReceiptFile) -> int:
        """How many bytes of a part there are to go on from. Raises UnsafePath."""
        try:
            directory = self._enter(file.path, make=False)
            found = os.stat(_part_of(file), dir_fd=directory, follow_symlinks=False)
        except OSError:
            return 0
        return found.st_size if file.md5 and found.st_size <= (file.size or 0) else 0

    def _enter(self, path: RelPath, *, make: bool) -> int:
        """The directory that holds the path, walked to part by part; good until the next one."""
        parent = path.parent
        if parent == self._where:
            return self._here
        self._leave()
        self._where = None  # until it has got there
        for part in parent.split("/") if parent else ():
            try:
                below = self._below(path, part)
            except FileNotFoundError:
                if not make:
                    raise
                with suppress(FileExistsError):  # another thread is faster
                    os.mkdir(part, dir_fd=self._here)
                below = self._below(path, part)
            if self._here != self._root:
                os.close(self._here)
            self._here = below
        self._where = parent
        return self._here

    def _leave(self) -> None:
        """Goes back to the root, from wherever it got to."""
        if self._here != self._root:
            os.close(self._here)
        self._here, self._where = self._root, RelPath.ROOT

    def _below(self, path: RelPath, part: str) -> int:
        try:
            return os.open(part, os.O_DIRECTORY | _FOLLOW_NOTHING, dir_fd=self._here)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                problem = f"{part!r} in the target is a file or a symbolic link"
                raise UnsafePath(path, problem) from None
            raise


def _part_of(file: ReceiptFile) -> str:
    digest = hashlib.sha256(f"{file.path}\n{file.md5}".encode()).hexdigest()
    return f".registry-{digest[:32]}.part"


def has_md5(opened: io.RawIOBase, md5: str, stopped: threading.Event) -> bool:
    """Whether an open file has the MD5, by which DVC 2 may have known a text by its lines."""
    digest = hashlib.md5(usedforsecurity=False)
    while not stopped.is_set() and (chunk := opened.read(CHUNK)):
        digest.update(chunk)
    if digest.hexdigest() == md5:
        return True
    opened.seek(0)
    return unix_md5(opened.read) == md5


def unix_md5(read: Callable[[int], bytes | None]) -> str:
    """The MD5 by which DVC 2 knew a text: as if its lines ended with `\\n`, in each MiB of it."""
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := read(CHUNK):
        digest.update(chunk.replace(b"\r\n", b"\n"))
    return digest.hexdigest()


class _Digest:
    """The MD5 of a file on its way. A large one is hashed by a thread of its own: to hash takes as
    long as to receive, and neither needs the interpreter.
    """

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._left = _HASHED_ASIDE
        self._chunks: queue.Queue[bytes | None] | None = None
        self._aside: threading.Thread | None = None

    def update(self, chunk: bytes) -> None:
        """Adds bytes, which must not change any more."""
        if self._chunks:
            self._chunks.put(chunk)
            return
        self._md5.update(chunk)
        self._left -= len(chunk)
        if self._left < 0:
            self._chunks = queue.Queue(_AHEAD)
            hashing = (self._chunks,)
            self._aside = threading.Thread(target=self._hash, args=hashing, daemon=True)
            self._aside.start()

    def hexdigest(self) -> str:
        """The digits, when all is hashed. The last that can be asked of it."""
        if self._chunks and self._aside:
            self._chunks.put(None)
            self._aside.join()
            self._chunks = self._aside = None
        return self._md5.hexdigest()

    def _hash(self, chunks: "queue.Queue[bytes | None]") -> None:
        while (chunk := chunks.get()) is not None:
            self._md5.update(chunk)


class _Part:
    """The bytes of a file that are there, and their MD5."""

    def __init__(self, file: ReceiptFile, directory: int, name: str, descriptor: int) -> None:
        self.size = 0
        self._file = file
        self._directory = directory
        self._name = name
        self._descriptor = descriptor
        self._left = 0
        self._digest = _Digest()

    def close(self) -> None:
        """Ends what still runs for it."""
        self._digest.hexdigest()
        os.close(self._descriptor)

    def begin(self) -> bool:
        """Whether what is written to it is written nowhere else: it may have been there before."""
        found = os.fstat(self._descriptor)
        self._left = found.st_size
        return stat.S_ISREG(found.st_mode) and found.st_nlink == 1

    def resume(self) -> int:
        """Goes on with what an earlier download left, if its end can be checked: so many bytes."""
        left = self._left
        if not left:
            return 0
        size = left if self._file.size is None else self._file.size
        if self._file.md5 is None or left > size:
            self.clear()
            return 0
        while chunk := os.read(self._descriptor, CHUNK):
            self._digest.update(chunk)
            self.size += len(chunk)
        return self.size

    def write(self, chunk: bytes) -> None:
        """Adds bytes. Raises OSError."""
        self._digest.update(chunk)
        left = memoryview(chunk)
        while left:
            left = left[os.write(self._descriptor, left) :]
        self.size += len(chunk)

    def clear(self) -> None:
        """Begins anew."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._digest.hexdigest()
        self._digest = _Digest()
        self.size = 0

    def is_right(self) -> bool:
        """Whether these are the bytes of the file, as far as anything is known of them."""
        if self._file.md5 is None:
            return self._file.size in (None, self.size)
        if self._digest.hexdigest() == self._file.md5:
            return True
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return unix_md5(lambda size: os.read(self._descriptor, size)) == self._file.md5

    def finish(self) -> None:
        """Gives the file its name, in place of whatever has it. Raises OSError."""
        name, here = self._file.path.name, self._directory
        os.rename(self._name, name, src_dir_fd=here, dst_dir_fd=here)

    def remove(self) -> None:
        """Gives the room back."""
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.unlink(self._name, dir_fd=self._directory)
