"""The core: from a repository, a name and a selector to links for the objects behind an artifact.

A request takes these steps, all of them in memory once the mirror is fresh and the revision known:

    spelling -> repository -> snapshot of its tags -> revision -> manifest -> links
"""

import math
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from itertools import groupby
from typing import Generic, TypeVar

from registry.contents import Contents
from registry.domain import (
    Entry,
    Manifest,
    Principal,
    Revision,
    Selector,
    canonical_repository,
)
from registry.errors import (
    InvalidRequest,
    MirrorNotReady,
    MirrorStale,
    NotFound,
    RepositoryNotFound,
    RevisionNotFound,
    SettingsError,
)
from registry.repository import Repository, Snapshot
from registry.storage import Grants, Links, Location
from registry.storage.stores import Stores

GIT_WAIT = 4.0
"""Seconds a request waits for Git. DVC's client gives up after 5 s without a byte."""
IMPORT_WAIT = 1.0
"""Seconds it waits for the source of a `dvc import`, on top of that."""
RECHECK = 2.0
"""Seconds between two looks at the origin for what the known tags do not name."""
_FEW, _MANY = 100, 256
"""Files of an answer that is remembered for the rest of its second, and how many answers are."""


@dataclass(frozen=True)
class Mirrored:
    """A mirrored repository, the seconds by which an answer may lag behind its origin, and every
    URL that means it.
    """

    repository: Repository
    refresh: float
    spellings: tuple[str, ...]

    def snapshot(self, selector: Selector, max_age: float | None, wait: float) -> Snapshot:
        """The tags to answer `selector` from, fresh enough for it and no older than `max_age`
        seconds if that is given. Waits for Git for `wait` seconds at most.

        A registered version does not move: it is answered at once, while the tags are brought up
        to date behind the request's back.
        """
        if selector.version and max_age is None:
            with suppress(MirrorNotReady, MirrorStale):
                return self.repository.snapshot(self.refresh, 0.0)
        return self.repository.snapshot(self.allowed(max_age), wait)

    def at(self, revision: Revision, wait: float) -> Repository:
        """The repository, with the revision there if it exists: what is known does, if it knows
        it, for a revision never moves. Waits for Git for `wait` seconds, and once more.
        """
        self.repository.snapshot(math.inf, wait)
        if not self.repository.contains(revision):
            self.repository.snapshot(RECHECK, wait)
        return self.repository

    def allowed(self, max_age: float | None) -> float:
        """The seconds by which an answer may lag behind, for who wants no more than `max_age`."""
        return self.refresh if max_age is None else min(self.refresh, max_age)


class Repositories:
    """The configured repositories, found by any of their spellings. No network, no disk."""

    def __init__(self, mirrored: Iterable[Mirrored]) -> None:
        self._by_name = {item.repository.name: item for item in mirrored}
        self._by_spelling: dict[str, set[str]] = {}
        for name, item in self._by_name.items():
            hosted = {canonical_repository(url) for url in item.spellings} - {None}
            paths = {str(url).partition("/")[2] for url in hosted}
            for spelling in {name, *map(str, hosted), *paths}:
                self._by_spelling.setdefault(spelling, set()).add(name)
            for url in hosted:
                claimed = self._by_spelling[str(url)]
                if len(claimed) > 1:
                    problem = f"{url} is claimed by {' and '.join(sorted(claimed))}"
                    raise SettingsError("repositories", problem)

    def __iter__(self) -> Iterator[Mirrored]:
        return iter(self._by_name.values())

    def open(self, principal: Principal, spelling: str) -> Mirrored:
        """The repository so spelled. Raises RepositoryNotFound, also when the principal may not
        see it, and when the spelling could mean two.
        """
        names = self._by_spelling.get(canonical_repository(spelling) or "", set())
        seen = [name for name in names if principal.may_see(name)]
        if len(seen) != 1:
            raise RepositoryNotFound(spelling[:255])
        return self._by_name[seen[0]]

    def named(self, principal: Principal, name: str) -> Mirrored | None:
        """The repository of this very name, if the principal may see it."""
        return self._by_name.get(name) if principal.may_see(name) else None

    def claimed(self, url: str) -> Mirrored | None:
        """The repository with this URL, however spelled, or this name; None for none or several.
        For whoever proves by other means that they may speak of it.
        """
        names = self._by_spelling.get(canonical_repository(url) or "", set())
        return self._by_name[next(iter(names))] if len(names) == 1 else None

    def at(self, principal: Principal, spelling: str, revision: Revision) -> Repository:
        """The same, as the source of a `dvc import`: with the revision there, if it exists."""
        return self.open(principal, spelling).at(revision, IMPORT_WAIT)


