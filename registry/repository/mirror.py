"""The mirror on disk, which all processes share.

    MIRROR/
      repository.git    the bare mirror: refs/heads and refs/tags of the origin, nothing else
      lock              whoever fetches holds it, and so does every process that Git starts for it
      tags-<digest>     the tags of one state of the origin; <digest> is the SHA-256 of the file
      state             what was last seen at the origin, when, and which tags file tells it

One process looks at the origin; the others find what it saw in `state`, which is replaced as a
whole and last, so that nobody ever reads the tags of half a fetch.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from registry import gto
from registry.domain import Revision
from registry.repository.commands import Commands, GitFailed
from registry.repository.origin import Origin

logger = logging.getLogger(__name__)

LOOK_LIMIT = 30.0
"""Seconds the origin may take to list its refs."""
_MANY_PACKS = 50

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


class Mirror:
    """The directory that all processes share. Only the holder of the lock writes to it."""

    def __init__(self, directory: Path, origin: Origin, fetch_limit: float) -> None:
        self.commands = Commands(directory / "repository.git", origin)
        self._directory = directory
        self._origin = origin
        self._fetch_limit = fetch_limit

    def open_lock(self) -> BinaryIO:
        """The lock, not yet held; closing it gives it back. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return open(self._directory / "lock", "ab")

    def state(self) -> State | None:
        """The last state that was seen, if it can be used."""
        try:
            text = (self._directory / "state").read_text(encoding="utf-8")
            state = State(**json.loads(text))
        except (OSError, ValueError, TypeError):
            return None
        usable = state.url == self._origin.url and (self.commands.git_dir / "HEAD").is_file()
        return state if usable else None

    def tags(self, state: State) -> list[gto.Tag] | None:
        """The tags of a state; None when the file was replaced meanwhile, or damaged."""
        data = self._tags_data(state)
        return None if data is None else [_parse_tag(line) for line in data.decode().splitlines()]

    def look(self, limit: float) -> bytes:
        """The refs of the origin, as it lists them. Raises GitFailed."""
        # Away from the mirror, which may be damaged: that is for `update` to find out.
        nowhere = self.commands.at(self._directory / "nowhere.git")
        return nowhere.ask_origin("ls-remote", "--heads", "--tags", "--refs", limit=limit)

    def update(self, now: float, lock: int, damaged: float | None) -> None:
        """Brings the mirror to the state that the origin has now; clones it if need be.

        `damaged` is when a read found the mirror to be damaged. Raises GitFailed and OSError.
        """
        state = self.state()
        if state and damaged is not None and state.cloned <= damaged:
            state = None
        listing = self.look(LOOK_LIMIT)
        refs = _digest(listing)
        if state is None or state.refs != refs or self._tags_data(state) is None:
            if state is None or not self._fetched(lock):
                self._clone(lock, listing)
                state = State(self._origin.url, refs, "", now, now)
            self._tidy()
            state = replace(state, refs=refs, tags=self._write_tags())
        _write(self._directory / "state", json.dumps(asdict(replace(state, checked=now))).encode())
        for file in self._directory.glob("tags-*"):
            if file != self._tags_file(state.tags):
                file.unlink()

    def _fetched(self, lock: int) -> bool:
        """Whether the mirror could be fetched into; it is damaged if not. Raises GitFailed."""
        _sweep(self.commands.git_dir)
        try:
            self._fetch(self.commands, lock)
        except GitFailed:
            # The origin did answer. Either it is not well, or the mirror is not.
            if self._is_sound():
                raise
            logger.warning("%s is damaged: cloning again", self.commands.git_dir)
            return False
        return True

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
        old = self._directory / "outgoing.git"
        for leftover in (fresh.git_dir, old):
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
        self._fetch(fresh, lock)
        if self.commands.git_dir.exists():
            self.commands.git_dir.rename(old)
        fresh.git_dir.rename(self.commands.git_dir)
        shutil.rmtree(old, ignore_errors=True)

    def _fetch(self, commands: Commands, lock: int) -> None:
        commands.ask_origin(
            "fetch",
            "--quiet",
            "--prune",
            "--force",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-auto-gc",
            "--no-recurse-submodules",
            refspecs=_REFSPECS,
            limit=self._fetch_limit,
            lock=lock,
        )

    def _tags_data(self, state: State) -> bytes | None:
        try:
            data = self._tags_file(state.tags).read_bytes()
        except OSError:
            return None
        return data if _digest(data) == state.tags else None

    def _tags_file(self, digest: str) -> Path:
        return self._directory / f"tags-{digest}"

    def _write_tags(self) -> str:
        data = "".join(f"{line}\n" for line in self._read_tags()).encode()
        digest = _digest(data)
        _write(self._tags_file(digest), data)
        return digest

    def _read_tags(self) -> Iterator[str]:
        """A line for every tag that may be one of GTO's: commit or `-`, time, kind, name."""
        command = ("for-each-ref", f"--format={_TAG_FORMAT}", "refs/tags")
        listed = self.commands.read(*command, limit=LOOK_LIMIT).decode(errors="replace")
        lines = [line.split(" ") for line in listed.splitlines() if "@" in line or "#" in line]
        # Git peels one level; what is still a tag then is peeled to the bottom.
        nested = [line[2] for line in lines if line[3] == "tag"]
        commits = dict(zip(nested, self._peeled(nested), strict=True))
        for name, kind, oid, peeled_kind, peeled, when in lines:
            revision = commits.get(oid, peeled if peeled_kind == "commit" else "-")
            yield f"{revision} {when or 0} {kind} {name}"

    def _peeled(self, tags: list[str]) -> Iterator[str]:
        if not tags:
            return
        names = "".join(f"{oid}^{{commit}}\n" for oid in tags).encode()
        command = ("cat-file", "--batch-check=%(objectname)")
        for answer in self.commands.read(*command, given=names, limit=LOOK_LIMIT).splitlines():
            yield "-" if b" " in answer else answer.decode()


def _parse_tag(line: str) -> gto.Tag:
    revision, when, kind, name = line.split(" ", 3)
    return gto.Tag(name, Revision(revision) if revision != "-" else None, int(when), kind == "tag")


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


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(file: Path, data: bytes) -> None:
    """Replaces a file as a whole, and for good, even when the power fails."""
    temporary = file.with_name(f"{file.name}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
