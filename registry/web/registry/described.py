"""The dialect's part of the OpenAPI document."""

from registry.domain import LONGEST_NAME
from registry.gto import Action
from registry.presence import MOST
from registry.told import LONGEST_PAGE as MOST_LISTED
from registry.web.describe import (
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
from registry.web.registry.asked import MOST_QUESTIONS
from registry.web.registry.receipts import ARIA2, CURL, LONGEST_PAGE, PLAIN

_DIGEST: Json = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_REVISION: Json = {"type": "string", "pattern": "^[0-9a-f]{40}([0-9a-f]{24})?$"}
_TEXT: Json = {"type": "string"}
_NULLABLE: Json = {"type": ["string", "null"]}
_SIZE: Json = {"type": ["integer", "null"], "minimum": 0, "description": "Bytes."}
_MD5: Json = {"type": ["string", "null"], "pattern": "^[0-9a-f]{32}$"}
_PATH: Json = {"type": "string", "minLength": 1, "description": "In the repository."}

_NO_SCOPE = {403: "The token lacks the scope `models:read`."}
_INVALID = {400: "A parameter is missing, malformed, unknown, or excludes another."}
_NOT_SIGNABLE = {
    422: "Found, but not to be had: not granted, tracked by Git, or hostile.",
    424: "The store does not have an object that DVC's files promise: `dvc push`.",
}


def paths() -> dict[str, Json]:
    """The routes of the dialect."""
    return {
        "/api/v1/resolve": {"get": _resolve(), "post": _resolve_together()},
        "/api/v1/urls": {"get": _urls()},
        "/api/v1/md5sums": {"get": _md5sums()},
        **_looking_around(),
    }


def schemas() -> dict[str, Json]:
    """The bodies of its answers."""
    file = {"path": _PATH, "md5": _MD5, "size": _SIZE}
    return {
        "Receipt": _object(
            "What a selector meant, to the last file; RFC 8785 JSON without links and time.",
            {
                "repository": _TEXT,
                "name": _TEXT,
                "selector": {
                    "description": "The parameter that chose.",
                    "oneOf": [
                        _object("", {"version": _TEXT}),
                        _object("", {"stage": _TEXT}),
                        _object("", {"rev": _REVISION}),
                    ],
                },
                "version": _NULLABLE,
                "revision": _REVISION,
                "tag": {**_NULLABLE, "description": "The tag that decided; null for a `rev`."},
                "path": {"type": "string", "description": "In the repository, or a URL."},
                "type": _NULLABLE,
                "labels": {"type": "array", "items": _TEXT},
                "description": _NULLABLE,
                "meta": {"description": "Whatever the dvc.yaml says under `meta`."},
                "files": {"type": "array", "items": _object("", file)},
                "total_size": _SIZE,
                "digest": {**_DIGEST, "description": "SHA-256 of all the rest."},
            },
        ),
        "Receipts": _object(
            "",
            {"receipts": {"type": "array", "items": {"$ref": "#/components/schemas/Receipt"}}},
        ),
        **_listed(),
        "Urls": _object(
            "Links to the files of a receipt, in its order.",
            {
                "receipt": _DIGEST,
                "expires": {"type": "string", "format": "date-time"},
                "next": {
                    "type": ["integer", "null"],
                    "description": "The `after` of the next page; null on the last.",
                },
                "files": {
                    "type": "array",
                    "minItems": 1,
                    "items": _object("", {**file, "url": {"type": "string", "format": "uri"}}),
                },
            },
        ),
    }


def _object(meaning: str, properties: dict[str, Json]) -> Json:
    described: Json = {"description": meaning} if meaning else {}
    return {
        "type": "object",
        **described,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _optional(name: str, meaning: str, limits: Json, example: str) -> Json:
    return query(name, meaning, limits, example, required=False)


_RECEIPT = query("receipt", "The digest of a receipt.", {"pattern": _DIGEST["pattern"]}, "0" * 64)


def _resolve() -> Json:
    changing = header(
        "A year for a `rev` or a `receipt`; anything else is to be asked for again.",
        pattern="^private, (no-cache|max-age=31536000, immutable)$",
    )
    headers: Json = {
        "ETag": header("The digest of the receipt.", pattern='^"[0-9a-f]{64}(-text)?"$'),
        "Cache-Control": changing,
        "X-Registry-Mirror-Age": header(
            "Seconds since the origin was last seen to have these tags; absent for a `receipt`.",
            required=False,
            pattern="^[0-9]+$",
        ),
        "X-Registry-Verified": header(
            "How many objects the store was asked for, with `verify`.",
            required=False,
            pattern="^[0-9]+$",
        ),
        "X-Registry-Deprecated": header(
            "Present when the artifact is deprecated.", required=False, const="true"
        ),
    }
    return {
        "operationId": "resolve",
        "summary": "What a selector means: a receipt",
        "description": (
            "Of the version, stage or revision that is named, or else of the latest version. Or of "
            "a receipt that was given before, by its digest alone."
        ),
        "parameters": [
            _optional("repo", "A repository, by its name, URL or alias.", {}, "team/models"),
            _optional(
                "name",
                "The artifact: `name`, or `directory:name`.",
                {"maxLength": LONGEST_NAME, "pattern": NAME_OF_ARTIFACT},
                "classifier",
            ),
            _optional("version", "A registered version.", {"maxLength": LONGEST_NAME}, "v1.0.0"),
            _optional("stage", "A stage.", {"maxLength": LONGEST_NAME}, "prod"),
            _optional("rev", "A full commit id.", {"pattern": _REVISION["pattern"]}, "0" * 40),
            _optional("receipt", "A digest, alone.", {"pattern": _DIGEST["pattern"]}, "0" * 64),
            _optional(
                "max_age",
                "Seconds that the last look at the origin may be old. "
                "`Cache-Control: no-cache` means 0.",
                {"pattern": "^[0-9]{1,9}$"},
                "0",
            ),
            _optional(
                "verify",
                f"`head`: ask the store whether it has every object, at most {MOST}.",
                {"enum": ["head"]},
                "head",
            ),
            {
                "name": "If-None-Match",
                "in": "header",
                "description": "The ETag of the receipt that the client has.",
                "schema": _TEXT,
            },
        ],
        "responses": {
            "200": {
                "description": "The receipt; `Accept: text/plain` shows it to people.",
                "headers": headers,
                "content": {**content("Receipt"), PLAIN: {}},
            },
            "304": {"description": "The client has it.", "headers": headers},
            **failures(
                {
                    **_INVALID,
                    **TOKEN_FAILS,
                    **_NO_SCOPE,
                    404: "No such repository for this token, artifact, version, stage, revision, "
                    "receipt or path.",
                    **_NOT_SIGNABLE,
                    **UNEXPECTED,
                    **UNAVAILABLE,
                }
            ),
        },
    }


def _resolve_together() -> Json:
    selector = {
        "type": "object",
        "properties": {
            "repo": {"type": "string", "minLength": 1},
            "name": {"maxLength": LONGEST_NAME, "pattern": NAME_OF_ARTIFACT, **_TEXT},
            "version": {"maxLength": LONGEST_NAME, **_TEXT},
            "stage": {"maxLength": LONGEST_NAME, **_TEXT},
            "rev": _REVISION,
        },
        "required": ["repo", "name"],
        "additionalProperties": False,
    }
    body = {
        "type": "object",
        "properties": {
            "selectors": {
                "type": "array",
                "minItems": 1,
                "maxItems": MOST_QUESTIONS,
                "items": selector,
            },
            "max_age": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
        },
        "required": ["selectors"],
        "additionalProperties": False,
    }
    return {
        "operationId": "resolveTogether",
        "summary": "What many selectors mean, in one state of every repository",
        "description": "All or none: what is wrong with one of them is the answer.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {
                "description": "The receipts, in the order of the selectors.",
                "headers": {
                    "Cache-Control": header("To be asked for again.", const="private, no-cache"),
                    "X-Registry-Mirror-Age": header("Of the oldest.", pattern="^[0-9]+$"),
                },
                "content": content("Receipts"),
            },
            **failures(
                {
                    **_INVALID,
                    **TOKEN_FAILS,
                    **_NO_SCOPE,
                    404: "One of them is not found.",
                    413: "The body is larger than 100 selectors are.",
                    **_NOT_SIGNABLE,
                    **UNEXPECTED,
                    **UNAVAILABLE,
                }
            ),
        },
    }