@dataclass(frozen=True)
class Resolution:
    """What a selector means right now: an artifact at a revision of a repository.

    `tag` is the name of the tag that decided, None where the selector itself names the revision.
    `checked` is the Unix time at which the origin was last seen to have these tags; `stale` says
    that this was longer ago than was allowed.
    """

    repository: Repository
    selector: Selector
    revision: Revision
    version: str | None
    tag: str | None
    deprecated: bool
    checked: float
    stale: bool


@dataclass(frozen=True)
class _Part:
    """Entries that are signed for alike; `prefix` and the key of each make its path."""

    links: Links
    prefix: str
    entries: Collection[Entry]


@dataclass(frozen=True)
class Signed:
    """Links to the files of a manifest, in its order, good until `expires`.

    Iterating gives pairs of an entry and its URL, signed as they are asked for. That cannot fail
    any more: what could be refused was refused before.
    """

    expires: datetime
    parts: tuple[_Part, ...]

    def __len__(self) -> int:
        return sum(len(part.entries) for part in self.parts)

    def __iter__(self) -> Iterator[tuple[Entry, str]]:
        for part in self.parts:
            sign, prefix = part.links.sign, part.prefix
            for entry in part.entries:
                yield entry, sign(prefix + entry.key, entry)


@dataclass(frozen=True, eq=False)
class Download:
    """Links to every file of an artifact, good until `expires`.

    Iterating gives pairs of a path in the repository and its URL, signed as they are asked for.
    That cannot fail any more: what could be refused was refused before there is a Download.
    """

    resolution: Resolution
    expires: datetime
    _parts: tuple[_Part, ...]

    def __len__(self) -> int:
        return sum(len(part.entries) for part in self._parts)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for part in self._parts:
            sign, prefix = part.links.sign, part.prefix
            for entry in part.entries:
                yield entry.path, sign(prefix + entry.key, entry)

    @cached_property
    def uris(self) -> Mapping[str, str]:
        """All of them at once: path -> URL."""
        return dict(self)


@dataclass(frozen=True)
class _Seen:
    """Tags to answer from. They were asked for at `begun`, a Unix time, and are `stale` if the
    origin should have been looked at since.
    """

    snapshot: Snapshot
    begun: float
    stale: bool


_Asked = TypeVar("_Asked", bound=Hashable)
_Told = TypeVar("_Told")


