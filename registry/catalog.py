"""The core: from a repository, a name and a selector to links for the objects behind an artifact.

A request takes these steps, all of them in memory once the mirror is fresh and the revision known:

    spelling -> repository -> snapshot of its tags -> revision -> manifest -> links
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

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
    NotFound,
    RepositoryNotFound,
    SettingsError,
)
from registry.repository import Repository, Snapshot
from registry.storage import Grants, Links, Location

GIT_WAIT = 4.0
"""Seconds a request waits for Git. DVC's client gives up after 5 s without a byte."""
RECHECK = 2.0
"""Seconds between two looks at the origin for what the known tags do not name."""


@dataclass(frozen=True)
class Mirrored:
    """A mirrored repository, the seconds by which an answer may lag behind its origin, and every
    URL that means it.
    """

    repository: Repository
    refresh: float
    spellings: tuple[str, ...]

    def snapshot(self, selector: Selector) -> Snapshot:
        """The tags to answer `selector` from, fresh enough for it.

        A registered version does not move: it is answered at once, while the tags are brought up
        to date behind the request's back.
        """
        if selector.version:
            try:
                return self.repository.snapshot(self.refresh, 0.0)
            except MirrorNotReady:
                pass
        return self.repository.snapshot(self.refresh, GIT_WAIT)


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

    def at(self, principal: Principal, spelling: str, revision: Revision) -> Repository:
        """The same, as the source of a `dvc import`: with the revision there, if it exists."""
        mirrored = self.open(principal, spelling)
        mirrored.repository.snapshot(mirrored.refresh, GIT_WAIT)
        if not mirrored.repository.contains(revision):
            mirrored.repository.snapshot(RECHECK, GIT_WAIT)
        return mirrored.repository


@dataclass(frozen=True)
class Resolution:
    """What a selector means right now: an artifact at a revision of a repository.

    `checked` is the Unix time at which the origin was last seen to have these tags.
    """

    repository: Repository
    selector: Selector
    revision: Revision
    version: str | None
    tag: str
    deprecated: bool
    checked: float


@dataclass(frozen=True)
class Download:
    """Links to every file of an artifact: path in the repository -> URL, until `expires`."""

    resolution: Resolution
    uris: Mapping[str, str]
    expires: datetime


class Catalog:
    """Answers for all repositories of one process. Safe to share between threads.

    `lifetime` is how long a link lives, in seconds; `clock` gives Unix time.
    """

    def __init__(
        self,
        repositories: Repositories,
        contents: Contents,
        grants: Grants,
        lifetime: int,
        clock: Callable[[], float],
    ) -> None:
        self._repositories = repositories
        self._contents = contents
        self._grants = grants
        self._lifetime = lifetime
        self._clock = clock

    def resolve(self, principal: Principal, spelling: str, selector: Selector) -> Resolution:
        """The revision that `selector` means in the repository so spelled.

        An answer for a stage or the latest version lags behind the origin by no more than the
        repository's `refresh`, while the origin can be reached. What the known tags do not name is
        looked for at the origin once more, so that a tag pushed a second ago is found.
        Raises InvalidRequest, NotFound, Unavailable.
        """
        if not spelling:
            raise InvalidRequest("repo", "name the repository, for example repo=owner/name")
        mirrored = self._repositories.open(principal, spelling)
        snapshot = mirrored.snapshot(selector)
        try:
            found = snapshot.index.resolve(selector)
        except NotFound:
            newer = mirrored.repository.snapshot(RECHECK, GIT_WAIT)
            if newer.index is snapshot.index:
                raise
            snapshot, found = newer, newer.index.resolve(selector)
        return Resolution(
            repository=mirrored.repository,
            selector=selector,
            revision=found.revision,
            version=found.version,
            tag=found.tag,
            deprecated=found.deprecated,
            checked=snapshot.checked,
        )

    def manifest(self, principal: Principal, resolution: Resolution) -> Manifest:
        """Every file behind the artifact. Raises NotFound, Unsignable, Unavailable."""
        return self._contents.manifest(
            principal, resolution.repository, resolution.revision, resolution.selector.artifact
        )

    def download_uris(self, principal: Principal, spelling: str, selector: Selector) -> Download:
        """Links to every file of the artifact. Raises what `resolve` and `manifest` raise.

        All links of one location are signed with one set of credentials.
        """
        resolution = self.resolve(principal, spelling, selector)
        manifest = self.manifest(principal, resolution)
        now = datetime.fromtimestamp(self._clock(), timezone.utc)
        opened: dict[int, Links] = {}
        uris: dict[str, str] = {}
        for location, path, entry in self._located(manifest):
            links = opened.get(id(location))
            if links is None:
                links = opened[id(location)] = location.signer.links(now, self._lifetime)
            uris[entry.path] = links.sign(path, entry)
        return Download(resolution, uris, min(links.expires for links in opened.values()))

    def _located(self, manifest: Manifest) -> Iterator[tuple[Location, str, Entry]]:
        """Each entry with the location that may be signed for, and its path there."""
        for group in manifest.groups:
            if self._grants.divides(group.storage):
                for entry in group.entries:
                    url = group.storage.below(entry.key)
                    yield self._grants.locate(group.repository, url), url.path, entry
            else:
                location = self._grants.locate(group.repository, group.storage)
                prefix = f"{group.storage.path}/" if group.storage.path else ""
                for entry in group.entries:
                    yield location, prefix + entry.key, entry
