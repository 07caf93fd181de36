"""Serves the objects that no store can sign a link for, behind links of our own.

    GET, HEAD /objects/<token>

The token is the permission: it names one object until one moment and was signed by this service,
so the route asks for no other. Ranges, conditional requests and `HEAD` work; bytes are streamed
as they come. Where nginx stands before the service it can take over: X-Accel-Redirect.
"""

from datetime import datetime, timezone
from hashlib import sha256
from urllib.parse import quote

from flask import Blueprint, Response, request

from registry import logs
from registry.audit import Delivery
from registry.domain import Entry, RelPath, StorageUrl
from registry.errors import DatabaseUnavailable, InvalidLink, ObjectMissing, RegistryError
from registry.services import Services
from registry.storage import Location
from registry.storage.gateway import ROUTE, GatewayLink
from registry.web.auth import public
from registry.web.observe import trace

_WITH_BYTES = (200, 206)
_LONGEST = 255


def blueprint(services: Services) -> Blueprint:
    """The route over the stores that `services` knows."""
    routes = Blueprint("objects", __name__)

    @routes.get(f"{ROUTE}<token>")
    @public
    def get_object(token: str) -> Response:
        now = datetime.fromtimestamp(services.clock(), timezone.utc)
        link = services.gateway.open(token, now)
        try:
            response = _answer(services, link, now)
        except RegistryError as error:
            _record(services, token, link, type(error).__name__)
            raise
        if response.status_code in _WITH_BYTES:
            try:
                _record(services, token, link, None)
            except DatabaseUnavailable:
                response.close()
                raise
        return response

    return routes


def _answer(services: Services, link: GatewayLink, now: datetime) -> Response:
    location = services.grants.holding(link.url)
    if location is None:
        raise InvalidLink("the configuration no longer lists the location")
    return deliver(services, location, link.url, link.entry, now)


def deliver(
    services: Services, location: Location, url: StorageUrl, entry: Entry, now: datetime
) -> Response:
    """The object at `url`, under the name of its entry, as far as the request asks for it.

    Raises ObjectMissing, StorageUnavailable or CredentialsUnavailable.
    """
    headers = _headers(entry)
    if entry.md5 and request.if_none_match.contains_weak(entry.md5):
        return Response(status=304, headers=headers)
    handoff = services.handoffs.get(location.url)
    if handoff and url.path.startswith(f"{location.url.path}/"):
        below = url.path[len(location.url.path) + 1 :]
        return Response(headers={**headers, "X-Accel-Redirect": f"{handoff}{quote(below)}"})
    origin = location.signer.origin(url.path, entry, now)
    unchanged = request.headers.get("If-Range", headers.get("ETag")) == headers.get("ETag")
    wanted = request.headers.get("Range") if unchanged else None
    stream = services.reader.stream(origin, wanted, request.method)
    if stream is None:
        raise ObjectMissing(entry.path, entry.md5)
    for name in ("Content-Length", "Content-Range", "Last-Modified"):
        if name in stream.headers:
            headers[name] = stream.headers[name]
    return Response(stream, stream.status, headers, direct_passthrough=True)


def _record(services: Services, token: str, link: GatewayLink, reason: str | None) -> None:
    """Writes a row, before the first byte is sent. Who only asks for headers leaves none.

    Raises DatabaseUnavailable where rows are required.
    """
    if request.method != "GET":
        return
    services.audit.write(
        Delivery(
            request=trace().request_id,
            address=request.remote_addr or "",
            link=sha256(token.encode()).hexdigest()[:16],
            selector=logs.redact(str(link.url))[:_LONGEST],
            md5=link.entry.md5,
            decision="refused" if reason else "granted",
            reason=reason,
        )
    )


def _headers(entry: Entry) -> dict[str, str]:
    """What is known without the store. A download, whatever the bytes are: never a page."""
    name = quote(RelPath(entry.path).name)
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-store",
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
    }
    if entry.md5:
        headers["ETag"] = f'"{entry.md5}"'
    return headers
