"""The service described by itself: an OpenAPI 3.1 document of every route and every answer.

    GET /api/openapi.json

It holds nothing that is secret, and still asks for a token: who has none learns nothing from this
service, not even what it could be asked, and nobody without one can do anything with the answer.
"""

import json
from functools import cache

from flask import Blueprint, Response

from registry.access import PREFIX
from registry.domain import LONGEST_NAME
from registry.federation import LONGEST, REASONS
from registry.storage.gateway import ROUTE
from registry.web import exchange, registry
from registry.web.describe import (
    FAILURE_HEADERS,
    NAME_OF_ARTIFACT,
    TOKEN_FAILS,
    UNAVAILABLE,
    UNEXPECTED,
    Json,
    content,
    failures,
    header,
    query,
)


def blueprint() -> Blueprint:
    """The route of the document, which is written once, when it is first asked for."""
    routes = Blueprint("openapi", __name__)
    body = cache(lambda: json.dumps(document(), ensure_ascii=False, separators=(",", ":")))

    @routes.get("/api/openapi.json")
    def get_openapi() -> Response:
        return Response(body(), mimetype="application/json")

    return routes


def document() -> Json:
    """The whole document, as JSON would hold it. Paths are those of the routes."""
    from registry.web.mlflow import openapi as mlflow  # noqa: PLC0415 it loads all of tracking

    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Model registry",
            "version": "1",
            "description": "Download links for the models that the tags of Git repositories name.",
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": {
            "/api/model-registry/get-download-uris": {"get": _get_download_uris()},
            f"{ROUTE}{{token}}": {"parameters": [_LINK], "get": _object(), "head": _object_head()},
            "/hooks/{forge}": {"parameters": [_FORGE], "post": _hook()},
            exchange.ROUTE: {"post": _exchange()},
            "/healthz": {"get": _healthz()},
            "/readyz": {"get": _readyz()},
            "/metrics": {"get": _metrics()},
            "/api/openapi.json": {"get": _openapi()},
            "/api/docs": {"get": _docs(), "post": _docs_for_a_browser()},
            "/api/docs/style.css": {"get": _docs_style()},
            **registry.paths(),
            **mlflow.paths(),
        },
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": (
                        f"`Authorization: Bearer {PREFIX}...`. `token {PREFIX}...`, as DVC sends "
                        "it, means the same."
                    ),
                },
            },
            "schemas": {
                **mlflow.schemas(),
                "Error": {
                    "type": "object",
                    "description": "One line, of at most 512 bytes.",
                    "properties": {
                        "detail": {
                            "type": "string",
                            "minLength": 1,
                            "description": "What is wrong, for people.",
                        },
                        "code": {
                            "type": "string",
                            "pattern": "^[a-z0-9_]+$",
                            "description": "The kind of error, for programs.",
                        },
                        "request_id": {
                            "type": "string",
                            "description": "As in the header X-Request-Id, and in the log.",
                        },
                        "missing": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "Files whose objects the store does not have.",
                        },
                        "retry_after": {
                            "type": "integer",
                            "minimum": 1,
                            "description": "Seconds after which to ask again, if that helps.",
                        },
                    },
                    "required": ["detail", "code", "request_id"],
                },
                "TokenError": {
                    "type": "object",
                    "description": "As RFC 6749 has it, and one line for people.",
                    "properties": {
                        "error": {
                            "enum": [
                                "invalid_request",
                                "invalid_scope",
                                "unsupported_grant_type",
                                "temporarily_unavailable",
                            ]
                        },
                        "error_description": {
                            "type": "string",
                            "pattern": r"^[\x20-\x21\x23-\x5b\x5d-\x7e]+$",
                        },
                        "reason": {"enum": list(REASONS)},
                    },
                    "allOf": [{"$ref": "#/components/schemas/Error"}],
                    "required": ["error", "error_description"],
                },
                "Issued": {
                    "type": "object",
                    "properties": {
                        "access_token": {"type": "string", "pattern": f"^{PREFIX}"},
                        "issued_token_type": {"const": f"{exchange.TOKEN_TYPES}access_token"},
                        "token_type": {"const": "Bearer"},
                        "expires_in": {"type": "integer", "minimum": 60, "maximum": 3600},
                        "scope": {"type": "string"},
                    },
                    "required": ["access_token", "issued_token_type", "token_type", "expires_in"],
                },
                **registry.schemas(),
                "Refresh": {
                    "type": "object",
                    "properties": {
                        "repository": {"type": "string"},
                        "refresh": {"enum": ["started", "not needed"]},
                    },
                    "required": ["repository", "refresh"],
                },
                "State": {
                    "type": "object",
                    "properties": {
                        "status": {"enum": ["ready", "not ready"]},
                        "checks": {
                            "type": "object",
                            "additionalProperties": {"type": "string"},
                        },
                        "warnings": {
                            "type": "object",
                            "description": "What is not well, and stops nothing yet.",
                            "additionalProperties": {"type": "string"},
                        },
                        "repositories": {"type": "object"},
                        "locations": {"type": "object"},
                    },
                    "required": ["status", "checks"],
                },
                "Links": {
                    "type": "object",
                    "description": "The path of every file in the repository, and its link.",
                    "minProperties": 1,
                    "propertyNames": {"minLength": 1},
                    "additionalProperties": {"type": "string", "format": "uri"},
                },
            },
        },
    }


