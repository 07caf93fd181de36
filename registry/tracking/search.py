"""Comparisons -> conditions. Values are always bound: nothing that was asked is ever SQL."""

from typing import Any

import sqlalchemy as sa

from registry.errors import InvalidRequest
from registry.tracking.query import Comparison
from registry.tracking.schema import PREFIX, beginning

_NUMBERS = ("=", "!=", "<", "<=", ">", ">=")

Condition = sa.ColumnElement[bool]


def of_run(
    table: sa.Table, run: "sa.ColumnElement[int]", comparison: Comparison, embedded: bool
) -> Condition:
    """The same as `holds` for params and tags of runs, which have an index of their values."""
    if comparison.operator != "=":
        return holds(table, table.c.run == run, comparison, embedded)
    wanted = str(comparison.value)
    found = sa.select(table.c.run).where(
        table.c.key == comparison.key, beginning(table.c.value) == wanted[:PREFIX]
    )
    # A shorter one is the whole value. To say so twice would make the planner of PostgreSQL expect
    # the square of what there is.
    if len(wanted) >= PREFIX:
        found = found.where(table.c.value == wanted)
    if embedded:
        # SQLite would not begin with the index by itself.
        return run.in_(found)
    return found.where(table.c.run == run).exists()


def holds(table: sa.Table, owned: Condition, comparison: Comparison, embedded: bool) -> Condition:
    """Whether a row of `table` that is `owned` has the key, and a value that fits."""
    found: sa.Select[Any] = sa.select(sa.literal_column("1")).where(
        owned, table.c.key == comparison.key
    )
    if comparison.operator == "missing":
        return ~found.exists()
    if comparison.operator != "present":
        found = found.where(text(table.c.value, comparison, embedded))
    return found.exists()


def measures(table: sa.Table, owned: Condition, comparison: Comparison) -> Condition:
    """The same for a table of metrics. NaN differs from every number, and fits nothing else."""
    found: sa.Select[Any] = sa.select(sa.literal_column("1")).where(
        owned, table.c.key == comparison.key
    )
    fits = number(table.c.value, comparison)
    if comparison.operator == "!=":
        fits = sa.or_(table.c.nan == sa.true(), fits)
    else:
        fits = sa.and_(table.c.nan == sa.false(), fits)
    return found.where(fits).exists()


def number_or_text(
    column: "sa.ColumnElement[Any]", comparison: Comparison, embedded: bool
) -> Condition:
    """A comparison of a column of the row itself."""
    if isinstance(column.type, sa.Integer):
        return number(column, comparison)
    return text(column, comparison, embedded)


def number(column: "sa.ColumnElement[Any]", comparison: Comparison) -> Condition:
    """A comparison with a number. Raises InvalidRequest for an operator that has none."""
    value = comparison.value
    if comparison.operator not in _NUMBERS or not isinstance(value, int | float):
        raise InvalidRequest("filter", f"{comparison.key!r} is a number, to be compared with one")
    if isinstance(value, int) and abs(value) >= 2**63:
        value = float(value)  # no column is so large, and no database takes it as it is
    other = sa.literal(value, sa.BigInteger if isinstance(value, int) else sa.Double)
    compared: Condition = column.op(comparison.operator, is_comparison=True)(other)
    return compared


def text(column: "sa.ColumnElement[Any]", comparison: Comparison, embedded: bool) -> Condition:
    """A comparison with a text, or texts. Raises InvalidRequest for an operator that has none."""
    operator, value = comparison.operator, comparison.value
    if operator in ("=", "!=") and isinstance(value, str):
        return column == value if operator == "=" else column != value
    if operator in ("in", "not in") and isinstance(value, tuple):
        return column.in_(value) if operator == "in" else column.not_in(value)
    match operator:
        case "like" if isinstance(value, str):
            # SQLite's LIKE does not tell a from A; its GLOB does.
            return (
                column.op("GLOB", is_comparison=True)(_glob(value))
                if embedded
                else column.like(value, escape="")
            )
        case "ilike" if isinstance(value, str) and embedded:
            return column.like(value)
        case "ilike" if isinstance(value, str):
            return sa.func.lower(column).like(sa.func.lower(value), escape="")
    raise InvalidRequest("filter", f"{comparison.key!r} is a text, to be compared with one")


def _glob(pattern: str) -> str:
    """`%` and `_` as `*` and `?`, and everything that means something to GLOB as itself."""
    wildcards = {"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}
    return "".join(wildcards.get(letter, letter) for letter in pattern)
