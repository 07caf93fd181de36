"""A CI job's ID token for a token of ours: OAuth 2.0 Token Exchange (RFC 8693).

    POST /api/v1/token/exchange            application/x-www-form-urlencoded, no Authorization
      grant_type=urn:ietf:params:oauth:grant-type:token-exchange
      subject_token_type=urn:ietf:params:oauth:token-type:id_token     or ...:jwt
      subject_token=<the ID token>
      scope=models:read                                                optional
    -> {"access_token": "reg_...", "token_type": "Bearer", "expires_in": 3600,
        "scope": "models:read",
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}

Failures have the body of RFC 6749, section 5.2, and beside it the `reason` in one word and the
`detail` that every failure has. Each attempt leaves an audit row, but for those of an address that
failed too often: what anybody can do without a token must not fill the database.
"""

import json
import re
from datetime import datetime, timezone
from ipaddress import IPv6Address, ip_address

from flask import Blueprint, Response, request

from registry.access import Token
from registry.audit import Exchange
from registry.errors import (
    ExchangeRefused,
    InvalidRequest,
    RegistryError,
    TooManyRequests,
    Unavailable,
)
from registry.federation import Admission
from registry.services import Services
from registry.web.auth import public
from registry.web.errors import answer
from registry.web.observe import trace

ROUTE = "/api/v1/token/exchange"
GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"
TOKEN_TYPES = "urn:ietf:params:oauth:token-type:"  # noqa: S105 a prefix of names
LARGEST = 65_536
"""Bytes that a request may have."""
LONGEST_DESCRIPTION = 160
"""Characters of an `error_description`: the `detail` beside it may be longer."""

_UNWRITABLE = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")  # RFC 6749, error_description


def blueprint(services: Services) -> Blueprint:
    """The route over the issuers that are configured."""
    routes = Blueprint("exchange", __name__)
    routes.register_error_handler(RegistryError, _refusal)

    @routes.post(ROUTE)
    @public
    def exchange() -> Response:
        address = request.remote_addr or ""
        quota = services.exchange_limit.take(_network(address))
        if quota.wait:
            raise TooManyRequests(quota.limit, quota.wait)
        request_id = trace().request_id
        try:
            admission = services.federation.admit(*_asked())
            token, text = _issue(services, admission)
        except RegistryError as error:
            subject, reason = "", type(error).__name__
            if isinstance(error, ExchangeRefused):
                subject, reason = error.subject, error.reason
            services.audit.write(Exchange(request_id, address, subject, "refused", reason))
            raise
        services.exchange_limit.give_back(_network(address))
        trace().principal = token.principal  # for the line in the log
        services.audit.write(
            Exchange(
                request_id,
                address,
                admission.name,
                "granted",
                token=token.id,
                repository=" ".join(admission.repositories),
            )
        )
        return _issued(admission, text)

    return routes


def _asked() -> tuple[str, list[str]]:
    """The ID token and the scopes of the request. Raises InvalidRequest."""
    request.max_content_length = LARGEST
    if request.mimetype != "application/x-www-form-urlencoded":
        raise InvalidRequest("Content-Type", "must be application/x-www-form-urlencoded")
    form = request.form
    for name in form:
        if len(form.getlist(name)) > 1:
            raise InvalidRequest(name, "is given more than once")
    if form.get("grant_type") != GRANT_TYPE:
        raise InvalidRequest("grant_type", f"must be {GRANT_TYPE}")
    if form.get("subject_token_type") not in (f"{TOKEN_TYPES}id_token", f"{TOKEN_TYPES}jwt"):
        raise InvalidRequest("subject_token_type", f"must be {TOKEN_TYPES}id_token")
    if form.get("requested_token_type") not in (None, "", f"{TOKEN_TYPES}access_token"):
        raise InvalidRequest("requested_token_type", f"must be {TOKEN_TYPES}access_token")
    if form.get("actor_token"):
        raise InvalidRequest("actor_token", "nobody can act for a job")
    if not form.get("subject_token"):
        raise InvalidRequest("subject_token", "is missing")
    return form["subject_token"], form.get("scope", "").split()


def _issue(services: Services, admission: Admission) -> tuple[Token, str]:
    expires = datetime.fromtimestamp(services.clock() + admission.lifetime, timezone.utc)
    scopes, repositories = list(admission.scopes), list(admission.repositories)
    return services.access.exchange(
        admission.proof, admission.ends, admission.name, scopes, repositories, expires
    )


def _issued(admission: Admission, text: str) -> Response:
    body = {
        "access_token": text,
        "issued_token_type": f"{TOKEN_TYPES}access_token",
        "token_type": "Bearer",
        "expires_in": admission.lifetime,
        "scope": " ".join(admission.scopes),
    }
    response = Response(json.dumps(body, separators=(",", ":")), mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def _refusal(error: RegistryError) -> Response:
    described = _UNWRITABLE.sub("?", error.detail)[:LONGEST_DESCRIPTION]
    more = {"error": _code(error), "error_description": described}
    if isinstance(error, ExchangeRefused):
        more["reason"] = error.reason
    response = answer(error, more)
    response.headers["Cache-Control"] = "no-store"
    return response


def _code(error: RegistryError) -> str:
    """RFC 6749, 5.2 and 4.1.2.1; in RFC 8693, 2.2.2 one code for all that is wrong with tokens."""
    if isinstance(error, Unavailable | TooManyRequests):
        return "temporarily_unavailable"
    parameter = error.parameter if isinstance(error, InvalidRequest) else ""
    return {"scope": "invalid_scope", "grant_type": "unsupported_grant_type"}.get(
        parameter, "invalid_request"
    )


def _network(address: str) -> str:
    """Whom attempts are counted for: an address, or for IPv6 the /64 that a host chooses from."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and not parsed.ipv4_mapped:
        return parsed.exploded[:19]
    return address  # of IPv4, also as a socket for both spells it: ::ffff:192.0.2.1