def _get_download_uris() -> Json:
    return {
        "operationId": "getDownloadUris",
        "summary": "Links to the files of an artifact",
        "description": "Of the version or the stage that is named, or else of the latest version.",
        "parameters": [
            query(
                "repo",
                "The name of a configured repository, its URL in any spelling, or an alias.",
                {"minLength": 1},
                "team/models",
            ),
            query(
                "name",
                "The artifact: `name`, or `directory:name` for that of another dvc.yaml.",
                {"minLength": 1, "maxLength": LONGEST_NAME, "pattern": NAME_OF_ARTIFACT},
                "classifier",
            ),
            query(
                "version",
                "A registered version. Empty, `latest` and `greatest` mean none.",
                {"maxLength": LONGEST_NAME},
                "v1.0.0",
                required=False,
            ),
            query(
                "stage",
                "A stage. Excludes `version`; empty means none.",
                {"maxLength": LONGEST_NAME},
                "prod",
                required=False,
            ),
            query(
                "max_age",
                "Seconds that the last look at the origin may be old; empty: as configured. "
                "`Cache-Control: no-cache` means 0.",
                {"pattern": "^[0-9]{0,9}$"},
                "0",
                required=False,
            ),
        ],
        "responses": {
            "200": {
                "description": "Every file, in the order of DVC's manifest.",
                "headers": {
                    "X-Registry-Revision": header(
                        "The full commit id.", pattern="^[0-9a-f]{40}([0-9a-f]{24})?$"
                    ),
                    "X-Registry-Tag": header("The tag that decided."),
                    "X-Registry-Expires": header(
                        "When the first of the links ends.", format="date-time"
                    ),
                    "X-Registry-Mirror-Age": header(
                        "Seconds since the origin was last seen to have these tags.",
                        pattern="^[0-9]+$",
                    ),
                    "X-Registry-Version": header(
                        "The version; absent for a stage on a commit without one.", required=False
                    ),
                    "X-Registry-Deprecated": header(
                        "Present when the artifact is deprecated.", required=False, const="true"
                    ),
                    "Cache-Control": header("Links are for one caller.", const="private, no-store"),
                },
                "content": content("Links"),
            },
            **failures(
                {
                    400: "A parameter is missing or malformed, or excludes another.",
                    **TOKEN_FAILS,
                    403: "The token lacks the scope `models:read`.",
                    404: "No such repository for this token, artifact, version, stage or path.",
                    422: "Found, but no link can be given: not granted, not pushed, or hostile.",
                    424: "The object that lists the directory is missing in its store.",
                    **UNEXPECTED,
                    **UNAVAILABLE,
                }
            ),
        },
    }


_LINK: Json = {
    "name": "token",
    "in": "path",
    "required": True,
    "description": "What an earlier answer linked to: it names one object until one moment.",
    "schema": {"type": "string", "minLength": 1},
}


