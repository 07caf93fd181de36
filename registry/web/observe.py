"""What every request leaves behind: a request id, a line in the log, numbers, an audit row.

The log and the numbers know a request by its route, never by its path or query: those hold gateway
links, and whatever else a client puts there.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from flask import Flask, Response, g, request

from registry import logs
from registry.audit import Event
from registry.catalog import Resolution
from registry.domain import canonical_repository
from registry.errors import RegistryError, TooManyRequests
from registry.services import Services
from registry.web.auth import principal

logger = logging.getLogger(__name__)

_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{7,63}")
_LONGEST = 255


def install(
    app: Flask, services: Services, new_id: Callable[[], str] = lambda: secrets.token_hex(8)
) -> None:
    """Watches every request of `app`: to be called before anything else looks at one.

    A request keeps the X-Request-Id that it comes with, if that is 8 to 64 letters, digits and
    `._:-`, and holds no secret; otherwise it gets a `new_id`. The answer says which.
    """

    @app.before_request
    def _begin() -> None:
        g.begun = time.perf_counter()
        given = request.headers.get("X-Request-Id", "")
        sane = _SANE.fullmatch(given) and logs.redact(given) == given
        g.request_id = given if sane else new_id()
        logs.request_id.set(g.request_id)

    @app.after_request
    def _end(response: Response) -> Response:
        seconds = time.perf_counter() - g.begun
        dialect = request.blueprint or "none"
        error = g.get("error")
        outcome = error or ("ok" if response.status_code < 400 else str(response.status_code))
        services.metrics.answered(dialect, outcome, seconds)
        response.headers["X-Request-Id"] = g.request_id
        _log(dialect, response.status_code, error, seconds)
        return response

    @app.teardown_request
    def _forget(_: BaseException | None) -> None:
        logs.request_id.set("")


def _log(dialect: str, status: int, error: str | None, seconds: float) -> None:
    asks = g.get("principal")
    facts = {
        "method": request.method,
        "route": request.url_rule.rule if request.url_rule else None,
        "dialect": dialect,
        "status": status,
        "ms": round(seconds * 1000, 2),
        "token": asks.id if asks else None,
        "address": request.remote_addr,
        "refusal": error,
        "reason": g.get("reason"),
    }
    logger.info("request", extra=facts)


def limit(app: Flask, services: Services) -> None:
    """Counts the requests of every token, after it was checked, and says what is left to it.

    The headers are those of draft-ietf-httpapi-ratelimit-headers-10.
    """
    rate_limit = services.rate_limit
    if rate_limit is None:
        return

    @app.before_request
    def _count() -> None:
        asks = g.get("principal")
        if asks:
            g.quota = quota = rate_limit.take(asks.id)
            if quota.wait:
                raise TooManyRequests(quota.limit, quota.wait)

    @app.after_request
    def _tell(response: Response) -> Response:
        quota = g.get("quota")
        if quota:
            response.headers["RateLimit-Policy"] = f'"token";q={quota.limit};w=60'
            response.headers["RateLimit"] = f'"token";r={quota.remaining};t={quota.reset}'
        return response


class Record:
    """Writes down what is decided about an artifact, as the client spelled it. One per answer."""

    def __init__(
        self, services: Services, repository: str, name: str, version: str, stage: str
    ) -> None:
        self._services = services
        self._repository = repository
        spelled = name + (version and f"@{version}") + (stage and f"#{stage}")
        self._selector = logs.redact(spelled)[:_LONGEST]

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Writes a row for any RegistryError of the block, before it goes on its way."""
        try:
            yield
        except RegistryError as error:
            # Not as it was spelled, which may be a URL with a password.
            repository = logs.redact(canonical_repository(self._repository) or "")[:_LONGEST]
            self._services.audit.write(self._refused(repository, type(error).__name__))
            raise

    def granted(self, resolution: Resolution, files: int) -> None:
        """Writes a row for an answer with links to `files` files, before it is sent.

        Raises DatabaseUnavailable where rows are required.
        """
        name = resolution.repository.name
        event = replace(
            self._refused(name, None),
            decision="granted",
            revision=resolution.revision,
            version=resolution.version,
            files=files,
        )
        self._services.audit.write(event)
        self._services.metrics.signed(name, files)
        self._services.metrics.cached(self._services.contents.sizes())

    def _refused(self, repository: str, reason: str | None) -> Event:
        return Event(
            request=g.request_id,
            address=request.remote_addr or "",
            token=principal().id,
            repository=repository,
            selector=self._selector,
            decision="refused",
            reason=reason,
        )
