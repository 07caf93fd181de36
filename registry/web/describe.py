"""The words of an OpenAPI document: parameters, headers and answers, said once for all dialects."""

from collections.abc import Mapping

from registry.domain import DIRNAME, NAME

Json = dict[str, object]

NAME_OF_ARTIFACT = rf"^(?:(?:{DIRNAME})?:)?{NAME}$"

UNEXPECTED = {500: "A mistake of the service, which is in its log."}
TOKEN_FAILS = {
    401: "No token, or one that does not hold. The same answer for every reason.",
    429: "The token asked too often: again after `Retry-After` seconds.",
}
UNAVAILABLE = {
    502: "The Git origin or the store does not answer, or answers nonsense.",
    503: "Not yet, or not now: ask again after `Retry-After` seconds.",
}


def query(name: str, meaning: str, limits: Json, example: str, *, required: bool = True) -> Json:
    """A parameter of a query string."""
    return {
        "name": name,
        "in": "query",
        "required": required,
        "description": meaning,
        "schema": {"type": "string", **limits},
        "example": example,
    }


def header(meaning: str, *, required: bool = True, **limits: str) -> Json:
    """A header of an answer."""
    return {
        "description": meaning,
        "required": required,
        "schema": {"type": "string", **limits},
    }


def failures(meanings: Mapping[int, str]) -> dict[str, Json]:
    """Status -> answer, with the body that all failures have and the headers that go with some."""
    return {
        str(status): {
            "description": meaning,
            "headers": FAILURE_HEADERS.get(status, {}),
            "content": content("Error"),
        }
        for status, meaning in meanings.items()
    }


FAILURE_HEADERS: dict[int, Json] = {
    401: {"WWW-Authenticate": header("The scheme to use.", const="Token")},
    429: {"Retry-After": header("Seconds.", pattern="^[0-9]+$")},
    500: {"Retry-After": header("Seconds.", pattern="^[0-9]+$")},
    502: {"Retry-After": header("Seconds.", pattern="^[0-9]+$")},
    503: {"Retry-After": header("Seconds.", pattern="^[0-9]+$")},
}


def content(schema: str) -> Json:
    """A body in JSON, by the name of its schema."""
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
