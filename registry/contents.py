"""From an artifact at a revision to its manifest: which objects, and below which storage URLs.

Everything read here was written by whoever may push to the repository. It chooses among the
locations that the operator granted, and nothing else: no credentials, no endpoints, no paths that
leave the target directory.
"""

import logging
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from hashlib import md5
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from cachetools import LRUCache

from registry.domain import (
    ArtifactName,
    Entry,
    Group,
    Manifest,
    Principal,
    RelPath,
    Revision,
    StorageUrl,
    canonical_repository,
)
from registry.dvc import config as dvc_config
from registry.dvc import manifest as dvc_manifest
from registry.dvc import yaml as dvc_yaml
from registry.dvc.config import Config, Remote
from registry.dvc.manifest import Listing
from registry.dvc.project import (
    LEGACY_ARTIFACTS,
    Artifact,
    Output,
    Project,
    is_metadata,
)
from registry.errors import (
    InvalidMetadata,
    NotInStorage,
    ObjectCorrupt,
    ObjectMissing,
    PathNotFound,
    RepositoryNotFound,
)
from registry.manifests import Manifests
from registry.repository import Repository
from registry.storage import Grants, Reader

logger = logging.getLogger(__name__)

LARGEST_FILE = 1 << 20
"""Bytes of the largest dvc.yaml, dvc.lock or .dvc file that is read."""
MOST_METADATA = 8 << 20
"""Bytes of such files that are read in search of one artifact: the usual search reads two."""
LARGEST_CACHE = 128 << 20
"""Bytes of manifests that a process remembers: more than a million files take."""
MOST_TRACKED = 2_000
"""Files of a directory that Git itself tracks."""
MOST_HASHED = 64 << 20
"""Bytes of such files that are hashed for one artifact; of more the MD5s are not known."""
_LARGEST_POINTER = 1024
_LFS = b"version https://git-lfs.github.com/spec/"
LONGEST_IMPORT = 5
"""How many repositories a chain of `dvc import` may lead through."""


_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class _Place:
    """A revision of a repository, reached by `imports` steps of `dvc import`."""

    principal: Principal
    repository: Repository
    revision: Revision
    imports: int = 0