def _urls() -> Json:
    return {
        "operationId": "urls",
        "summary": "Fresh links to the files of a receipt",
        "description": "Never resolved again: a stage that moved meanwhile changes nothing.",
        "parameters": [
            _RECEIPT,
            _optional(
                "path",
                "Only files whose path matches; `*` stands for any characters.",
                {"maxLength": 1024},
                "*.bin",
            ),
            _optional(
                "after", "Without this many files of the receipt.", {"pattern": "^[0-9]{1,9}$"}, "0"
            ),
            _optional(
                "limit",
                f"Files of a page, at most {LONGEST_PAGE}; otherwise all.",
                {"pattern": "^[1-9][0-9]{0,3}$"},
                "1000",
            ),
        ],
        "responses": {
            "200": {
                "description": "Links, as JSON or as programs read them that download.",
                "headers": {
                    "Cache-Control": header("For one caller.", const="private, no-store"),
                    "X-Registry-Expires": header(
                        "When the first of the links ends.", format="date-time"
                    ),
                    "X-Registry-Next": header(
                        "The `after` of the next page.", required=False, pattern="^[0-9]+$"
                    ),
                },
                "content": {**content("Urls"), CURL: {}, ARIA2: {}},
            },
            **failures(
                {
                    **_INVALID,
                    **TOKEN_FAILS,
                    **_NO_SCOPE,
                    404: "No such receipt for this token, or none of its files matches.",
                    **_NOT_SIGNABLE,
                    **UNEXPECTED,
                    **UNAVAILABLE,
                }
            ),
        },
    }