def _object() -> Json:
    whole: Json = {"application/octet-stream": {}}
    headers = {
        "Content-Disposition": header("Always a download.", pattern="^attachment; "),
        "ETag": header("The MD5 of the object, where DVC records it.", required=False),
        "Accept-Ranges": header("One range of bytes can be asked for.", const="bytes"),
        "Cache-Control": header("The link is a capability.", const="private, no-store"),
    }
    return {
        "operationId": "getObject",
        "summary": "The bytes behind a link of the service's own",
        "security": [],
        "parameters": [
            {
                "name": name,
                "in": "header",
                "description": meaning,
                "schema": {"type": "string"},
            }
            for name, meaning in (
                ("Range", "One range of bytes. What is malformed or manifold counts as none."),
                ("If-Range", "The range counts only if the object has this ETag."),
                ("If-None-Match", "Nothing is sent if the object has one of these ETags."),
            )
        ],
        "responses": {
            "200": {"description": "The object.", "headers": headers, "content": whole},
            "206": {
                "description": "The range of it that was asked for.",
                "headers": {
                    **headers,
                    "Content-Range": header("Which.", pattern="^bytes [0-9]+-[0-9]+/[0-9]+$"),
                },
                "content": whole,
            },
            "304": {"description": "The client has it.", "headers": headers},
            "416": {
                "description": "The range begins beyond the end.",
                "headers": {**headers, "Content-Range": header("`bytes */size`.")},
            },
            **failures(
                {
                    403: "The link was changed, has ended, or is no longer granted.",
                    424: "The object is missing in its store.",
                    **UNEXPECTED,
                    **UNAVAILABLE,
                }
            ),
        },
    }


def _object_head() -> Json:
    get = _object()
    responses = get["responses"]
    assert isinstance(responses, dict)
    bodiless = {
        status: {key: value for key, value in answer.items() if key != "content"}
        for status, answer in responses.items()
    }
    return {**get, "operationId": "headObject", "responses": bodiless}


def _healthz() -> Json:
    return {
        "operationId": "healthz",
        "summary": "Whether the process answers",
        "security": [],
        "responses": {
            "200": {
                "description": "It does.",
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "properties": {"status": {"const": "ok"}},
                            "required": ["status"],
                        }
                    }
                },
            }
        },
    }


_FORGE: Json = {
    "name": "forge",
    "in": "path",
    "required": True,
    "description": "Who sends, and so how the sender proves to know the repository's secret.",
    "schema": {"enum": ["github", "gitlab", "gitea", "bitbucket", "generic"]},
}


def _hook() -> Json:
    return {
        "operationId": "receiveHook",
        "summary": "A repository changed: look at its origin now",
        "description": "The secret, or a signature of the body made with it, is in a header.",
        "security": [],
        "parameters": [
            query(
                "repo",
                "The repository; otherwise the one whose URL the payload holds.",
                {},
                "team/models",
                required=False,
            )
        ],
        "requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": {
            "200": {"description": "GitHub's ping.", "content": content("Refresh")},
            "202": {"description": "The look has begun.", "content": content("Refresh")},
            **failures(
                {
                    401: "Nothing is proven. The same answer for every reason.",
                    413: "The payload is larger than any that a forge sends.",
                    **UNEXPECTED,
                }
            ),
        },
    }


