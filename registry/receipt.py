"""What a selector meant, to the last file: a value that can be kept, compared and asked for again.

    {"description": ..., "digest": ..., "files": [{"md5": ..., "path": ..., "size": ...}, ...],
     "labels": [...], "meta": ..., "name": ..., "path": ..., "repository": ..., "revision": ...,
     "selector": {"stage": "prod"}, "tag": ..., "total_size": ..., "type": ..., "version": ...}

A receipt holds no link and no time, and is written in the one way of RFC 8785, so that the same
state of a repository gives the same bytes on every host. `digest` is the SHA-256 of those bytes
without itself. `selector` is the question as it was asked, and says which parameter chose:
`{"stage": "prod"}`, `{"version": "v1.0.0"}`, `{"version": "latest"}` where nothing was named, or
`{"rev": "<commit id>"}`. Two questions have two receipts, even when the answer is the same today.

Receipts lie on disks and come from servers: `Receipt.parse` believes none of it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, isnan
from typing import Literal

import rfc8785

from registry.domain import (
    LONGEST_NAME,
    RelPath,
    Revision,
    Selector,
    StorageUrl,
    parse_revision,
    reject_conflicts,
)
from registry.errors import InvalidReceipt, NoChecksum, RegistryError

LARGEST_DETAILS = 1 << 18
"""Characters of type, description, labels and meta together, in JSON."""
LARGEST_NUMBER = (1 << 53) - 1
"""The largest whole number that every reader of JSON reads alike."""
_DEEPEST = 64

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MD5 = re.compile(r"[0-9a-f]{32}")
_KEYS = frozenset({
    "description", "digest", "files", "labels", "meta", "name", "path", "repository", "revision",
    "selector", "tag", "total_size", "type", "version",
})  # fmt: skip
_PARAMETERS = frozenset({"version", "stage", "rev"})
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Terms:
    """What a receipt is made from: the name of a repository, a question, and what it meant."""

    repository: str
    selector: Selector
    revision: Revision
    version: str | None
    tag: str | None


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    """One file: where it lies in the repository, its MD5 as DVC records it, its size in bytes.

    Either is None where DVC does not record it. DVC 2 hashed text files as if their lines ended
    with `\\n`: with other endings they do not have this MD5.
    """

    path: RelPath
    md5: str | None = None
    size: int | None = None


@dataclass(frozen=True, eq=False)
class Receipt:
    """An artifact at a revision: its files, what dvc.yaml says of it, and how it was asked for.

    `version` and `tag` say what decided; both are None when the question was a revision, and the
    version is when a stage holds a commit without one. `path` is the artifact's in the repository,
    or its URL. `total_size` is in bytes, None where DVC does not record it. Two receipts are equal
    when their digests are.
    """

    repository: str
    selector: Selector
    revision: Revision
    path: RelPath | StorageUrl
    files: Collection[ReceiptFile]
    version: str | None = None
    tag: str | None = None
    type: str | None = None
    labels: tuple[str, ...] = ()
    description: str | None = None
    meta: object = None
    total_size: int | None = None

    @property
    def name(self) -> str:
        """The artifact's full name."""
        return str(self.selector.artifact)

    def facts(self) -> Iterator[tuple[str, str]]:
        """What people are told of it, by name: whatever there is to say in a line."""
        ((parameter, value),) = self.selector.asked.items()
        size = "unknown size" if self.total_size is None else f"{self.total_size:,} bytes"
        facts: tuple[tuple[str, str | None], ...] = (
            ("artifact", f"{self.name} of {self.repository}"),
            ("asked", f"{parameter}={value}"),
            ("version", self.version),
            ("revision", self.revision),
            ("tag", self.tag),
            ("type", self.type),
            ("labels", ", ".join(self.labels)),
            ("path", str(self.path)),
            ("files", f"{len(self.files):,}, {size}"),
            ("receipt", self.digest),
        )
        for name, fact in facts:
            if fact:
                yield name, fact

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the canonical bytes without the digest, in hexadecimal digits."""
        hashed = hashlib.sha256()
        for part in self._canonical(None):
            hashed.update(part)
        return hashed.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Receipt) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __bytes__(self) -> bytes:
        return b"".join(self.parts())

    def parts(self) -> Iterator[bytes]:
        """The receipt in canonical JSON, a part for each file: there may be a million of them."""
        return self._canonical(self.digest)

    def as_json(self) -> dict[str, object]:
        """The receipt as json.dumps takes it, to be kept inside of another document."""
        files = [{"md5": it.md5, "path": str(it.path), "size": it.size} for it in self.files]
        return {**self._fields(), "digest": self.digest, "files": files}

    def md5sums(self) -> Iterator[str]:
        """The lines of a file for `md5sum --check`. Raises NoChecksum before the first of them
        when a file has no MD5: what cannot be checked must not look checked.
        """
        unknown = next((it.path for it in self.files if it.md5 is None), None)
        if unknown is not None:
            raise NoChecksum(unknown)
        # RelPath holds neither backslash nor line break, the two that md5sum would escape.
        return (f"{it.md5}  {it.path}\n" for it in self.files)

    def verify(
        self, md5_of: Callable[[RelPath], str | None]
    ) -> Iterator[tuple[RelPath, Literal["missing", "changed", "unchecked"]]]:
        """The files that are not as they should be; `md5_of` gives None for one that is absent."""
        for file in self.files:
            found = md5_of(file.path)
            if found is None:
                yield file.path, "missing"
            elif file.md5 is None:
                yield file.path, "unchecked"
            elif found != file.md5:
                yield file.path, "changed"

    @classmethod
    def parse(cls, data: bytes | str) -> "Receipt":
        """Reads JSON in whatever layout. Raises InvalidReceipt, and UnsafePath for a file that no
        client must write.
        """
        try:
            return cls.of_json(json.loads(data, object_pairs_hook=_once, parse_constant=_refused))
        except (ValueError, RecursionError) as error:
            nested = isinstance(error, RecursionError)
            raise InvalidReceipt("is nested too deeply" if nested else "is not JSON") from None

    @classmethod
    def of_json(cls, value: object) -> "Receipt":
        """The same of JSON that was read already."""
        if not isinstance(value, dict) or value.keys() != _KEYS:
            raise InvalidReceipt(f"is not an object of {', '.join(sorted(_KEYS))}")
        digest = value["digest"]
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise InvalidReceipt("has no SHA-256 as its digest")
        files = tuple(_file(entry) for entry in _list(value["files"], "files"))
        reject_conflicts(file.path for file in files)
        receipt = cls(
            repository=_name(value["repository"], "repository"),
            selector=_selector(value["name"], value["selector"]),
            revision=_revision(value["revision"]),
            path=_path(value["path"]),
            files=files,
            version=_optional(_name, value["version"], "version"),
            tag=_optional(_name, value["tag"], "tag"),
            type=_optional(_text, value["type"], "type"),
            labels=tuple(_text(label, "labels") for label in _list(value["labels"], "labels")),
            description=_optional(_text, value["description"], "description"),
            meta=value["meta"],
            total_size=_size(value["total_size"], "total_size"),
        )
        try:
            details(receipt.type, receipt.description, receipt.labels, receipt.meta)
            wrong = receipt.digest != digest
        except ValueError:
            raise InvalidReceipt("holds what is too large, or what JSON cannot hold") from None
        if wrong:
            raise InvalidReceipt("was changed: its bytes do not have its digest")
        return receipt

    def _fields(self) -> dict[str, object]:
        """Everything but the files and the digest."""
        return {
            "description": self.description,
            "labels": list(self.labels),
            "meta": self.meta,
            "name": self.name,
            "path": str(self.path),
            "repository": self.repository,
            "revision": self.revision,
            "selector": self.selector.asked,
            "tag": self.tag,
            "total_size": self.total_size,
            "type": self.type,
            "version": self.version,
        }

    def _canonical(self, digest: str | None) -> Iterator[bytes]:
        # A million files are not made into a million dictionaries: the order of the keys of a file
        # and of the receipt is known, and ASCII, so that only the texts are left to quote.
        fields: dict[str, object] = {**self._fields(), "files": None}
        if digest is not None:
            fields["digest"] = digest
        opening = "{"
        for key in sorted(fields):
            yield f'{opening}"{key}":'.encode()
            opening = ","
            if key == "files":
                yield from _canonical_files(self.files)
            else:
                yield rfc8785.dumps(fields[key])  # type: ignore[arg-type]
        yield b"}"


def canonical(value: object) -> bytes:
    """JSON in the one way of RFC 8785. Raises ValueError for what JSON cannot hold."""
    return rfc8785.dumps(value)  # type: ignore[arg-type]


def details(
    kind: str | None, description: str | None, labels: tuple[str, ...], meta: object
) -> object:
    """`meta`, as JSON can hold it, if it and the rest that people wrote in a dvc.yaml is within
    the limits. Raises ValueError.

    YAML knows more than JSON: keys become text, and so do numbers that JSON has no room for. An
    alias is written out each time, so that a small file could become a large answer.
    """
    room = _Room(LARGEST_DETAILS)
    for text in (kind, description, *labels):
        room.take(text or "")
    return _plain(meta, room, 0)


class _Room:
    """Characters that may still be written."""

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self, text: str) -> str:
        """`text`, if there is room for it. Raises ValueError."""
        self._left -= len(text) + 3
        if self._left < 0:
            raise ValueError(f"its description, labels and meta are over {LARGEST_DETAILS} bytes")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("a text is not valid Unicode") from None
        return text


def _plain(value: object, room: _Room, depth: int) -> object:
    if depth > _DEEPEST:
        raise ValueError("its meta is nested too deeply")
    if isinstance(value, dict):
        return {
            room.take(_written(key)): _plain(item, room, depth + 1) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        room.take("")
        return [_plain(item, room, depth + 1) for item in value]
    if isinstance(value, bool) or value is None:
        room.take("null")
        return value
    if isinstance(value, float) and isfinite(value):
        room.take("0")
        return value
    if isinstance(value, int) and abs(value) <= LARGEST_NUMBER:
        room.take("0")
        return value
    return room.take(_written(value))


def _written(value: object) -> str:
    """A scalar as YAML spells it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not isfinite(value):
        return ".nan" if isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        return hex(value)  # decimal digits of a long one would take quadratic time
    return "null" if value is None else str(value)


