"""Objects that no URL leads to: the service opens them, and hands them out by the gateway."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import formatdate

from registry.domain import Entry, StorageUrl
from registry.storage import Links, Origin, Stream, lifespan, span
from registry.storage.gateway import GatewayLinks


@dataclass(frozen=True)
class Opened:
    """An object of `size` bytes, last changed at `modified` (Unix time), if that is known.

    `read(first, length)` gives its bytes in parts, and ends what it started when it is closed.
    """

    size: int
    read: Callable[[int, int], Iterator[bytes]] = field(repr=False)
    modified: float | None = None


class OpenedSigner:
    """Links to the objects below one place. Takes part in `registry.storage.Signer`.

    `open_object(path)` gives an object, None when it is not there, and raises StorageUnavailable
    or OriginUnavailable.
    """

    def __init__(
        self,
        scheme: str,
        authority: str,
        open_object: Callable[[str], Opened | None],
        gateway: GatewayLinks,
    ) -> None:
        self._scheme = scheme
        self._authority = authority
        self._open_object = open_object
        self._gateway = gateway

    @property
    def store(self) -> None:
        """None: whether it answers is found out when it is asked."""
        return None

    def links(self, now: datetime, lifetime: int) -> Links:
        """Gateway links that live `lifetime` seconds. Never raises CredentialsUnavailable."""
        _, expires = lifespan(now, lifetime)
        gateway = self._gateway
        return Links(expires, lambda path, entry: gateway.link(self._place(path), entry, expires))

    def origin(self, path: str, entry: Entry, now: datetime) -> Origin:  # noqa: ARG002 a Signer's
        """The object, to be opened when it is read."""

        def start(byte_range: str | None, method: str) -> Stream | None:
            found = self._open_object(path)
            return None if found is None else _stream(found, byte_range, method)

        return Origin(str(self._place(path)), start=start)

    def _place(self, path: str) -> StorageUrl:
        return StorageUrl(self._scheme, self._authority, path)


def _stream(found: Opened, byte_range: str | None, method: str) -> Stream:
    first, length = span(byte_range, found.size)
    headers = {"Content-Length": str(length), "Content-Type": "application/octet-stream"}
    if found.modified is not None:
        headers["Last-Modified"] = formatdate(found.modified, usegmt=True)
    code = 200
    if first is None:
        code, headers["Content-Range"] = 416, f"bytes */{found.size}"
    elif length < found.size:
        code, headers["Content-Range"] = 206, f"bytes {first}-{first + length - 1}/{found.size}"
    wanted = 0 if method == "HEAD" else length
    chunks = found.read(first or 0, wanted) if wanted else iter(())
    return Stream(code, headers, chunks, getattr(chunks, "close", lambda: None))
