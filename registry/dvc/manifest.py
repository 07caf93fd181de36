"""Where objects lie in a DVC remote, and how one of them lists the files of a directory."""

import json
import re
from hashlib import md5

from registry.domain import Digest, RelPath, reject_conflicts
from registry.errors import InvalidMetadata

MOST_ENTRIES = 2_000_000

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
    return f"{'' if legacy else 'files/md5/'}{md5[:2]}/{md5[2:]}"


def parse(data: bytes, digest: Digest, file: str) -> tuple[tuple[RelPath, str], ...]:
    """The files of a directory, each with the MD5 of its contents, in the order of the manifest.

    `data` is a `.dir` object, a JSON list of `{"md5": "...", "relpath": "a/b.txt"}`; `digest` is
    the one it was asked for by, `file` its name for messages. Raises InvalidMetadata when the
    bytes are others or make no sense, and UnsafePath for files that no client must write.
    """
    if f"{md5(data, usedforsecurity=False).hexdigest()}.dir" != digest.md5:
        raise InvalidMetadata(file, "the object does not have the MD5 it is named by")
    try:
        listed = json.loads(data.decode(), parse_int=_no_number, parse_float=_no_number)
    except (ValueError, RecursionError) as error:
        nested = isinstance(error, RecursionError)
        problem = "nested too deeply" if nested else "not valid JSON in UTF-8"
        raise InvalidMetadata(file, problem) from None
    if not isinstance(listed, list) or len(listed) > MOST_ENTRIES:
        raise InvalidMetadata(file, f"not a list of at most {MOST_ENTRIES} files")
    entries = tuple([_entry(entry, file) for entry in listed])
    reject_conflicts(path for path, _ in entries)
    return entries


def _entry(entry: object, file: str) -> tuple[RelPath, str]:
    if not isinstance(entry, dict):
        raise InvalidMetadata(file, "a file is not listed as an object of md5 and relpath")
    digest, path = entry.get("md5"), entry.get("relpath")
    if not isinstance(digest, str) or not _MD5.fullmatch(digest):
        raise InvalidMetadata(file, f"not the MD5 of a file: {str(digest)[:50]!r}")
    if not isinstance(path, str):
        raise InvalidMetadata(file, "a file is listed without its relpath")
    if _HARMLESS.fullmatch(path):
        return RelPath(path), digest
    return RelPath.parse(path), digest


def _no_number(_: str) -> None:
    """Numbers are no part of a manifest; converting a long one would take quadratic time."""
