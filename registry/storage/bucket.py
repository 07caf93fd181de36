"""What this service itself asks of an S3 bucket about single objects, without boto3."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import IO
from xml.sax.saxutils import escape

import urllib3

from registry.domain import StorageUrl
from registry.errors import StorageUnavailable
from registry.storage.s3 import S3Signer

_UPLOAD_ID = re.compile(rb"<UploadId>([^<]{1,1024})</UploadId>")
_TIMEOUT = urllib3.Timeout(connect=2, read=60)

Body = IO[bytes] | Iterator[bytes] | bytes | None
MOST = 10_000
"""Parts of one upload."""

Send = Callable[[int, str, int, int], str]
"""(number, upload, start, length) -> the ETag of a part."""


class Bucket:
    """The objects below a URL, and around it. Safe to share between threads."""

    def __init__(self, url: StorageUrl, signer: S3Signer, clock: Callable[[], float]) -> None:
        self.url = url
        self.signer = signer
        self._clock = clock
        self._pool = urllib3.PoolManager(retries=False, maxsize=8, timeout=_TIMEOUT)

    @property
    def now(self) -> datetime:
        """What links are signed at."""
        return datetime.fromtimestamp(self._clock(), timezone.utc)

    def ask(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        *,
        whole: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        """What the store answers, as a whole or still to be read. Raises StorageUnavailable."""
        given = dict(headers or {})
        signed = {name: value for name, value in given.items() if name.startswith("x-amz-")}
        url = self.signer.request(method, path, self.now, parameters, signed)
        try:
            return self._pool.request(
                method, url, body=body, headers=given, redirect=False, preload_content=whole
            )
        except urllib3.exceptions.HTTPError as error:
            # Its text quotes the URL, and with it the signature.
            problem = f"it does not take an object: {type(error).__name__}"
            raise StorageUnavailable(self._shown(path), problem) from None

    def must(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        body: Body = None,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """The same of what has to succeed."""
        answer = self.ask(method, path, parameters, body, headers)
        # S3 may say 200 at once, and only then what went wrong.
        if answer.status not in (200, 204) or b"<Error" in answer.data[:2000]:
            raise self.refused(path, answer.status)
        return answer

    def size(self, path: str) -> int | None:
        """How large an object is, None if there is none."""
        answer = self.ask("HEAD", path)
        if answer.status not in (200, 404):
            raise self.refused(path, answer.status)
        return int(answer.headers.get("Content-Length", -1)) if answer.status == 200 else None

    def begin(self, path: str) -> str:
        """Begins an upload in parts, and returns its id."""
        answer = self.must("POST", path, {"uploads": ""})
        begun = _UPLOAD_ID.search(answer.data)
        if begun is None:
            raise self.refused(path, answer.status)
        return begun[1].decode("ascii", "replace")

    def in_parts(self, path: str, size: int, part: int, send: Send) -> None:
        """Puts an object together from its `pieces`, each of which `send` brings there."""
        upload = self.begin(path)
        finished = False
        try:
            sent = [
                (number, send(number, upload, start, length))
                for number, (start, length) in enumerate(pieces(size, part), 1)
            ]
            self.must("POST", path, {"uploadId": upload}, body=listing(sent))
            finished = True
        finally:
            if not finished:
                with suppress(StorageUnavailable):
                    self.ask("DELETE", path, {"uploadId": upload})

    def refused(self, path: str, status: int) -> StorageUnavailable:
        """What to raise for a status that should not be."""
        return StorageUnavailable(self._shown(path), f"it answers {status}")

    def _shown(self, path: str) -> str:
        return str(StorageUrl(self.url.scheme, self.url.authority, path))


def pieces(size: int, part: int) -> Iterator[tuple[int, int]]:
    """(start, length) of the parts of an object: of `part` bytes, or of more if need be."""
    part = max(part, -(-size // MOST))
    return ((start, min(part, size - start)) for start in range(0, size, part))


def listing(parts: list[tuple[int, str]]) -> bytes:
    """The parts of an upload, by which S3 puts it together."""
    listed = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
        for number, tag in parts
    )
    return f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
