"""Whether the service lives, whether it can answer, and its numbers.

    GET /healthz    200 while the process lives; nothing is looked at
    GET /readyz     200 or 503, and what of the service's own is broken; with a token also the
                    repositories that it may see, and the locations granted to those
    GET /metrics    for Prometheus

A Git origin or a store that is down does not make the service unready: what it has, it serves. Nor
do warnings: what they tell of goes on for now.
"""

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone

from flask import Blueprint, Response, current_app, request

from registry import access
from registry.domain import Principal, matches
from registry.errors import DatabaseUnavailable, RegistryError
from registry.metrics import CONTENT_TYPE, Reading
from registry.services import Services
from registry.storage.stores import REFUSED, WARNED
from registry.web.auth import principal, public, token_of
from registry.web.observe import trace

_OLDEST = datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp()
_REMEMBERED = 1.0
SOON = 1000
"""Audit rows that may wait without anybody being told: the writer takes as many at once."""


def blueprint(services: Services) -> Blueprint:
    """The routes over the state of `services`."""
    routes = Blueprint("health", __name__)
    problems = _Remembered(lambda: _problems(services), services.clock)

    @routes.get("/healthz")
    @public
    def healthz() -> Response:
        return Response('{"status":"ok"}', mimetype="application/json")

    @routes.get("/readyz")
    @public
    def readyz() -> Response:
        found = problems()
        ready = not any(found.values())
        checks = {name: problem or "ok" for name, problem in found.items()}
        body: dict[str, object] = {"status": "ready" if ready else "not ready", "checks": checks}
        warnings = _warnings(services)
        if warnings:
            body["warnings"] = warnings
        asks = _whoever(services)
        if asks:
            body["repositories"] = _repositories(services, asks)
            body["locations"] = _locations(services, asks)
        response = Response(json.dumps(body), 200 if ready else 503, mimetype="application/json")
        response.headers["Cache-Control"] = "no-store"
        if not ready:
            response.headers["Retry-After"] = "5"
        return response

    def metrics() -> Response:
        if not services.metrics_are_public:
            access.require(principal(), "metrics:read")
        current_app.extensions["watch"].flush()
        return Response(services.metrics.text(_readings(services)), content_type=CONTENT_TYPE)

    routes.get("/metrics")(public(metrics) if services.metrics_are_public else metrics)
    return routes


class _Remembered:
    """What was found within the last second: anybody may ask, and looking costs."""

    def __init__(
        self, look: Callable[[], dict[str, str | None]], clock: Callable[[], float]
    ) -> None:
        self._look = look
        self._clock = clock
        self._lock = threading.Lock()
        self._found: tuple[float, dict[str, str | None]] | None = None

    def __call__(self) -> dict[str, str | None]:
        # While one looks, which can take seconds, the others say what was found before.
        if self._lock.acquire(blocking=self._found is None):
            try:
                now = self._clock()
                if self._found is None or not 0 <= now - self._found[0] < _REMEMBERED:
                    self._found = now, self._look()
            finally:
                self._lock.release()
        assert self._found
        return self._found[1]


def _problems(services: Services) -> dict[str, str | None]:
    """What is looked at -> what is wrong with it, in words that anybody may read."""
    database, clock = None, None
    now = services.clock()
    try:
        theirs = services.access.probe()
    except DatabaseUnavailable:
        database, theirs = "does not answer", None
    if now < _OLDEST:
        clock = "is before 2026"
    elif theirs is not None and abs(now - theirs) > REFUSED:
        clock = f"differs from the database's by {abs(now - theirs):.0f} s"
    elif services.stores.skewed():
        clock = f"differs from that of every store by more than {REFUSED:.0f} s"
    return {"database": database, "data_dir": _unwritable(services), "clock": clock}


def _warnings(services: Services) -> dict[str, str]:
    """What an operator should look at before it is a problem, in words that anybody may read."""
    found: dict[str, str] = {}
    furthest = services.stores.furthest()
    if furthest > WARNED:
        found["clock"] = f"differs from that of a store by {furthest:.0f} s"
    waiting = services.audit.waiting()
    if waiting > SOON:
        found["audit"] = f"{waiting} rows wait to be written"
    return found


def _unwritable(services: Services) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=services.data_dir) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    return None


def _whoever(services: Services) -> Principal | None:
    """Who asks, if they prove it; the route is public, so that a probe needs no token."""
    try:
        asks = services.access.principal(token_of(request.headers.get("Authorization", "")))
    except RegistryError:
        return None
    trace().principal = asks
    return asks


def _repositories(services: Services, asks: Principal) -> dict[str, object]:
    now = services.clock()
    shown: dict[str, object] = {}
    for mirrored in services.repositories:
        if asks.may_see(mirrored.repository.name):
            status = mirrored.repository.status()
            shown[mirrored.repository.name] = {
                "last_seen": _timestamp(status.checked),
                "age": None if status.checked is None else max(0, int(now - status.checked)),
                "problem": status.problem,
            }
    return shown


def _locations(services: Services, asks: Principal) -> dict[str, object]:
    """The locations that were granted to a repository the principal may see."""
    seen = [it.repository.name for it in services.repositories]
    seen = [name for name in seen if asks.may_see(name)]
    shown: dict[str, object] = {}
    for location in services.locations:
        if any(matches(location.repositories, name) for name in seen):
            outlook = services.outlook(location)
            shown[str(location.url)] = {
                "problem": outlook.problem,
                "clock_ahead": None if outlook.ahead is None else round(outlook.ahead),
            }
    return shown


def _readings(services: Services) -> list[Reading]:
    now = services.clock()
    age = Reading(
        "registry_mirror_age_seconds", "Since the origin was last seen.", "repository", {}
    )
    failing = Reading(
        "registry_origin_failing", "1 if this worker's last look failed.", "repository", {}
    )
    for mirrored in services.repositories:
        name, status = mirrored.repository.name, mirrored.repository.status()
        failing.values[name] = float(status.problem is not None)
        if status.checked is not None:
            age.values[name] = max(0.0, now - status.checked)
    return [age, failing, *_locations_read(services), *_database_read(services)]


def _locations_read(services: Services) -> Iterator[Reading]:
    failing = Reading(
        "registry_location_failing",
        "1 if no links can be given for it, or the last read of this worker failed.",
        "location",
    )
    ahead = Reading(
        "registry_store_clock_ahead_seconds",
        "By how much our clock is ahead of the store's: links are refused from 300 on.",
        "location",
    )
    for location in services.locations:
        name, outlook = str(location.url), services.outlook(location)
        failing.values[name] = float(outlook.problem is not None)
        if outlook.ahead is not None:
            ahead.values[name] = round(outlook.ahead, 1)
    yield failing
    yield ahead


def _database_read(services: Services) -> Iterator[Reading]:
    yield Reading(
        "registry_database_failing",
        "1 if the last token of this worker could not be looked up.",
        values={"": float(services.access.failing)},
    )
    yield Reading(
        "registry_audit_rows_waiting",
        "Audit rows that this worker has not written yet.",
        values={"": float(services.audit.waiting())},
    )


def _timestamp(moment: float | None) -> str | None:
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
