"""Who asks: the Authorization header -> a Principal, once per request. Deny by default.

Every route demands a token unless it is marked `public`; so does every URL that matches no route.
"""

import base64
from collections.abc import Callable
from typing import Any, TypeVar

from flask import Flask, request

from registry.domain import Principal
from registry.errors import TooManyRequests, Unauthenticated
from registry.services import Services
from registry.web.observe import trace

View = TypeVar("View", bound=Callable[..., Any])

_SCHEMES = ("token", "bearer")


def public(view: View) -> View:
    """Marks a view that needs no token: it shows nothing, or checks a capability of its own."""
    view.is_public = True  # type: ignore[attr-defined]
    return view


def principal() -> Principal:
    """Who asks. Only for views that are not public."""
    asks = trace().principal
    assert asks
    return asks


def install(app: Flask, services: Services) -> None:
    """Puts the check before every request of `app`, and the count of what a token asks after it."""
    access, rate_limit = services.access, services.rate_limit

    @app.before_request
    def _admit() -> None:
        seen, rule = trace(), request.url_rule
        if rule is not None:
            seen.route, seen.dialect = rule.rule, rule.endpoint.rpartition(".")[0]
            if getattr(app.view_functions[rule.endpoint], "is_public", False):
                return
        header = request.environ.get("HTTP_AUTHORIZATION", "")
        asks = seen.principal = access.principal(token_of(header))
        if rate_limit:
            seen.quota = quota = rate_limit.take(asks.id)
            if quota.wait:
                raise TooManyRequests(quota.limit, quota.wait)


def token_of(header: str) -> str:
    """The token of `token X`, `Bearer X`, or `Basic ...` with it as the password.

    Raises Unauthenticated.
    """
    scheme, _, token = header.strip().partition(" ")
    if scheme.lower() == "basic":
        scheme, token = "token", _password(token)
    if scheme.lower() not in _SCHEMES or not token.strip():
        raise Unauthenticated("no token in the Authorization header")
    return token.strip()


def _password(credentials: str) -> str:
    try:
        text = base64.b64decode(credentials.strip(), validate=True).decode()
    except ValueError:
        return ""
    return text.partition(":")[2]
