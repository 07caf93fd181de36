"""Where objects lie in a DVC remote, and how one of them lists the files of a directory."""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from hashlib import md5
from io import BytesIO

from registry.domain import Digest, Entry, RelPath, reject_conflicts
from registry.errors import InvalidMetadata

MOST_ENTRIES = 2_000_000

_PREFIX = "files/md5/"
_MD5 = re.compile(r"[0-9a-f]{32}")
# Most paths by far: nothing in them can start a part with a dot, escape, or be a drive. Whatever
# this does not match is left to RelPath.parse, which knows the whole rule.
_HARMLESS = re.compile(
    r"[A-Za-z0-9_-][A-Za-z0-9_ .-]{0,99}(?:/[A-Za-z0-9_-][A-Za-z0-9_ .-]{0,99}){,9}"
)


def object_key(md5: str, legacy: bool) -> str:
    """The key of an object below the URL of its remote (dvc/cachemgr.py).

        <url>/files/md5/ab/cdef...        DVC 3: the output has `hash: md5`
        <url>/files/md5/ab/cdef....dir    the same for the manifest of a directory
        <url>/ab/cdef...                  DVC 2: it has no `hash`

    `md5` has passed Digest, or parse below. The files of a directory lie as its manifest does.
    """
    return f"{'' if legacy else _PREFIX}{md5[:2]}/{md5[2:]}"


@dataclass(frozen=True, eq=False)
class Listing(Collection[Entry]):
    """The files of a directory, in the order of its manifest. Iterating makes the entries.

    `text` holds a line for each, 32 digits of MD5 and a path: a million entries would take 400 MB,
    and their text takes 80. Paths are below `base`, keys begin with `prefix`.
    """

    text: bytes = field(repr=False)
    count: int
    base: RelPath
    prefix: str

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Entry]:
        above, prefix = f"{self.base}/" if self.base else "", self.prefix
        for line in BytesIO(self.text):  # which shares the bytes, and splits them one by one
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
            for line in BytesIO(self.text)
            if line[32:].startswith(start) and line[32 + len(start) :][:1] in (b"/", b"\n")
        ]
        return replace(self, text=b"".join(lines), count=len(lines))


def parse(data: bytes, digest: Digest, file: str, base: RelPath, legacy: bool) -> Listing:
    """The files of a directory at `base`, `legacy` as for object_key.

    `data` is a `.dir` object, a JSON list of `{"md5": "...", "relpath": "a/b.txt"}`; `digest` is
    the one it was asked for by, `file` its name for messages. Raises InvalidMetadata when the
    bytes are others or make no sense, and UnsafePath for files that no client must write.
    """
    if f"{md5(data, usedforsecurity=False).hexdigest()}.dir" != digest.md5:
        raise InvalidMetadata(file, "the object does not have the MD5 it is named by")
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
    reject_conflicts(RelPath(line[32:-1].decode()) for line in BytesIO(text))
    return Listing(text, len(taken), base, "" if legacy else _PREFIX)


def _entry(entry: dict[str, object], file: str) -> tuple[str, RelPath]:
    digest, path = entry.get("md5"), entry.get("relpath")
    if not isinstance(digest, str) or not _MD5.fullmatch(digest):
        raise InvalidMetadata(file, f"not the MD5 of a file: {str(digest)[:50]!r}")
    if not isinstance(path, str):
        raise InvalidMetadata(file, "a file is listed without its relpath")
    if _HARMLESS.fullmatch(path):
        return digest, RelPath(path)
    return digest, RelPath.parse(path)


def _no_number(_: str) -> int:
    """Numbers are no part of a manifest; converting a long one would take quadratic time."""
    return 0
