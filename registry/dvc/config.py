"""Reads `.dvc/config`: the default remote, and where each remote is.

    [core]
        remote = storage
    ['remote "storage"']
        url = s3://bucket/prefix   # a comment

DVC writes this with ConfigObj, whose patterns take exponential time on hostile input; the
reader here takes one look at each line. Options it does not know, credentials and endpoints among
them, are not even kept: those come from the operator, never from a repository.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from registry.domain import SCHEMES, StorageUrl
from registry.errors import InvalidMetadata, RemoteUnusable

LARGEST_FILE = 1 << 16
"""Bytes."""

_NAMED_SECTION = re.compile(r'\s*remote\s*"(.*)"\s*', re.DOTALL)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_INTERPOLATION = re.compile(r"%\([^)]*\)s")
_KEPT = frozenset({"url", "version_aware", "worktree"})


@dataclass(frozen=True, slots=True)
class Remote:
    """A place for objects. `versioned`: it keeps files under their own names, and a version id
    tells their contents apart (`version_aware` or `worktree`); otherwise keys are made of MD5s.
    """

    name: str
    url: StorageUrl
    versioned: bool = False


@dataclass(frozen=True)
class Config:
    """What one `.dvc/config` says. Without arguments: what an absent one says."""

    default: str | None = None
    file: str = ".dvc/config"
    options: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    """The options of each remote; None for a value that is a list."""

    def remote(self, name: str | None) -> Remote:
        """The remote `name`, or the default one. Raises RemoteUnusable.

        There is no "only remote" default in DVC, and names have no case (dvc/data_cloud.py).
        """
        wanted = name or self.default
        if not wanted:
            raise RemoteUnusable(
                None,
                f"no default remote: core.remote is not set in {self.file} "
                "and the output names none",
            )
        options = self._options(wanted.lower())
        aware, worktree = _flag(options, "version_aware"), _flag(options, "worktree")
        if worktree and aware is False:
            raise RemoteUnusable(wanted.lower(), "worktree needs version_aware, which is false")
        url = _storage_url(options["url"] or "", wanted.lower())
        return Remote(wanted.lower(), url, bool(aware or worktree))

    def resolve(self, url: str) -> StorageUrl:
        """The place that a dependency's URL means, `remote://name/path` included.

        Raises RemoteUnusable.
        """
        base, found, path = _reference(url)
        if not found:
            return _storage_url(url, None)
        return _storage_url(f"{self._options(base)['url']}/{path}", base)

    def _options(self, name: str) -> dict[str, str | None]:
        """The options of a remote, on top of those of the remotes it refers to.

        `remote://base/sub/dir` means base's URL, a slash and sub/dir (dvc/fs/__init__.py).
        """
        merged: dict[str, str | None] = {}
        below: list[str] = []
        seen: list[str] = []
        while True:
            if name in seen:
                raise RemoteUnusable(name, "it refers to itself")
            seen.append(name)
            if name not in self.options:
                raise RemoteUnusable(name, f"it is not defined in {self.file}")
            options = self.options[name]
            merged = {**options, **merged}
            url = _plain(options, name)
            name, found, path = _reference(url)
            if not found:
                merged["url"] = "/".join([url, *reversed(below)])
                return merged
            below.append(path)


def parse(data: bytes, file: str, kept: Collection[str] = _KEPT) -> Config:
    """Reads the bytes of a `.dvc/config`; `file` is for messages. Of a remote's options those that
    are `kept` are.

    Lenient: lines it cannot read are skipped, sections of one name count as one, and of a
    repeated option the last counts. Raises InvalidMetadata for what is too large or no text.
    """
    if len(data) > LARGEST_FILE:
        raise InvalidMetadata(file, f"larger than {LARGEST_FILE} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidMetadata(file, "not valid UTF-8") from None
    default: str | None = None
    remotes: dict[str, dict[str, str | None]] = {}
    section: str | None = None
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped.startswith("["):
            section = _section(stripped)
            named = _NAMED_SECTION.fullmatch(section or "")
            options = remotes.setdefault(named[1], {}) if named else {}
        elif section is not None and not stripped.startswith("#"):
            key, found, written = stripped.partition("=")
            key = _unquoted(key.strip()).lower()
            if not found:
                continue
            if section == "core" and key == "remote":
                value = _value(written.strip())
                default = value.lower() if value else None
            elif key in kept:
                options[key] = _value(written.strip())
    return Config(default, file, remotes)


def _section(line: str) -> str | None:
    """The lower-cased name in `[name]`; None for what is broken, or a section of a section."""
    inner = line[1:].lstrip()
    if inner[:1] in ("'", '"'):
        name, closed, rest = inner[1:].partition(inner[0])
        closed = closed if rest.lstrip().startswith("]") else ""
    else:
        name, closed, _ = inner.partition("]")
    return name.strip().lower() if closed and not name.startswith("[") else None


def _value(written: str) -> str | None:
    """The value after `=`: quoted, or up to a `#`. None for a list, which a comma makes."""
    if written[:1] in ("'", '"'):
        value, closed, rest = written[1:].partition(written[0])
        rest = rest.lstrip()
        if closed and (not rest or rest.startswith("#")):
            return value
        return None
    value = written.partition("#")[0].rstrip()
    return None if "," in value else value


def _unquoted(key: str) -> str:
    return key[1:-1] if len(key) > 1 and key[0] == key[-1] and key[0] in "'\"" else key


def _flag(options: Mapping[str, str | None], key: str) -> bool | None:
    return (options[key] or "").lower() == "true" if key in options else None


def _plain(options: Mapping[str, str | None], name: str) -> str:
    """The URL as it is written. Raises RemoteUnusable for what is not one plain text."""
    url = options.get("url", "")
    if url is None:
        raise RemoteUnusable(name, "its url is a list, or has unbalanced quotes")
    if not url:
        raise RemoteUnusable(name, "it has no url")
    if _INTERPOLATION.search(url):
        raise RemoteUnusable(name, "its url uses %(...)s, which is not supported")
    return url


def _reference(url: str) -> tuple[str, bool, str]:
    """`remote://base/path` as the lower-cased base, True and the path without leading slashes."""
    scheme, found, rest = url.partition("://")
    base, _, path = rest.partition("/")
    return base.lower(), bool(found) and scheme.lower() == "remote", path.lstrip("/")


def _storage_url(url: str, name: str | None) -> StorageUrl:
    """Raises RemoteUnusable, and never repeats the URL, which may hold a password."""
    scheme = _SCHEME.match(url)
    if scheme and scheme[1].lower() not in SCHEMES:
        raise RemoteUnusable(name, f"links cannot be signed for {scheme[1].lower()} remotes")
    if not scheme and not url.startswith("/"):
        raise RemoteUnusable(name, "local remote: it is a path on somebody's own machine")
    try:
        return StorageUrl.parse(url if scheme else f"file://{url}")
    except ValueError as error:
        raise RemoteUnusable(name, f"its url cannot be used: {error}") from None
