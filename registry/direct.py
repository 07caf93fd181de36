"""Without a service: one repository and its stores, for whoever runs this, with their own access.

A path is read where it is: a clone, or a bare repository. A URL is mirrored in the user's cache,
by the same code as in a service, but with the Git configuration and credentials of the user.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from registry import gto
from registry.catalog import Mirrored, Repositories
from registry.contents import Contents
from registry.domain import (
    Entry,
    Principal,
    RelPath,
    Revision,
    Selector,
    canonical_repository,
)
from registry.dvc.config import LARGEST_FILE
from registry.errors import InvalidRequest, PathNotFound, RepositoryNotFound, RevisionNotFound
from registry.given import Given
from registry.keyring import Keyring
from registry.receipt import ReceiptFile, Terms
from registry.repository import Repository
from registry.repository.commands import GitFailed
from registry.repository.inplace import InPlace
from registry.repository.lanes import Lanes
from registry.storage import Grants, Location, Origin, Reader
from registry.user import User

if TYPE_CHECKING:  # a download needs nothing of it
    from registry.overview import Overview, View

PATIENCE = 600.0
"""Seconds that the first clone of a repository may take."""

_CONFIG, _OWN_CONFIG = ".dvc/config", ".dvc/config.local"
_MYSELF = Principal("user", "user", frozenset(), ("*",))


@dataclass(frozen=True)
class Place:
    """Where a repository is: the Git directory on this machine, or else the URL of its origin.

    `name` is how receipts and messages speak of it, and never holds credentials.
    """

    name: str
    git_dir: Path | None = None
    url: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def find(cls, where: str | None, directory: Path) -> "Place":
        """The repository at a path or URL, or else the one that `directory` lies in.

        Raises RepositoryNotFound, and InvalidRequest for what is neither.
        """
        if where and where.startswith("file://"):
            where = unquote(urlsplit(where).path)
        start = (directory / where if where else directory).absolute()
        if not where or _is_there(start):
            found = _git_dir_above(start)
            if found is None:
                raise RepositoryNotFound(str(start))
            above = found.parent if found.name == ".git" else found
            return cls(above.name.removesuffix(".git") or "repository", found)
        if where.startswith(("/", ".", "~")) or canonical_repository(where) == where:
            raise RepositoryNotFound(where)
        return cls._remote(where)

    @classmethod
    def _remote(cls, url: str) -> "Place":
        username = password = None
        scheme, found, rest = url.partition("://")
        authority, slash, path = rest.partition("/")
        credentials, at, host = authority.rpartition("@")
        if found and at and scheme.lower() in ("http", "https"):
            username, _, given = credentials.partition(":")
            username, password = unquote(username), unquote(given) if given else None
            url = f"{scheme}://{host}{slash}{path}"
        name = canonical_repository(url)
        if name is None:
            raise InvalidRequest("repo", "a path, or a URL: https, ssh or user@host:path")
        return cls(name.partition("/")[2], None, url, username, password)


class Direct:
    """One repository and its stores. Use it in a `with` block.

    `where` is a path or a URL, by default the repository that the user works in. `clock` gives Unix
    time. Raises RepositoryNotFound and InvalidRequest.
    """

    def __init__(
        self, user: User, where: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._user = user
        self._clock = clock
        self.place = Place.find(where, user.directory)
        self._lanes = Lanes()
        self._reader = Reader(total=PATIENCE, follow=True)
        self.repository = self._open(self.place)
        self._grants: dict[Revision, Grants] = {}
        self._sources = {self.place: self.repository}

    def __enter__(self) -> "Direct":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for repository in self._sources.values():
            repository.close()
        self._lanes.close()
        with self._reader:
            pass

    def resolve(self, selector: Selector) -> gto.Resolution:
        """What the selector means right now. A URL is asked, and waited for.

        Raises NotFound, and OriginUnavailable when the repository cannot be read.
        """
        return self.repository.snapshot(0, PATIENCE).index.resolve(selector)

    def path(self, selector: Selector, revision: Revision) -> RelPath:
        """Where the artifact lies in the repository at the revision, as its dvc.yaml says.

        Raises ArtifactNotFound, PathNotFound for one in external storage, InvalidMetadata and
        UnsafePath.
        """
        contents = self._contents(Grants(()))
        artifact = contents.artifact(_MYSELF, self.repository, revision, selector.artifact)
        if artifact.path is None:
            raise PathNotFound(str(artifact.url), revision, "it lies outside of the repository")
        return artifact.path

    def receipt(self, selector: Selector) -> Given:
        """What the selector means right now, to the last file. Raises NotFound, Unsignable,
        Unavailable.
        """
        revision, version, tag = selector.revision, None, None
        if revision is None:
            found = self.resolve(selector)
            revision, version, tag = found.revision, found.version, found.tag
        return self.remake(Terms(self.place.name, selector, revision, version, tag))

    def overview(self) -> "tuple[Overview, View]":
        """What there is, right now. Raises Unavailable."""
        from registry.overview import Overview, View  # noqa: PLC0415

        repositories = Repositories([Mirrored(self.repository, 0, ())])
        overview = Overview(repositories, self._contents(Grants(())), self._clock)
        return overview, View(self.repository, self.repository.snapshot(0, PATIENCE), stale=False)

    def remake(self, terms: Terms) -> Given:
        """The receipt of these terms. The origin is looked at only for a revision that is not here.

        Raises RevisionNotFound, NotFound, Unsignable, Unavailable.
        """
        if not self._with(self.repository, terms.revision).contains(terms.revision):
            raise RevisionNotFound(terms.revision)
        contents = self._contents(self.grants(terms.revision))
        return Given.make(contents, _MYSELF, self.repository, terms)

    def origins(self, given: Given) -> "StoreOrigins":
        """Where the files of a receipt are, for whoever reads them with their own keys.

        Raises LocationNotGranted and RemoteUnusable.
        """
        return StoreOrigins(given, self.grants(given.receipt.revision), self._clock)

    def links(self, given: Given, lifetime: int) -> dict[str, str]:
        """Path -> link that lives `lifetime` seconds, signed with the user's own keys.

        Raises RemoteUnusable, CredentialsUnavailable.
        """
        now = datetime.fromtimestamp(self._clock(), timezone.utc)
        grants = self.grants(given.receipt.revision)
        return {
            entry.path: location.signer.links(now, lifetime).sign(path, entry)
            for location, path, entry in _located(given, grants)
        }

    def grants(self, revision: Revision) -> Grants:
        """The stores that the user reaches, for what lies where the revision says."""
        if revision not in self._grants:
            files = self.repository.files(revision, lambda path: path.endswith(_CONFIG))
            committed = [self.repository.blob(oid, LARGEST_FILE) for oid in files.values()]
            own = [*self._user.dvc_configs, *self._config_of_clone()]
            local = self.place.git_dir is not None
            self._grants[revision] = Keyring.of(self._user, committed, own, local=local).grants()
        return self._grants[revision]

    def _config_of_clone(self) -> Iterator[Path]:
        """DVC's file for the clone alone, unless a commit brought it: then it is not the user's."""
        git_dir = self.place.git_dir
        if git_dir is None or git_dir.name != ".git":
            return
        try:
            if InPlace(git_dir, self._clock).tracks(_OWN_CONFIG):
                return
        except GitFailed:
            return
        yield git_dir.parent / _OWN_CONFIG

    def _contents(self, grants: Grants) -> Contents:
        cache = self._user.cache / "manifests"
        return Contents(self._source, grants, self._reader, cache, self._clock)

    def _source(self, _: Principal, url: str, revision: Revision) -> Repository:
        """The source of a `dvc import`, with the revision there. Raises NotFound, Unavailable."""
        place = Place.find(url, self._user.directory)
        if place.git_dir and not self.place.git_dir:
            raise RepositoryNotFound(url)  # who wrote that is elsewhere, and does not know our disk
        if place not in self._sources:
            self._sources[place] = self._open(place)
        return self._with(self._sources[place], revision)

    def _with(self, repository: Repository, revision: Revision) -> Repository:
        """A repository with the revision there, if it exists. What is there will do, without a look
        at the origin: a revision never moves.
        """
        repository.snapshot(math.inf, PATIENCE)
        if not repository.contains(revision):
            repository.snapshot(0, PATIENCE)
        return repository

    def _open(self, place: Place) -> Repository:
        mirror = None
        if place.git_dir is None:
            digest = sha256(place.url.encode()).hexdigest()
            mirror = self._user.cache / "mirrors" / digest[:32]
        try:
            return Repository(
                place.name,
                str(place.git_dir or place.url),
                mirror,
                username=place.username,
                password=place.password,
                personal=mirror is not None,
                lanes=self._lanes,
                frozen=False,
                max_stale=0,
                clock=self._clock,
            )
        except ValueError as error:
            raise InvalidRequest("repo", str(error)) from None


class StoreOrigins:
    """Where the files of a receipt are in the stores themselves. For `registry.transfer`.

    Each is signed when it is asked for, so that none is over before it is used.
    """

    def __init__(self, given: Given, grants: Grants, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._located = {
            entry.path: (location, path, entry) for location, path, entry in _located(given, grants)
        }

    def origin(self, file: ReceiptFile, stale: Origin | None) -> Origin:  # noqa: ARG002 Source's
        """Where the file can be read now. Raises CredentialsUnavailable."""
        location, path, entry = self._located[file.path]
        now = datetime.fromtimestamp(self._clock(), timezone.utc)
        return location.signer.origin(path, entry, now)


def _located(given: Given, grants: Grants) -> Iterator[tuple[Location, str, Entry]]:
    """Every file with the location that holds it, and the path of its object there."""
    for group in given.manifest.groups:
        location = grants.locate(group.repository, group.storage)
        prefix = f"{group.storage.path}/" if group.storage.path else ""
        for entry in group.entries:
            yield location, prefix + entry.key, entry


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a path, or in a directory that is not for this user
        return False


def _git_dir_above(path: Path) -> Path | None:
    """The Git directory of the clone or the bare repository that holds the path."""
    for directory in (path, *path.parents):
        inner = directory / ".git"
        if inner.is_file():  # a linked work tree, or a submodule
            text = inner.read_text(encoding="utf-8", errors="replace")
            named = Path(text.removeprefix("gitdir:").strip())
            return (directory / named).resolve() if text.startswith("gitdir:") else None
        for candidate in (inner, directory):
            if (candidate / "HEAD").is_file() and (candidate / "objects").is_dir():
                return candidate.resolve()
            if (candidate / "HEAD").is_file() and (candidate / "commondir").is_file():
                return candidate.resolve()
    return None
