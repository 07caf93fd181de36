"""How a client reads what a link leads to: over HTTP, or from a directory of its own machine.

Unlike a service, a client follows redirects: a link is a stranger's in any case, what it leads to
is checked by its MD5, and it carries no credentials but its own.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

import urllib3

from registry.storage import Origin, Reader, Stream

CONNECT, SILENCE = 10.0, 60.0
"""Seconds to connect, and between two chunks."""
CHUNK = 1 << 20
"""Bytes."""
AGENT = "git-model-registry"

_REDIRECTS = urllib3.Retry(
    total=None, connect=0, read=0, status=0, other=0, redirect=5, raise_on_status=False
)
_REFUSALS = (400, 401, 403, 410)
"""What stores answer to links whose time is over: Azure and S3 403, AWS 400 to an old token."""
_LATER = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 60.0
_PROBLEMS = (
    (urllib3.exceptions.ProxySchemeUnknown, "its proxy is to be http or https, and is neither"),
    (urllib3.exceptions.NameResolutionError, "its host name cannot be resolved"),
    (urllib3.exceptions.NewConnectionError, "it cannot be reached"),  # which is a TimeoutError, too
    (urllib3.exceptions.TimeoutError, "it does not answer in time"),
    (urllib3.exceptions.SSLError, "its certificate does not hold"),
    (urllib3.exceptions.ProxyError, "the proxy does not let it be reached"),
    (urllib3.exceptions.ResponseError, "it redirects too often"),
    (urllib3.exceptions.HTTPError, "it breaks off the connection"),
)


@dataclass
class Refused(Exception):
    """The link does not hold, or not any more."""

    status: int


@dataclass
class Later(Exception):
    """It may work later: in `after` seconds, if the server says when."""

    problem: str
    after: float = 0.0


class Overrun(Exception):
    """There are no bytes from there on: what is here is longer than what is there."""


@dataclass(frozen=True)
class Proxies:
    """As HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY have them: `urls` by scheme, "all" and
    "no" among them. They may hold a password.
    """

    urls: Mapping[str, str] = field(default_factory=dict, repr=False)

    def of(self, url: str) -> str | None:
        """The proxy for a URL."""
        parts = urlsplit(url)
        found = self.urls.get(parts.scheme) or self.urls.get("all")
        if not found or proxy_bypass_environment(parts.netloc, self.urls):
            return None
        return found if "://" in found else f"http://{found}"


@dataclass(frozen=True)
class Download:
    """Bytes on their way, from the byte `first` on. Iterating raises Later when they break off."""

    first: int
    chunks: Iterator[bytes]

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks


class Connections:
    """Connections that are kept for a download, `count` to a server. Close it in the end.

    `ca_bundle` is a file of certificates to trust instead of the system's.
    """

    def __init__(
        self, count: int, proxies: Proxies | None = None, ca_bundle: str | None = None
    ) -> None:
        self._proxies = proxies or Proxies()
        self._count = count
        self._ca_bundle = ca_bundle
        self._direct = urllib3.PoolManager(retries=False, maxsize=count, ca_certs=ca_bundle)
        self._proxied: dict[str, urllib3.ProxyManager] = {}
        self._reader = Reader()
        self._lock = threading.Lock()
        self._open: set[urllib3.BaseHTTPResponse] = set()

    def close(self) -> None:
        """Closes all of them."""
        for pool in (self._direct, *self._proxied.values()):
            pool.clear()
        with self._reader:
            pass

    def stop(self) -> None:
        """Ends every read that is under way, in whatever thread."""
        with self._lock:
            for response in self._open:
                with suppress(Exception):
                    response.shutdown()

    def pool(self, url: str) -> urllib3.PoolManager:
        """The connections by which a URL is reached."""
        proxy = self._proxies.of(url)
        if proxy is None:
            return self._direct
        with self._lock:
            if proxy not in self._proxied:
                parts = urlsplit(proxy)
                named = f"{parts.username}:{parts.password or ''}" if parts.username else None
                headers = urllib3.make_headers(proxy_basic_auth=named)
                self._proxied[proxy] = urllib3.ProxyManager(
                    proxy,
                    proxy_headers=headers,
                    retries=False,
                    maxsize=self._count,
                    ca_certs=self._ca_bundle,
                )
            return self._proxied[proxy]

    @contextmanager
    def open(self, origin: Origin, first: int) -> Iterator[Download | None]:
        """The bytes from `first` on, or all of them if the server does not send ranges; None when
        the object is not there. Raises Refused, Later, Overrun, and StorageUnavailable for a file.
        """
        if origin.root is not None:
            span = f"bytes={first}-" if first else None
            stream = self._reader.stream(origin, span)
            if stream is None:
                yield None
                return
            with closing(stream):
                yield _of_file(stream, first)
            return
        response = self._ask(origin, first)
        with self._lock:
            self._open.add(response)
        try:
            yield _answered(response)
        finally:
            with self._lock:
                self._open.discard(response)
            response.close()
            response.release_conn()

    def _ask(self, origin: Origin, first: int) -> urllib3.BaseHTTPResponse:
        # Compressed on the way, the bytes would no longer be those that the digest was made of.
        headers = {"User-Agent": AGENT, "Accept-Encoding": "identity", **origin.headers}
        if first:
            headers["Range"] = f"bytes={first}-"
        try:
            return self.pool(origin.url).request(
                "GET",
                origin.url,
                headers=headers,
                timeout=urllib3.Timeout(connect=CONNECT, read=SILENCE),
                redirect=not origin.headers,  # credentials of ours are for one server alone
                retries=False if origin.headers else _REDIRECTS,
                preload_content=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise Later(problem_of(error)) from None


def problem_of(error: urllib3.exceptions.HTTPError) -> str:
    """What went wrong, without the URL that the error quotes, and the signature in that."""
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, urllib3.exceptions.HTTPError) else error
    return next(text for kind, text in _PROBLEMS if isinstance(cause, kind))


def wait_of(headers: Mapping[str, str]) -> float:
    """The seconds of Retry-After, a minute at most; 0 when there is none, or it is a date."""
    text = headers.get("Retry-After", "")
    return min(float(text), _LONGEST_WAIT) if text.isascii() and text.isdigit() else 0.0


def _answered(response: urllib3.BaseHTTPResponse) -> Download | None:
    status = response.status
    if status in (200, 206):
        begin = 0 if status == 200 else _begin(response)
        return Download(begin, _chunks(response))
    if status == 416:
        raise Overrun
    if status == 404:
        return None
    if status in _REFUSALS:
        raise Refused(status)
    raise Later(f"it answers {status}", wait_of(response.headers) if status in _LATER else 0.0)


def _begin(response: urllib3.BaseHTTPResponse) -> int:
    """The first byte of a partial answer; -1 for one that makes no sense."""
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    begin = span.partition("-")[0]
    return int(begin) if unit == "bytes" and begin.isascii() and begin.isdigit() else -1


def _chunks(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read1(CHUNK, decode_content=False):
            yield chunk
    except urllib3.exceptions.HTTPError as error:
        raise Later(problem_of(error)) from None


def _of_file(stream: Stream, first: int) -> Download:
    return Download(first if stream.status == 206 else 0, iter(stream))
