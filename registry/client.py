"""A registry service, asked over HTTP: what an artifact means there, and links to its files.

Service           a token, patience, and errors of ours
  receipt         GET /api/v1/resolve: what a selector means, to the last file
  ReceiptLinks    GET /api/v1/urls: links to those very files, and fresh ones when they are over
  studio          GET /api/model-registry/get-download-uris, of a service without receipts
"""

import json
import random
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard
from urllib.parse import urlencode, urlsplit

import urllib3

from registry.connections import AGENT, CONNECT, Connections, problem_of, wait_of
from registry.domain import RelPath, Selector, reject_conflicts
from registry.errors import (
    ArtifactMoved,
    Forbidden,
    InvalidRequest,
    NotARegistry,
    NotFoundThere,
    ServiceUnavailable,
    TokenRefused,
    UnsignableThere,
)
from registry.receipt import Receipt, ReceiptFile
from registry.storage import Origin

PATIENCE = 60.0
"""Seconds that a service is asked again for, while it says that it may answer later."""
CLONING = 600.0
"""The same while it clones the repository for the first time."""
SILENCE = 30.0
"""Seconds between two parts of an answer."""
LARGEST = 512 << 20
"""Bytes of the largest answer: a receipt of two million files."""
PAGE = 1000
"""Files whose links are asked for at once."""

