"""Where objects lie, who may read them there, and how: the one interface over every kind of store.

    Grants      which repository may use which location, with which signer
      Signer    s3 · azure · http · local · opened: makes links for clients, and origins for us
        Links   one snapshot of credentials; signs every link of one answer
        Origin  how the service itself reads one object
    Reader      reads an origin: a manifest whole, or any object as a stream
    Stores      what was last seen of every store: whether it answers, and what time it is there

Nothing in a repository decides where a signature points: a DVC remote is only looked up in Grants,
and what the operator did not grant is refused before a single byte leaves the machine.
"""

import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime  # before 3.11 not the one of the builtins
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from threading import Event, Lock, Thread
from typing import BinaryIO, Generic, Protocol, TypeVar
from urllib.parse import unquote

import urllib3

from registry.domain import Entry, StorageUrl, matches
from registry.errors import (
    ClockSkewed,
    CredentialsUnavailable,
    LocationNotGranted,
    ObjectTooLarge,
    StorageUnavailable,
)
from registry.storage.connections import pool_manager
from registry.storage.stores import Store, Stores

logger = logging.getLogger(__name__)

LEAST_LIFE = timedelta(minutes=5)
"""Credentials with less life than this sign nothing: the link would die during the download."""

_GIVEN_UP = timedelta(seconds=60)
_CHUNK = 1 << 18
_READS = 16
"""Objects that are read whole at the same time; a worker answers no more requests than that."""
_FORWARDED = ("Content-Length", "Content-Range", "Content-Type", "ETag", "Last-Modified")
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_PASSED_ON = (200, 206, 416)
_DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") and hasattr(os, "O_PATH") else ""
_AS_NAMED = 0 if _DESCRIPTORS else os.O_NOFOLLOW
_REDIRECTS = urllib3.Retry(
    total=None, connect=0, read=0, status=0, other=0, redirect=5, raise_on_status=False
)


@dataclass(frozen=True)
class Links:
    """Signs links with one snapshot of credentials, for a whole answer.

    `sign(path, entry)` takes the full path in the location's authority, which ends with
    `entry.key`. `expires` (aware, UTC) is the true end of life of every link it returns; a link
    that is not signed at all holds at least until then.
    """

    expires: datetime
    sign: Callable[[str, Entry], str] = field(repr=False)