class Contents:
    """Reads manifests, and remembers what cannot change. Safe to share between threads.

    `open_repository` finds the source of a `dvc import` for a principal, at a revision.
    `cache` is a directory for the manifests of directories; it can be deleted at any time.
    """

    def __init__(
        self,
        open_repository: Callable[[Principal, str, Revision], Repository],
        grants: Grants,
        reader: Reader,
        cache: Path,
        clock: Callable[[], float],
    ) -> None:
        self._open_repository = open_repository
        self._grants = grants
        self._reader = reader
        self._listings = Manifests(cache)
        self._clock = clock
        self._lock = threading.Lock()
        self._documents: LRUCache[str, tuple[int, object]] = LRUCache(
            16 << 20, getsizeof=lambda item: item[0]
        )
        self._files: LRUCache[tuple[str, str], Mapping[RelPath, str]] = LRUCache(
            200_000, getsizeof=_size
        )
        self._manifests: LRUCache[tuple[str, str, str], Manifest] = LRUCache(
            LARGEST_CACHE, getsizeof=weight_of
        )

    def manifest(
        self, principal: Principal, repository: Repository, revision: Revision, name: ArtifactName
    ) -> Manifest:
        """Every file behind the artifact at the revision. Raises NotFound, Unsignable, Unavailable.

        A revision never changes, and so neither does its manifest; one that leads to another
        repository (`dvc import`) counts only for principals who may see that one too.
        """
        key = (repository.name, revision, str(name))
        known = self._get(self._manifests, key)
        if known and all(principal.may_see(name) for name in known.repositories):
            return known
        place = _Place(principal, repository, revision)
        project = self._project(place)
        artifact = project.artifact(name)
        if artifact.url:
            groups: tuple[Group, ...] = (_single(repository.name, artifact.url, None),)
        else:
            assert artifact.path is not None
            groups = tuple(self._groups(place, project, artifact.path))
        return self._put(self._manifests, key, Manifest(groups))

    def artifact(
        self, principal: Principal, repository: Repository, revision: Revision, name: ArtifactName
    ) -> Artifact:
        """What the artifact's dvc.yaml says of it at the revision. Raises NotFound, Unsignable,
        Unavailable.
        """
        return self._project(_Place(principal, repository, revision)).artifact(name)

    def annotation(
        self, repository: Repository, revision: Revision, name: ArtifactName
    ) -> Artifact:
        """The same without its place: quicker, for lists of many. Raises ArtifactNotFound,
        InvalidMetadata, Unavailable.
        """

        def load(path: RelPath) -> object | None:
            blob = repository.peek(revision, path)
            return self._document(repository, blob, path)[1] if blob else None

        return Project((LEGACY_ARTIFACTS,), load, lambda _: Config()).annotation(name)

    def sizes(self) -> list[tuple[str, float]]:
        """What is in memory: bytes of documents and manifests, and how many files."""
        return [
            ("document_bytes", self._documents.currsize),
            ("files", self._files.currsize),
            ("manifest_bytes", self._manifests.currsize),
        ]

    def _project(self, place: _Place, default_remote: str | None = None) -> Project:
        repository, revision = place.repository, place.revision
        key = (repository.name, revision)
        files = self._get(self._files, key)
        if files is None:
            files = self._put(self._files, key, repository.files(revision, is_metadata))

        seen: set[RelPath] = set()
        read = 0

        def load(path: RelPath) -> object | None:
            nonlocal read
            blob = files.get(path) or repository.find(revision, path)
            if blob is None:
                return None
            if read > MOST_METADATA:
                raise InvalidMetadata(path, f"it comes after {MOST_METADATA >> 20} MiB of others")
            size, document = self._document(repository, blob, path)
            read += 0 if path in seen else size
            seen.add(path)
            return document

        def config(path: RelPath) -> Config:
            blob = files.get(path)
            data = _bytes(repository, blob, path) if blob else b""
            parsed = dvc_config.parse(data, path)
            return replace(parsed, default=default_remote) if default_remote else parsed

        return Project(files, load, config)

    def _document(self, repository: Repository, blob: str, file: RelPath) -> tuple[int, object]:
        """The size and the YAML of a blob, parsed once: many revisions share it. Never to be
        changed.
        """
        known = self._get(self._documents, blob)
        if known is None:
            data = _bytes(repository, blob, file)
            known = self._put(self._documents, blob, (len(data), dvc_yaml.load(data, file)))
        return known

    def _groups(self, place: _Place, project: Project, path: RelPath) -> Iterator[Group]:
        outputs = project.outputs(path)
        if not outputs:
            kind = place.repository.kind(place.revision, path)
            if kind is None:
                raise PathNotFound(path, place.revision, "neither DVC nor Git tracks it there")
            if place.repository.shares_files:
                yield self._from_git(place, path)
                return
            raise NotInStorage(path, f"it is a {kind} tracked by Git, not by DVC: `dvc add` it")
        for output in outputs:
            wanted = path if path.within(output.path) else output.path
            if output.repo_import:
                yield from self._imported(place, output, wanted)
            elif output.url_import:
                yield self._from_url(place, project, output, wanted)
            else:
                remote = project.remote_of(output)
                entries = self._entries(place, output, remote, wanted)
                size = output.size if wanted == output.path else None
                yield Group(place.repository.name, remote.url, entries, size=size)

    def _entries(
        self, place: _Place, output: Output, remote: Remote, wanted: RelPath
    ) -> Collection[Entry]:
        if not output.cached:
            raise NotInStorage(output.path, f"{output.file} says `cache: false`")
        listed: Collection[Entry]
        found: Collection[Entry]
        if output.files is not None:
            listed = tuple(self._listed(output, remote))
            found = tuple(entry for entry in listed if entry.path.within(wanted))
        elif output.digest and output.digest.is_directory:
            listed = directory = self._directory(place, output, remote)
            found = directory.below(wanted)
        elif wanted != output.path:
            raise PathNotFound(wanted, place.revision, f"{output.path} is a file")
        else:
            return (self._file(output, remote),)
        if not listed:
            raise NotInStorage(output.path, "the tracked directory is empty")
        if not found:
            problem = f"the tracked directory {output.path} does not hold it"
            raise PathNotFound(wanted, place.revision, problem)
        return found

    def _file(self, output: Output, remote: Remote) -> Entry:
        if remote.versioned:
            if not output.version_id:
                raise NotInStorage(output.path, "it has no version id: run `dvc push`")
            key: str = output.path.relative_to(output.root)
        elif output.digest:
            key = dvc_manifest.object_key(output.digest.md5, output.legacy)
        else:
            raise NotInStorage(
                output.path, f"{output.file} records no hash of it: run `dvc repro` or `dvc commit`"
            )
        digest = output.digest.md5 if output.digest else None
        version_id = output.version_id if remote.versioned else None
        return Entry(output.path, key, digest, output.size, version_id)

    def _listed(self, output: Output, remote: Remote) -> Iterator[Entry]:
        """A directory whose files are listed in the .dvc file or dvc.lock itself."""
        base = output.path.relative_to(output.root)
        for file in output.files or ():
            path = output.path / file.path
            if remote.versioned:
                if not file.version_id:
                    raise NotInStorage(path, "it has no version id: run `dvc push`")
                yield Entry(path, base / file.path, file.md5, file.size, file.version_id)
            elif file.md5:
                key = dvc_manifest.object_key(file.md5, output.legacy)
                yield Entry(path, key, file.md5, file.size)
            else:
                raise NotInStorage(path, f"{output.file} records no hash of it")

    def _directory(self, place: _Place, output: Output, remote: Remote) -> Listing:
        """A directory by its `.dir` object: fetched once, checked against its MD5, kept for ever.

        Kept for each store apart, so that knowing a digest is no way to read another's directory.
        """
        assert output.digest
        if remote.versioned:
            raise NotInStorage(output.path, "it has no version ids: run `dvc push`")
        key = dvc_manifest.object_key(output.digest.md5, output.legacy)
        url = remote.url.below(key)
        location = self._grants.locate(place.repository.name, url)

        def read(limit: int) -> bytes | bytearray | None:
            now = datetime.fromtimestamp(self._clock(), timezone.utc)
            origin = location.signer.origin(url.path, Entry(output.path, key), now)
            return self._reader.read(origin, limit)

        found = self._listings.listing(url, read, lambda data: _sent(data, output, url))
        if found is None:
            raise ObjectMissing(output.path, output.digest.md5, str(url))
        return Listing.of(found.lines, found.count, output.path, output.legacy)

    def _from_git(self, place: _Place, path: RelPath) -> Group:
        """What Git itself tracks. DVC knows no MD5 of it, so that it is computed here, unless there
        is too much of it to be read for one answer.
        """
        repository = place.repository
        blobs = repository.tracked(place.revision, path)
        if not blobs:
            raise NotInStorage(path, "it is a link or a submodule, whose bytes Git does not have")
        if len(blobs) > MOST_TRACKED:
            problem = f"Git tracks more than {MOST_TRACKED} files there: `dvc add` it"
            raise NotInStorage(path, problem)
        sizes = {oid: repository.size(oid) or 0 for oid in set(blobs.values())}
        largest = MOST_HASHED if sum(sizes.values()) <= MOST_HASHED else _LARGEST_POINTER
        known = {
            oid: _blob_md5(repository, oid, size, path)
            for oid, size in sizes.items()
            if size <= largest
        }
        return Group(
            repository.name,
            git_storage(repository.name),
            tuple(
                Entry(file, oid, known.get(oid), sizes[oid]) for file, oid in sorted(blobs.items())
            ),
        )

    def _imported(self, place: _Place, output: Output, wanted: RelPath) -> Iterator[Group]:
        """`dvc import` copies nothing: the objects lie in the remote of the source repository."""
        source = output.repo_import
        assert source
        if place.imports >= LONGEST_IMPORT:
            raise InvalidMetadata(output.file, "a chain of imports is too long, or goes in circles")
        shown = canonical_repository(source.url) or "a local path"
        try:
            repository = self._open_repository(place.principal, source.url, source.revision)
        except RepositoryNotFound:
            raise NotInStorage(
                output.path,
                f"it is imported from {shown}, which this registry does not mirror or this token "
                "does not cover",
            ) from None
        there = _Place(place.principal, repository, source.revision, place.imports + 1)
        path = source.path / wanted.relative_to(output.path)
        for group in self._groups(there, self._project(there, source.remote), path):
            entries = _moved(group.entries, source.path, output.path)
            yield replace(group, entries=entries, via=(repository.name, *group.via))

    def _from_url(self, place: _Place, project: Project, output: Output, wanted: RelPath) -> Group:
        """`dvc import-url` without a copy in the remote: the objects lie where they came from."""
        source = output.url_import
        assert source
        url = project.config_of(output).resolve(source.url)
        repository = place.repository.name
        if source.files is None:
            if wanted != output.path:
                raise PathNotFound(wanted, place.revision, f"{output.path} is a file")
            return _single(repository, url, output.path, source.version_id)
        entries = tuple(
            Entry(output.path / file.path, file.path, file.md5, file.size, file.version_id)
            for file in source.files
            if (output.path / file.path).within(wanted)
        )
        if not entries:
            raise PathNotFound(wanted, place.revision, f"{output.file} does not list it")
        return Group(repository, url, entries)

    def _get(self, cache: "LRUCache[_Key, _Value]", key: _Key) -> _Value | None:
        with self._lock:
            return cache.get(key)

    def _put(self, cache: "LRUCache[_Key, _Value]", key: _Key, value: _Value) -> _Value:
        with self._lock:
            if cache.getsizeof(value) <= cache.maxsize:
                cache[key] = value
        return value


