"""Without a service: one repository and its stores, for whoever runs this, with their own access.

A path is read where it is: a clone, or a bare repository. A URL is mirrored in the user's cache,
by the same code as in a service, but with the Git configuration and credentials of the user.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

from registry import gto
from registry.contents import Contents
from registry.domain import Principal, RelPath, Revision, Selector, canonical_repository
from registry.errors import InvalidRequest, PathNotFound, RepositoryNotFound
from registry.repository import Repository
from registry.repository.lanes import Lanes
from registry.storage import Grants, Reader
from registry.user import User

PATIENCE = 600.0
"""Seconds that the first clone of a repository may take."""

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
        if not where or start.exists():
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
        self._reader = Reader()
        self.repository = self._open(self.place)
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
        source = self._sources[place]
        source.snapshot(math.inf, PATIENCE)  # what is there will do: a revision never moves
        if not source.contains(revision):
            source.snapshot(0, PATIENCE)
        return source

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
