"""The mirror on disk, which all processes share.

    MIRROR/
      repository.git    the bare mirror: refs/heads and refs/tags of the origin, and one ref of ours
                        for each commit that a frozen version means: refs/registry/keep/<commit>
      lock              whoever fetches holds it, and so does every process that Git starts for it
      tags-<digest>     the tags of one state of the origin; <digest> is the SHA-256 of the file
      state             what was last seen at the origin, when, and which tags file tells it
      changed           what the origin did to version tags after they were first seen; JSON lines

One process looks at the origin; the others find what it saw in `state`, which is replaced as a
whole and last, so that nobody ever reads the tags of half a fetch.

A version tag is frozen, unless the operator wants it to follow: it means the commit that was first
seen under its name, for as long as it exists. The directory is all that remembers: without it, what
is seen next is seen first.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from mmap import mmap
from pathlib import Path
from typing import BinaryIO, Literal

from registry import gto
from registry.domain import Revision
from registry.repository.commands import Commands, GitFailed, GitSilent
from registry.repository.origin import Origin

logger = logging.getLogger(__name__)

LOOK_LIMIT = 30.0
"""Seconds the origin may take to list its refs."""
_MANY_PACKS = 50
_GLANCE = 0.05
"""Seconds between two looks at the state file that no notice asks for."""
_KEEP = "refs/registry/keep/"

_FEW_REFS = 100
_PLAIN_REF = re.compile(rb"refs/(?:heads|tags)/[A-Za-z0-9._/@#!=+-]+")
_ANY_REF = re.compile(rb"refs/(?:heads|tags)/[^\x00-\x20\x7f:*?\[\\^~]+")
_GROUP = 1000
_FEW_BROKEN = 20
_REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_TAG_FORMAT = (
    "%(refname:strip=2) %(objecttype) %(objectname) %(*objecttype) %(*objectname)"
    " %(taggerdate:unix)"
)


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
        state = self._last_state()
        return state if state and (self.commands.git_dir / "HEAD").is_file() else None

    def changes(self) -> tuple[TagChange, ...]:
        """What happened last to every version tag that the origin changed, in the order seen."""
        if self._last_state() is None:
            return ()  # there is none, or it is of another origin
        return tuple({change.tag: change for change in self._recorded()}.values())

    def tags(self, state: State) -> list[gto.Tag] | None:
        """The tags of a state; None when the file was replaced meanwhile, or damaged."""
        data = self._tags_data(state)
        return None if data is None else [parse_tag(line) for line in _lines(data)]

    def look(self, limit: float) -> bytes:
        """The refs of the origin, as it lists them. Raises GitFailed."""
        # Away from the mirror, which may be damaged: that is for `update` to find out.
        nowhere = self.commands.at(self._directory / "nowhere.git")
        listing = nowhere.ask_origin("ls-remote", "--heads", "--tags", "--refs", limit=limit)
        self._believe(bool(listing))
        return listing

    def update(
        self, now: float, lock: int, damaged: float | None, limit: float = LOOK_LIMIT
    ) -> tuple[TagChange, ...]:
        """Brings the mirror to the state that the origin has now; clones it if need be.

        `damaged` is when a read found the mirror to be damaged; `limit` is how many seconds the
        origin may take to list its refs. Says what became of versions that
        were seen before. Raises GitFailed and OSError.
        """
        changes: tuple[TagChange, ...] = ()
        last, state = self._last_state(), self.state()
        if state and damaged is not None and state.cloned <= damaged:
            state = None
        listing = self.look(limit)
        refs = digest_of(b"frozen\n" * self._frozen + listing)
        if state is None or state.refs != refs or self._tags_data(state) is None:
            if state is None or not self._fetched(lock, listing):
                self._clone(lock, listing)
                state = State(self._origin.url, refs, "", now, now)
            self._tidy()
            lines = list(read_tags(self.commands))
            if last is None:
                (self._directory / "changed").unlink(missing_ok=True)
            elif self._frozen:
                lines, changes = self._freeze(lines, self._tags_data(last) or b"", now)
            state = replace(state, refs=refs, tags=self._write_tags(lines))
            shutil.rmtree(self._outgoing, ignore_errors=True)
        _write(self._directory / "state", json.dumps(asdict(replace(state, checked=now))).encode())
        if self._notices:
            self._notices[:] = os.urandom(len(self._notices))
        for file in self._directory.glob("tags-*"):
            if file != self._tags_file(state.tags):
                file.unlink()
        return changes

    def _last_state(self) -> State | None:
        """The last state of this origin, whatever became of the mirror since."""
        try:
            with open(self._state_file, encoding="utf-8") as file:
                state = State(**json.load(file))
        except (OSError, ValueError, TypeError):
            return None
        return state if state.url == self._origin.url else None

    @property
    def _outgoing(self) -> Path:
        """The mirror that was replaced: it goes when nothing more is wanted from it."""
        return self._directory / "outgoing.git"

    def _fetched(self, lock: int, listing: bytes) -> bool:
        """Whether the mirror could be fetched into; it is damaged if not. Raises GitFailed."""
        _sweep(self.commands.git_dir)
        with suppress(GitFailed):  # the mirror, or what was listed, may be gone by now
            new = self._new_refs(listing)
            if new:
                self._fetch(self.commands, lock, new)
                return True
        try:
            self._fetch(self.commands, lock, _REFSPECS)
        except GitFailed as error:
            # The origin did answer. Either it is not well, or the mirror is not.
            if not self._is_sound():
                logger.warning("%s is damaged: cloning again", self.commands.git_dir)
                return False
            self._fetch_apart(self.commands, lock, listing, error)
        return True

    def _new_refs(self, listing: bytes) -> tuple[str, ...]:
        """What to fetch where few refs are new and none is gone; nothing for anything else.

        Git takes five times as long to compare a hundred thousand refs as to fetch one by its name.
        """
        command = ("for-each-ref", "--format=%(objectname)%09%(refname)", "refs/heads", "refs/tags")
        here = set(self.commands.read(*command, limit=LOOK_LIMIT).splitlines())
        there = set(listing.splitlines())
        new = [line.partition(b"\t")[2] for line in there - here]
        gone = {line.partition(b"\t")[2] for line in here - there}.difference(new)
        # A name is the origin's to choose, and must not say more than a name in a refspec.
        if gone or len(new) > _FEW_REFS or not all(map(_PLAIN_REF.fullmatch, new)):
            return ()
        return tuple(f"+{name.decode()}:{name.decode()}" for name in new)

    def _tidy(self) -> None:
        """Keeps reading fast: a fetch leaves a file for every ref, and often one more pack.

        What the origin no longer reaches is kept: another process may still tell of it.
        """
        self.commands.read("pack-refs", "--all", limit=self._fetch_limit)
        if len(list(self.commands.git_dir.glob("objects/pack/*.pack"))) > _MANY_PACKS:
            repack = ("repack", "-a", "-d", "--keep-unreachable", "--quiet")
            self.commands.read(*repack, limit=self._fetch_limit)

    def _is_sound(self) -> bool:
        try:
            check = ("fsck", "--connectivity-only", "--no-dangling", "--no-progress")
            self.commands.read(*check, limit=self._fetch_limit)
        except GitFailed:
            return False
        return True

    def _clone(self, lock: int, listing: bytes) -> None:
        """Clones aside, so that what is there can be read until it is replaced."""
        fresh = self.commands.at(self._directory / "incoming.git")
        for leftover in (fresh.git_dir, self._outgoing):
            shutil.rmtree(leftover, ignore_errors=True)
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
        try:
            self._fetch(fresh, lock, _REFSPECS)
        except GitFailed as error:
            self._fetch_apart(fresh, lock, listing, error)
        if self.commands.git_dir.exists():
            self.commands.git_dir.rename(self._outgoing)
        fresh.git_dir.rename(self.commands.git_dir)

    def _fetch_apart(self, commands: Commands, lock: int, listing: bytes, error: GitFailed) -> None:
        """Fetches what can be fetched, where all refs at once cannot be: one with broken objects
        must not keep the others from being seen. It stays what it was, if it was anything. Raises
        `error` if it is not about single refs.
        """
        command = ("for-each-ref", "--format=%(objectname)%09%(refname)", "refs/heads", "refs/tags")
        here = set(commands.read(*command, limit=LOOK_LIMIT).splitlines())
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
            except GitSilent:
                raise
            except GitFailed as problem:
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
        listed = ("for-each-ref", "--count=1", "refs/heads", "refs/tags")
        self._believe(bool(commands.read(*listed, limit=LOOK_LIMIT)))

    def _believe(self, has_refs: bool) -> None:
        """Raises GitFailed for a web server that seems to have no refs at all: to Git, that is what
        any empty answer says, even one that was cut off before it began.
        """
        if not has_refs and self._origin.url.startswith("http"):
            raise GitFailed("it is empty, or its answers come from something that is not Git")

    def _tags_data(self, state: State) -> bytes | None:
        try:
            data = self._tags_file(state.tags).read_bytes()
        except OSError:
            return None
        return data if digest_of(data) == state.tags else None

    def _tags_file(self, digest: str) -> Path:
        return self._directory / f"tags-{digest}"

    def _freeze(
        self, lines: list[str], known: bytes, now: float
    ) -> tuple[list[str], tuple[TagChange, ...]]:
        """The tags to tell, where a version means what it meant when it was first seen, and what
        the origin changed since the last look. `known` are the tags that were told until now.
        """
        last = {change.tag: change for change in self._recorded()}
        before = set(_lines(known))
        gone = (parse_tag(line) for line in before.difference(lines))
        first = {tag.name: tag for tag in gone if _is_version(tag)}
        # What is on record was seen earlier, and is remembered when the tag comes back.
        first |= {one.tag: gto.Tag(one.tag, one.kept, one.time, True) for one in last.values()}
        if not first:
            return lines, ()
        told, changes = [], {name: _change(tag, None, now) for name, tag in first.items()}
        for line in lines:
            name = line.split(" ", 3)[3]
            if name in first:
                changes[name] = _change(first[name], parse_tag(line), now)
            moved = name in first and changes[name].event == "moved"
            told.append(_tag_line(first[name]) if moved else line)
        new = tuple(one for one in changes.values() if not _is_known(one, last.get(one.tag)))
        if new:
            records = [*self._recorded(), *new]
            text = "".join(f"{json.dumps(asdict(record))}\n" for record in records)
            _write(self._directory / "changed", text.encode())
        self._keep({one.kept for one in (*last.values(), *new)})
        return told, new

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
            # Its objects are wanted, and not its refs, which may be what is damaged.
            (self._outgoing / "packed-refs").unlink(missing_ok=True)
            (self._outgoing / "HEAD").write_text("ref: refs/heads/none\n", encoding="utf-8")
            given = "".join(f"{commit}\n" for commit in lost).encode()
            pack = ("pack-objects", "--quiet", "--revs", "--stdout")
            try:
                packed = self.commands.at(self._outgoing).read(*pack, given=given, limit=limit)
                self.commands.read("index-pack", "--stdin", given=packed, limit=limit)
            except GitFailed as error:
                logger.warning("%s has lost frozen versions: %s", self.commands.git_dir, error)
        refs = "".join(f"create {_KEEP}{one} {one}\n" for one in self._present(wanted)).encode()
        if refs:
            self.commands.read("update-ref", "--stdin", given=refs, limit=limit)

    def _present(self, commits: Iterable[Revision]) -> set[Revision]:
        names = [str(commit) for commit in commits]
        return {Revision(found) for found in _peeled(self.commands, names) if found != "-"}

    def _write_tags(self, lines: list[str]) -> str:
        data = "".join(f"{line}\n" for line in lines).encode()
        digest = digest_of(data)
        _write(self._tags_file(digest), data)
        return digest


def read_tags(commands: Commands) -> Iterator[str]:
    """A line for every tag that may be one of GTO's: commit or `-`, time, kind, name.

    Raises GitFailed.
    """
    command = ("for-each-ref", f"--format={_TAG_FORMAT}", "refs/tags")
    listed = commands.read(*command, limit=LOOK_LIMIT).decode(errors="replace")
    lines = [line.split(" ") for line in listed.split("\n") if "@" in line or "#" in line]
    # Git peels one level; what is still a tag then is peeled to the bottom.
    nested = [line[2] for line in lines if line[3] == "tag"]
    commits = dict(zip(nested, _peeled(commands, nested), strict=True))
    for name, kind, oid, peeled_kind, peeled, when in lines:
        revision = commits.get(oid, peeled if peeled_kind == "commit" else "-")
        yield f"{revision} {when or 0} {kind} {name}"


def _peeled(commands: Commands, tags: list[str]) -> Iterator[str]:
    if not tags:
        return
    names = "".join(f"{oid}^{{commit}}\n" for oid in tags).encode()
    command = ("cat-file", "--batch-check=%(objectname)")
    for answer in commands.read(*command, given=names, limit=LOOK_LIMIT).splitlines():
        yield "-" if b" " in answer else answer.decode()


def _lines(data: bytes) -> list[str]:
    """Lines as Git ends them. `str.splitlines` knows more ends, which names of tags may hold."""
    return data.decode(errors="replace").removesuffix("\n").split("\n") if data else []


def parse_tag(line: str) -> gto.Tag:
    """The tag of such a line."""
    revision, when, kind, name = line.split(" ", 3)
    return gto.Tag(name, Revision(revision) if revision != "-" else None, int(when), kind == "tag")


def _tag_line(tag: gto.Tag) -> str:
    return f"{tag.revision or '-'} {tag.time} {'tag' if tag.annotated else 'commit'} {tag.name}"


def _is_version(tag: gto.Tag) -> bool:
    event = gto.Event.parse(tag.name)
    return bool(tag.annotated and tag.revision and event and event.action is gto.Action.REGISTER)


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


def _sweep(git_dir: Path) -> None:
    """Removes what a fetch leaves behind that was killed: locks, and packs without an end."""
    places = ("*.lock", "refs/**/*.lock", "objects/info/**/*.lock")
    leftovers = ("objects/tmp_*", "objects/??/tmp_*", "objects/pack/tmp_*", "objects/incoming-*")
    for pattern in (*places, *leftovers):
        for path in git_dir.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def digest_of(data: bytes) -> str:
    """The SHA-256 of a state's list of refs, or of its tags file."""
    return hashlib.sha256(data).hexdigest()


def _write(file: Path, data: bytes) -> None:
    """Replaces a file as a whole, and for good, even when the power fails."""
    temporary = file.with_name(f"{file.name}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