def _exchange() -> Json:
    def text(meaning: str, **limits: object) -> Json:
        return {"type": "string", "description": meaning, **limits}

    form: Json = {
        "type": "object",
        "properties": {
            "grant_type": {"const": exchange.GRANT_TYPE},
            "subject_token": text("The ID token.", minLength=1, maxLength=LONGEST),
            "subject_token_type": {
                "enum": [f"{exchange.TOKEN_TYPES}id_token", f"{exchange.TOKEN_TYPES}jwt"]
            },
            "requested_token_type": {"const": f"{exchange.TOKEN_TYPES}access_token"},
            "scope": text("Of the scopes that the job is given, those that it needs."),
        },
        "required": ["grant_type", "subject_token", "subject_token_type"],
    }
    meanings = {
        400: "The request is malformed, or asks for a scope that the job is not given.",
        401: "The ID token does not hold, or no rule lets the job in: `reason` says why.",
        413: "The form is larger than any ID token.",
        429: "This address failed too often: again after `Retry-After` seconds.",
        500: UNEXPECTED[500],
        503: "The issuer's keys, or the database, cannot be had now.",
    }
    token_error = {"content": content("TokenError")}
    return {
        "operationId": "exchangeToken",
        "summary": "A token for a CI job that has an ID token",
        "description": "OAuth 2.0 Token Exchange, RFC 8693.",
        "security": [],
        "requestBody": {
            "required": True,
            "content": {"application/x-www-form-urlencoded": {"schema": form}},
        },
        "responses": {
            "200": {
                "description": "A token for an hour at most.",
                "headers": {"Cache-Control": header("It is a secret.", const="no-store")},
                "content": content("Issued"),
            },
            **{
                # What Flask itself refuses is refused as everywhere.
                status: failure if status in ("413", "500") else {**failure, **token_error}
                for status, failure in failures(meanings).items()
            },
        },
    }


def _readyz() -> Json:
    return {
        "operationId": "readyz",
        "summary": "Whether the service can answer",
        "description": "With a token, also the repositories and locations that it covers.",
        "security": [{}, {"token": []}],
        "responses": {
            "200": {"description": "It can.", "content": content("State")},
            "503": {
                "description": "It cannot: its database, disk or clock is at fault.",
                "headers": FAILURE_HEADERS[503],
                "content": content("State"),
            },
            **failures({429: TOKEN_FAILS[429], **UNEXPECTED}),
        },
    }


def _metrics() -> Json:
    return {
        "operationId": "metrics",
        "summary": "Numbers for Prometheus",
        "description": "Needs the scope `metrics:read`, unless the operator made it public.",
        "responses": {
            "200": {"description": "Prometheus' text format.", "content": {"text/plain": {}}},
            **failures(
                {
                    **TOKEN_FAILS,
                    403: "The token lacks the scope `metrics:read`.",
                    **UNEXPECTED,
                    503: UNAVAILABLE[503],
                }
            ),
        },
    }


def _openapi() -> Json:
    return {
        "operationId": "openapi",
        "summary": "This document",
        "responses": {
            "200": {
                "description": "OpenAPI 3.1.",
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            **failures({**TOKEN_FAILS, **UNEXPECTED, 503: UNAVAILABLE[503]}),
        },
    }


_PAGE: Json = {"text/html": {}}
_PAGE_HEADERS: Json = {
    "Content-Security-Policy": header("No scripts at all.", pattern="^default-src 'none'; "),
    "Cache-Control": header("It may have been shown for a token.", const="no-store"),
}


def _docs() -> Json:
    return {
        "operationId": "docs",
        "summary": "This document for people",
        "description": "With a token the page, without one a form for it.",
        "security": [{}, {"token": []}],
        "responses": {
            "200": {"description": "A page.", "headers": _PAGE_HEADERS, "content": _PAGE},
            **failures({**TOKEN_FAILS, **UNEXPECTED, 503: UNAVAILABLE[503]}),
        },
    }


def _docs_for_a_browser() -> Json:
    form = {"type": "object", "properties": {"token": {"type": "string"}}, "required": ["token"]}
    return {
        "operationId": "docsForBrowser",
        "summary": "The same, with the token of the form",
        "security": [],
        "requestBody": {"content": {"application/x-www-form-urlencoded": {"schema": form}}},
        "responses": {
            "200": {"description": "The page.", "headers": _PAGE_HEADERS, "content": _PAGE},
            "401": {
                "description": "The form again: the token does not hold.",
                "headers": {**FAILURE_HEADERS[401], **_PAGE_HEADERS},
                "content": _PAGE,
            },
            **failures(
                {
                    413: "The form is larger than any token.",
                    429: TOKEN_FAILS[429],
                    **UNEXPECTED,
                    503: UNAVAILABLE[503],
                }
            ),
        },
    }


def _docs_style() -> Json:
    return {
        "operationId": "docsStyle",
        "summary": "What that page looks like",
        "security": [],
        "responses": {"200": {"description": "CSS.", "content": {"text/css": {}}}},
    }
