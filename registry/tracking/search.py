"""Comparisons -> conditions. Values are always parameters: nothing that was asked is ever SQL."""

import json
from typing import Any, NamedTuple

import sqlalchemy as sa

from registry.errors import InvalidRequest
from registry.tracking.query import Comparison, Operator, Value

_NUMBERS = ("=", "!=", "<", "<=", ">", ">=")
_LISTS = ("in", "not in")
_PATTERNS = ("like", "ilike")
LONGEST_PATTERN = 50_000
"""Bytes of a pattern that SQLite takes."""

Condition = sa.ColumnElement[bool]
Parameter = sa.BindParameter[Any]


class Asked(NamedTuple):
    """A comparison as a statement has it: with parameters for the key and the value."""

    operator: Operator
    key: Parameter
    value: Parameter

    @classmethod
    def of(cls, comparison: Comparison, *, number: bool, embedded: bool) -> "Asked":
        """With what was asked. Raises InvalidRequest for an operator that there is not."""
        value = given(comparison, number=number, embedded=embedded)
        kind = kind_of(comparison.operator, value, embedded)
        return cls(comparison.operator, sa.literal(comparison.key), sa.literal(value, kind))


def given(comparison: Comparison, *, number: bool, embedded: bool) -> Value | list[str]:
    """The value as the database takes it. Raises InvalidRequest for one that does not fit.

    `number` says whether it is compared with one.
    """
    operator, value = comparison.operator, comparison.value
    if number:
        if operator not in _NUMBERS or not isinstance(value, int | float):
            raise InvalidRequest(
                "filter", f"{comparison.key!r} is a number, to be compared with one"
            )
        # No column is so large, and no database takes it as it is.
        return float(value) if isinstance(value, int) and abs(value) >= 2**63 else value
    if operator in ("missing", "present"):
        return None
    if operator in _LISTS and isinstance(value, tuple):
        return json.dumps(value) if embedded else list(value)
    if operator in ("=", "!=", *_PATTERNS) and isinstance(value, str):
        # SQLite's LIKE does not tell a from A; its GLOB does.
        text = _glob(value) if embedded and operator == "like" else value
        if operator in _PATTERNS and len(text.encode()) > LONGEST_PATTERN:
            raise InvalidRequest("filter", f"the pattern for {comparison.key!r} is too long")
        return text
    raise InvalidRequest("filter", f"{comparison.key!r} is a text, to be compared with one")


def kind_of(operator: Operator, value: object, embedded: bool) -> "sa.types.TypeEngine[Any]":
    """The type of a value that is `given`."""
    if operator in _LISTS and not embedded:
        return sa.ARRAY(sa.Text)
    if isinstance(value, int | float):
        return sa.BigInteger() if isinstance(value, int) else sa.Double()
    return sa.Text()


def holds(table: sa.Table, owned: Condition, asked: Asked, embedded: bool) -> Condition:
    """Whether a row of `table` that is `owned` has the key, and a value that fits."""
    found = _found(owned, table.c.key == asked.key)
    if asked.operator == "missing":
        return ~found.exists()
    if asked.operator != "present":
        found = found.where(compared(table.c.value, asked, embedded))
    return found.exists()


def measures(table: sa.Table, owned: Condition, asked: Asked) -> Condition:
    """The same for a table of metrics. NaN differs from every number, and fits nothing else."""
    if asked.operator == "missing":
        return ~_found(owned, table.c.key == asked.key).exists()
    fits = _number(table.c.value, asked)
    if asked.operator == "!=":
        fits = sa.or_(table.c.nan == sa.true(), fits)
    else:
        fits = sa.and_(table.c.nan == sa.false(), fits)
    return _found(owned, table.c.key == asked.key, fits).exists()


def is_number(column: "sa.ColumnElement[Any]") -> bool:
    """Whether a column is compared with numbers."""
    return isinstance(column.type, sa.Integer)


def compared(column: "sa.ColumnElement[Any]", asked: Asked, embedded: bool) -> Condition:
    """A comparison of a column."""
    match asked.operator:
        case "in" | "not in":
            found = among(column, asked.value, embedded)
            return found if asked.operator == "in" else ~found
        case "like" if embedded:
            return column.op("GLOB", is_comparison=True)(asked.value)
        case "like":
            return column.like(asked.value, escape="")
        case "ilike" if embedded:
            return column.like(asked.value)
        case "ilike":
            return sa.func.lower(column).like(sa.func.lower(asked.value), escape="")
    return _number(column, asked)


def among(column: "sa.ColumnElement[Any]", listed: Parameter, embedded: bool) -> Condition:
    """Whether a column is one of a list, which is one parameter: an array, or one of JSON."""
    if embedded:
        return column.in_(sa.select(sa.func.json_each(listed).table_valued("value").c.value))
    return column == sa.any_(listed)


def _number(column: "sa.ColumnElement[Any]", asked: Asked) -> Condition:
    found: Condition = column.op(asked.operator, is_comparison=True)(asked.value)
    return found


def _found(*conditions: Condition) -> "sa.Select[Any]":
    # With an OFFSET it is looked for in every row that it is asked about, and never first of all:
    # where a search begins is decided here, and not by what a planner believes about a key.
    nothing = sa.literal_column("0", sa.Integer)
    return sa.select(sa.literal_column("1")).where(*conditions).offset(nothing)


def _glob(pattern: str) -> str:
    """`%` and `_` as `*` and `?`, and everything that means something to GLOB as itself."""
    wildcards = {"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}
    return "".join(wildcards.get(letter, letter) for letter in pattern)