def _md5sums() -> Json:
    return {
        "operationId": "md5sums",
        "summary": "What `md5sum --check` reads",
        "parameters": [_RECEIPT],
        "responses": {
            "200": {
                "description": "A line for every file of the receipt.",
                "headers": {"Cache-Control": header("It cannot change.", pattern="immutable$")},
                "content": {PLAIN: {}},
            },
            **failures(
                {
                    **_INVALID,
                    **TOKEN_FAILS,
                    **_NO_SCOPE,
                    404: "No such receipt for this token.",
                    422: "DVC records no MD5 of one of the files.",
                    424: _NOT_SIGNABLE[424],
                    **UNEXPECTED,
                    **UNAVAILABLE,
                }
            ),
        },
    }


_TIME: Json = {"type": ["string", "null"], "format": "date-time"}
_MEANING: dict[str, Json] = {"version": _NULLABLE, "revision": _REVISION, "tag": _NULLABLE}
_NEXT: Json = {"type": ["string", "null"], "description": "The `after` of the next page."}
_HAPPENED: dict[str, Json] = {
    "tag": _TEXT,
    "action": {"enum": [action.value for action in Action]},
    "version": _NULLABLE,
    "stage": _NULLABLE,
}
_ARTIFACT: dict[str, Json] = {
    "name": _TEXT,
    "type": _NULLABLE,
    "labels": {"type": "array", "items": _TEXT},
    "description": _NULLABLE,
    "deprecated": {"type": "boolean"},
    "latest": {"oneOf": [_object("", _MEANING), {"type": "null"}]},
    "stages": {"type": "object", "additionalProperties": _object("", _MEANING)},
    "updated": {**_TIME, "description": "The time of the last tag."},
    "shown": {**_NULLABLE, "description": "The revision at which dvc.yaml was read."},
    "problem": {**_NULLABLE, "description": "Why dvc.yaml says nothing of it there."},
    "links": {"type": "object", "additionalProperties": _TEXT},
}


