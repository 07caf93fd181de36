"""Keyset pages: the next one begins behind the last row of this one, wherever that is by then.

A token holds the place of that row in the order, and a digest of the question, so that it answers
no other one. Clients hand it back as they got it. It is not signed: what it holds only ever
becomes a value that is compared with.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NewType

import sqlalchemy as sa

from registry.errors import InvalidRequest
from registry.tracking.records import UNKEPT

Question = NewType("Question", str)
"""What a token belongs to: a digest of everything that decides which rows there are, and their
order."""

_DIGEST = 12


@dataclass(frozen=True)
class Sort:
    """One column of an order; it is never NULL."""

    column: "sa.ColumnElement[Any]"
    ascending: bool

    @property
    def ordered(self) -> "sa.ColumnElement[Any]":
        """For ORDER BY."""
        return self.column.asc() if self.ascending else self.column.desc()


def question(*parts: object) -> Question:
    """The digest of a question."""
    return Question(hashlib.sha256(repr(parts).encode()).hexdigest()[:_DIGEST])


def token(asked: Question, place: Sequence[object]) -> str:
    """What asks for the rows behind `place`."""
    text = json.dumps([asked, *place], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode()


def place(asked: Question, text: str, kinds: Sequence[type]) -> list[Any]:
    """Where a page begins, by a token of this question: values of these kinds.

    Raises InvalidRequest for one of another question, and for what is no token.
    """
    try:
        found = json.loads(base64.b64decode(text, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or len(found) != len(kinds) + 1 or found[0] != asked:
        raise InvalidRequest("page_token", "not one that an earlier page of this search gave")
    values = found[1:]
    if not all(map(_fits, values, kinds)):
        raise InvalidRequest("page_token", "not one that an earlier page of this search gave")
    return [
        float(value) if kind is float else value for value, kind in zip(values, kinds, strict=True)
    ]


def _fits(value: object, kind: type) -> bool:
    """Whether a value is of a kind, and one that a database takes."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):  # as which a float may be written, too
        return kind is not str and abs(value) < 2**63
    return isinstance(value, kind) and not (isinstance(value, str) and UNKEPT.search(value))


def behind(sorts: Sequence[Sort], values: Sequence[Any]) -> "sa.ColumnElement[bool]":
    """The condition of a row that comes after the one with these values, or parameters.

    Its first part bounds the first column alone: that is what an index can be entered by.
    """
    (sort, *rest), (given, *others) = sorts, values
    # Of the type of the column: SQLAlchemy does not order by a bare True.
    named = isinstance(given, sa.BindParameter)
    value = given if named else sa.literal(given, sort.column.type)
    beyond: sa.ColumnElement[bool] = sort.column > value if sort.ascending else sort.column < value
    if not rest:
        return beyond
    bound = sort.column >= value if sort.ascending else sort.column <= value
    return sa.and_(bound, sa.or_(beyond, sa.and_(sort.column == value, behind(rest, others))))