class _Recent(Generic[_Asked, _Told]):
    """What was answered lately about repositories, with the terms that it followed from. When those
    of a repository change, what followed from others is dropped: they may hold a hundred thousand
    tags.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, _Asked], tuple[object, _Told]] = {}

    def get(self, repository: str, asked: _Asked, terms: object) -> _Told | None:
        known = self._told.get((repository, asked))
        return known[1] if known and known[0] == terms else None

    def keep(self, repository: str, asked: _Asked, terms: object, told: _Told) -> None:
        if len(self._told) >= _MANY:
            self._told.clear()
        for key, (before, _) in [*self._told.items()]:
            if key[0] == repository and before != terms:
                self._told.pop(key, None)
        self._told[repository, asked] = terms, told


class Catalog:
    """Answers for all repositories of one process. Safe to share between threads.

    `lifetime` is how long a link lives, in seconds; `clock` gives Unix time.
    """

    def __init__(
        self,
        repositories: Repositories,
        contents: Contents,
        grants: Grants,
        stores: Stores,
        lifetime: int,
        clock: Callable[[], float],
    ) -> None:
        self._repositories = repositories
        self._contents = contents
        self._grants = grants
        self._stores = stores
        self._lifetime = lifetime
        self._clock = clock
        # Small answers, with what they follow from besides the question: while that is the same,
        # links that were signed again would be the same to the byte.
        self._resolutions: _Recent[tuple[Selector, bool], Resolution] = _Recent()
        # Who asks matters by what they may see: an import can lead to a repository they may not.
        self._downloads: _Recent[tuple[Selector, bool, tuple[str, ...]], Download] = _Recent()

    def resolve(
        self,
        principal: Principal,
        spelling: str,
        selector: Selector,
        max_age: float | None = None,
        wait: float = GIT_WAIT,
    ) -> Resolution:
        """The revision that `selector` means in the repository so spelled.

        An answer for a stage or the latest version lags behind the origin by no more than the
        repository's `refresh`, while the origin can be reached. What the known tags do not name is
        looked for at the origin once more, so that a tag pushed a second ago is found. `max_age`,
        in seconds, asks for less than `refresh`, down to a look at the origin right now. Git is
        waited for `wait` seconds.
        Raises InvalidRequest, NotFound, Unavailable.
        """
        mirrored = self._opened(principal, spelling)
        deadline = time.monotonic() + wait
        if selector.revision:
            return self._at(mirrored, selector, selector.revision, deadline)
        seen = self._seen(mirrored, selector, max_age, deadline)
        # One and the same for as long as the origin was not looked at again.
        name, asked = mirrored.repository.name, (selector, seen.stale)
        resolution = self._resolutions.get(name, asked, seen.snapshot)
        if resolution is None:
            (resolution,) = self._resolved(mirrored, (selector,), seen, deadline)
            self._resolutions.keep(name, asked, seen.snapshot, resolution)
        return resolution

    def resolve_together(
        self,
        principal: Principal,
        questions: Sequence[tuple[str, Selector]],
        max_age: float | None = None,
    ) -> list[Resolution]:
        """What all of them mean, each a spelling and a selector, in one state of every repository:
        whoever moves two stages with one push is never seen with one of them moved.
        """
        deadline = time.monotonic() + GIT_WAIT
        found: dict[int, Resolution] = {}
        together: dict[str, tuple[Mirrored, dict[int, Selector]]] = {}
        for number, (spelling, selector) in enumerate(questions):
            mirrored = self._opened(principal, spelling)
            if selector.revision:
                found[number] = self._at(mirrored, selector, selector.revision, deadline)
            else:
                name = mirrored.repository.name
                together.setdefault(name, (mirrored, {}))[1][number] = selector
        for mirrored, wanted in together.values():
            selectors = tuple(wanted.values())
            # The one that must not lag behind decides for all.
            hardest = next((it for it in selectors if not it.version), selectors[0])
            seen = self._seen(mirrored, hardest, max_age, deadline)
            resolved = self._resolved(mirrored, selectors, seen, deadline)
            found.update(zip(wanted, resolved, strict=True))
        return [found[number] for number in range(len(questions))]

    def _opened(self, principal: Principal, spelling: str) -> Mirrored:
        if not spelling:
            raise InvalidRequest("repo", "name the repository, for example repo=owner/name")
        return self._repositories.open(principal, spelling)

    def _seen(
        self, mirrored: Mirrored, selector: Selector, max_age: float | None, deadline: float
    ) -> _Seen:
        begun = self._clock()
        snapshot = mirrored.snapshot(selector, max_age, _left(deadline))
        oldest = begun - mirrored.allowed(max_age)
        # What was seen in the future was seen by a clock that was set back: nobody knows when.
        return _Seen(snapshot, begun, not oldest <= snapshot.checked <= self._clock())

    def _resolved(
        self, mirrored: Mirrored, selectors: tuple[Selector, ...], seen: _Seen, deadline: float
    ) -> list[Resolution]:
        """What the selectors mean in one state of the repository."""
        snapshot, stale = seen.snapshot, seen.stale
        try:
            found = [snapshot.index.resolve(selector) for selector in selectors]
        except NotFound:
            if snapshot.checked > seen.begun:
                raise  # that was looked at for this very request
            newer = mirrored.repository.snapshot(RECHECK, _left(deadline))
            if newer.index is snapshot.index:
                raise
            # It may be no newer than it should be, since nothing newer could be had.
            snapshot, stale = newer, stale and newer.checked == snapshot.checked
            found = [snapshot.index.resolve(selector) for selector in selectors]
        return [
            Resolution(
                repository=mirrored.repository,
                selector=selector,
                revision=meaning.revision,
                version=meaning.version,
                tag=meaning.tag,
                deprecated=meaning.deprecated,
                checked=snapshot.checked,
                stale=stale,
            )
            for selector, meaning in zip(selectors, found, strict=True)
        ]

    def _at(
        self, mirrored: Mirrored, selector: Selector, revision: Revision, deadline: float
    ) -> Resolution:
        repository = mirrored.at(revision, _left(deadline) / 2)
        if not repository.contains(revision):
            raise RevisionNotFound(revision)
        return Resolution(
            repository=repository,
            selector=selector,
            revision=revision,
            version=None,
            tag=None,
            deprecated=False,
            checked=repository.snapshot(math.inf, 0.0).checked,
            stale=False,  # what cannot change is as true as ever
        )

    def manifest(self, principal: Principal, resolution: Resolution) -> Manifest:
        """Every file behind the artifact. Raises NotFound, Unsignable, Unavailable."""
        return self._contents.manifest(
            principal, resolution.repository, resolution.revision, resolution.selector.artifact
        )

    def download_uris(
        self,
        principal: Principal,
        spelling: str,
        selector: Selector,
        max_age: float | None = None,
    ) -> Download:
        """Links to every file of the artifact. Raises what the three that it joins raise."""
        if selector.revision:
            return self._download(principal, self.resolve(principal, spelling, selector))
        mirrored = self._opened(principal, spelling)
        deadline = time.monotonic() + GIT_WAIT
        seen = self._seen(mirrored, selector, max_age, deadline)
        name, terms = mirrored.repository.name, (seen.snapshot, int(seen.begun))
        asked = selector, seen.stale, principal.repositories
        download = self._downloads.get(name, asked, terms)
        if download is None:
            (resolution,) = self._resolved(mirrored, (selector,), seen, deadline)
            download = self._download(principal, resolution)
            if len(download) <= _FEW:
                self._downloads.keep(name, asked, terms, download)
        return download

    def again(self, principal: Principal, spelling: str, selector: Selector) -> Download | None:
        """What `download_uris` answered to the same question within this second, if that still is
        the answer. Waits for nothing. Raises InvalidRequest, RepositoryNotFound and Unavailable.
        """
        mirrored = self._opened(principal, spelling)
        name = mirrored.repository.name
        seen = self._seen(mirrored, selector, None, time.monotonic())
        asked = selector, seen.stale, principal.repositories
        return self._downloads.get(name, asked, (seen.snapshot, int(seen.begun)))

    def _download(self, principal: Principal, resolution: Resolution) -> Download:
        links = self.links(self.manifest(principal, resolution))
        return Download(resolution, links.expires, links.parts)

    def links(self, manifest: Manifest) -> Signed:
        """Links to every file of a manifest of at least one. Raises Unsignable, Unavailable.

        All links of one location are signed with one set of credentials.
        """
        now = datetime.fromtimestamp(self._clock(), timezone.utc)
        opened: dict[int, Links] = {}
        parts = []
        for location, prefix, entries in self.located(manifest):
            links = opened.get(id(location))
            if links is None:
                links = opened[id(location)] = self._links(location, now)
            parts.append(_Part(links, prefix, entries))
        return Signed(min(links.expires for links in opened.values()), tuple(parts))

    def _links(self, location: Location, now: datetime) -> Links:
        """Links that the store will take. Raises CredentialsUnavailable, ClockSkewed."""
        store = location.signer.store
        if store:
            self._stores.require(store.url, str(location.url))
        return location.signer.links(now, self._lifetime)

    def located(self, manifest: Manifest) -> Iterator[tuple[Location, str, Collection[Entry]]]:
        """Entries with the location that may be signed for, and what precedes their keys there."""
        for group in manifest.groups:
            prefix = f"{group.storage.path}/" if group.storage.path else ""
            if self._grants.divides(group.storage):
                located = (
                    (self._grants.locate(group.repository, group.storage.below(entry.key)), entry)
                    for entry in group.entries
                )
                for _, run in groupby(located, key=lambda pair: id(pair[0])):
                    pairs = list(run)
                    yield pairs[0][0], prefix, [entry for _, entry in pairs]
            else:
                yield self._grants.locate(group.repository, group.storage), prefix, group.entries


def _left(deadline: float) -> float:
    """Seconds until a moment of the monotonic clock."""
    return max(0.0, deadline - time.monotonic())