def _listed() -> dict[str, Json]:
    """The bodies of lists, and of what is in them."""
    return {
        "Repositories": _page(
            "repositories",
            {"name": _TEXT, "last_seen": _TIME, "problem": _NULLABLE, "artifacts": _TEXT},
        ),
        "Artifacts": _page("artifacts", _ARTIFACT),
        "Artifact": _object("", {**_ARTIFACT, "meta": {}, "versions": {"type": "integer"}}),
        "Versions": _page(
            "versions",
            {
                "version": _TEXT,
                "revision": _REVISION,
                "tag": _TEXT,
                "registered": _TIME,
                "stages": {"type": "array", "items": _TEXT},
            },
        ),
        "History": _page(
            "events",
            {
                **_HAPPENED,
                "revision": _REVISION,
                "time": _TIME,
                "who": {**_NULLABLE, "description": "As the tag says."},
                "message": _NULLABLE,
            },
            void={
                "type": "array",
                "description": "Tags that look like events and count for nothing.",
                "items": _object("", {**_HAPPENED, "problem": _TEXT}),
            },
        ),
        "Explanation": _object(
            "An answer, or why there is none, and every tag that was considered.",
            {
                "selector": {"type": "object", "additionalProperties": _TEXT},
                "answer": {"oneOf": [_object("", _MEANING), {"type": "null"}]},
                "problem": _NULLABLE,
                "considered": {
                    "type": "array",
                    "items": _object(
                        "",
                        {
                            **_HAPPENED,
                            "revision": _NULLABLE,
                            "time": _TIME,
                            "won": {"type": "boolean"},
                            "reason": _TEXT,
                        },
                    ),
                },
            },
        ),
    }


def _page(name: str, item: dict[str, Json], **more: Json) -> Json:
    items: Json = {"type": "array", "items": _object("", item)}
    return _object("", {name: items, **more, "next": _NEXT})


def _looking_around() -> dict[str, Json]:
    pages = [
        _optional("limit", f"At most {MOST_LISTED}.", {"pattern": "^[1-9][0-9]{0,2}$"}, "100"),
        _optional("after", "The `next` of the page before.", {"maxLength": 2000}, ""),
    ]
    max_age = _optional(
        "max_age", "Seconds that the last look may be old.", {"pattern": "^[0-9]{1,9}$"}, "0"
    )
    filters = [
        _optional("search", "In the name or description.", {"maxLength": 255}, "cat"),
        _optional("type", "The type that dvc.yaml gives.", {"maxLength": 255}, "model"),
        _optional("label", "One of the labels there.", {"maxLength": 255}, "vision"),
        _optional("stage", "Assigned to this stage.", {"maxLength": 255}, "prod"),
        _optional("sort", "", {"enum": ["name", "-name", "updated", "-updated"]}, "name"),
    ]
    which = [
        _optional("version", "A version.", {"maxLength": LONGEST_NAME}, "v1.0.0"),
        _optional("stage", "A stage; excludes `version`.", {"maxLength": LONGEST_NAME}, "prod"),
    ]
    repository = _segment("repository", "Its name, with `~` for `/`.", "team~models")
    name = _segment("name", "The artifact, with `~` for `/`.", "path~to:classifier")
    artifacts = "/api/v1/repositories/{repository}/artifacts"
    artifact = f"{artifacts}/{{name}}"
    rows: list[tuple[str, str, str, list[Json], str]] = [
        ("/api/v1/repositories", "repositories", "Repositories", pages, "The token's repositories"),
        (artifacts, "artifacts", "Artifacts", [*filters, *pages, max_age], "Its artifacts"),
        (artifact, "artifact", "Artifact", [max_age], "An artifact"),
        (f"{artifact}/versions", "versions", "Versions", [*pages, max_age], "Greatest first"),
        (f"{artifact}/history", "history", "History", [*pages, max_age], "Events, newest first"),
        (f"{artifact}/explain", "explain", "Explanation", [*which, max_age], "Why a tag won"),
    ]
    found: dict[str, Json] = {}
    for path, operation, schema, parameters, summary in rows:
        segments = [it for it in (repository, name) if f"{{{it['name']}}}" in path]
        found[path] = {"get": _look(operation, schema, [*segments, *parameters], summary)}
    return found


def _segment(name: str, meaning: str, example: str) -> Json:
    schema = {"type": "string", "minLength": 1, "pattern": "^[^/]+$"}
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": meaning,
        "schema": schema,
        "example": example,
    }


def _look(operation: str, schema: str, parameters: list[Json], summary: str) -> Json:
    return {
        "operationId": operation,
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "From one state of the repository.",
                "headers": {
                    "Cache-Control": header("To be asked for again.", const="private, no-cache")
                },
                "content": content(schema),
            },
            **failures(
                {
                    **_INVALID,
                    **TOKEN_FAILS,
                    **_NO_SCOPE,
                    404: "No such repository for this token, or no such artifact.",
                    **UNEXPECTED,
                    **UNAVAILABLE,
                }
            ),
        },
    }
