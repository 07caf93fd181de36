"""A mirrored Git repository: its tags, and the files of its revisions.

origin      a URL, checked and rebuilt      objects     blobs, by one process that stays
commands    the git binary                  mirror      what lies on disk, shared by all processes
                                            inplace     the same for a clone that is not ours
lanes       the threads that look at origins
"""

import fcntl
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from mmap import mmap
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from registry import gto
from registry.domain import RelPath, Revision, parse_revision
from registry.errors import (
    MirrorNotReady,
    MirrorStale,
    OriginUnavailable,
    PathNotFound,
    UnsafePath,
)
from registry.repository import refs
from registry.repository.commands import GitFailed, GitSilent, ObjectLost
from registry.repository.inplace import InPlace
from registry.repository.inscription import Inscription
from registry.repository.lanes import BRISK, Lane, Lanes
from registry.repository.mirror import LOOK_LIMIT, Mirror, State, TagChange
from registry.repository.objects import READ_LIMIT, Objects
from registry.repository.origin import Origin

logger = logging.getLogger(__name__)

FETCH_LIMIT = 600.0
"""Seconds a fetch may take."""
MAX_STALE = 86_400.0
"""Seconds for which the last state is told of an origin that cannot be reached."""
SPACING = 1.0
"""Seconds between two looks at one origin that requests ask for, however often they do."""
_FEW = 20
_LARGEST_TAG = 1 << 16
_POLL = 0.05
_SHORTEST_PAUSE, _LONGEST_PAUSE = 5, 60

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Snapshot:
    """The tags of the origin at `checked`, the Unix time of the last successful look at it."""

    index: gto.Index
    checked: float


@dataclass(frozen=True)
class Status:
    """What is known of the origin without asking it: the Unix time at which any process last saw
    it, and what this process failed with since.
    """

    checked: float | None
    problem: str | None


@dataclass(frozen=True)
class _Known:
    """The last snapshot, what it was made of, and the mark of the mirror before that was read."""

    mark: tuple[int, int] | None
    state: State
    refs: bytes
    snapshot: Snapshot


@dataclass(frozen=True)
class _Flight:
    """A refresh under way, and since when, in seconds of the monotonic clock."""

    future: "Future[None]"
    since: float
    lane: Lane


@dataclass(frozen=True)
class _Failure:
    """The last refresh failed: the origin is left in peace from `since` to `until`."""

    error: OriginUnavailable
    since: float
    until: float


