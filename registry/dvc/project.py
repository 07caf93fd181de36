"""The DVC files of one revision: which output holds a path, and what an artifact is."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from registry.domain import ArtifactName, RelPath, StorageUrl
from registry.dvc.config import Config, Remote
from registry.dvc.output import Output, OutputFile, RepoImport, UrlImport, imported_from, read
from registry.dvc.pipeline import Declared, Doubt, declarations, document
from registry.dvc.template import MOST_WORK, Load, Work, file_scope
from registry.dvc.yaml import mapping, sequence, text
from registry.errors import (
    ArtifactNotFound,
    InvalidMetadata,
    RemoteUnusable,
    UnsafePath,
)

__all__ = [
    "Artifact",
    "Output",
    "OutputFile",
    "Project",
    "RepoImport",
    "UrlImport",
    "is_metadata",
]

_DVC = ".dvc"
_PIPELINE = "dvc.yaml"
LEGACY_ARTIFACTS = RelPath("artifacts.yaml")
"""Where artifacts were declared before dvc.yaml could."""


def is_metadata(path: str) -> bool:
    """Whether a Project needs to know of the file: dvc.yaml, dvc.lock, *.dvc, what lies directly
    in a `.dvc` directory (it makes a DVC root), and the legacy artifacts.yaml.
    """
    directory, _, name = path.rpartition("/")
    return (
        name in (_PIPELINE, "dvc.lock")
        or (name.endswith(_DVC) and name != _DVC)
        or directory.rpartition("/")[2] == _DVC
        or path == LEGACY_ARTIFACTS
    )


@dataclass(frozen=True)
class Artifact:
    """What a dvc.yaml declares under `artifacts`, at one revision.

    Either `path`, in the Git repository, or `url`, for one that lies in external storage. `meta`
    is whatever people wrote.
    """

    name: ArtifactName
    path: RelPath | None
    url: StorageUrl | None = None
    type: str | None = None
    description: str | None = None
    labels: tuple[str, ...] = ()
    meta: object = None


class Project:
    """One revision's DVC files.

    `files` are the paths of those that `is_metadata` picks. `load` gives the parsed YAML of any
    file of the revision, None when it is absent or no regular file, and raises InvalidMetadata
    when it is broken; it is called often, so it should remember. `config` gives a `.dvc/config`,
    `Config()` when it is absent.
    """

    def __init__(
        self, files: Collection[RelPath], load: Load, config: Callable[[RelPath], Config]
    ) -> None:
        """Reads nothing yet."""
        self._load = load
        self._config = config
        self._roots = frozenset(file.parent.parent for file in files if file.parent.name == _DVC)
        self._legacy = LEGACY_ARTIFACTS in files
        self._declaring: dict[RelPath, list[RelPath]] = {}
        for file in files:
            if _declares(file):
                self._declaring.setdefault(file.parent, []).append(file)

    def artifact(self, name: ArtifactName) -> Artifact:
        """The artifact as the dvc.yaml of its directory declares it, or the root's artifacts.yaml.

        Raises ArtifactNotFound, InvalidMetadata, UnsafePath, and RemoteUnusable for a URL of a
        kind that nothing can sign.
        """
        file, data, fields = self._declaration(name)
        written = text(fields.get("path"))
        if written is None:
            raise InvalidMetadata(file, f"artifact {name.name!r} has no path")
        where = file_scope(Work(file), data.get("vars"), self._load).text(written)
        url = self._external(where, file.parent)
        path = None if url else RelPath.resolve(file.parent, where)
        return replace(self.annotation(name), path=path, url=url)

    def annotation(self, name: ArtifactName) -> Artifact:
        """What people wrote about the artifact, without its place. Raises ArtifactNotFound and
        InvalidMetadata.
        """
        _, _, fields = self._declaration(name)
        return Artifact(
            name=name,
            path=None,
            type=text(fields.get("type")),
            description=text(fields.get("desc")) or text(fields.get("description")),
            labels=tuple(v for v in sequence(fields.get("labels")) if isinstance(v, str)),
            meta=fields.get("meta", fields.get("custom")),
        )

    def _declaration(
        self, name: ArtifactName
    ) -> tuple[RelPath, Mapping[object, object], Mapping[object, object]]:
        """The file that declares the artifact, all that is in it, and what is under its name."""
        file = name.directory / RelPath(_PIPELINE)
        data = document(self._load(file), file)
        declared = mapping(data.get("artifacts"))
        if name.name not in declared and self._legacy and not name.directory:
            legacy = document(self._load(LEGACY_ARTIFACTS), LEGACY_ARTIFACTS)
            if name.name in legacy:
                file, declared = LEGACY_ARTIFACTS, legacy
        if name.name not in declared:
            also = f" or {LEGACY_ARTIFACTS}" if self._legacy and not name.directory else ""
            raise ArtifactNotFound(str(name), f"not declared in {file}{also} at this revision")
        return file, data, mapping(declared[name.name])

    def outputs(self, path: RelPath) -> tuple[Output, ...]:
        """The output that is `path` or contains it, or else all that lie below it, by path.

        Only files of the DVC root that owns the path count. A broken file is no harm unless the
        answer may depend on it. Raises RemoteUnusable when no DVC root owns the path,
        InvalidMetadata and UnsafePath.
        """
        root = self._root(path)
        if root is None:
            raise RemoteUnusable(None, f"no DVC repository at {path or '.'!r}")
        doubts: list[Doubt] = []
        below: dict[RelPath, Declared] = {}
        left = 2 * MOST_WORK  # one file that is made to cost much leaves enough for all others
        for file in self._candidates(path, root):
            work = Work(file, min(left, MOST_WORK))
            left -= work.left
            found = list(self._declared(file, work))
            left += max(0, work.left)
            doubts += [part for part in found if isinstance(part, Doubt)]
            # DVC has no outputs outside of their root, and none that is the root.
            declared = [
                part
                for part in found
                if isinstance(part, Declared) and part.path.within(root) and part.path != root
            ]
            owners = [output for output in declared if path.within(output.path)]
            if owners:
                return (_output(max(owners, key=lambda output: len(output.path)), root),)
            for output in declared:
                if output.path.within(path):
                    below.setdefault(output.path, output)
        for doubt in doubts:
            if _concerns(doubt, path, found=bool(below)):
                raise doubt.error
        return tuple(_output(below[path], root) for path in sorted(below))

    def config_of(self, output: Output) -> Config:
        """The configuration of the DVC root that the output belongs to."""
        return self._config(output.root / RelPath(".dvc/config"))

    def remote_of(self, output: Output) -> Remote:
        """The remote that holds the output: its own, or the default. Raises RemoteUnusable."""
        return self.config_of(output).remote(output.remote)

    def _external(self, where: str, directory: RelPath) -> StorageUrl | None:
        if "://" not in where:
            return None
        root = self._root(directory)
        config = Config() if root is None else self._config(root / RelPath(".dvc/config"))
        return config.resolve(where)

    def _root(self, path: RelPath) -> RelPath | None:
        """The DVC root that owns a path: the deepest directory above it that has a `.dvc`."""
        return next((at for at in (path, *path.ancestors()) if at in self._roots), None)

    def _candidates(self, path: RelPath, root: RelPath) -> Iterator[RelPath]:
        """The files that may declare the path, likely ones first.

        On the way from the path upwards, `model.pkl.dvc` before other .dvc files before dvc.yaml;
        then all others of the root, since a `wdir: ../..` may point anywhere.
        """
        passed = set()
        child = path
        for directory in path.ancestors() if path != root else ():
            passed.add(directory)
            likeliest = partial(_rank, f"{child.name}{_DVC}")
            yield from sorted(self._declaring.get(directory, ()), key=likeliest)
            if directory == root:
                break
            child = directory
        for directory in sorted(self._declaring.keys() - passed):
            if directory.within(root) and self._root(directory) == root:
                yield from sorted(self._declaring[directory], key=partial(_rank, ""))

    def _declared(self, file: RelPath, work: Work) -> Iterator[Declared | Doubt]:
        try:
            if file.name == _PIPELINE:
                yield from declarations(work, self._load)
            else:
                yield from _single(file, document(self._load(file), file))
        except InvalidMetadata as error:
            yield Doubt(file, error)


def _declares(file: RelPath) -> bool:
    """Whether outputs are declared in the file; DVC does not look into `.dvc` directories."""
    named = file.name == _PIPELINE or (file.name.endswith(_DVC) and file.name != _DVC)
    return named and _DVC not in file.split("/")[:-1]


def _rank(own: str, file: RelPath) -> tuple[bool, bool, str]:
    """Sorts the files of a directory: the .dvc file called `own`, the others, dvc.yaml."""
    return file.name == _PIPELINE, file.name != own, file


def _single(file: RelPath, data: object) -> Iterator[Declared | Doubt]:
    """The outputs of a .dvc file; of DVC 1 it may hold any number, with keys long forgotten."""
    fields = mapping(data)
    wdir = text(fields.get("wdir")) or ""
    dependency = imported_from(fields)
    for recorded in map(mapping, sequence(fields.get("outs"))):
        written = text(recorded.get("path"))
        if written is None or "://" in written:
            continue  # outputs in external storage are gone since DVC 3
        try:
            path = RelPath.resolve(file.parent, wdir, written)
        except UnsafePath as error:
            yield Doubt(file, error)
            continue
        yield Declared(
            path, file, partial(mapping, recorded), partial(mapping, recorded), dependency
        )


def _output(declared: Declared, root: RelPath) -> Output:
    return read(
        declared.path,
        declared.file,
        root,
        declared.recorded(),
        flags=declared.flags(),
        dependency=declared.dependency,
    )


def _concerns(doubt: Doubt, path: RelPath, *, found: bool) -> bool:
    """Whether an answer that leaves out the doubtful part may be wrong."""
    file = doubt.file
    if doubt.paths is not None:
        return any(path.within(known) or known.within(path) for known in doubt.paths)
    if file.parent.within(path):
        return True  # outputs below the path were asked for, and these are not known
    if found or not path.within(file.parent):
        return False
    if file.name == _PIPELINE or file.parent == path.parent:
        return True
    own = path.relative_to(file.parent).partition("/")[0]
    return file.name == f"{own}{_DVC}"
