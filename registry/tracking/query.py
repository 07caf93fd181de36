"""What is searched for, as values: the form that every dialect's filter is parsed to.

A filter is a conjunction of comparisons. One that a run does not have the metric, param or tag
for never holds, whatever its operator says; only `missing` asks for that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["metric", "param", "tag", "attribute", "dataset", "input tag"]
Operator = Literal[
    "=", "!=", "<", "<=", ">", ">=", "like", "ilike", "in", "not in", "missing", "present"
]
Value = str | int | float | tuple[str, ...] | None


@dataclass(frozen=True)
class Comparison:
    """`kind.key operator value`. In a pattern, `%` is any text and `_` any one character."""

    kind: Kind
    key: str
    operator: Operator
    value: Value


@dataclass(frozen=True)
class Order:
    """What comes first. NaN stands behind every number, and what has no value last of all.

    `dataset` restricts a metric of a logged model to the one on a dataset: (name, digest or None).
    """

    kind: Kind
    key: str
    ascending: bool
    dataset: tuple[str, str | None] | None = None


@dataclass(frozen=True)
class Search:
    """Which to find, in which order. `page` is what the page before said was next."""

    filters: Sequence[Comparison] = ()
    orders: Sequence[Order] = ()
    limit: int = 1000
    page: str = ""