class Repository:
    """A mirror of one origin, below the directory `mirror`. Safe to share between threads.

    Without `mirror`, `url` is the path of a Git directory of this machine, such as the `.git` of a
    clone, which is read where it is and never written to.
    `username` and `password` are for https, `ssh_key` and `ssh_known_hosts` for ssh; the known
    hosts default to those of the account. `personal`: with the Git configuration and credentials of
    whoever runs this instead. Fetches run in `lanes`, and take `fetch_limit` seconds at most.
    With `frozen`, a version tag means the commit that was first seen under its name. `notices` is
    memory that the workers of one server share: see Mirror.
    `shares_files`: what Git itself tracks may be handed out, for whoever grants it.
    `max_stale` is the age in seconds beyond which nothing is told of an origin. `clock` gives Unix
    time. `timed` is told how each look at the origin ended, "ok" or "failed", and the seconds it
    took; `noticed` is told once of each change of a frozen tag, by the process that saw it first.
    Raises ValueError for a URL that is not allowed.
    """

    def __init__(
        self,
        name: str,
        url: str,
        mirror: Path | None,
        *,
        username: str | None = None,
        password: str | None = None,
        ssh_key: Path | None = None,
        ssh_known_hosts: Path | None = None,
        personal: bool = False,
        lanes: Lanes,
        shares_files: bool = False,
        frozen: bool = True,
        notices: mmap | None = None,
        max_stale: float = MAX_STALE,
        clock: Callable[[], float] = time.time,
        fetch_limit: float = FETCH_LIMIT,
        timed: Callable[[str, float], None] = lambda _, __: None,
        noticed: Callable[[TagChange], None] = lambda _: None,
    ) -> None:
        origin = Origin.parse(url)
        if password is not None:
            origin = origin.with_password(username or "git", password)
        origin = origin.as_myself() if personal else origin.with_ssh(ssh_key, ssh_known_hosts)
        self.name = name
        self.shares_files = shares_files
        self._mirror: Mirror | InPlace
        if mirror is None:
            self._mirror = InPlace(Path(origin.url), clock)
        else:
            self._mirror = Mirror(
                mirror.absolute(), origin, fetch_limit, frozen=frozen, notices=notices
            )
        self._objects = Objects(self._mirror.commands)
        self._lanes = lanes
        self._max_stale = max_stale
        self._clock = clock
        self._timed = timed
        self._noticed = noticed
        self._lock = threading.Lock()
        self._adopting = threading.Lock()
        self._known: _Known | None = None
        self._flight: _Flight | None = None
        self._failure: _Failure | None = None
        self._damaged: float | None = None
        self._is_slow = False
        self._meant: set[Revision] = set()  # by tags that were read: the mirror has these commits
        self._closed = threading.Event()

    def snapshot(self, max_age: float, wait: float = 4.0) -> Snapshot:
        """The tags of the origin, as they were no more than `max_age` seconds ago.

        When nobody looked since, the origin is looked at, and that is waited for, no longer than
        `wait` seconds. The last snapshot there is does if that takes longer or fails; `checked`
        tells. Nothing is waited for that was under way for `wait` seconds already. The index is the
        same object as long as nothing changed. What any process of this machine has seen is told by
        all from then on: nobody who asks twice is told of an older state the second time.

        An origin is looked at once a second at most: who comes sooner waits for that, too.

        Raises MirrorNotReady while the first clone is under way, OriginUnavailable when it
        failed, and MirrorStale when there is only what is older than `max_stale`. After a failure
        the origin is left in peace for some seconds.
        """
        needed = self._clock() - max_age
        deadline = time.monotonic() + wait
        rested = False
        while True:
            snapshot = self._fresh(needed) or self._adopt()
            if snapshot and self._is_fresh(snapshot, needed):
                return snapshot
            pause = snapshot.checked + SPACING - self._clock() if snapshot and not rested else 0.0
            if snapshot and 0 < pause <= SPACING and self._damaged is None:
                if pause > deadline - time.monotonic():
                    return self._bearable(snapshot)
                self._closed.wait(pause)
                rested = True
                continue
            flight = self._begin(needed)
            if flight is None:
                break
            until = min(deadline, flight.since + wait) if snapshot else deadline
            if not self._landed(flight, until):
                if snapshot:
                    return self._bearable(snapshot)
                raise MirrorNotReady(self.name)
        if snapshot is None:
            raise self._unavailable()
        return self._bearable(snapshot)

    def refresh(self) -> None:
        """Looks at the origin now, in the background: for whoever knows that it changed."""
        with self._lock:
            self._failure = None  # whoever says so has just heard from it
            flight = self._flight
        if flight and not flight.future.done():
            # It may have listed the refs before they changed: once more, when it is done.
            flight.future.add_done_callback(lambda _: self._begin_again())
        else:
            self._begin_again()

    def changes(self) -> tuple[TagChange, ...]:
        """What happened last to every version tag that the origin changed after it was first seen,
        as far as the mirror remembers. Raises OriginUnavailable when its record is damaged.
        """
        return self._object(self._mirror.changes)

    def probe(self, wait: float) -> None:
        """Asks the origin for its refs, for `wait` seconds at most. Raises OriginUnavailable."""
        try:
            self._mirror.look(wait)
        except GitFailed as error:
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
            raise self._unreadable(ObjectLost(f"object {oid[:10]} is missing"))
        return data

    def peek(self, revision: Revision, path: RelPath) -> str | None:
        """The id of the blob at a path, by the process that stays: for many reads in a row. A link
        counts as a file here. Raises OriginUnavailable.
        """
        found = self._object(lambda: self._objects.size(f"{parse_revision(revision)}:{path}"))
        return found[0] if found else None

    def inscriptions(self, deeds: Sequence[gto.Deed]) -> list[Inscription | None]:
        """What people wrote into these tags; None where the tag is another one by now, or was
        made to be no good. Raises OriginUnavailable.
        """
        names = [f"refs/tags/{deed.tag}" for deed in deeds]
        read = self._object(lambda: self._objects.batch(names, _LARGEST_TAG))
        found = [None if data is None else Inscription.parse(data) for data in read]
        return [
            text if text and text.target == deed.revision else None
            for deed, text in zip(deeds, found, strict=True)
        ]

    def tracked(self, revision: Revision, path: RelPath) -> Mapping[RelPath, str]:
        """The regular files that Git itself tracks at the path, or below it: path -> id of the
        blob. Links and submodules are left out. Raises as `files` does, and UnsafePath.
        """
        listed = self._tree(path, revision, "-r")
        return {RelPath.parse(text): oid for mode, _, oid, text in listed if mode[:3] == "100"}

    def size(self, oid: str) -> int | None:
        """The bytes of a blob; None when it is not there. Raises OriginUnavailable."""
        parse_revision(oid)
        found = self._object(lambda: self._objects.size(oid))
        return found[1] if found else None

    def stream(self, oid: str, first: int, length: int) -> Iterator[bytes]:
        """Bytes of a blob, however many, in parts. Raises OriginUnavailable, also in between."""
        parse_revision(oid)
        parts = self._mirror.commands.stream("cat-file", "blob", oid, limit=READ_LIMIT)
        with closing(parts):
            while length:
                try:
                    part = next(parts, b"")
                except GitFailed as error:
                    raise self._unreadable(error) from None
                if not part:
                    raise self._unreadable(GitFailed(f"object {oid[:10]} is incomplete"))
                skipped = min(first, len(part))
                first -= skipped
                wanted = part[skipped : skipped + length]
                length -= len(wanted)
                if wanted:
                    yield wanted

    def status(self) -> Status:
        """The state of the origin, as far as it is known. Reads one small file."""
        state, failure = self._mirror.state(), self._failure
        return Status(state.checked if state else None, failure.error.problem if failure else None)

    def close(self) -> None:
        """Ends every process that was started. A closed repository fetches no more."""
        self._closed.set()
        self._mirror.commands.stop()
        self._objects.close()

    # Looking at the origin

    def _is_fresh(self, snapshot: Snapshot, needed: float) -> bool:
        # A check in the future means that the clock was set back: nobody knows how old it is.
        return self._damaged is None and needed <= snapshot.checked <= self._clock()

    def _fresh(self, needed: float) -> Snapshot | None:
        """What this process knows, unless it is too old or another process knows more."""
        known = self._known
        if known and known.mark == self._mirror.mark() and self._is_fresh(known.snapshot, needed):
            return known.snapshot
        return None

    def _bearable(self, snapshot: Snapshot) -> Snapshot:
        """A snapshot that is not fresh, if it is not too old to be told. Raises MirrorStale."""
        age = self._clock() - snapshot.checked
        if age <= self._max_stale:
            return snapshot
        failure = self._failure
        problem = failure.error.problem if failure else "its origin has not answered yet"
        raise MirrorStale(self.name, int(age), problem)

    def _begin_again(self) -> None:
        self._begin(math.inf)  # as nothing that was seen until now will do

    def _adopt(self) -> Snapshot | None:
        """The last snapshot there is, by this process or another one."""
        with self._adopting:
            known = self._known
            mark = self._mirror.mark()  # before it is read: what comes later shows
            for _ in range(3):  # the tags file may be replaced while it is looked for
                state = self._mirror.state()
                if state is None or (known and state == known.state):
                    break
                same = known is not None and state.tags == known.state.tags
                told = known.refs if known and same else self._mirror.refs(state)
                if told is not None:
                    index = self._index(known, told)
                    known = _Known(mark, state, told, Snapshot(index, state.checked))
                    break
            # With the mark, for until then other threads must take what they know for old.
            self._known = known and replace(known, mark=mark)
            return known.snapshot if known else None

    def _index(self, known: _Known | None, told: bytes) -> gto.Index:
        """The index of what is told now, made from the last one: it shares what did not change."""
        if known is None:
            return gto.Index.of(refs.grouped(told), self._tags)
        gone, new = refs.difference(known.refs, told)
        removed = [tag.name for tag in refs.tags(refs.text(gone))]
        added = refs.tags(refs.text(new))
        index = known.snapshot.index
        return index.updated(removed, added) if removed or added else index

    def _tags(self, unread: Sequence[gto.Ref]) -> list[gto.Tag]:
        """What the tag objects say. Raises OriginUnavailable."""
        targets = self._object(lambda: self._objects.targets([ref.oid for ref in unread]))
        tags = []
        for ref, target in zip(unread, targets, strict=True):
            if target is None:
                raise self._unreadable(ObjectLost(f"object {ref.oid[:10]} is missing"))
            tags.append(gto.Tag(ref.name, *target))
        self._meant.update(tag.revision for tag in tags if tag.revision)
        return tags

    def _begin(self, needed: float) -> _Flight | None:
        """The refresh under way, or a new one; None when the origin is to be left in peace."""
        with self._lock:
            if self._flight and not self._flight.future.done():
                return self._flight
            failure, now = self._failure, self._clock()
            if self._closed.is_set() or (failure and failure.since <= now < failure.until):
                return None
            try:
                lane = self._lane()
                future = self._lanes.submit(lane, self._refresh, needed, lane)
            except RuntimeError:  # the service is being stopped
                return None
            self._flight = _Flight(future, time.monotonic(), lane)
            return self._flight

    def _lane(self) -> Lane:
        if self._damaged is not None or (self._known is None and self._mirror.mark() is None):
            return Lane.NEW
        return Lane.SLOW if self._is_slow or self._failure else Lane.WELL

    def _landed(self, flight: _Flight, until: float) -> bool:
        with self._lanes.seat(flight.lane) as seated:
            left = until - time.monotonic() if seated else 0.0
            done, _ = wait([flight.future], max(0.0, left))
        if done and not flight.future.cancelled():
            flight.future.result()  # whatever is not ours to handle must not pass unseen
        return bool(done)

    def _refresh(self, needed: float, lane: Lane) -> None:
        """Looks at the origin, unless another process does and sees what is `needed`."""
        begun = time.monotonic()
        try:
            with self._mirror.open_lock() as lock:
                while not _locked(lock):
                    snapshot = self._adopt()
                    is_told = snapshot and self._is_fresh(snapshot, needed)
                    if is_told or self._closed.wait(_POLL):
                        return
                    if time.monotonic() > begun + BRISK:  # others wait for this thread
                        self._is_slow = True
                        return
                snapshot = self._adopt()
                if not (snapshot and self._is_fresh(snapshot, needed)):
                    self._update(lock, BRISK if lane is Lane.WELL else LOOK_LIMIT)
            self._adopt()
            self._failure = None
            self._is_slow = lane is not Lane.NEW and time.monotonic() > begun + BRISK
        except (GitFailed, OSError) as error:
            if isinstance(error, ObjectLost):
                self._damaged = self._clock()
            # Who is silent may answer yet, and is asked at once where nobody waits behind it.
            patient = isinstance(error, GitSilent) and lane is Lane.WELL
            self._failed(error, 0 if patient else _SHORTEST_PAUSE)

    def _update(self, lock: BinaryIO, limit: float) -> None:
        begun, outcome = time.monotonic(), "failed"
        try:
            changes = self._mirror.update(self._clock(), lock.fileno(), self._damaged, limit)
            if self._damaged is not None:
                self._damaged, self._meant = None, set()  # what is gone now is gone for good
            outcome = "ok"
        finally:
            self._timed(outcome, time.monotonic() - begun)
        for change in changes:
            self._noticed(change)
        for change in changes[:_FEW]:
            logger.warning(
                "repository %s: version tag %s was %s: first it was %s, at the origin it is %s",
                self.name, change.tag, change.event, change.kept, change.origin or "nothing",
            )  # fmt: skip
        if len(changes) > _FEW:
            logger.warning("repository %s: %d version tags changed", self.name, len(changes))

    def _failed(self, error: Exception, shortest: int) -> None:
        problem = str(error)
        if isinstance(error, OSError):
            problem = f"its mirror cannot be written: {error.strerror}"
        last, now = self._failure, self._clock()
        pause = 2 * int(last.until - last.since) if last else 0
        pause = min(max(pause, shortest), _LONGEST_PAUSE)
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
        except GitFailed as error:
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
            if revision in self._meant:
                raise self._unreadable(ObjectLost(f"commit {revision[:10]} is missing"))
            raise PathNotFound(path or ".", revision, "the repository has no such commit")
        command = ("ls-tree", "-z", "--full-tree", *options, "--end-of-options", revision)
        paths = ("--", path) if path else ()
        try:
            listed = self._mirror.commands.read(*command, *paths, limit=READ_LIMIT)
        except GitFailed as error:
            raise self._unreadable(error) from None
        for line in listed.split(b"\0")[:-1]:
            head, _, name = line.partition(b"\t")
            mode, kind, oid = head.decode().split()
            with suppress(UnicodeDecodeError):
                yield mode, kind, oid, name.decode()

    def _unreadable(self, error: GitFailed) -> OriginUnavailable:
        """Takes note, so that the next refresh clones again; slowness alone is no damage."""
        logger.warning("the mirror of repository %s cannot be read: %s", self.name, error)
        if not isinstance(error, GitSilent):
            self._damaged = self._clock()
        return OriginUnavailable(self.name, f"its mirror cannot be read: {error}")


def _locked(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
