"""The nouns of the registry. Each is frozen and validates itself; nothing here does I/O.

Read this file first: whoever knows these words knows what the product is.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import pairwise
from posixpath import basename, normpath
from typing import NewType
from urllib.parse import unquote, urlsplit

from registry.errors import InvalidRequest, UnsafePath


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether a repository's name matches one of the patterns; `*` stands for any characters.

    The one rule for what a token may see and what a storage location is granted to.
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


Revision = NewType("Revision", str)
"""A full commit id: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits."""

_REVISION = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SCP_LIKE = re.compile(r"(?:[^@/:]+@)?([A-Za-z0-9.-]+):(?!//)/*(.+)")
_GIT_PORTS = {"https": 443, "http": 80, "ssh": 22, "git+ssh": 22, "git": 9418}
_SHORTHANDS = {"github": "github.com", "gitlab": "gitlab.com", "bitbucket": "bitbucket.org"}
_MD5 = re.compile(r"[0-9a-f]{32}(?:\.dir)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SSH_HOST = re.compile(r"([a-z0-9](?:[a-z0-9.-]{0,252}[a-z0-9])?)(?::([0-9]{1,5}))?")
_DRIVE = re.compile(r"[A-Za-z]:")

NAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9/_-]*[a-zA-Z0-9])?"
"""GTO's grammar for the names of artifacts and stages (gto/constants.py)."""
DIRNAME = r"[a-zA-Z0-9_./-]+"
"""GTO's grammar for the directory part of an artifact's full name (gto/constants.py)."""

_NAME = re.compile(NAME)
_DIRNAME = re.compile(DIRNAME)
LONGEST_SPELLING = 2048
"""Characters of the URL of a repository."""
LONGEST_NAME = 255
"""Characters of the name of an artifact, a version or a stage."""


def parse_revision(text: str) -> Revision:
    """`text` as a Revision. Raises ValueError for anything but a full commit id."""
    if not _REVISION.fullmatch(text):
        raise ValueError(f"not a full commit id: {text!r}")
    return Revision(text)


def canonical_repository(spelling: str) -> str | None:
    """`host/path` for every way to spell the URL of a hosted repository: https, ssh, scp-like and
    `github:owner/name`, with or without `.git`. A bare `owner/name` stays as it is.

    None for what names no hosted repository: local paths, `.`, the empty text, and what is longer
    than a URL can be. The host is lower-cased, user names and the ports that go without saying are
    dropped.

    >>> canonical_repository("git@GitHub.com:iterative/example-gto.git")
    'github.com/iterative/example-gto'
    """
    # Anybody may send a payload of a megabyte to a webhook: it must not be remembered.
    return _canonical(spelling) if len(spelling) <= LONGEST_SPELLING else None


@lru_cache(512)  # a service is asked in few spellings, and in each again and again
def _canonical(spelling: str) -> str | None:
    text = spelling.strip()
    if "://" in text:
        host, path = _host_and_path(text)
    elif found := _SCP_LIKE.fullmatch(text):
        host, path = _SHORTHANDS.get(found[1].lower(), found[1].lower()), found[2]
    else:
        host, path = "", text
    path = path.rstrip("/").removesuffix(".git").rstrip("/")
    if not path or path.startswith((".", "/", "~")) or "\\" in text:
        return None
    return f"{host}/{path}" if host else path