def _bytes(repository: Repository, blob: str, file: RelPath) -> bytes:
    """A metadata file. The repository knows it by the id of its blob, and people by its path."""
    try:
        return repository.blob(blob, LARGEST_FILE)
    except InvalidMetadata as error:
        raise InvalidMetadata(file, error.problem) from None


def git_storage(repository: str) -> StorageUrl:
    """Where the blobs of a repository are, as a location. No configuration can spell it."""
    return StorageUrl("git", repository.replace("/", "~"), "")


def _blob_md5(repository: Repository, oid: str, size: int, path: RelPath) -> str:
    """The MD5 of a blob. Raises NotInStorage for a pointer of Git LFS: the bytes are elsewhere."""
    hashed, first = md5(usedforsecurity=False), b""
    # A process for each of a thousand small files would take longer than anybody waits.
    small = size <= LARGEST_FILE
    for part in (repository.blob(oid, size),) if small else repository.stream(oid, 0, size):
        first = first or part[: len(_LFS)]
        hashed.update(part)
    if first == _LFS:
        raise NotInStorage(path, "Git LFS tracks it, and its bytes are on another server")
    return hashed.hexdigest()


def _moved(entries: Collection[Entry], origin: RelPath, path: RelPath) -> Collection[Entry]:
    """The same entries below `path` that are below `origin`."""
    if isinstance(entries, Listing) and entries.base.within(origin):
        return replace(entries, base=path / entries.base.relative_to(origin))
    return tuple(replace(entry, path=path / entry.path.relative_to(origin)) for entry in entries)


