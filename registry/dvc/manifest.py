"""Where objects lie in a DVC remote, and how one of them lists the files of a directory."""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from hashlib import md5
from io import BytesIO
from typing import Protocol

from registry.domain import Digest, Entry, RelPath, reject_conflicts
from registry.errors import InvalidMetadata

MOST_ENTRIES = 2_000_000

_PREFIX = "files/md5/"
_MD5 = re.compile(r"[0-9a-f]{32}")
# Most paths by far: nothing in them can start a part with a dot, escape, or be a drive. Whatever
# this does not match is left to RelPath.parse, which knows the whole rule.
_PART = r"[ !#-,0-9;-\[\]-~-][ !#-.0-9;-\[\]-~]{0,99}"
_HARMLESS = rf"{_PART}(?:/{_PART}){{0,9}}"
_HARMLESS_PATH = re.compile(_HARMLESS)
# What json.dumps puts around the MD5s and paths of a list, and DVC with it.
_BEFORE, _WITHIN, _BETWEEN, _AFTER = b'[{"md5": "', b'", "relpath": "', b'"}, {"md5": "', b'"}]'
_ODD_LINE = re.compile(rf"^(?![0-9a-f]{{32}}\t{_HARMLESS}$)".encode(), re.MULTILINE)
_PIECE = 1 << 22
_SLASH_FIRST = bytes.maketrans(b"/", b"\0")


def object_key(md5: str, legacy: bool) -> str:
    """The key of an object below the URL of its remote (dvc/cachemgr.py).

        <url>/files/md5/ab/cdef...        DVC 3: the output has `hash: md5`
        <url>/files/md5/ab/cdef....dir    the same for the manifest of a directory
        <url>/ab/cdef...                  DVC 2: it has no `hash`

    `md5` has passed Digest, or parse below. The files of a directory lie as its manifest does.
    """
    return f"{'' if legacy else _PREFIX}{md5[:2]}/{md5[2:]}"


class Lines(Protocol):
    """Text by lines, each with its end. To be iterated by several threads, and again and again."""

    def __iter__(self) -> Iterator[bytes]:
        """The lines from the first one on."""
        ...

    @property
    def weight(self) -> int:
        """The bytes of memory that it takes."""
        ...


@dataclass(frozen=True)
class Text:
    """Lines in memory."""

    data: bytes = field(repr=False)

    def __iter__(self) -> Iterator[bytes]:
        return BytesIO(self.data)  # which shares the bytes, and splits them one by one

    @property
    def weight(self) -> int:
        """All of it."""
        return len(self.data)


@dataclass(frozen=True, eq=False)
class Listing(Collection[Entry]):
    """The files of a directory, in the order of its manifest. Iterating makes the entries.

    `lines` holds one for each, 32 digits of MD5 and a path: a million entries would take 400 MB,
    and their text takes 80. Paths are below `base`, keys begin with `prefix`.
    """

    lines: Lines = field(repr=False)
    count: int
    base: RelPath
    prefix: str

    @classmethod
    def of(cls, lines: Lines, count: int, base: RelPath, legacy: bool) -> "Listing":
        """The files of a directory at `base`, `legacy` as for object_key."""
        return cls(lines, count, base, "" if legacy else _PREFIX)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Entry]:
        above, prefix = f"{self.base}/" if self.base else "", self.prefix
        for line in self.lines:
            text = line.decode()
            md5 = text[:32]
            path = RelPath(above + text[32:-1])
            yield Entry(path, f"{prefix}{md5[:2]}/{md5[2:]}", md5)

    def __contains__(self, entry: object) -> bool:
        return any(entry == one for one in self)

    def below(self, directory: RelPath) -> "Listing":
        """Those files that are `directory` or lie below it."""
        if self.base.within(directory):
            return self
        start = directory.relative_to(self.base).encode()
        lines = [
            line
            for line in self.lines
            if line[32:].startswith(start) and line[32 + len(start) :][:1] in (b"/", b"\n")
        ]
        return replace(self, lines=Text(b"".join(lines)), count=len(lines))


def parse(
    data: bytes | bytearray, digest: Digest, file: str, base: RelPath, legacy: bool
) -> Listing:
    """The files of a directory at `base`, `legacy` as for object_key.

    `data` is a `.dir` object, a JSON list of `{"md5": "...", "relpath": "a/b.txt"}`; `digest` is
    the one it was asked for by, `file` its name for messages. Raises InvalidMetadata when the
    bytes are others or make no sense, and UnsafePath for files that no client must write.
    """
    if f"{md5(data, usedforsecurity=False).hexdigest()}.dir" != digest.md5:
        raise InvalidMetadata(file, "the object does not have the MD5 it is named by")
    written, count = BytesIO(), 0
    last: bytes | None = b""
    for piece in _pieces(data):
        lines = _lines_of_dvc(piece) or _lines_of_json(piece, file)
        written.write(lines)
        count += lines.count(b"\n")
        last = None if last is None else _ordered(lines, last)
    if count > MOST_ENTRIES:
        raise InvalidMetadata(file, f"not a list of at most {MOST_ENTRIES} files")
    text = Text(written.getvalue())
    if last is None:
        reject_conflicts(RelPath(line[32:-1].decode()) for line in text)
    return Listing.of(text, count, base, legacy)


