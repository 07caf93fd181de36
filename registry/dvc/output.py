"""One output, as a .dvc file or dvc.lock records it."""

from collections.abc import Mapping
from dataclasses import dataclass

from registry.domain import Digest, RelPath, Revision, parse_revision, reject_conflicts
from registry.dvc.yaml import mapping, sequence, text
from registry.errors import InvalidMetadata

MOST_FILES = 200_000
"""Files of one cloud-versioned directory; they are listed in the YAML itself."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file of a directory that DVC lists in the .dvc file or dvc.lock itself.

    `path` is relative to the output. A cloud-versioned remote keeps it under that path, and
    `version_id` pins it there. `size` is in bytes.
    """

    path: RelPath
    md5: str | None
    size: int | None
    version_id: str | None


@dataclass(frozen=True, slots=True)
class RepoImport:
    """What `dvc import` records: the bytes are those of `path` in another repository.

    `url` is as it was written, and may be a local path. `remote`: use this one of the other's.
    """

    url: str
    revision: Revision
    path: RelPath
    remote: str | None


@dataclass(frozen=True, slots=True)
class UrlImport:
    """What `dvc import-url` records when the bytes are only where they came from.

    `url` is for Config.resolve; for a directory, `files` lists what lies below it.
    """

    url: str
    version_id: str | None
    files: tuple[OutputFile, ...] | None


@dataclass(frozen=True)
class Output:
    """What DVC tracks at `path`: a file, or a directory with all that is in it.

    `file` declares it, `root` is its DVC root; both are paths in the Git repository. `digest` is
    None when no hash is recorded, and `files` None unless they are listed there and then.
    `legacy`: objects lie as DVC 2 laid them out. `cached` False: DVC never stores it.
    `remote` None means the default remote. `size` is in bytes.
    """

    path: RelPath
    file: RelPath
    root: RelPath
    digest: Digest | None = None
    legacy: bool = False
    size: int | None = None
    remote: str | None = None
    cached: bool = True
    version_id: str | None = None
    files: tuple[OutputFile, ...] | None = None
    repo_import: RepoImport | None = None
    url_import: UrlImport | None = None


def read(
    path: RelPath,
    file: RelPath,
    root: RelPath,
    recorded: Mapping[object, object],
    *,
    flags: Mapping[object, object],
    dependency: Mapping[object, object],
) -> Output:
    """The output at `path`: its hash and the like from `recorded`, `remote` and `cache` from
    `flags`; `dependency` is what it was imported from, or empty.

    Raises InvalidMetadata and UnsafePath.
    """
    _check_hash(recorded, file)
    digest, files = _digest(recorded.get("md5"), file), _files(recorded, file)
    repo_import = url_import = None
    if isinstance(dependency.get("repo"), dict):
        repo_import = _repo_import(dependency, file)
    elif dependency:
        url_import = _url_import(dependency, file, has_copy=bool(digest or files))
    return Output(
        path=path,
        file=file,
        root=root,
        digest=digest,
        # Only DVC 3 writes `hash`, and only outputs of DVC 2 lack it (dvc/output.py).
        legacy=recorded.get("hash") is None,
        size=_size(recorded),
        remote=text(flags.get("remote")),
        cached=flags.get("cache") is not False,
        version_id=_version_id(recorded),
        files=files,
        repo_import=repo_import,
        url_import=url_import,
    )


def _check_hash(recorded: Mapping[object, object], file: RelPath) -> None:
    algorithm = recorded.get("hash")
    if algorithm not in (None, "md5"):
        raise InvalidMetadata(file, f"hash {str(algorithm)[:50]!r} is not supported, only md5 is")


def _digest(written: object, file: RelPath) -> Digest | None:
    if written is None or written == "":
        return None
    try:
        return Digest(written)  # type: ignore[arg-type]  # checks the type as well
    except ValueError as error:
        raise InvalidMetadata(file, str(error)) from None


def _size(recorded: Mapping[object, object]) -> int | None:
    size = recorded.get("size")
    return size if type(size) is int and 0 <= size < 1 << 63 else None


def _version_id(recorded: Mapping[object, object]) -> str | None:
    """The version id under `cloud`, of whatever remote, or beside it: DVC knows both places."""
    clouds = [mapping(cloud) for cloud in mapping(recorded.get("cloud")).values()]
    return text((clouds[0] if clouds else recorded).get("version_id"))


def _files(recorded: Mapping[object, object], file: RelPath) -> tuple[OutputFile, ...] | None:
    listed = recorded.get("files")
    if not isinstance(listed, list):
        return None
    if len(listed) > MOST_FILES:
        raise InvalidMetadata(file, f"a directory of more than {MOST_FILES} files")
    files = []
    for entry in map(mapping, listed):
        digest = _digest(entry.get("md5"), file)
        if digest and digest.is_directory:
            raise InvalidMetadata(file, "a directory is listed as a file")
        path = RelPath.parse(entry.get("relpath"))
        files.append(
            OutputFile(path, digest.md5 if digest else None, _size(entry), _version_id(entry))
        )
    reject_conflicts(entry.path for entry in files)
    return tuple(files)


def _repo_import(dependency: Mapping[object, object], file: RelPath) -> RepoImport:
    source = mapping(dependency.get("repo"))
    url, path = text(source.get("url")), text(dependency.get("path"))
    if not url or not path:
        raise InvalidMetadata(file, "an import without the URL or the path of its source")
    try:
        revision = parse_revision(str(source.get("rev_lock")))
    except ValueError as error:
        raise InvalidMetadata(file, f"rev_lock of an import is {error}") from None
    # A remote or configuration written out here would replace those of the source repository.
    if source.get("config") or isinstance(source.get("remote"), dict):
        raise InvalidMetadata(file, "an import that configures its source is not supported")
    return RepoImport(
        url, revision, RelPath.resolve(RelPath.ROOT, path), text(source.get("remote"))
    )


def _url_import(
    dependency: Mapping[object, object], file: RelPath, *, has_copy: bool
) -> UrlImport | None:
    """None when this repository's own remote has a copy, as it does by default."""
    url, files = text(dependency.get("path")), _files(dependency, file)
    version_id = _version_id(dependency)
    if not url or (has_copy and not version_id and files is None):
        return None
    for parameter in ("?versionId=", "?versionid="):
        url, _, written = url.partition(parameter)
        version_id = version_id or written or None
    return UrlImport(url, version_id, files)


def imported_from(data: Mapping[object, object]) -> Mapping[object, object]:
    """The dependency that makes a .dvc file an import: the only one of the only output, with no
    command between them (dvc/stage/__init__.py). Otherwise empty.
    """
    dependencies, outputs = sequence(data.get("deps")), sequence(data.get("outs"))
    if data.get("cmd") or len(dependencies) != 1 or len(outputs) != 1:
        return {}
    dependency = mapping(dependencies[0])
    return {} if "db" in dependency else dependency
