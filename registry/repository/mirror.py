"""The mirror on disk, which all processes share.

    MIRROR/
      repository.git    the bare mirror: refs/heads and refs/tags of the origin, and one ref of ours
                        for each commit that a frozen version means: refs/registry/keep/<commit>
      incoming.git      a clone under way; outgoing.git is the mirror that it is to replace, there
                        until nothing more is wanted from it, and discarded.git what is left then
      fetching.git      the new refs of a fetch under way, and little else: objects go to the mirror
      lock              whoever fetches holds it, and so does every process that Git starts for it
      tags-<digest>     the refs of one state of the origin, and what its frozen tags mean: refs.py;
                        <digest> is the SHA-256 of the file
      state             what was last seen at the origin, when, and which tags file tells it
      changed           what the origin did to version tags after they were first seen; JSON lines

One process looks at the origin; the others find what it saw in `state`, which is replaced as a
whole and last, so that nobody ever reads the tags of half a fetch.

A version tag is frozen, unless the operator wants it to follow: it means the commit that was first
seen under its name, for as long as it exists. The directory is all that remembers: without it, what
is seen next is seen first.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from mmap import mmap
from pathlib import Path
from typing import BinaryIO, Literal

from registry import gto
from registry.domain import Revision
from registry.repository import refs
from registry.repository.commands import Commands, GitFailed, GitSilent, ObjectLost, Unfit
from registry.repository.objects import Objects
from registry.repository.origin import Origin

logger = logging.getLogger(__name__)

LOOK_LIMIT = 30.0
"""Seconds the origin may take to list its refs."""
WATERMARK = 0.9
"""Share of a disk beyond which nothing is fetched: what is known has to be written, too."""
AMPLE = 10 << 30
"""Bytes that are room enough, however small a share of a large disk they are."""
_MANY_PACKS = 50
_GLANCE = 0.05
"""Seconds between two looks at the state file that no notice asks for."""
_KEEP = "refs/registry/keep/"
_BRANCHES = re.compile(rb"^([0-9a-f]+)\trefs/heads/", re.MULTILINE)

_FEW_REFS = 100
_PLAIN_REF = re.compile(rb"[0-9a-f]{40,64}\trefs/(?:heads|tags)/[A-Za-z0-9._/@#!=+-]+")
_ANY_REF = re.compile(rb"refs/(?:heads|tags)/[^\x00-\x20\x7f:*?\[\\^~]+")
_GROUP = 1000
_FEW_BROKEN = 20
_REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
LISTING = ("for-each-ref", "--format=%(objectname)%09%(refname)", "refs/heads", "refs/tags")
"""The command that says what is here, the way an origin says what is there."""


@dataclass(frozen=True)
class State:
    """What was seen at the origin: `url` of the origin, `refs` the digest of its list of refs,
    `tags` the digest of the tags file, `checked` and `cloned` Unix times.
    """

    url: str
    refs: str
    tags: str
    checked: float
    cloned: float


@dataclass(frozen=True)
class TagChange:
    """What the origin did to a version tag after it was first seen, with `kept` as its commit and
    `time` as the tagger's, in Unix seconds. `origin` is the commit it has there now, None for none;
    `seen` is a Unix time. What moved goes on meaning `kept`; what was deleted is gone.
    """

    tag: str
    event: Literal["moved", "deleted", "restored"]
    kept: Revision
    time: int
    origin: Revision | None
    seen: float


class Mirror:
    """The directory that all processes share. Only the holder of the lock writes to it.

    `frozen` says whether version tags keep the commit that was first seen. `notices` is memory
    that the workers of one server share, eight bytes: whoever wrote a state changes it.
    """

    def __init__(
        self,
        directory: Path,
        origin: Origin,
        fetch_limit: float,
        *,
        frozen: bool,
        notices: mmap | None = None,
    ) -> None:
        self.commands = Commands(directory / "repository.git", origin)
        self._directory = directory
        self._state_file = str(directory / "state")
        self._origin = origin
        self._fetch_limit = fetch_limit
        self._frozen = frozen
        self._notices = notices
        self._marked: tuple[bytes, float, tuple[int, int]] | None = None

    def open_lock(self) -> BinaryIO:
        """The lock, not yet held; closing it gives it back. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return open(self._directory / "lock", "ab")

    def mark(self) -> tuple[int, int] | None:
        """Another one than before when any process wrote a state since.

        The file is looked at when a sibling gave notice, and otherwise a few times a second, for
        processes that share no memory with this one: a system call lets go of the interpreter, and
        a busy process waits long to get it back.
        """
        told = self._notices[:] if self._notices else b""
        now = time.monotonic()
        known = self._marked
        if told and known and known[0] == told and now < known[1]:
            return known[2]
        try:
            found = os.stat(self._state_file)
        except OSError:
            return None
        mark = found.st_ino, found.st_mtime_ns
        self._marked = told, now + _GLANCE, mark
        return mark

    def state(self) -> State | None:
        """The last state that was seen, if it can be used."""
        try:
            state = self._last_state()
        except OSError:
            return None
        return state if state and (self.commands.git_dir / "HEAD").is_file() else None

    def changes(self) -> tuple[TagChange, ...]:
        """What happened last to every version tag that the origin changed, in the order seen."""
        try:
            if self._last_state() is None:
                return ()  # there is none, or it is of another origin
        except OSError as error:
            raise GitFailed(f"it cannot be read: {error.strerror}") from error
        return tuple({change.tag: change for change in self._recorded()}.values())

    def refs(self, state: State) -> bytes | None:
        """The refs of a state, as refs.py reads them; None when the file was replaced meanwhile,
        or damaged.
        """
        try:
            data = self._tags_file(state.tags).read_bytes()
        except OSError:
            return None
        return data if digest_of(data) == state.tags else None

    def look(self, limit: float, *, meek: bool = False) -> bytes:
        """The refs of the origin, as it lists them. Raises GitFailed."""
        # Away from the mirror, which may be damaged: that is for `update` to find out.
        nowhere = self.commands.at(self._directory / "nowhere.git", meek=meek)
        listing = nowhere.ask_origin("ls-remote", "--heads", "--tags", "--refs", limit=limit)
        self._believe(bool(listing))
        return listing

    def update(
        self, now: float, lock: int, damaged: float | None, limit: float = LOOK_LIMIT
    ) -> tuple[TagChange, ...]:
        """Brings the mirror to the state that the origin has now; clones it if need be.

        `damaged` is when a read found the mirror to be damaged; `limit` is how many seconds the
        origin may take to list its refs. Says what became of versions that were seen before. Raises
        GitFailed and OSError.
        """
        changes: tuple[TagChange, ...] = ()
        if self._outgoing.exists() and not self.commands.git_dir.exists():
            self._outgoing.rename(self.commands.git_dir)  # who replaced it died on the way
        last, state = self._last_state(), self.state()
        if state and damaged is not None and state.cloned <= damaged:
            state = None
        listing = self.look(limit, meek=state is None)
        digest = digest_of(b"frozen\n" * self._frozen + listing)
        known = self.refs(last) if last else None
        # What was replaced is there until nothing more is wanted from it.
        if state is None or known is None or state.refs != digest or self._outgoing.exists():
            self._require_room()
            found = self._followed(lock, known, listing) if state else None
            if state is None or found is None:
                found = self._cloned(lock, listing)
                state = State(self._origin.url, digest, "", now, now)
            if last is None:
                (self._directory / "changed").unlink(missing_ok=True)
            elif self._frozen:
                found, changes = self._freeze(found, known or b"", now)
            state = replace(state, refs=digest, tags=self._write_refs(found))
            self._discard_outgoing()
        state = replace(state, checked=now)
        # That nothing was new at some time may be forgotten when the power fails.
        is_news = last is None or state != replace(last, checked=now)
        _write(self._directory / "state", json.dumps(asdict(state)).encode(), lasting=is_news)
        if self._notices:
            self._notices[:] = os.urandom(len(self._notices))
        for file in self._directory.glob("tags-*"):
            if file != self._tags_file(state.tags):
                file.unlink()
        return changes

    def _require_room(self) -> None:
        """Raises OSError when the disk is so full that others will soon need what is left."""
        disk = shutil.disk_usage(self._directory)
        if disk.free >= AMPLE or not disk.total:  # some file systems do not tell
            return
        full = 1 - disk.free / disk.total
        if full > WATERMARK:
            problem = f"its disk is {full:.0%} full, and nothing is fetched above {WATERMARK:.0%}"
            raise OSError(errno.ENOSPC, problem)

    def _last_state(self) -> State | None:
        """The last state of this origin, whatever became of the mirror since. Raises OSError."""
        try:
            with open(self._state_file, encoding="utf-8") as file:
                state = State(**json.load(file))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            return self._salvaged_state()
        return state if state.url == self._origin.url else None

    def _salvaged_state(self) -> State | None:
        """What is left of one that is damaged: the tags, as old as their file."""
        for file in self._directory.glob("tags-*"):
            digest = file.name.removeprefix("tags-")
            if digest_of(file.read_bytes()) == digest:
                written = file.stat().st_mtime
                return State(self._origin.url, "", digest, written, written)
        return None

    @property
    def _outgoing(self) -> Path:
        """The mirror that was replaced: it goes when nothing more is wanted from it."""
        return self._directory / "outgoing.git"

    def _discard_outgoing(self) -> None:
        """Under another name first: half of it would look as if something were wanted from it."""
        discarded = self._directory / "discarded.git"
        shutil.rmtree(discarded, ignore_errors=True)
        with suppress(FileNotFoundError):
            self._outgoing.rename(discarded)
        shutil.rmtree(discarded, ignore_errors=True)

    def _followed(self, lock: int, known: bytes | None, listing: bytes) -> bytes | None:
        """The refs of the mirror after a fetch; None when it is damaged. Raises GitFailed."""
        self._sweep()
        try:
            found = self._fetched(lock, known, listing)
            self._tidy()
        except GitSilent:
            raise
        except GitFailed:
            self._sweep()  # it may be for want of space
            # The origin did answer. Either it is not well, or the mirror is not.
            if self._is_sound(self.commands):
                raise
        else:
            # Git reads as many refs of a damaged file as it can, without a word.
            lost = _names(known or b"") - _names(found) if found != listing else set()
            if not lost & _names(listing) or not lost & _names(self.look(LOOK_LIMIT)):
                return found  # what is lost was deleted, maybe just now
        logger.warning("%s is damaged: cloning again", self.commands.git_dir)
        return None

    def _fetched(self, lock: int, known: bytes | None, listing: bytes) -> bytes:
        """The refs of the mirror after a fetch. Raises GitFailed when it, or the mirror, fails."""
        if known is not None:
            try:
                if self._fetch_few(lock, known, listing):
                    return listing
            except GitSilent:
                raise
            except (GitFailed, OSError):  # the mirror, or what was listed, may be gone by now
                self._sweep()
        self._fetch_all(self.commands, lock, listing)
        return self._listed()

    def _fetch_all(self, commands: Commands, lock: int, listing: bytes) -> None:
        try:
            self._fetch(commands, lock, _REFSPECS)
        except Unfit as error:
            if not self._is_sound(commands):
                raise
            self._fetch_apart(commands, lock, listing, error)

    def _fetch_few(self, lock: int, known: bytes, listing: bytes) -> bool:
        """Whether the mirror now has the refs of the listing, as only few of them were new.

        Git looks at every ref that it has before it fetches one: with a hundred thousand of them
        that takes thirty times as long as the fetch. So it is shown the branches alone, as what is
        there already, and the refs that come are then added to the others. Raises GitFailed.
        """
        before = refs.text(map(refs.listed, refs.lines(known))) if b" " in known else known
        gone, new = refs.difference(before, listing)
        branches = _BRANCHES.findall(before)
        # A name is the origin's to choose, and must not say more than a name in a refspec.
        if len(new) > _FEW_REFS or not branches or not all(map(_PLAIN_REF.fullmatch, new)):
            return False
        names = [refs.name(line).decode() for line in new]
        if new:
            aside = self._aside(branches)
            self._fetch(aside, lock, [f"+{name}:{name}" for name in names])
            fetched = aside.read(*LISTING, limit=LOOK_LIMIT)
            shutil.rmtree(aside.git_dir, ignore_errors=True)
            if refs.difference(fetched, refs.text(new)) != ([], []):
                return False  # they moved on meanwhile
        # First what is gone: a tag may have become a directory of tags.
        removed = {refs.name(line) for line in gone}.difference(map(refs.name, new))
        for commands in (
            b"".join(b"delete %b\n" % name for name in removed),
            b"".join(b"update %b %b\n" % (*line.split(b"\t")[::-1],) for line in new),
        ):
            if commands:
                self.commands.read("update-ref", "--stdin", given=commands, limit=LOOK_LIMIT)
        return True

    def _aside(self, oids: list[bytes]) -> Commands:
        """A directory for Git with the objects of the mirror, and with refs to these alone."""
        git_dir = self._directory / "fetching.git"
        shutil.rmtree(git_dir, ignore_errors=True)
        (git_dir / "refs").mkdir(mode=0o700, parents=True)
        (git_dir / "HEAD").write_text("ref: refs/heads/none\n", encoding="utf-8")
        shutil.copyfile(self.commands.git_dir / "config", git_dir / "config")
        packed = b"".join(b"%b refs/known/%d\n" % (oid, n) for n, oid in enumerate(oids))
        (git_dir / "packed-refs").write_bytes(packed)
        return self.commands.at(git_dir, objects=self.commands.git_dir / "objects")

    def _tidy(self) -> None:
        """Keeps reading fast: a fetch leaves a file for every ref, and often one more pack.

        What the origin no longer reaches is kept: another process may still tell of it.
        """
        git_dir = self.commands.git_dir
        if sum(len(files) for _, _, files in os.walk(git_dir / "refs")) > _FEW_REFS:
            self.commands.read("pack-refs", "--all", limit=self._fetch_limit)
        if len(list(git_dir.glob("objects/pack/*.pack"))) > _MANY_PACKS:
            repack = ("repack", "-a", "-d", "--keep-unreachable", "--quiet")
            self.commands.read(*repack, limit=self._fetch_limit)

    def _sweep(self) -> None:
        """Removes what a fetch leaves that was killed: clones, locks, packs without an end."""
        git_dir = self.commands.git_dir
        for aside in ("fetching.git", "incoming.git", "discarded.git"):
            shutil.rmtree(self._directory / aside, ignore_errors=True)
        locks = ("*.lock", "refs/**/*.lock", "objects/info/**/*.lock")
        halves = ("objects/tmp_*", "objects/??/tmp_*", "objects/pack/tmp_*", "objects/incoming-*")
        for pattern in (*locks, *halves):
            for path in git_dir.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _is_sound(self, commands: Commands) -> bool:
        try:
            check = ("fsck", "--connectivity-only", "--no-dangling", "--no-progress")
            commands.read(*check, limit=self._fetch_limit)
        except GitFailed:
            return False
        return True

    def _cloned(self, lock: int, listing: bytes) -> bytes:
        """The refs of a new clone, made aside: what is there can be read until it is replaced."""
        fresh = self.commands.at(self._directory / "incoming.git", meek=True)
        shutil.rmtree(fresh.git_dir, ignore_errors=True)
        try:
            if listing.count(b"\n") <= _FEW_REFS or not self._clone_many(fresh, lock):
                self._clone_few(fresh, lock, listing)
        except (GitFailed, OSError):
            shutil.rmtree(fresh.git_dir, ignore_errors=True)  # it may be for want of space
            raise
        if self._outgoing.exists():
            # Nobody got from it yet what is wanted, and what came after it is all at the origin.
            shutil.rmtree(self.commands.git_dir, ignore_errors=True)
        elif self.commands.git_dir.exists():
            self.commands.git_dir.rename(self._outgoing)
        if self._outgoing.exists():
            # Its objects are wanted, and not its refs, which may be what is damaged.
            (self._outgoing / "packed-refs").unlink(missing_ok=True)
            (self._outgoing / "HEAD").write_text("ref: refs/heads/none\n", encoding="utf-8")
        fresh.git_dir.rename(self.commands.git_dir)
        self._tidy()
        return self._listed()

    def _clone_many(self, fresh: Commands, lock: int) -> bool:
        """Whether there is a clone now. Git writes one file for all refs that it clones, and one
        for each that it fetches: with a hundred thousand, that takes minutes.
        """
        options = ("--bare", "--quiet", "--no-local", "--template=")
        where = (str(fresh.git_dir),)
        try:
            fresh.ask_origin("clone", *options, refspecs=where, limit=self._fetch_limit, lock=lock)
            fresh.read("config", "--remove-section", "remote.origin", limit=LOOK_LIMIT)
            self._believe_in(fresh)
        except GitSilent:
            raise
        except GitFailed as error:  # of one ref, maybe
            logger.warning("%s: not cloned at once: %s", self._directory, error)
            shutil.rmtree(fresh.git_dir, ignore_errors=True)
            return False
        return True

    def _clone_few(self, fresh: Commands, lock: int, listing: bytes) -> None:
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
        self._fetch_all(fresh, lock, listing)

    def _fetch_apart(self, commands: Commands, lock: int, listing: bytes, error: GitFailed) -> None:
        """Fetches what can be fetched, where all refs at once cannot be: one with broken objects
        must not keep the others from being seen. It stays what it was, if it was anything. Raises
        `error` if it is not about single refs.
        """
        here = set(commands.read(*LISTING, limit=LOOK_LIMIT).splitlines())
        there = set(listing.splitlines())
        names = {line.partition(b"\t")[2] for line in there}
        gone = {line.partition(b"\t")[2] for line in here} - names
        deleted = b"".join(b"delete %b\n" % name for name in gone)
        if deleted:
            commands.read("update-ref", "--stdin", given=deleted, limit=self._fetch_limit)
        new = sorted(line.partition(b"\t")[2] for line in there - here)
        fit = [os.fsdecode(name) for name in new if _ANY_REF.fullmatch(name)]
        groups = [fit[at : at + _GROUP] for at in range(0, len(fit), _GROUP)]
        broken = 0
        while groups:
            group = groups.pop()
            try:
                self._fetch(commands, lock, [f"+{name}:{name}" for name in group])
            except Unfit as problem:
                if len(group) > 1:
                    middle = len(group) // 2
                    groups += group[:middle], group[middle:]
                    continue
                broken += 1
                if broken > _FEW_BROKEN:
                    raise error from None
                logger.warning("%s: %r is left out: %s", commands.git_dir, group[0], problem)

    def _fetch(self, commands: Commands, lock: int, refspecs: Iterable[str]) -> None:
        commands.ask_origin(
            "fetch",
            "--quiet",
            "--prune",
            "--force",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-auto-gc",
            "--no-recurse-submodules",
            refspecs=refspecs,
            limit=self._fetch_limit,
            lock=lock,
        )
        self._believe_in(commands)

    def _believe_in(self, commands: Commands) -> None:
        listed = ("for-each-ref", "--count=1", "refs/heads", "refs/tags")
        self._believe(bool(commands.read(*listed, limit=LOOK_LIMIT)))

    def _believe(self, has_refs: bool) -> None:
        """Raises GitFailed for a web server that seems to have no refs at all: to Git, that is what
        any empty answer says, even one that was cut off before it began.
        """
        if not has_refs and self._origin.url.startswith("http"):
            raise GitFailed("it is empty, or its answers come from something that is not Git")

    def _listed(self) -> bytes:
        """What is here, the way the origin lists what is there."""
        return self.commands.read(*LISTING, limit=LOOK_LIMIT)

    def _write_refs(self, told: bytes) -> str:
        digest = digest_of(told)
        _write(self._tags_file(digest), told)
        return digest

    def _tags_file(self, digest: str) -> Path:
        return self._directory / f"tags-{digest}"

    def _freeze(
        self, found: bytes, known: bytes, now: float
    ) -> tuple[bytes, tuple[TagChange, ...]]:
        """The refs to tell, where a version means what it meant when it was first seen, and what
        the origin changed since the last look. `known` are the refs that were told until now.
        """
        last = {change.tag: change for change in self._recorded()}
        gone, _ = refs.difference(known, found)
        versions = (tag for tag in refs.tags(refs.text(gone)) if _is_version(tag.name))
        first = {tag.name: tag for tag in self._read(versions) if tag.annotated and tag.revision}
        # What is on record was seen earlier, and is remembered when the tag comes back.
        first |= {one.tag: gto.Tag(one.tag, one.kept, one.time, True) for one in last.values()}
        if not first:
            return found, ()
        wanted = {f"refs/tags/{name}".encode(): name for name in first}
        lines = refs.lines(found)
        places = {
            wanted[ref]: place
            for place, line in enumerate(lines)
            if (ref := refs.name(line)) in wanted
        }
        now_there = refs.text(lines[place] for place in places.values())
        there = {tag.name: tag for tag in self._read(refs.tags(now_there))}
        if len(there) < len(places):
            raise ObjectLost("the mirror has lost a tag")
        changes = {name: _change(tag, there.get(name), now) for name, tag in first.items()}
        for name, place in places.items():
            if changes[name].event == "moved":
                lines[place] = refs.frozen(lines[place], first[name])
        new = tuple(one for one in changes.values() if not _is_known(one, last.get(one.tag)))
        if new:
            records = [*self._recorded(), *new]
            text = "".join(f"{json.dumps(asdict(record))}\n" for record in records)
            _write(self._directory / "changed", text.encode())
        self._keep({one.kept for one in (*last.values(), *new)})
        return refs.text(lines), new

    def _read(self, tags: Iterable[gto.Tag | gto.Ref]) -> Iterator[gto.Tag]:
        """What the tags say, as far as there is one of the objects left: in the mirror, or in the
        one that was before it.
        """
        unread = []
        for tag in tags:
            if isinstance(tag, gto.Ref):
                unread.append(tag)
            else:
                yield tag
        for git_dir in (self.commands.git_dir, self._outgoing):
            if not (unread and git_dir.exists()):
                continue
            with closing(Objects(self.commands.at(git_dir))) as objects:
                try:
                    found = objects.targets([ref.oid for ref in unread])
                except GitFailed as error:
                    logger.warning("%s cannot be read: %s", git_dir, error)
                    continue
            for ref, target in zip(unread, found, strict=True):
                if target:
                    yield gto.Tag(ref.name, *target)
            unread = [ref for ref, target in zip(unread, found, strict=True) if not target]
        for ref in unread:
            logger.warning("%s: nobody knows any more what %s meant", self._directory, ref.name)

    def _recorded(self) -> list[TagChange]:
        try:
            lines = (self._directory / "changed").read_text(encoding="utf-8").splitlines()
            return [TagChange(**json.loads(line)) for line in lines]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError) as error:  # never ours: it is replaced as a whole
            raise GitFailed("its record of changed tags is damaged: remove the mirror") from error

    def _keep(self, commits: set[Revision]) -> None:
        """Names commits by refs of ours, so that no repack loses what a version means. Those that
        a new clone lacks are taken from the mirror before it, as far as that can be read.
        """
        limit = self._fetch_limit
        listed = self.commands.read("for-each-ref", "--format=%(objectname)", _KEEP, limit=limit)
        wanted = commits.difference(map(Revision, listed.decode().split()))
        lost = wanted - self._present(wanted)
        if lost and self._outgoing.exists():
            given = "".join(f"{commit}\n" for commit in lost).encode()
            pack = ("pack-objects", "--quiet", "--revs", "--stdout")
            try:
                packed = self.commands.at(self._outgoing).read(*pack, given=given, limit=limit)
                self.commands.read("index-pack", "--stdin", given=packed, limit=limit)
            except GitFailed as error:
                logger.warning("%s has lost frozen versions: %s", self.commands.git_dir, error)
        new = "".join(f"create {_KEEP}{one} {one}\n" for one in self._present(wanted)).encode()
        if new:
            self.commands.read("update-ref", "--stdin", given=new, limit=limit)

    def _present(self, commits: Iterable[Revision]) -> set[Revision]:
        names = "".join(f"{commit}^{{commit}}\n" for commit in commits).encode()
        command = ("cat-file", "--batch-check=%(objectname)")
        answers = self.commands.read(*command, given=names, limit=LOOK_LIMIT) if names else b""
        return {Revision(one.decode()) for one in answers.splitlines() if b" " not in one}