def _host_and_path(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "", ""
    if parts.scheme not in _GIT_PORTS or not parts.hostname:
        return "", ""
    shown = "" if port in (None, _GIT_PORTS[parts.scheme]) else f":{port}"
    return parts.hostname + shown, parts.path.lstrip("/")


def without_credentials(spelling: str) -> str:
    """The spelling of a repository without the user and the password of an http(s) URL.

    >>> without_credentials("https://me:secret@git.example/team/models")
    'https://git.example/team/models'
    """
    scheme, found, rest = spelling.partition("://")
    authority, slash, path = rest.partition("/")
    if not found or scheme.strip().lower() not in ("http", "https"):
        return spelling
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


class RelPath(str):
    """A path below the root of a repository, `/`-separated, safe to write below any directory.

    The one type of every path that reaches a client. The real DVC client writes to
    `target/<path>` without any check, so what could leave the target, or be read in two ways,
    is refused here and never cleaned. `RelPath.ROOT` (the empty path) stands for the root itself.
    """

    __slots__ = ()
    ROOT: "RelPath"

    @classmethod
    def parse(cls, text: object) -> "RelPath":
        """`text`, if it is a safe path. Raises UnsafePath."""
        if not isinstance(text, str):
            raise UnsafePath(str(text), "it is not a text")
        problem = _path_problem(text)
        if problem:
            raise UnsafePath(text, problem)
        return cls(text)

    @classmethod
    def resolve(cls, directory: "RelPath", *parts: str) -> "RelPath":
        """Joins `parts` to `directory` as DVC does for the paths people write in its files.

        Those may hold `./`, `../`, a trailing `/` and, from Windows, backslashes; the outcome must
        lie inside the repository. Raises UnsafePath, also for absolute parts and other roots.
        """
        written = [part.replace("\\", "/") for part in parts]
        for part in written:
            if part.startswith("/") or _DRIVE.match(part):
                raise UnsafePath(part, "it is absolute")
        path = normpath("/".join(part for part in (directory, *written) if part) or ".")
        if path == ".":
            return cls.ROOT
        if path == ".." or path.startswith("../"):
            raise UnsafePath(path, "it leaves the repository")
        return cls.parse(path)

    @property
    def parent(self) -> "RelPath":
        """The directory that holds the path; the root's parent is the root."""
        return RelPath(self.rpartition("/")[0])

    @property
    def name(self) -> str:
        """The last part."""
        return basename(self)

    def ancestors(self) -> Iterator["RelPath"]:
        """Every directory above the path, nearest first, the root last."""
        directory = self
        while directory:
            directory = directory.parent
            yield directory

    def __truediv__(self, path: "RelPath") -> "RelPath":
        """`path` below this one; both are safe, so the outcome is."""
        return RelPath(f"{self}/{path}") if self and path else RelPath(self or path)

    def within(self, directory: "RelPath") -> bool:
        """Whether the path is `directory` or lies below it."""
        return not directory or self == directory or self.startswith(f"{directory}/")

    def relative_to(self, directory: "RelPath") -> "RelPath":
        """The rest of the path below `directory`, which it must lie within."""
        return self if not directory else RelPath(self[len(directory) + 1 :])


RelPath.ROOT = RelPath("")


def _path_problem(text: str) -> str | None:
    problem = None
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    parts = text.split("/")
    if _CONTROL.search(text) or "\\" in text:
        problem = "it holds a backslash or a control character"
    elif text.startswith("/") or _DRIVE.match(text):
        problem = "it is absolute"
    elif ".." in parts or "." in parts or "" in parts:
        problem = "it has an empty part, '.' or '..'"
    elif ".git" in text.lower() and any(part.rstrip(" .").lower() == ".git" for part in parts):
        problem = "it lies in a directory of Git's, whose files run commands"
    elif size > 4096 or (size > 255 and max(len(part.encode()) for part in parts) > 255):
        problem = "it is longer than 4096 bytes, or one of its parts than 255"
    return problem


def reject_conflicts(paths: Iterable[RelPath]) -> None:
    """Raises UnsafePath when one path is wanted twice, or both as a file and as a directory."""
    # Where the slash sorts before all else, what lies below a path comes right after it.
    ordered = sorted(path.replace("/", "\0") for path in paths)
    for first, second in pairwise(ordered):
        if first == second:
            raise UnsafePath(first.replace("\0", "/"), "two files have this path")
        if second.startswith(f"{first}\0"):
            raise UnsafePath(first.replace("\0", "/"), "it is both a file and a directory")


@dataclass(frozen=True, order=True)
class ArtifactName:
    """The full name of an artifact: the directory of its dvc.yaml, and its name in that file.

    Spelled `name` for the root's dvc.yaml and `path/to:name` for another; GTO tags write `=` for
    the colon, since Git forbids it.
    """

    directory: RelPath
    name: str

    @classmethod
    def parse(cls, text: str) -> "ArtifactName":
        """Reads a name as `dvc artifacts get` accepts and sends it: `m`, `path/to:m`,
        `path/to/dvc.yaml:m`, `dvc.yaml:m`, `:m`. Raises InvalidRequest.
        """
        directory, _, name = text.rpartition(":")
        if len(text) > LONGEST_NAME or not _NAME.fullmatch(name):
            raise InvalidRequest("name", f"{text[:100]!r} is not a valid artifact name")
        if directory and not _DIRNAME.fullmatch(directory):
            raise InvalidRequest("name", f"{directory[:100]!r} is not a valid directory")
        if directory.startswith("/") or ".." in directory.split("/"):
            raise InvalidRequest("name", "the directory must lie inside the repository")
        path = RelPath.resolve(RelPath.ROOT, directory) if directory else RelPath.ROOT
        return cls(path.parent if path.name == "dvc.yaml" else path, name)

    @property
    def in_tags(self) -> str:
        """The spelling in GTO tags: `path/to=name`."""
        return f"{self.directory}={self.name}" if self.directory else self.name

    def __str__(self) -> str:
        return f"{self.directory}:{self.name}" if self.directory else self.name


@dataclass(frozen=True)
class Selector:
    """Which version of an artifact is wanted: one version, what a stage holds, what lies at a
    revision, or the latest.
    """

    artifact: ArtifactName
    version: str | None = None
    stage: str | None = None
    revision: Revision | None = None

    def __post_init__(self) -> None:
        """A version, a stage and a revision exclude each other."""
        if self.version and self.stage:
            raise InvalidRequest("version", "give either a version or a stage, not both")
        if self.revision and (self.version or self.stage):
            raise InvalidRequest("rev", "give a rev alone, without a version and a stage")

    @classmethod
    @lru_cache(512)
    def parse(cls, name: str, version: str = "", stage: str = "", rev: str = "") -> "Selector":
        """Reads the four parameters of a request; an empty one counts as absent.

        `latest` and `greatest` as a version mean what GTO means by them. Raises InvalidRequest.
        """
        if not name:
            raise InvalidRequest("name", "name the artifact, for example name=my-model")
        for parameter, value in (("version", version), ("stage", stage)):
            if len(value) > LONGEST_NAME:
                raise InvalidRequest(parameter, f"longer than {LONGEST_NAME} characters")
        try:
            revision = parse_revision(rev) if rev else None
        except ValueError:
            raise InvalidRequest("rev", "a full commit id: 40 or 64 hexadecimal digits") from None
        selector = cls(ArtifactName.parse(name), version or None, stage or None, revision)
        if version in ("latest", "greatest"):
            return cls(selector.artifact)
        return selector

    @property
    def asked(self) -> dict[str, str]:
        """The one parameter, besides the name, that `parse` reads as this again."""
        if self.revision:
            return {"rev": self.revision}
        return {"stage": self.stage} if self.stage else {"version": self.version or "latest"}


@dataclass(frozen=True, slots=True)
class Digest:
    """The MD5 by which DVC addresses an object; `.dir` marks the manifest of a directory."""

    md5: str

    def __post_init__(self) -> None:
        """DVC itself does not check: `md5: ../../secret` would name any key of the bucket."""
        if not (isinstance(self.md5, str) and _MD5.fullmatch(self.md5)):
            raise ValueError(f"not an MD5: {str(self.md5)[:50]!r}")

    @property
    def is_directory(self) -> bool:
        """Whether the object is a manifest of a directory."""
        return self.md5.endswith(".dir")


SCHEMES = ("s3", "azure", "https", "http", "file", "ssh", "gs")
"""The kinds of storage that the registry can hand out links for."""


@dataclass(frozen=True, slots=True)
class StorageUrl:
    """A place in a store: `s3://bucket/key`, `azure://container/blob`, `https://host/path`,
    `file:///path`, `ssh://host:port/path`, `gs://bucket/object`. `path` has no leading slash and is
    literal, except for http(s), where it is the path of the URL as it stands.

    >>> StorageUrl.parse("s3://bucket/models/").below("files/md5/ab/cd")
    StorageUrl(scheme='s3', authority='bucket', path='models/files/md5/ab/cd')
    """

    scheme: str
    authority: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "StorageUrl":
        """Reads a URL from a configuration. Raises ValueError with the reason.

        User names and passwords in http(s) and ssh URLs are dropped: credentials come from the
        operator.
        """
        if _CONTROL.search(text) or "\\" in text:
            raise ValueError("a backslash or a control character in the URL")
        scheme, found, rest = text.partition("://")
        scheme = scheme.lower()
        if not found or scheme not in SCHEMES:
            raise ValueError(f"the scheme is not one of {', '.join(SCHEMES)}")
        if scheme in ("http", "https"):
            authority, path = cls._split_http(text)
        elif scheme == "ssh":
            authority, path = cls._split_ssh(rest)
        else:
            authority, _, path = rest.partition("/")
        if "@" in authority:
            raise ValueError("a user name or password where the name of a container belongs")
        if (scheme == "file") == bool(authority):
            raise ValueError("file URLs have three slashes, and all others name a container")
        return cls(scheme, authority, path.removesuffix("/"))._checked()

    @staticmethod
    def _split_http(text: str) -> tuple[str, str]:
        parts = urlsplit(text)
        if parts.query or parts.fragment:
            raise ValueError("an http(s) location has no query and no fragment")
        default = {"http": 80, "https": 443}[parts.scheme]
        host = (parts.hostname or "").lower()
        if ":" in host:
            host = f"[{host}]"
        port = "" if parts.port in (None, default) else f":{parts.port}"
        return host + port, parts.path.removeprefix("/")

    @staticmethod
    def _split_ssh(rest: str) -> tuple[str, str]:
        authority, _, path = rest.partition("/")
        found = _SSH_HOST.fullmatch(authority.rpartition("@")[2].lower())
        if not found:
            raise ValueError("ssh URLs name a host, and perhaps a port")
        host, port = found.groups()
        return host if port in (None, "22") else f"{host}:{port}", path.lstrip("/")

    def _checked(self) -> "StorageUrl":
        path = unquote(self.path) if self.scheme in ("http", "https") else self.path
        if ".." in path.split("/") or "." in path.split("/"):
            raise ValueError("'.' or '..' in the path")
        if path != self.path and ("/" in unquote(self.path.replace("/", "")) or "\\" in path):
            raise ValueError("an encoded slash in the path")
        return self

    def below(self, key: str) -> "StorageUrl":
        """The place of `key` under this one. Double slashes count, as they do in S3."""
        path = f"{self.path}/{key}" if self.path else key
        return StorageUrl(self.scheme, self.authority, path)

    def contains(self, other: "StorageUrl") -> bool:
        """Whether `other` is this place or lies below it, by whole path segments."""
        return (self.scheme, self.authority) == (other.scheme, other.authority) and (
            not self.path or f"{other.path}/".startswith(f"{self.path}/")
        )

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}/{self.path}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a manifest: its path in the repository, and the object that holds its bytes.

    `key` is the object's place below the storage URL of the group it belongs to; `version_id` pins
    it in a versioned bucket. `md5` and `size` (bytes) are None where DVC does not record them.
    """

    path: RelPath
    key: str
    md5: str | None = None
    size: int | None = None
    version_id: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The entries of a manifest that lie below one storage URL, on behalf of one repository.

    `via` names the repositories that imports led through on the way to it. `size` is that of all
    entries together, in bytes, where DVC records it for a directory as a whole.
    """

    repository: str
    storage: StorageUrl
    entries: Collection[Entry]
    via: tuple[str, ...] = ()
    size: int | None = None


@dataclass(frozen=True)
class Manifest:
    """Every file behind an artifact at one revision, in the order of the answer.

    The paths of one group exclude each other already: whatever lists files is checked when read.
    """

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        """Two groups must not claim one path: a client could not write both."""
        if len(self.groups) > 1:
            reject_conflicts(entry.path for group in self.groups for entry in group.entries)

    def __len__(self) -> int:
        return sum(len(group.entries) for group in self.groups)

    @property
    def repositories(self) -> set[str]:
        """The repositories it depends on: whoever may not see them all may not see it."""
        return {name for group in self.groups for name in (group.repository, *group.via)}


@dataclass(frozen=True)
class Principal:
    """Who asks: a token's id and name, its scopes, and patterns of the repositories it may see."""

    id: str
    name: str
    scopes: frozenset[str]
    repositories: tuple[str, ...]

    def may_see(self, repository: str) -> bool:
        """Whether the repository of this name exists for the principal."""
        return matches(self.repositories, repository)
