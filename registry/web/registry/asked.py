"""The parameters of a request. One that is misspelled is refused, and not overlooked: `verison=v1`
would mean the latest version.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from urllib.parse import parse_qsl

from flask import request

from registry.domain import Selector
from registry.errors import InvalidRequest
from registry.told import number_of

SELECTOR = frozenset({"repo", "name", "version", "stage", "rev"})
"""The parameters that select a version of an artifact in a repository."""
LARGEST_BODY = 1 << 18
"""Bytes of a request that asks for many."""
MOST_QUESTIONS = 100
_NUMBER = re.compile(r"[0-9]{1,9}")


def arguments(allowed: frozenset[str]) -> Mapping[str, str]:
    """The parameters of the request; one that is empty counts as absent. Raises InvalidRequest."""
    return parsed(request.environ.get("QUERY_STRING", ""), allowed)


@lru_cache(512)  # a service is asked few questions, and each of them again and again
def parsed(query: str, allowed: frozenset[str]) -> Mapping[str, str]:
    """The parameters of a query string, of which WSGI makes a text by Latin-1. Raises
    InvalidRequest for one that is not allowed, or stands twice.
    """
    text = query.encode("latin-1").decode(errors="replace")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise InvalidRequest("query", "more parameters than there are") from None
    found = dict(pairs)
    for name in found:
        if name not in allowed:
            known = ", ".join(sorted(allowed))
            raise InvalidRequest(name[:50], f"no such parameter; allowed are {known}")
    if len(found) != len(pairs):
        raise InvalidRequest("query", "a parameter is given twice")
    return {name: value for name, value in found.items() if value}


def questions() -> tuple[list[tuple[str, Selector]], int | None]:
    """The body of a request that asks for many: repository and selector of each, and the age that
    the answer may have. Raises InvalidRequest.

        {"selectors": [{"repo": "team/models", "name": "m", "stage": "prod"}, ...], "max_age": 0}
    """
    if request.mimetype != "application/json":
        raise InvalidRequest("body", "send application/json")
    request.max_content_length = LARGEST_BODY
    try:
        body = json.loads(request.get_data(cache=False))
    except (ValueError, RecursionError):
        raise InvalidRequest("body", "not valid JSON") from None
    listed = body.get("selectors") if isinstance(body, dict) else None
    if not isinstance(listed, list) or not body.keys() <= {"selectors", "max_age"}:
        raise InvalidRequest("body", "an object of selectors and max_age")
    if not 1 <= len(listed) <= MOST_QUESTIONS:
        raise InvalidRequest("selectors", f"1 to {MOST_QUESTIONS} of them")
    found = []
    for given in listed:
        if not isinstance(given, dict) or not given.keys() <= SELECTOR:
            raise InvalidRequest("selectors", f"each an object of {', '.join(sorted(SELECTOR))}")
        if not all(isinstance(value, str) for value in given.values()):
            raise InvalidRequest("selectors", "each of its values is a text")
        found.append((given.get("repo", ""), selector_of(given)))
    max_age = body.get("max_age")
    if max_age is not None and not (type(max_age) is int and 0 <= max_age < 10**9):
        raise InvalidRequest("max_age", "a whole number of seconds, such as 0")
    return found, max_age


def selector_of(given: Mapping[str, str]) -> Selector:
    """The selector that the parameters name. Raises InvalidRequest."""
    return Selector.parse(
        given.get("name", ""),
        given.get("version", ""),
        given.get("stage", ""),
        given.get("rev", ""),
    )


def max_age_of(given: Mapping[str, str]) -> int | None:
    """The age in seconds that the answer may have, if the client says so. Raises InvalidRequest."""
    age = number_of(given, "max_age")
    if "HTTP_CACHE_CONTROL" in request.environ and request.cache_control.no_cache:
        return 0
    return age


def preferred(*types: str) -> str:
    """Which of these types the client wants, the first one when it has no preference."""
    accept = request.environ.get("HTTP_ACCEPT", "")
    if "text/" not in accept:
        return types[0]
    return request.accept_mimetypes.best_match(types, types[0]) or types[0]


def age(checked: float, now: float, *, stale: bool) -> Iterator[tuple[str, str]]:
    """The headers that say how long ago the origin was last seen, in Unix time."""
    yield "X-Registry-Mirror-Age", str(max(0, int(now - checked)))
    if stale:
        yield "Warning", '110 - "Response is Stale"'  # RFC 7234, section 5.5.1
