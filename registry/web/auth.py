"""Who asks: the Authorization header -> a Principal, once per request. Deny by default.

Every route demands a token unless it is marked `public`; so does every URL that matches no route.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from flask import Flask, current_app, g, request

from registry.access import Access
from registry.domain import Principal
from registry.errors import Unauthenticated

View = TypeVar("View", bound=Callable[..., Any])

_SCHEMES = ("token", "bearer")


def public(view: View) -> View:
    """Marks a view that needs no token: it shows nothing, or checks a capability of its own."""
    view.is_public = True  # type: ignore[attr-defined]
    return view


def principal() -> Principal:
    """Who asks. Only for views that are not public."""
    asks: Principal = g.principal
    return asks


def install(app: Flask, access: Access) -> None:
    """Puts the check before every request of `app`."""

    @app.before_request
    def _authenticate() -> None:
        view = current_app.view_functions.get(request.endpoint or "")
        if not getattr(view, "is_public", False):
            g.principal = access.principal(token_of(request.headers.get("Authorization", "")))


def token_of(header: str) -> str:
    """The token of `token X`, `Token X` or `Bearer X`. Raises Unauthenticated."""
    scheme, _, token = header.strip().partition(" ")
    if scheme.lower() not in _SCHEMES or not token.strip():
        raise Unauthenticated("no token in the Authorization header")
    return token.strip()