def _is_version(tag: str) -> bool:
    event = gto.Event.parse(tag)
    return event is not None and event.action is gto.Action.REGISTER


def _change(first: gto.Tag, tag: gto.Tag | None, now: float) -> TagChange:
    """What became of a version that was first seen as `first` and is `tag` at the origin now."""
    assert first.revision
    event: Literal["moved", "deleted", "restored"] = "restored"
    if tag is None:
        event = "deleted"
    elif not tag.annotated or tag.revision != first.revision:
        event = "moved"
    origin = tag.revision if tag else None
    return TagChange(first.name, event, first.revision, first.time, origin, now)


def _is_known(change: TagChange, last: TagChange | None) -> bool:
    """Whether it was on record already. A tag that is as it was first seen needs no record."""
    if last is None:
        return change.event == "restored"
    return (change.event, change.origin) == (last.event, last.origin)


def _names(listing: bytes) -> set[bytes]:
    return set(map(refs.name, refs.lines(listing)))


def digest_of(data: bytes) -> str:
    """The SHA-256 of a state's list of refs, or of its tags file."""
    return hashlib.sha256(data).hexdigest()


def _write(file: Path, data: bytes, *, lasting: bool = True) -> None:
    """Replaces a file as a whole, and for good, even when the power fails; if it need not be
    `lasting`, the disk is not waited for.
    """
    temporary = file.with_name(f"{file.name}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        if lasting:
            os.fsync(stream.fileno())
    temporary.replace(file)
