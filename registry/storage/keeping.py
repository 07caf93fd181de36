"""How bytes become objects of a location: what this service writes itself.

    <url>/files/md5/ab/cdef...     an object, in the layout of DVC 3
    <url>/.uploads/...             what arrives, in a directory: no object yet

Bytes are hashed while they arrive, and have the name of their object only when all of them are
there and on the disk: what is cut off leaves nothing that could be taken for an object. The same
bytes are one object, however often they come.
"""

import errno
import os
import tempfile
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from hashlib import md5
from pathlib import Path
from typing import IO, Protocol

from registry.domain import Entry, RelPath, StorageUrl
from registry.dvc.manifest import object_key
from registry.errors import StorageUnavailable
from registry.storage import Location
from registry.storage.bucket import Bucket
from registry.storage.parts import Kept, Parts
from registry.storage.s3 import S3Signer

PART = 64 << 20
"""Bytes that go to S3 in one request. A larger object goes there in parts of this size."""

_UPLOADS = ".uploads"
_LEFT = 86_400
"""Seconds after which an upload that nobody finished is removed: its process was killed."""
_CHUNK = 1 << 20
"""Bytes from which on it pays to hand a piece to another thread."""
_UNDER_WAY = 6
"""Steps, two for each chunk, that may be ahead of those that were waited for."""
_BEHIND = 16 << 20
"""Bytes that may be written before they are on the disk."""


class Keeper(Protocol):
    """A place for objects, to write and to read. Safe to share between threads."""

    @property
    def location(self) -> Location:
        """Who signs for what lies there."""
        ...

    @property
    def url(self) -> StorageUrl:
        """Where the objects lie: within the location."""
        ...

    @property
    def parts(self) -> Parts | None:
        """Uploads that clients make to the store themselves, where there is such a store."""
        ...

    def put(self, chunks: Iterable[bytes], suffix: str = "") -> Kept:
        """Writes an object. It is there when this returns; if `chunks` raises, there is nothing.

        The digest of the manifest of a directory has the suffix `.dir`. Raises StorageUnavailable
        or CredentialsUnavailable.
        """
        ...


class DirectoryKeeper:
    """Objects in a directory of this machine. Takes part in `Keeper`."""

    def __init__(self, location: Location, url: StorageUrl) -> None:
        self.location = location
        self.url = url
        self.parts: Parts | None = None
        self._root = Path("/", url.path)
        self._swept = False
        # Whether the names of the directories that hold all objects are on the disk.
        self._rooted = False

    def put(self, chunks: Iterable[bytes], suffix: str = "") -> Kept:
        """Writes an object: to a file beside it, which then gets its name."""
        uploads = self._root / _UPLOADS
        with _translated(str(self.url)):
            uploads.mkdir(parents=True, exist_ok=True)
            self._sweep(uploads)
            file = tempfile.NamedTemporaryFile(dir=uploads, delete=False, buffering=0)  # noqa: SIM115 below
        try:
            with file:
                kept = _write(chunks, file, suffix, str(self.url))
            with _translated(str(self.url)):
                self._name(Path(file.name), kept)
        finally:
            with suppress(OSError):  # it has its name
                os.unlink(file.name)
        return kept

    def _name(self, file: Path, kept: Kept) -> None:
        target = self._root / object_key(kept.md5, legacy=False)
        if not _has(target, kept.size):
            target.parent.mkdir(parents=True, exist_ok=True)
            file.chmod(0o444)  # as DVC keeps objects
            file.replace(target)
        # Also for one that was there: whoever wrote it may not have come so far yet.
        nearest, second, *above = target.relative_to(self._root).parents
        for directory in (nearest, second, *([] if self._rooted else above)):
            _sync(self._root / directory)
        if not self._rooted:
            with suppress(PermissionError):  # it is not ours
                _sync(self._root.parent)
            self._rooted = True

    def _sweep(self, uploads: Path) -> None:
        """Removes, once for a process, what was left by those that were killed."""
        if self._swept:
            return
        self._swept = True
        for left in uploads.iterdir():
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _LEFT:
                    left.unlink()


