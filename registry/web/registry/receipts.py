"""Receipts and what they stand for: links and checksums."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

from flask import Blueprint, Response, request

from registry import access
from registry.catalog import Resolution, Signed
from registry.domain import Entry
from registry.errors import InvalidRequest, ObjectsMissing, StorageUnavailable
from registry.given import Given
from registry.receipt import Receipt
from registry.services import Services
from registry.told import number_of
from registry.web.auth import principal
from registry.web.errors import answer
from registry.web.observe import Record, trace
from registry.web.registry import formats
from registry.web.registry.asked import (
    SELECTOR,
    age,
    arguments,
    max_age_of,
    preferred,
    questions,
    selector_of,
)

JSON, PLAIN = "application/json", "text/plain"
CURL, ARIA2 = "text/x-curl-config", "text/x-aria2"

LONGEST_PAGE = 10_000
"""Files of the largest page of links that can be asked for; without a limit all of them come."""
PATIENCE = 4.0
"""Seconds for all the manifests of one request; what was read is known the next time."""
_LONGEST_PATTERN = 1024
_PARTS = 200
"""Files that go into one part of a streamed answer."""

IMMUTABLE = "private, max-age=31536000, immutable"
CHANGING = "private, no-cache"
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

RESOLVE = SELECTOR | {"receipt", "max_age", "verify"}
_URLS = frozenset({"receipt", "path", "after", "limit"})
_MD5SUMS = frozenset({"receipt"})


def add_to(routes: Blueprint, services: Services) -> None:
    """Adds the routes of this module."""

    @routes.errorhandler(ObjectsMissing)
    def missing(error: ObjectsMissing) -> Response:
        return answer(error, {"missing": list(error.missing)})

    @routes.get("/resolve")
    def resolve() -> Response:
        given, asks = arguments(RESOLVE), principal()
        access.require(asks, "models:read")
        verify = _verify(given)
        found = _recalled(services, given) if "receipt" in given else _resolved(services, given)
        lasting = "receipt" in given or "rev" in given
        if verify:
            checked = services.presence.require(found.manifest)
            trace().headers.append(("X-Registry-Verified", str(checked)))
        # What a store has can change any time.
        return _receipt(found.receipt, IMMUTABLE if lasting and not verify else CHANGING)

    @routes.post("/resolve")
    def resolve_together() -> Response:
        arguments(frozenset())
        access.require(principal(), "models:read")
        asks, (wanted, max_age) = principal(), questions()
        resolutions = services.catalog.resolve_together(asks, wanted, max_age)
        oldest = min(resolutions, key=lambda it: (not it.stale, it.checked))
        receipts, deadline = [], time.monotonic() + PATIENCE
        for resolution in resolutions:
            receipts.append(services.ledger.receipt(asks, resolution).receipt)
            if time.monotonic() > deadline and len(receipts) < len(resolutions):
                raise StorageUnavailable(
                    resolution.repository.name,
                    f"{len(receipts)} of {len(resolutions)} manifests were read in {PATIENCE:g} s, "
                    "and are kept: ask again",
                )
        trace().headers += freshness(replace(oldest, deprecated=False), services.clock())
        trace().headers.append(("Cache-Control", CHANGING))
        files = sum(len(receipt.files) for receipt in receipts)
        return Response(_joined(_all(receipts), files), mimetype=JSON)

    @routes.get("/urls")
    def urls() -> Response:
        given, asks = arguments(_URLS), principal()
        digest = given.get("receipt", "")
        with Record(services, "", f"receipt:{digest}", "", "").refusals():
            access.require(asks, "models:read")
            found = services.ledger.recall(asks, digest)
            manifest, following = found.page(
                _pattern(given), number_of(given, "after") or 0, _limit(given)
            )
            wanted = preferred(JSON, CURL, ARIA2)
            if wanted == ARIA2:
                formats.check_for_aria2(
                    entry for group in manifest.groups for entry in group.entries
                )
            links = services.catalog.links(manifest)
        receipt = found.receipt
        _record(services, receipt).granted(
            receipt.repository, receipt.revision, receipt.version, len(links)
        )
        return _links(receipt, links, following, wanted)

    @routes.get("/md5sums")
    def md5sums() -> Response:
        given, asks = arguments(_MD5SUMS), principal()
        access.require(asks, "models:read")
        receipt = services.ledger.recall(asks, given.get("receipt", "")).receipt
        lines = receipt.md5sums()
        trace().headers += [("Cache-Control", IMMUTABLE), ("Vary", "Authorization")]
        return Response(_joined(lines, len(receipt.files)), mimetype=PLAIN)


def _recalled(services: Services, given: Mapping[str, str]) -> Given:
    if given.keys() - {"receipt", "verify"}:
        raise InvalidRequest("receipt", "a receipt alone says everything")
    return services.ledger.recall(principal(), given["receipt"])


def _resolved(services: Services, given: Mapping[str, str]) -> Given:
    asks, selector = principal(), selector_of(given)
    resolution = services.catalog.resolve(asks, given.get("repo", ""), selector, max_age_of(given))
    trace().headers += freshness(resolution, services.clock())
    return services.ledger.receipt(asks, resolution)


def _receipt(receipt: Receipt, cache_control: str) -> Response:
    """A receipt, unless the client has it."""
    wanted = preferred(JSON, PLAIN)
    etag = f'"{receipt.digest}"' if wanted == JSON else f'"{receipt.digest}-text"'
    trace().headers += labels(etag, cache_control)
    has = request.environ.get("HTTP_IF_NONE_MATCH")
    if has and (has == etag or request.if_none_match.contains_weak(etag.strip('"'))):
        return Response(status=304)
    if wanted == PLAIN:
        return Response("".join(formats.plain(receipt)), mimetype=PLAIN)
    parts = (part.decode() for part in receipt.parts())
    return Response(_joined(parts, len(receipt.files)), mimetype=JSON)


def labels(etag: str, cache_control: str) -> list[tuple[str, str]]:
    """The headers by which a receipt is known again, and how long it may be kept."""
    return [("ETag", etag), ("Cache-Control", cache_control), ("Vary", "Authorization, Accept")]


def _all(receipts: list[Receipt]) -> Iterator[str]:
    opening = '{"receipts":['
    for receipt in receipts:
        yield opening
        yield from (part.decode() for part in receipt.parts())
        opening = ","
    yield "]}"


def freshness(resolution: Resolution, now: float) -> Iterator[tuple[str, str]]:
    """The headers that say how old an answer is, and of what."""
    yield from age(resolution.checked, now, stale=resolution.stale)
    if resolution.deprecated:
        yield "X-Registry-Deprecated", "true"


def _verify(given: Mapping[str, str]) -> bool:
    if given.get("verify", "head") != "head":
        raise InvalidRequest("verify", "head, which asks the store for every object")
    return "verify" in given


def _pattern(given: Mapping[str, str]) -> str:
    pattern = given.get("path", "")
    if len(pattern) > _LONGEST_PATTERN:
        raise InvalidRequest("path", f"longer than {_LONGEST_PATTERN} characters")
    return pattern


def _limit(given: Mapping[str, str]) -> int | None:
    return number_of(given, "limit", LONGEST_PAGE)


def _record(services: Services, receipt: Receipt) -> Record:
    selector = receipt.selector
    spelled = f"receipt:{receipt.digest} {receipt.name}"
    version = selector.version or selector.revision or ""
    return Record(services, receipt.repository, spelled, version, selector.stage or "")


def _links(receipt: Receipt, links: Signed, following: int | None, wanted: str) -> Response:
    expires = f"{links.expires:%Y-%m-%dT%H:%M:%SZ}"
    trace().headers += [
        ("Cache-Control", "private, no-store"),
        ("X-Registry-Expires", expires),
    ]
    if following is not None:
        trace().headers.append(("X-Registry-Next", str(following)))
    if wanted == CURL:
        return Response(
            _joined(formats.curl_config(links, links.expires), len(links)), mimetype=CURL
        )
    if wanted == ARIA2:
        return Response(_joined(formats.aria2_input(links), len(links)), mimetype=ARIA2)
    head: dict[str, object] = {"receipt": receipt.digest, "expires": expires, "next": following}
    return Response(_joined(_listed(head, links), len(links)), mimetype=JSON)


def _listed(head: dict[str, object], links: Iterable[tuple[Entry, str]]) -> Iterator[str]:
    opening = f'{_ENCODE(head)[:-1]},"files":['
    for entry, link in links:
        file = {"path": entry.path, "url": link, "md5": entry.md5, "size": entry.size}
        yield opening + _ENCODE(file)
        opening = ","
    yield "]}"


def _joined(parts: Iterator[str], files: int) -> str | Iterator[str]:
    """A text in one piece, or for many files in larger parts than it is made of. Should one of
    those fail, the end is never sent.
    """
    return "".join(parts) if files <= 10 * _PARTS else _streamed(parts)


def _streamed(parts: Iterator[str]) -> Iterator[str]:
    while part := "".join(islice(parts, _PARTS)):
        yield part
