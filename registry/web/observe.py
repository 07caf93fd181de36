"""What every request leaves behind: a request id, a line in the log, numbers, an audit row.

The log and the numbers know a request by its route, never by its path or query: those hold gateway
links, and whatever else a client puts there.

    Watch     around the application, once for each request: it sees what Flask sees and more
    Trace     what becomes known of a request while it is answered
    Record    the audit row of a decision
"""

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from random import getrandbits
from typing import TYPE_CHECKING, Any, Literal, cast

from flask import request

from registry import logs
from registry.audit import Event
from registry.domain import Principal, Revision, canonical_repository
from registry.errors import RegistryError
from registry.limits import Quota
from registry.metrics import Metrics
from registry.services import Services

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

_TRACE = "registry.trace"
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{7,63}")
_LONGEST = 255
_ALWAYS = (("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"))

LINGER = 0.05
"""Seconds that a request may wait to be counted and logged with others."""
ROOM = 10_000
"""Requests that may wait so."""


class Trace:
    """One request. `route` and `dialect` are known once it was matched, `principal` and `quota`
    once it was let in; `refusal` is the kind of error it was answered with, and `reason` why;
    `status` and `seconds` are those of its answer. `moment` is the Unix time it came at.
    `headers` go with the answer, whatever it is: Flask's own take twenty times as long.
    """

    __slots__ = (
        *("address", "dialect", "headers", "method", "moment", "principal", "quota", "reason"),
        *("refusal", "request_id", "route", "seconds", "status"),
    )

    def __init__(self, request_id: str, method: str, address: str, moment: float) -> None:
        self.request_id = request_id
        self.method = method
        self.address = address
        self.moment = moment
        self.headers: list[tuple[str, str]] = []
        self.route: str | None = None
        self.dialect = "none"
        self.principal: Principal | None = None
        self.quota: Quota | None = None
        self.refusal: str | None = None
        self.reason: str | None = None
        self.status = 0
        self.seconds = 0.0


def trace() -> Trace:
    """The trace of the request that is being answered."""
    return cast(Trace, request.environ[_TRACE])


def trace_of(environ: "WSGIEnvironment") -> Trace:
    """The trace of a request, for what answers before Flask does."""
    return cast(Trace, environ[_TRACE])


def new_id() -> str:
    """An id for a request. Nobody need fail to guess it, so that the system is not asked for it."""
    return f"{getrandbits(64):016x}"


class Watch:
    """Watches an application: nothing looks at a request before it does.

    A request keeps the X-Request-Id that it comes with, if that is 8 to 64 letters, digits and
    `._:-`, and holds no secret; otherwise it gets one of `new_id`. The answer says which.
    It is a WSGI application and not a hook of Flask's, for all of it costs less than one of those.

    What was seen is counted and logged `linger` seconds later by a thread: a hundred requests at
    once cost a third of what they cost one by one. With 0 it is done before the answer leaves.
    """

    def __init__(
        self,
        app: "WSGIApplication",
        metrics: Metrics,
        linger: float = LINGER,
        new_id: Callable[[], str] = new_id,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._linger = linger
        self._new_id = new_id
        self._seen: deque[Trace] = deque()
        self._some = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answers as the application does."""
        begun = time.perf_counter()
        given = environ.get("HTTP_X_REQUEST_ID", "")
        sane = given and _SANE.fullmatch(given) and logs.redact(given) == given
        request_id = given if sane else self._new_id()
        method, address = environ["REQUEST_METHOD"], environ.get("REMOTE_ADDR", "")
        seen = environ[_TRACE] = Trace(request_id, method, address, time.time())
        logs.request_id.set(request_id)

        def start(status: str, headers: list[tuple[str, str]], error: Any = None) -> Any:
            seen.status = int(status[:3])
            seen.seconds = time.perf_counter() - begun
            headers += (*_ALWAYS, ("X-Request-Id", request_id), *seen.headers)
            if seen.quota:
                headers += _limits(seen.quota)
            self._answered(seen)
            return start_response(status, headers, error)

        try:
            return self._app(environ, start)
        finally:
            logs.request_id.set("")

    def flush(self) -> None:
        """Counts and logs what was seen until now."""
        with self._lock:
            lines = []
            with suppress(IndexError):
                while True:
                    seen = self._seen.popleft()
                    outcome = seen.refusal or ("ok" if seen.status < 400 else str(seen.status))
                    self._metrics.answered(seen.dialect, outcome, seen.seconds)
                    lines.append(_line(seen))
            if lines:
                logger.info("%d requests", len(lines), extra={"lines": lines})

    def _answered(self, seen: Trace) -> None:
        self._seen.append(seen)
        if not self._linger or len(self._seen) > ROOM:
            self.flush()
        elif not self._some.is_set():
            self._some.set()
            # Lazily: a thread started before the server forks would exist in no worker.
            if not (self._thread and self._thread.is_alive()):
                self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while self._some.wait():
            time.sleep(self._linger)
            self._some.clear()
            self.flush()


def _line(seen: Trace) -> str:
    facts = {
        "method": seen.method,
        "route": seen.route,
        "dialect": seen.dialect,
        "status": seen.status,
        "ms": round(seen.seconds * 1000, 2),
        "token": seen.principal.id if seen.principal else None,
        "address": seen.address,
        "refusal": seen.refusal,
        "reason": seen.reason,
    }
    return logs.line(seen.moment, "info", __name__, "request", seen.request_id, facts)


def _limits(quota: Quota) -> list[tuple[str, str]]:
    """What is left to a token, as draft-ietf-httpapi-ratelimit-headers-10 says it."""
    return [
        ("RateLimit-Policy", f'"token";q={quota.limit};w=60'),
        ("RateLimit", f'"token";r={quota.remaining};t={quota.reset}'),
    ]


class Record:
    """Writes down what is decided about an artifact, as the client spelled it. One per answer.

    `seen` is the trace of the request, if Flask is not asked.
    """

    def __init__(
        self,
        services: Services,
        repository: str,
        name: str,
        version: str,
        stage: str,
        seen: Trace | None = None,
    ) -> None:
        self._services = services
        self._seen = seen or trace()
        self._repository = repository
        self._spelled = name + (version and f"@{version}") + (stage and f"#{stage}")

    def refusals(self) -> "Record":
        """A block, for any RegistryError of which a row is written before it goes on its way."""
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, RegistryError):
            # Not as it was spelled, which may be a URL with a password.
            repository = logs.redact(canonical_repository(self._repository) or "")[:_LONGEST]
            self._write(repository, "refused", type(error).__name__)

    def granted(self, repository: str, revision: Revision, version: str | None, files: int) -> None:
        """Writes a row for an answer with links to `files` files, before it is sent.

        Raises DatabaseUnavailable where rows are required.
        """
        self._write(repository, "granted", None, revision, version, files)
        self._services.metrics.signed(repository, files)
        self._services.metrics.cached(self._services.contents.sizes())

    def _write(
        self,
        repository: str,
        decision: Literal["granted", "refused"],
        reason: str | None = None,
        revision: str | None = None,
        version: str | None = None,
        files: int = 0,
    ) -> None:
        seen = self._seen
        assert seen.principal
        self._services.audit.write(
            Event(
                request=seen.request_id,
                address=seen.address,
                token=seen.principal.id,
                repository=repository,
                selector=logs.redact(self._spelled)[:_LONGEST],
                decision=decision,
                reason=reason,
                revision=revision,
                version=version,
                files=files,
            )
        )