class S3Keeper:
    """Objects in a bucket. Takes part in `Keeper`.

    What arrives waits in a file without a name, for S3 wants to know how much there is.
    """

    def __init__(
        self,
        location: Location,
        url: StorageUrl,
        signer: S3Signer,
        spool: Path,
        clock: Callable[[], float] = time.time,
        part: int = PART,
        keys: Sequence[str] = (),
    ) -> None:
        """`spool` is a directory of this machine; `part` how much goes in one request. `keys` seal
        the uploads that clients make themselves, oldest first; without any there are none.
        """
        self.location = location
        self.url = url
        self._spool = spool
        self._part = part
        self._bucket = Bucket(url, signer, clock)
        self.parts: Parts | None = Parts(self._bucket, keys) if keys else None

    def put(self, chunks: Iterable[bytes], suffix: str = "") -> Kept:
        """Writes an object, unless it is there: in parts if it is large."""
        with _translated(str(self._spool)):
            self._spool.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=self._spool, buffering=0)  # noqa: SIM115 below
        with file:
            kept = _write(chunks, file, suffix, str(self._spool))
            path = self.url.below(object_key(kept.md5, legacy=False)).path
            if self._bucket.size(path) != kept.size:
                file.seek(0)
                if kept.size > self._part:
                    self._put_parts(path, file, kept.size)
                else:
                    self._put_whole(path, file, kept)
        return kept

    def _put_whole(self, path: str, file: IO[bytes], kept: Kept) -> None:
        # So that the store refuses bytes that changed on the way.
        digest = b64encode(bytes.fromhex(kept.md5[:32])).decode()
        headers = {"Content-Length": str(kept.size), "Content-MD5": digest}
        self._bucket.must("PUT", path, body=file, headers=headers)

    def _put_parts(self, path: str, file: IO[bytes], size: int) -> None:
        def send(number: int, upload: str, start: int, length: int) -> str:
            file.seek(start)
            answer = self._bucket.must(
                "PUT",
                path,
                {"partNumber": str(number), "uploadId": upload},
                body=_part(file, length),
                headers={"Content-Length": str(length)},
            )
            return answer.headers.get("ETag", "")

        self._bucket.in_parts(path, size, self._part, send)


def _part(file: IO[bytes], length: int) -> Iterator[bytes]:
    """So many bytes of a file from where it is."""
    while length and (chunk := file.read(min(length, _CHUNK))):
        length -= len(chunk)
        yield chunk


def _write(chunks: Iterable[bytes], file: IO[bytes], suffix: str, place: str) -> Kept:
    """Writes all that comes to a file, down to the disk. Raises StorageUnavailable.

    While some chunks are hashed and written, which Python leaves to two threads at once, the next
    are received; and what was written goes on its way to the disk before everything is.
    """
    digest, size, written = md5(usedforsecurity=False), 0, 0

    def write(chunk: bytes) -> None:
        nonlocal written
        with _translated(place):
            left = memoryview(chunk)
            while left:
                left = left[file.write(left) :]
            written += len(chunk)
            if written >= _BEHIND:
                written = 0
                os.fdatasync(file.fileno())

    # One thread each: both go through the chunks in order.
    with ThreadPoolExecutor(1, "hash") as hashing, ThreadPoolExecutor(1, "write") as writing:
        under_way: deque[Future[None]] = deque()
        for chunk in chunks:
            size += len(chunk)
            if len(chunk) < _CHUNK and not under_way:  # a small file
                digest.update(chunk)
                write(chunk)
                continue
            under_way += hashing.submit(digest.update, chunk), writing.submit(write, chunk)
            while len(under_way) > _UNDER_WAY:
                under_way.popleft().result()
        for step in under_way:
            step.result()
    with _translated(place):
        os.fsync(file.fileno())
    return Kept(digest.hexdigest() + suffix, size)


class _translated:  # noqa: N801 it reads as a function
    """Raises StorageUnavailable for what the file system says."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            problem = "there is no room left" if full else f"it cannot be written: {error.strerror}"
            raise StorageUnavailable(self._place, problem) from None


def _has(file: Path, size: int) -> bool:
    with suppress(FileNotFoundError):
        return file.stat().st_size == size
    return False


def _sync(directory: Path) -> None:
    """Makes names in a directory outlive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def located(keeper: Keeper, path: RelPath, md5: str) -> tuple[StorageUrl, Entry]:
    """Where the object of a file lies, and the file as signers know it."""
    key = object_key(md5, legacy=False)
    return keeper.url.below(key), Entry(RelPath(path.name), key, md5)