def _canonical_files(files: Collection[ReceiptFile]) -> Iterator[bytes]:
    quoted, opening = json.JSONEncoder(ensure_ascii=False).encode, "["
    for file in files:
        md5 = "null" if file.md5 is None else f'"{file.md5}"'
        size = "null" if file.size is None else file.size
        yield f'{opening}{{"md5":{md5},"path":{quoted(file.path)},"size":{size}}}'.encode()
        opening = ","
    yield b"[]" if opening == "[" else b"]"


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refused(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _list(value: object, key: str) -> list[object]:
    if not isinstance(value, list):
        raise InvalidReceipt(f"has no list as its {key}")
    return value


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise InvalidReceipt(f"has no text as its {key}")
    return value


def _name(value: object, key: str) -> str:
    text = _text(value, key)
    if not text or len(text) > LONGEST_NAME or _UNPRINTABLE.search(text):
        raise InvalidReceipt(f"has no name as its {key}")
    return text


def _optional(read: Callable[[object, str], str], value: object, key: str) -> str | None:
    return None if value is None else read(value, key)


def _size(value: object, key: str) -> int | None:
    if value is None or (type(value) is int and 0 <= value <= LARGEST_NUMBER):
        return value
    raise InvalidReceipt(f"has no number of bytes as its {key}")


def _revision(value: object) -> Revision:
    try:
        return parse_revision(_text(value, "revision"))
    except ValueError:
        raise InvalidReceipt("has no full commit id as its revision") from None


def _selector(name: object, asked: object) -> Selector:
    if not isinstance(asked, Mapping) or len(asked) != 1 or not asked.keys() <= _PARAMETERS:
        raise InvalidReceipt("has no selector of one version, stage or rev")
    ((parameter, value),) = asked.items()
    try:
        return Selector.parse(_name(name, "name"), **{str(parameter): _name(value, str(parameter))})
    except InvalidReceipt:
        raise
    except RegistryError as error:
        raise InvalidReceipt(f"asks for what cannot be: {error}") from None


def _path(value: object) -> RelPath | StorageUrl:
    text = _text(value, "path")
    if "://" not in text:
        return RelPath.parse(text) if text else RelPath.ROOT
    try:
        return StorageUrl.parse(text)
    except ValueError as error:
        raise InvalidReceipt(f"has no path or URL as its path: {error}") from None


def _file(value: object) -> ReceiptFile:
    if not isinstance(value, dict) or value.keys() != {"path", "md5", "size"}:
        raise InvalidReceipt("lists a file that is not an object of path, md5 and size")
    md5 = value["md5"]
    if md5 is not None and not (isinstance(md5, str) and _MD5.fullmatch(md5)):
        raise InvalidReceipt("lists a file without a valid MD5")
    return ReceiptFile(RelPath.parse(value["path"]), md5, _size(value["size"], "size"))