@dataclass(frozen=True, repr=False)
class Origin:
    """How the service itself reads an object: an http(s) URL, or `file:///path` below `root`.

    With `start` it is neither: that opens it, given a range and a method as for Reader.stream.
    The path of a file is literal, not percent-encoded. Headers and the query of the URL may hold
    credentials, so that neither shows in `repr`.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    start: "Callable[[str | None, str], Stream | None] | None" = None

    @property
    def place(self) -> str:
        """The URL without the query that signs it: fit for a log, or for people."""
        return self.url if self.root else self.url.partition("?")[0]

    def __repr__(self) -> str:
        return f"Origin({self.place!r})"


class Signer(Protocol):
    """One store and the credentials for it. Works offline, unless credentials need renewing."""

    @property
    def store(self) -> Store | None:
        """The server that the objects are read from, if they are not on this machine."""
        ...

    def links(self, now: datetime, lifetime: int) -> Links:
        """Links that live `lifetime` seconds from `now`, or as long as the credentials.

        Raises CredentialsUnavailable.
        """
        ...

    def origin(self, path: str, entry: Entry, now: datetime) -> Origin:
        """How to read the object at `path`, which ends with `entry.key`, within the next minutes.

        Raises CredentialsUnavailable.
        """
        ...


@dataclass(frozen=True)
class Location:
    """A configured place, and the patterns of the names of repositories that may use it."""

    url: StorageUrl
    repositories: tuple[str, ...]
    signer: Signer = field(repr=False)


@dataclass(frozen=True)
class Outlook:
    """What a link to a location is worth now: `problem` says why none can be given, or else why it
    could not be followed. Our clock is `ahead` seconds ahead of the store's, if that is known.
    """

    problem: str | None
    ahead: float | None

    @classmethod
    def on(cls, location: Location, stores: Stores, now: datetime) -> "Outlook":
        """As far as it is known without asking the store; credentials may need renewing."""
        store = location.signer.store
        ahead = stores.ahead(store.url) if store else None
        try:
            location.signer.links(now, 3600)
            if store:
                stores.require(store.url, str(location.url))
        except CredentialsUnavailable as error:
            return cls(error.problem, ahead)
        except ClockSkewed as error:
            return cls(f"its clock and ours differ by {abs(error.seconds)} s", ahead)
        return cls(stores.problem(store.url) if store else None, ahead)


class Grants:
    """Every location of the configuration, and the rule who may use which.

    The longest prefix that holds a URL decides alone. A repository to which it is not granted is
    refused even where a shorter prefix is: to carve a private corner out of a shared bucket, the
    operator lists the corner.
    """

    def __init__(
        self,
        locations: tuple[Location, ...],
        elsewhere: Callable[[StorageUrl], Location] | None = None,
    ) -> None:
        """Among locations of one URL the first that is granted counts. `elsewhere` gives one for
        what none of them holds, where a user is their own operator; it may raise RegistryError.
        """
        self._elsewhere = elsewhere
        self._locations = tuple((_comparable(location.url), location) for location in locations)
        # Both depend on nothing but the locations, which never change, and are asked every time.
        self._closest = lru_cache(1024)(self._find_closest)
        self.divides = lru_cache(1024)(self._divides)

    def locate(self, repository: str, url: StorageUrl) -> Location:
        """The location that holds `url`. Raises LocationNotGranted."""
        for location in self._closest(url):
            if matches(location.repositories, repository):
                return location
        raise LocationNotGranted(str(url), repository)

    def holding(self, url: StorageUrl) -> Location | None:
        """The location that holds `url`, for whoever it was granted to when a link was signed."""
        return next(iter(self._closest(url)), None)

    def _divides(self, url: StorageUrl) -> bool:
        """Whether a location lies strictly below `url`: then its entries are located one by one."""
        wanted = _comparable(url)
        return any(place != wanted and wanted.contains(place) for place, _ in self._locations)

    def _find_closest(self, url: StorageUrl) -> list[Location]:
        wanted = _comparable(url)
        holding = [pair for pair in self._locations if pair[0].contains(wanted)]
        if not holding and self._elsewhere:
            return [self._elsewhere(url)]
        longest = max((len(place.path) for place, _ in holding), default=0)
        return [location for place, location in holding if len(place.path) == longest]


def _comparable(url: StorageUrl) -> StorageUrl:
    """One spelling for what a web server or a file system takes for one place.

    `https://host/%70rivate` and `file:///srv//private` would else slip past a longer location.
    """
    path = url.path
    if url.scheme in ("http", "https"):
        path = unquote(path)
    if url.scheme in ("http", "https", "file"):
        path = "/".join(part for part in path.split("/") if part)
    return StorageUrl(url.scheme, url.authority, path)


Credential = TypeVar("Credential")


class Renewed(Generic[Credential]):
    """Credentials that are renewed at half of their life, once for all threads.

    While a renewal fails the old ones serve, as long as they live LEAST_LIFE more. A renewal runs
    in a thread of its own, since a source that hangs can take minutes to be given up: nobody waits
    for it while the old ones serve, but for the one who began it and a moment only. Without any, a
    renewal is waited for until somebody did so in vain.
    """

    _MOMENT = 0.5

    def __init__(
        self,
        obtain: Callable[[datetime], Credential],
        expires: Callable[[Credential], datetime | None],
        patience: float = 3.0,
    ) -> None:
        """`obtain(now)` may take long, and raises CredentialsUnavailable; `patience` is how many
        seconds of that somebody without credentials waits.
        """
        self._obtain = obtain
        self._expires = expires
        self._lock = Lock()
        self._current: tuple[Credential, datetime] | None = None
        self._patience = patience
        self._renewal: Event | None = None
        self._late: Event | None = None
        self._attempted: datetime | None = None
        self._failure: CredentialsUnavailable | None = None

    def __call__(self, now: datetime) -> Credential:
        """Credentials that live at least LEAST_LIFE from `now`. Raises CredentialsUnavailable."""
        begun = self._begin(now)
        if self._usable(now) is None:
            renewal = self._renewal
            if renewal and not (renewal is not self._late and renewal.wait(self._patience)):
                self._late = renewal
                raise CredentialsUnavailable("the store", "where they come from does not answer")
        elif begun:
            begun.wait(self._MOMENT)
        usable = self._usable(now)
        if usable is not None:
            return usable[0]
        if self._failure:
            raise CredentialsUnavailable(self._failure.location, self._failure.problem)
        raise CredentialsUnavailable("the store", "the new ones expire within five minutes")

    def _begin(self, now: datetime) -> Event | None:
        """Begins a renewal if one is due and none is under way: it is over when this is set."""
        if not self._due(now):
            return None
        with self._lock:
            if not self._due(now) or (self._renewal and now - (self._attempted or now) < _GIVEN_UP):
                return None
            self._attempted = now
            renewal = self._renewal = Event()
        Thread(target=self._renew, args=(now, renewal), name="credentials", daemon=True).start()
        return renewal

    def _renew(self, now: datetime, renewal: Event) -> None:
        try:
            self._current = self._obtain(now), now
            self._failure = None
        except CredentialsUnavailable as error:
            self._failure = error
        except Exception as error:  # nobody is above this thread to be told
            logger.exception("credentials were not renewed")
            self._failure = CredentialsUnavailable("the store", type(error).__name__)
        finally:
            with self._lock:
                if self._renewal is renewal:
                    self._renewal = None
            renewal.set()

    def _due(self, now: datetime) -> bool:
        # A source that is down is asked once a minute while the old credentials serve, and every
        # few seconds when there are none: requests must neither hammer it nor wait for it.
        usable = self._usable(now)
        pause = timedelta(seconds=60 if usable else 5)
        if self._attempted and timedelta() <= now - self._attempted < pause:
            return False
        if usable is None:
            return True
        credential, obtained = usable
        expires = self._expires(credential)
        return expires is not None and now - obtained > (expires - obtained) / 2

    def _usable(self, now: datetime) -> tuple[Credential, datetime] | None:
        current = self._current
        expires = self._expires(current[0]) if current else None
        return current if expires is None or expires - now >= LEAST_LIFE else None


def lifespan(
    now: datetime, lifetime: int, end: datetime | None = None
) -> tuple[datetime, datetime]:
    """From when until when a link lives: whole seconds in UTC, never beyond `end`.

    `lifetime` is in seconds. Raises ValueError for a naive `now`, or a lifetime that is not
    positive.
    """
    if now.tzinfo is None or lifetime < 1:
        raise ValueError("a link needs an aware time and at least one second of life")
    start = now.astimezone(timezone.utc).replace(microsecond=0)
    until = start + timedelta(seconds=lifetime)
    if end is not None and end < until:
        until = end.astimezone(timezone.utc).replace(microsecond=0)
    return start, until


def keyed_hmac(key: bytes) -> Callable[[bytes], "Digest"]:
    """HMAC-SHA256 (RFC 2104) under one key, for a whole answer of links.

    hmac.digest hashes both paddings of the key for every message: a third of the time of a link.
    """
    block = (sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = sha256(bytes(byte ^ 0x36 for byte in block))
    outer = sha256(bytes(byte ^ 0x5C for byte in block))

    def digest(message: bytes) -> Digest:
        inside, outside = inner.copy(), outer.copy()
        inside.update(message)
        outside.update(inside.digest())
        return outside

    return digest


class Digest(Protocol):
    """A finished hash, as hashlib has it."""

    def digest(self) -> bytes:
        """Its bytes."""
        ...

    def hexdigest(self) -> str:
        """Its hexadecimal digits."""
        ...


class Stream:
    """An object on its way to a client: iterate once for its bytes, and close in any case.

    `status` is 200, 206 or 416; `headers` hold Content-Length, Content-Range, Content-Type, ETag
    and Last-Modified as far as the store gives them. Iteration raises StorageUnavailable when
    the store breaks off, so that a short object can never look complete.
    """

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        chunks: Iterator[bytes],
        close: Callable[[], None],
    ) -> None:
        self.status = status
        self.headers = dict(headers)
        self.close = close
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks


class Reader:
    """Reads origins, and keeps connections to their stores open. One for the whole process.

    It follows no redirects, unless it reads for a user: a store that points elsewhere could point
    at an internal service. No credentials are sent after one.
    """

    def __init__(
        self,
        connect: float = 2.0,
        total: float = 4.0,
        silence: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        stores: Stores | None = None,
        *,
        follow: bool = False,
    ) -> None:
        """In seconds: to connect, to `read` an object, and between two chunks of a stream.

        What the stores answer is reported to `stores`. `follow`: whether redirects are followed.
        """
        self._follow = follow
        self._clock = clock
        self._total = total
        self._hasty = urllib3.Timeout(connect=connect, total=total)
        self._patient = urllib3.Timeout(connect=connect, read=silence)
        self._pool = pool_manager()
        self._stores = stores or Stores(())
        self._reads = ThreadPoolExecutor(_READS, thread_name_prefix="read")

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._reads.shutdown(wait=False, cancel_futures=True)
        self._pool.clear()

    def greet(self, url: str) -> None:
        """Asks a store for nothing, so that `stores` hears whether it answers, and its time."""
        with suppress(StorageUnavailable):
            self._exchange("HEAD", Origin(f"{url}/"), {}, self._hasty).release_conn()

    def read(self, origin: Origin, limit: int) -> bytes | bytearray | None:
        """The whole object, or None if the store does not have it.

        Raises StorageUnavailable: no answer in time, or a refusal; ObjectTooLarge for more than
        `limit` bytes; ClockSkewed if it refuses because our clock is wrong.
        """
        # In a thread of its own: no time limit of a socket holds for the name of the store, for
        # all of its addresses together, or for a file on a server that hangs.
        read = self._reads.submit(self._read, origin, limit)
        try:
            return read.result(self._total)
        except NotInTime:
            read.cancel()
            problem = "it does not answer in time"
            self._stores.failed(_server(origin.url), problem)
            raise StorageUnavailable(origin.place, problem) from None
        finally:
            # Or else an error would hold itself, and all that those have read who met it.
            del read

    def _read(self, origin: Origin, limit: int) -> bytearray | None:
        deadline = self._clock() + self._total
        stream = self._open(origin, None, "GET", self._hasty)
        if stream is None:
            return None
        problem = f"it is larger than {limit} bytes"
        try:
            announced = stream.headers.get("Content-Length", "")
            if announced.isdecimal() and int(announced) > limit:
                raise ObjectTooLarge(origin.place, problem, size=int(announced))
            found = bytearray()
            for chunk in stream:
                found += chunk
                if len(found) > limit:
                    found.clear()
                    # How much larger, nobody has said.
                    raise ObjectTooLarge(origin.place, problem, size=1 << 62)
                if self._clock() > deadline:
                    found.clear()  # the error remembers it
                    raise StorageUnavailable(origin.place, "it does not answer in time")
            return found  # and no copy of it: it may be a tenth of a gigabyte
        finally:
            stream.close()

    def has(self, origin: Origin) -> bool:
        """Whether the store has the object, by one byte of it; no longer than a read may take.

        Raises StorageUnavailable, also for a refusal: a store may refuse what it does not have.
        """
        stream = self._open(origin, "bytes=0-0", "GET", self._hasty)
        if stream is not None:
            stream.close()
        return stream is not None

    def stream(
        self, origin: Origin, byte_range: str | None = None, method: str = "GET"
    ) -> Stream | None:
        """The object as a stream, or None if the store does not have it.

        `byte_range` is the value of a Range header, where only a single range counts; `method` is
        GET, or HEAD for no bytes at all.
        An S3 or Azure origin is signed for GET alone. Raises StorageUnavailable.
        """
        return self._open(origin, byte_range, method, self._patient)

    def _open(
        self, origin: Origin, byte_range: str | None, method: str, timeout: urllib3.Timeout
    ) -> Stream | None:
        if origin.start is not None:
            return origin.start(byte_range, method)
        if origin.root is not None:
            return _stream_file(origin, origin.root, byte_range, method)
        # Compressed on the way, the bytes would no longer be those that the digest was made of.
        headers = {**origin.headers, "Accept-Encoding": "identity"}
        if byte_range and _RANGE.fullmatch(byte_range):
            headers["Range"] = byte_range
        response = self._exchange(method, origin, headers, timeout)
        if response.status not in _PASSED_ON:
            _hang_up(response)
            if response.status == 404:
                return None
            server = _server(origin.url)
            self._stores.require(server, origin.place)
            problem = f"it answers {response.status}"
            self._stores.failed(server, problem)
            raise StorageUnavailable(origin.place, problem)
        return Stream(
            response.status,
            {name: response.headers[name] for name in _FORWARDED if name in response.headers},
            _http_chunks(response, origin.place),
            lambda: _hang_up(response),
        )

    def _exchange(
        self, method: str, origin: Origin, headers: Mapping[str, str], timeout: urllib3.Timeout
    ) -> urllib3.BaseHTTPResponse:
        """The beginning of an answer, whatever it says. Raises StorageUnavailable."""
        server = _server(origin.url)
        try:
            response = self._pool.request(
                method,
                origin.url,
                headers=headers,
                timeout=timeout,
                redirect=self._follow and not origin.headers,
                preload_content=False,
                retries=_REDIRECTS if self._follow and not origin.headers else False,
            )
        except urllib3.exceptions.HTTPError as error:
            problem = _problem(error)
            self._stores.failed(server, problem)
            raise StorageUnavailable(origin.place, problem) from None
        self._stores.answered(server, response.headers)
        return response


def _server(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])  # of a URL that need not be one


def _http_chunks(response: urllib3.BaseHTTPResponse, place: str) -> Iterator[bytes]:
    # read1 returns what has arrived; read would wait for a full chunk, however slow the store is.
    try:
        while chunk := response.read1(_CHUNK, decode_content=False):
            yield chunk
    except urllib3.exceptions.HTTPError as error:
        raise StorageUnavailable(place, _problem(error)) from None


def _hang_up(response: urllib3.BaseHTTPResponse) -> None:
    """Ends an answer. A connection is kept only if nothing of the object is left on it."""
    response.close()
    response.release_conn()


def _problem(error: urllib3.exceptions.HTTPError) -> str:
    # The text of the error quotes the URL, and with it the signature.
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # which counts as a TimeoutError
        return "it cannot be reached"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "it does not answer in time"
    if isinstance(error, urllib3.exceptions.SSLError):
        return "its certificate does not hold"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "it breaks off the connection"
    return "it cannot be reached"


def _stream_file(origin: Origin, root: Path, byte_range: str | None, method: str) -> Stream | None:
    file = _open_file(origin, root)
    if file is None:
        return None
    status = os.fstat(file.fileno())
    first, length = span(byte_range, status.st_size)
    headers = {
        "Content-Length": str(length),
        "Content-Type": "application/octet-stream",
        "Last-Modified": formatdate(status.st_mtime, usegmt=True),
    }
    code = 200
    if first is None:
        code, headers["Content-Range"] = 416, f"bytes */{status.st_size}"
    elif length < status.st_size:
        last = first + length - 1
        code, headers["Content-Range"] = 206, f"bytes {first}-{last}/{status.st_size}"
    wanted = 0 if method == "HEAD" else length
    return Stream(code, headers, _file_chunks(file, first or 0, wanted, origin.place), file.close)


def _open_file(origin: Origin, root: Path) -> BinaryIO | None:
    """Opens a regular file that lies below `root`, also after every symbolic link is followed."""
    try:
        with _true(origin.url.removeprefix("file://")) as (real, name), _true(root) as (top, _):
            if os.path.commonpath((real, top)) != top:
                raise StorageUnavailable(origin.place, "it lies outside of its location")
            # Without O_NONBLOCK a named pipe would hold the worker until somebody writes to it.
            descriptor = os.open(name, os.O_RDONLY | _AS_NAMED | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "its path is not valid"
        raise StorageUnavailable(origin.place, f"it cannot be read: {problem}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb", buffering=0)


@contextmanager
def _true(path: str | Path) -> Iterator[tuple[str, str]]:
    """The path of what is at `path`, without a symbolic link in it, and a name to open that by.

    Linux tells of a descriptor what it holds: in a third of the time, and nobody can put a link
    there meanwhile.
    """
    if not _DESCRIPTORS:
        real = os.path.realpath(path, strict=True)
        yield real, real
        return
    held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        name = f"{_DESCRIPTORS}/{held}"
        yield os.readlink(name), name
    finally:
        os.close(held)


def span(byte_range: str | None, size: int) -> tuple[int | None, int]:
    """First byte and length of a single range; None for one that cannot be satisfied.

    What is malformed, or asks for several ranges, counts as no range at all (RFC 9110, 14.2).
    """
    match = _RANGE.fullmatch(byte_range or "")
    first, last = match.groups() if match else ("", "")
    if not first and not last:
        return 0, size
    if not first:
        length = min(int(last), size)
        return (size - length, length) if length else (None, 0)
    if last and int(last) < int(first):
        return 0, size
    if int(first) >= size:
        return None, 0
    return int(first), min(int(last or size), size - 1) - int(first) + 1


def _file_chunks(file: BinaryIO, first: int, length: int, place: str) -> Iterator[bytes]:
    try:
        file.seek(first)
        while length:
            chunk = file.read(min(length, _CHUNK))
            if not chunk:
                raise StorageUnavailable(place, "it became shorter while it was read")
            length -= len(chunk)
            yield chunk
    except OSError as error:
        raise StorageUnavailable(place, f"it cannot be read: {error.strerror}") from None
