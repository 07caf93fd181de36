"""Uploads that clients make to the store themselves, in parts, by links.

    begin      <url>/.parts/<name>, begun in parts; a link for each part
    finish     put together by the store, read once to know its MD5, copied by the store to the
               name of its object, and removed
    abandon    whatever there is of it, removed

A client writes only below `.parts`, and only until the parts are put together: the store knows no
such upload any more then, so that what was read is what is copied. What an upload is for is sealed
into its id, and nothing else is remembered of it: any process goes on with what another one began.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from hashlib import md5
from typing import NamedTuple
from uuid import uuid4

import urllib3
from itsdangerous import BadData, URLSafeSerializer

from registry.dvc.manifest import object_key
from registry.errors import InvalidRequest, StorageUnavailable
from registry.storage.bucket import Bucket, listing

LIFETIME = 21_600
"""Seconds that the links live."""
LEFT = timedelta(days=1)
"""After which an upload that nobody finished is removed."""

_PLACE = ".parts"
"""Not `.uploads`, which SeaweedFS takes for its own, and shows to nobody."""
_COPIED = 1 << 30
"""Bytes that the store copies in one request: five times as many are allowed."""
_CHUNK = 1 << 20
_UNKNOWN = "the store has others, or no such upload any more"
_TOO_SMALL = "all but the last must have 5 MiB: send fewer and larger ones"
_TAG = re.compile(r'"?[0-9A-Za-z._-]{1,128}"?')
_LISTED = re.compile(rb"<(Upload|Contents)>(.{1,8000}?)</\1>", re.DOTALL)


class Kept(NamedTuple):
    """An object that is where it belongs."""

    md5: str
    size: int


class Begun(NamedTuple):
    """An upload, by an id that only this service can read, and a link for each part."""

    id: str
    links: list[str]


class Parts:
    """The uploads to one place. Safe to share between threads."""

    def __init__(self, bucket: Bucket, keys: Sequence[str], copied: int = _COPIED) -> None:
        """`keys` seal ids, oldest first; `copied` is how much the store copies in one request."""
        self._bucket = bucket
        self._copied = copied
        self._swept: datetime | None = None
        self._seal = URLSafeSerializer(
            list(keys),
            salt="registry.parts",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    def begin(self, about: str, count: int) -> Begun:
        """Begins an upload of so many parts; `about` says what it is for.

        Raises StorageUnavailable or CredentialsUnavailable.
        """
        now = self._bucket.now
        if self._swept is None or now - self._swept > LEFT:
            self._swept = now
            self._sweep(now - LEFT)
        name = uuid4().hex
        path = self._path(name)
        upload = self._bucket.begin(path)
        links = [
            self._bucket.signer.part(path, upload, number, now, LIFETIME)
            for number in range(1, count + 1)
        ]
        return Begun(self._seal.dumps([name, upload, about]), links)

    def finish(self, about: str, upload_id: str, parts: Sequence[tuple[int, str]]) -> Kept:
        """Makes an object of an upload: it is there when this returns.

        May be said again, as long as it was not done. Raises InvalidRequest, StorageUnavailable or
        CredentialsUnavailable.
        """
        path, upload = self._opened(about, upload_id)
        if not parts or not all(_TAG.fullmatch(tag) for _, tag in parts):
            raise InvalidRequest("parts", "not those of an upload")
        body = listing(sorted(parts))
        answer = self._bucket.ask("POST", path, {"uploadId": upload}, body)
        is_down = answer.status >= 500 or b"<Code>InternalError<" in answer.data[:2000]
        if is_down or answer.status == 403:
            raise self._bucket.refused(path, answer.status)
        done = answer.status == 200 and b"<Error" not in answer.data[:2000]
        if not done and self._bucket.size(path) is None:  # or else it was put together before
            small = b"<Code>EntityTooSmall<" in answer.data[:2000]
            raise InvalidRequest("parts", _TOO_SMALL if small else _UNKNOWN)
        kept = self._read(path)
        self._copy(path, kept)
        self._bucket.ask("DELETE", path)
        return kept

    def abandon(self, about: str, upload_id: str) -> None:
        """Removes whatever there is of an upload. Raises the same."""
        path, upload = self._opened(about, upload_id)
        self._bucket.ask("DELETE", path, {"uploadId": upload})
        self._bucket.ask("DELETE", path)

    def _opened(self, about: str, upload_id: str) -> tuple[str, str]:
        """Where an upload is, and what the store calls it."""
        try:
            name, upload, known = self._seal.loads(upload_id)
        except (BadData, ValueError, TypeError):
            known = None
        if known != about:
            raise InvalidRequest("upload_id", "not one that was given for this file")
        return self._path(name), upload

    def _path(self, name: str = "") -> str:
        url = self._bucket.url
        return "/".join(it for it in (url.path.rstrip("/"), _PLACE, name) if it)

    def _read(self, path: str) -> Kept:
        """Reads all of an object, and keeps nothing but what it is."""
        answer = self._bucket.ask("GET", path, whole=False)
        digest, size = md5(usedforsecurity=False), 0
        try:
            if answer.status != 200:
                raise self._bucket.refused(path, answer.status)
            for chunk in answer.stream(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        except urllib3.exceptions.HTTPError:
            raise self._bucket.refused(path, answer.status) from None
        finally:
            answer.close()  # what was not read is not for the next one to find
            answer.release_conn()
        if str(size) != answer.headers.get("Content-Length"):
            raise self._bucket.refused(path, answer.status)
        return Kept(digest.hexdigest(), size)

    def _copy(self, path: str, kept: Kept) -> None:
        """Lets the store copy what arrived to the name of its object, unless it is there."""
        target = self._bucket.url.below(object_key(kept.md5, legacy=False)).path
        source = {"x-amz-copy-source": self._bucket.signer.source(path)}
        if self._bucket.size(target) == kept.size:
            return
        if kept.size <= self._copied:
            self._bucket.must("PUT", target, headers=source)
        else:

            def send(number: int, upload: str, start: int, length: int) -> str:
                where = f"bytes={start}-{start + length - 1}"
                answer = self._bucket.must(
                    "PUT",
                    target,
                    {"partNumber": str(number), "uploadId": upload},
                    headers={**source, "x-amz-copy-source-range": where},
                )
                return _field(answer.data, "ETag")

            self._bucket.in_parts(target, kept.size, self._copied, send)
        if self._bucket.size(target) != kept.size:
            raise StorageUnavailable(str(self._bucket.url), "it copied something else")

    def _sweep(self, before: datetime) -> None:
        """Removes what was begun before and never finished, where that may be listed."""
        prefix = f"{self._path()}/"
        # The names of the parameters are sorted, as signatures have them.
        for parameters in ({"prefix": prefix, "uploads": ""}, {"list-type": "2", "prefix": prefix}):
            with suppress(StorageUnavailable):
                answer = self._bucket.ask("GET", "", parameters)
                for path, upload in _old(answer.data, prefix, before):
                    self._bucket.ask("DELETE", path, {"uploadId": upload} if upload else None)


def _old(listed: bytes, prefix: str, before: datetime) -> Iterator[tuple[str, str]]:
    """The paths of what is as old, and what the store calls an upload that is under way."""
    for kind, text in _LISTED.findall(listed):
        path, upload = _field(text, "Key"), _field(text, "UploadId")
        moment = _field(text, "Initiated" if kind == b"Upload" else "LastModified")
        with suppress(ValueError):
            # Python 3.10 does not know Z.
            old = datetime.fromisoformat(moment.replace("Z", "+00:00")) < before
            if old and re.fullmatch(re.escape(prefix) + "[0-9a-f]{32}", path):
                yield path, upload


def _field(text: bytes, name: str) -> str:
    """What an element holds, nothing if there is none."""
    found = re.search(f"<{name}>([^<]{{1,1024}})</{name}>".encode(), text)
    return _unescaped(found[1]) if found else ""


def _unescaped(text: bytes) -> str:
    found = text.decode("utf-8", "replace").replace("&quot;", '"').replace("&#34;", '"')
    return found.replace("&amp;", "&")
