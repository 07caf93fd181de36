"""Lists in answers. One that may be long is read and sent a piece at a time, and never held whole.

What goes wrong before the first piece is told as ever; what goes wrong behind it breaks the answer
off, which every client notices.
"""

import json
from collections.abc import Callable, Iterator, Sequence

from flask import Response

from registry.tracking.records import Found, Page
from registry.web.mlflow.wire import Json

PIECE = 1000
"""How many are read at once, unless it is said."""

Read = Callable[[int, str], tuple[Sequence[Json], str]]
"""Reads so many from where a token says, and gives the token of the next: none at the end."""


def answer(
    name: str, read: Read, limit: int, page: str = "", *, piece: int = PIECE, pages: bool = True
) -> Json | Response:
    """The answer in which the list stands as `name`: up to `limit`, from the token `page` on.

    With `pages` it says where the next page begins.
    """
    found, following = read(min(piece, limit), page)
    if following and limit > piece:
        text = _text(name, read, limit, piece, pages, (found, following))
        return Response(text, mimetype="application/json")
    return {
        **({name: found} if found else {}),
        **({"next_page_token": following} if following and pages else {}),
    }


def spelled(page: Page[Found], spell: Callable[[Found], Json]) -> tuple[Sequence[Json], str]:
    """What `Read` returns, of a page of tracking."""
    return [spell(it) for it in page.found], page.next


def _text(
    name: str, read: Read, limit: int, piece: int, pages: bool, first: tuple[Sequence[Json], str]
) -> Iterator[str]:
    found, following = first
    yield f'{{"{name}":['
    given, comma = 0, ""
    while found:
        yield comma + _json(found)[1:-1]
        given, comma = given + len(found), ","
        wanted = min(piece, limit - given)
        found, following = read(wanted, following) if following and wanted else ((), following)
    yield "]"
    if following and pages:
        yield f',"next_page_token":{_json(following)}'
    yield "}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