def _single(
    repository: str, url: StorageUrl, path: RelPath | None, version_id: str | None = None
) -> Group:
    """The manifest of one object that is named by its URL; `path` defaults to its last part."""
    directory, _, name = url.path.rpartition("/")
    if url.scheme in ("http", "https"):
        name = unquote(name)  # keys are literal, and the path of such a URL is not
    if not name:  # the link would list what lies there, in a bucket even what others own
        raise NotInStorage(path or str(url), f"{url} names no object")
    storage = replace(url, path=directory)
    return Group(
        repository, storage, (Entry(path or RelPath.parse(name), name, None, None, version_id),)
    )


def _sent(data: bytes | bytearray, output: Output, url: StorageUrl) -> Listing:
    """What the store sent, as a manifest: other bytes than asked for are the store's fault."""
    assert output.digest
    try:
        return dvc_manifest.parse(data, output.digest, str(url), RelPath.ROOT, output.legacy)
    except InvalidMetadata:
        if f"{md5(data, usedforsecurity=False).hexdigest()}.dir" != output.digest.md5:
            raise ObjectCorrupt(str(url), output.digest.md5) from None
        raise


def _size(value: Sized) -> int:
    return 1 + len(value)


def weight_of(manifest: Manifest) -> int:
    """About how many bytes a manifest takes: objects for a file take half a kilobyte, its line
    does not.
    """
    return 500 + sum(
        group.entries.lines.weight
        if isinstance(group.entries, Listing)
        else 500 * len(group.entries)
        for group in manifest.groups
    )