def _pieces(data: bytes | bytearray) -> Iterator[bytes]:
    """The text of a list as the texts of short lists, if it is spelled as DVC does it, or as it is.

    What is cut apart between two objects that are well-formed was a list of both, and what would
    be well-formed in one piece alone is nested, and no list of files either.
    """
    end = len(data) - len(_AFTER)
    start = len(_BEFORE)
    if not (data.startswith(_BEFORE) and data.endswith(_AFTER) and start <= end):
        yield bytes(data)
        return
    while start <= end:
        stop = data.find(_BETWEEN, start + _PIECE, end)
        stop = end if stop < 0 else stop
        yield b"%b%b%b" % (_BEFORE, bytes(data[start:stop]), _AFTER)
        start = stop + len(_BETWEEN)


def _lines_of_dvc(data: bytes) -> bytes | None:
    """The lines of a list that is spelled as DVC does it, with harmless paths alone; None for any
    other. Without JSON, whose objects take most of the time: once there is neither a line end nor
    a tab in the list, each of both stands for just what it replaced.
    """
    inner = data.removeprefix(_BEFORE).removesuffix(_AFTER)
    is_whole = len(data) - len(inner) == len(_BEFORE) + len(_AFTER)
    if not is_whole or b"\n" in inner or b"\t" in inner:
        return None
    lines = inner.replace(_BETWEEN, b"\n").replace(_WITHIN, b"\t")
    if _ODD_LINE.search(lines):
        return None
    return lines.replace(b"\t", b"") + b"\n"


def _lines_of_json(data: bytes, file: str) -> bytes:
    # Before anything is built: brackets of nothing take twenty times the memory of their text.
    if data.count(b"{") + data.count(b"[") + data.count(b",") > 8 * MOST_ENTRIES:
        raise InvalidMetadata(file, f"not a list of at most {MOST_ENTRIES} files")
    if data.count(b"[") - data.count(b"{") > MOST_ENTRIES // 10:
        raise InvalidMetadata(file, "a file is not listed as an object of md5 and relpath")
    lines = BytesIO()

    def take(entry: dict[str, object]) -> None:
        # As soon as it is read: a million dictionaries at once would take half a gigabyte.
        listed, path = _entry(entry, file)
        lines.write(f"{listed}{path}\n".encode())

    try:
        taken = json.loads(
            data.decode(), object_hook=take, parse_int=_no_number, parse_float=_no_number
        )
    except (ValueError, RecursionError) as error:
        nested = isinstance(error, RecursionError)
        problem = "nested too deeply" if nested else "not valid JSON in UTF-8"
        raise InvalidMetadata(file, problem) from None
    text = lines.getvalue()
    if not isinstance(taken, list) or len(taken) > MOST_ENTRIES:
        raise InvalidMetadata(file, f"not a list of at most {MOST_ENTRIES} files")
    if any(entry is not None for entry in taken) or len(taken) != text.count(b"\n"):
        raise InvalidMetadata(file, "a file is not listed as an object of md5 and relpath")
    return text


def _ordered(lines: bytes, last: bytes) -> bytes | None:
    """The last path, if all come after `last` in an order in which what excludes another would come
    right after it, as they mostly do, and none excludes another. None decides nothing.
    """
    for line in BytesIO(lines.translate(_SLASH_FIRST)):
        path = line[32:-1]
        if path <= last or path.startswith(last + b"\0"):
            return None
        last = path
    return last


def _entry(entry: dict[str, object], file: str) -> tuple[str, RelPath]:
    digest, path = entry.get("md5"), entry.get("relpath")
    if not isinstance(digest, str) or not _MD5.fullmatch(digest):
        raise InvalidMetadata(file, f"not the MD5 of a file: {str(digest)[:50]!r}")
    if not isinstance(path, str):
        raise InvalidMetadata(file, "a file is listed without its relpath")
    if _HARMLESS_PATH.fullmatch(path):
        return digest, RelPath(path)
    return digest, RelPath.parse(path)


def _no_number(_: str) -> int:
    """Numbers are no part of a manifest; converting a long one would take quadratic time."""
    return 0