_API = "/api/v1"
_STUDIO = "/api/model-registry/get-download-uris"
_ROUTE_MISSING = ("", "not_found")
"""The `code` of a 404 that is about the URL, and not about what was asked for."""
_KEY = re.compile(r"/([0-9a-f]{2})/([0-9a-f]{30})")
_SCOPE = re.compile(r"\bscope ([a-z]+:[a-z]+)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_UNREACHED, _SHORTEST_PAUSE, _LONGEST_PAUSE = 4, 0.25, 10.0


@dataclass(frozen=True)
class Answer:
    """What a service said: a JSON value, and headers."""

    value: object
    headers: Mapping[str, str] = field(repr=False)


class Service:
    """The registry at `url`, for whoever holds `token`. Safe to share between threads.

    Raises InvalidRequest for a URL or a token that cannot be one.
    """

    def __init__(self, url: str, token: str | None, connections: Connections) -> None:
        if not _is_web(url) or "@" in urlsplit(url).netloc:
            raise InvalidRequest(
                "url", "the http(s) URL of a registry, such as https://registry.it"
            )
        self.url = url.partition("?")[0].rstrip("/")
        self.connections = connections
        self._headers = {"User-Agent": AGENT, "Accept": "application/json"}
        if token:
            # It would be quoted by whoever finds that it cannot be sent.
            if not re.fullmatch(r"[!-~]+", token):
                raise InvalidRequest("token", "it holds a space, a line end or what is not ASCII")
            self._headers["Authorization"] = f"token {token}"

    def __repr__(self) -> str:
        return f"Service({self.url!r})"

    def get(self, path: str, query: Mapping[str, str]) -> Answer:
        """The answer of a route. Waits for one that is to come later.

        Raises what the service says is wrong: InvalidRequest, TokenRefused, Forbidden,
        NotFoundThere, UnsignableThere, ServiceUnavailable; or NotARegistry.
        """
        url = f"{self.url}{path}?{urlencode(query)}"
        begun = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            status, headers, body = self._try(url)
            if 0 < status < 500 and status != 429:
                return self._read(status, headers, body)
            detail, code = _said(body)
            problem = detail or (f"it answers {status}" if status else body.decode())
            pause = wait_of(headers) or _backoff(attempt)
            patience = CLONING if code == "mirror_not_ready" else PATIENCE
            too_often = not status and attempt >= _UNREACHED
            if too_often or time.monotonic() + pause > begun + patience:
                raise ServiceUnavailable(self.url, problem.rstrip("."), max(1, round(pause)))
            time.sleep(pause)

    def receipt(self, repository: str, selector: Selector) -> Receipt | None:
        """What the selector means right now; None when the service knows no receipts.

        Raises as `get` does, InvalidReceipt and UnsafePath.
        """
        try:
            answer = self.get(f"{_API}/resolve", {"repo": repository, **_query(selector)})
        except NotFoundThere as error:
            if error.code in _ROUTE_MISSING:
                return None
            raise
        receipt = Receipt.of_json(answer.value)
        if receipt.selector != selector:
            raise NotARegistry(self.url, f"it was asked for {selector.artifact}, and gives another")
        return receipt

    def links(self, receipt: Receipt, after: int) -> list[str]:
        """Links to the files of a receipt without the first `after`, PAGE of them at most.

        Raises as `get` does.
        """
        query = {"receipt": receipt.digest, "after": str(after), "limit": str(PAGE)}
        value = self.get(f"{_API}/urls", query).value
        files = value.get("files") if isinstance(value, dict) else None
        if not isinstance(files, list) or not files:
            raise NotARegistry(self.url, "it lists no links")
        return [self._link(file.get("url") if isinstance(file, dict) else None) for file in files]

    def studio(self, repository: str, selector: Selector) -> "StudioLinks":
        """The same by the route of DVC Studio. Raises as `get` does, and UnsafePath."""
        return StudioLinks(self, repository, selector)

    def download_uris(self, repository: str, selector: Selector) -> tuple[dict[RelPath, str], str]:
        """Path -> link by the route of DVC Studio; and the revision, empty where it is not told.

        Raises as `get` does, UnsafePath, and InvalidRequest for a revision, which the route would
        overlook.
        """
        if selector.revision:
            raise InvalidRequest("rev", "this service takes a version or a stage")
        answer = self.get(_STUDIO, {"repo": repository, **_query(selector)})
        if not isinstance(answer.value, dict) or not answer.value:
            raise NotARegistry(self.url, "it lists no links")
        found = {RelPath.parse(path): self._link(url) for path, url in answer.value.items()}
        reject_conflicts(found)
        return found, answer.headers.get("X-Registry-Revision", "")

    def _link(self, url: object) -> str:
        if not _is_text(url) or not _is_web(url):
            raise NotARegistry(self.url, "it lists a link that is no http(s) URL")
        return url

    def _try(self, url: str) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body; status 0, and the problem as the body, without an answer."""
        try:
            response = self.connections.pool(url).request(
                "GET",
                url,
                headers=self._headers,
                timeout=urllib3.Timeout(connect=CONNECT, read=SILENCE),
                redirect=False,
                retries=False,
                preload_content=False,
            )
            try:
                body = response.read(LARGEST + 1, decode_content=True)
            finally:
                response.close()
                response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            return 0, {}, problem_of(error).encode()
        return response.status, response.headers, body

    def _read(self, status: int, headers: Mapping[str, str], body: bytes) -> Answer:
        if status == 200:
            if len(body) > LARGEST:
                raise NotARegistry(self.url, f"its answer has more than {LARGEST >> 20} MiB")
            try:
                return Answer(json.loads(body), headers)
            except (ValueError, RecursionError):
                raise NotARegistry(self.url, "its answer is not JSON") from None
        detail, code = _said(body)
        if status == 400 and detail:
            parameter, found, problem = detail.partition(": ")
            raise InvalidRequest(*((parameter, problem) if found else ("request", detail)))
        if status == 401:
            raise TokenRefused(detail, self.url)
        if status == 403:
            scope = _SCOPE.search(detail)
            raise Forbidden(scope[1] if scope else "models:read")
        if status == 404:
            raise NotFoundThere(detail or "The service does not know it.", code)
        if status in (422, 424) and detail:
            raise UnsignableThere(detail, code)
        if 300 <= status < 400:
            raise NotARegistry(self.url, "it redirects: use the URL that it redirects to")
        raise NotARegistry(self.url, f"it answers {status}")


class ReceiptLinks:
    """Links to the files of a receipt, from the service that gave it. For `registry.transfer`."""

    def __init__(self, service: Service, receipt: Receipt) -> None:
        self._service = service
        self._receipt = receipt
        self._places = {file.path: place for place, file in enumerate(receipt.files)}
        self._pages: dict[int, list[Origin]] = {}
        self._lock = threading.Lock()

    def origin(self, file: ReceiptFile, stale: Origin | None) -> Origin:
        """A link to the file: another one than `stale`. Raises as `Service.get` does."""
        number, place = divmod(self._places[file.path], PAGE)
        with self._lock:  # whoever else needs the page waits for it
            page = self._pages.get(number)
            if page is None or page[place] is stale:
                links = self._service.links(self._receipt, number * PAGE)
                if len(links) != min(PAGE, len(self._places) - number * PAGE):
                    raise NotARegistry(self._service.url, "it lists fewer links than files")
                page = self._pages[number] = [Origin(link) for link in links]
            return page[place]


class StudioLinks:
    """Links by the route of DVC Studio, which knows no receipts. For `registry.transfer`.

    `files` have an MD5 where the link shows it: DVC names its objects by it. Fresh links must be to
    the same objects: a stage may have moved, and two models must not be mixed.
    """

    def __init__(self, service: Service, repository: str, selector: Selector) -> None:
        self._service = service
        self._asked = repository, selector
        self._lock = threading.Lock()
        self._origins, self.revision = self._ask()
        self.files = [
            ReceiptFile(path, _md5_in(origin.url)) for path, origin in self._origins.items()
        ]

    @property
    def links(self) -> dict[str, str]:
        """Path -> link."""
        return {path: origin.url for path, origin in self._origins.items()}

    def origin(self, file: ReceiptFile, stale: Origin | None) -> Origin:
        """A link to the file: another one than `stale`. Raises as `Service.get` does, and
        ArtifactMoved.
        """
        with self._lock:
            if self._origins[file.path] is stale:
                origins, revision = self._ask()
                if revision != self.revision or not _same(origins, self._origins):
                    raise ArtifactMoved(str(self._asked[1].artifact))
                self._origins = origins
            return self._origins[file.path]

    def _ask(self) -> tuple[dict[RelPath, Origin], str]:
        links, revision = self._service.download_uris(*self._asked)
        return {path: Origin(link) for path, link in links.items()}, revision


def _same(fresh: Mapping[RelPath, Origin], stale: Mapping[RelPath, Origin]) -> bool:
    # A gateway's link is another one each time; then the revision says that it is the same.
    digests = [{path: _md5_in(it.url) for path, it in links.items()} for links in (fresh, stale)]
    return digests[0] == digests[1]


def _md5_in(url: str) -> str | None:
    """The MD5 that a link ends with, as DVC's do: `.../files/md5/ab/cdef...`"""
    found = _KEY.fullmatch(urlsplit(url).path[-34:])
    return found[1] + found[2] if found else None


def _query(selector: Selector) -> dict[str, str]:
    query = {"name": str(selector.artifact)}
    for parameter in ("version", "stage", "revision"):
        value: str | None = getattr(selector, parameter)
        if value:
            query["rev" if parameter == "revision" else parameter] = value
    return query


def _said(body: bytes) -> tuple[str, str]:
    """What a failure says, for people and for programs: one line that no terminal obeys."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(value, dict):
        return "", ""
    detail, code = (value.get(key) for key in ("detail", "code"))
    shown = _UNPRINTABLE.sub(" ", detail)[:500] if _is_text(detail) else ""
    return shown, code[:50] if _is_text(code) else ""


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:  # such as a bracket that is never closed
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def _backoff(attempt: int) -> float:
    longest = min(_SHORTEST_PAUSE * float(2**attempt), _LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 many clients must not come back at once
