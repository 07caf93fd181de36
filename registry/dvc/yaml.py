"""Reads YAML that strangers wrote.

The values are those that DVC gets: YAML 1.2's core schema as ruamel.yaml reads it, so `yes`,
`010` and `12:30` mean what people of DVC expect. Dates stay text, and of duplicate keys the
last one counts where DVC would refuse the file.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from math import inf, nan
from typing import Any

import yaml

from registry.errors import InvalidMetadata

LARGEST_FILE = 1 << 20
"""Bytes."""
DEEPEST_NESTING = 50
MOST_NODES = 200_000
"""Scalars, lists and mappings of one file, when every alias is replaced by what it stands for."""
MOST_MERGES = 1_000
"""`<<` keys of one file: the loader moves a whole mapping for each."""

_CORE = "tag:yaml.org,2002:"
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)
_BASES = {"0b": 2, "0o": 8, "0x": 16}


def load(data: bytes, file: str) -> object:
    """The one document of a YAML file, as plain Python values; None when the file is empty.

    `file` is for the message. What is too large, too deep or too often repeated is refused
    before anything is built. Raises InvalidMetadata.
    """
    if len(data) > LARGEST_FILE:
        raise InvalidMetadata(file, f"larger than {LARGEST_FILE} bytes")
    try:
        text = data.decode("utf-8-sig")
        _weigh(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - knows only plain values
    except UnicodeDecodeError:
        raise InvalidMetadata(file, "not valid UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidMetadata(file, _problem(error)) from None


def mapping(value: object) -> Mapping[object, object]:
    """`value` if it is a mapping, otherwise an empty one: for readers that are lenient."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> Sequence[object]:
    """`value` if it is a list, otherwise an empty one."""
    return value if isinstance(value, list) else ()


def text(value: object) -> str | None:
    """`value` if it is a text that is not empty."""
    return value if isinstance(value, str) and value else None


def _weigh(document: str) -> None:
    """Raises ValueError for a document over the limits.

    Looks at the parser's events one by one, so that a bomb is never built: an alias weighs what
    the node with its anchor weighs.
    """
    nodes = merges = 0
    weights: dict[str, int] = {}  # by anchor; "" collects those of nodes without one
    opened: list[tuple[str, int]] = []
    for event in yaml.parse(document, Loader=_Loader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            weights[anchor] = nodes - before
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        anchor = event.anchor or ""
        if isinstance(event, yaml.AliasEvent):
            # An anchor is known only once its node is closed: nothing can hold itself.
            if anchor not in weights:
                raise ValueError("an alias stands for nothing, or for what holds it")
            nodes += weights[anchor]
            continue
        nodes += 1
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, nodes - 1))
            # The anchor may have named another node before; from here on it names this one.
            weights.pop(anchor, None)
        elif isinstance(event, yaml.ScalarEvent):
            merges += event.value == "<<"
            weights[anchor] = 1
        _check(nodes, len(opened), merges)
    _check(nodes, 0, merges)


def _check(nodes: int, depth: int, merges: int) -> None:
    if nodes > MOST_NODES:
        raise ValueError(f"more than {MOST_NODES} values, counting what aliases stand for")
    if depth > DEEPEST_NESTING:
        raise ValueError(f"nested deeper than {DEEPEST_NESTING} levels")
    if merges > MOST_MERGES:
        raise ValueError(f"more than {MOST_MERGES} merge keys")


def _problem(error: Exception) -> str:
    """One line; of the parser's message only what cannot hold the file's content."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return "not valid YAML" if isinstance(error, yaml.YAMLError) else str(error)
    line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
    return f"not valid YAML{line}: {' '.join(str(error.problem).split())[:200]}"


class _Loader(yaml.CSafeLoader):
    """The C parser with the core schema, and no tag that is not listed at the end of this file."""

    def plain(self, node: yaml.ScalarNode) -> object:
        """The value of a null, boolean or number. Raises ValueError for a tag that lies."""
        written = self.construct_scalar(node)
        pattern, convert = _SCALARS[node.tag]
        if not isinstance(written, str) or not pattern.fullmatch(written):
            raise ValueError(f"not a {node.tag.removeprefix(_CORE)}: {str(written)[:50]!r}")
        return convert(written)


def _int(written: str) -> int:
    digits = written.replace("_", "").lower()
    if len(digits) > 1000:
        raise ValueError("a number of more than 1000 digits")
    unsigned = digits.lstrip("+-")
    value = int(unsigned, _BASES.get(unsigned[:2], 10))
    return -value if digits.startswith("-") else value


def _float(written: str) -> float:
    digits = written.replace("_", "").lower()
    special = {"inf": inf, "nan": nan}.get(digits.lstrip("+-."))
    if special is None:
        return float(digits)
    return -special if digits.startswith("-") else special


_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], object]]] = {
    f"{_CORE}null": (_NULL, lambda _: None),
    f"{_CORE}bool": (_BOOL, lambda written: written.lower() == "true"),
    f"{_CORE}int": (_INT, _int),
    f"{_CORE}float": (_FLOAT, _float),
}

# In this order: what looks like an integer is not asked whether it is a float.
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
    ("merge", re.compile("<<"), ["<"]),
):
    _Loader.add_implicit_resolver(_CORE + _tag, re.compile(rf"(?:{_pattern.pattern})\Z"), _first)
_CONSTRUCTORS: dict[str | None, Callable[[Any, Any], object]] = {
    **dict.fromkeys(_SCALARS, _Loader.plain),
    f"{_CORE}str": _Loader.construct_yaml_str,
    f"{_CORE}merge": _Loader.construct_yaml_str,  # `<<` that is not a key
    f"{_CORE}seq": _Loader.construct_yaml_seq,
    f"{_CORE}map": _Loader.construct_yaml_map,
    None: _Loader.construct_undefined,
}
_Loader.yaml_constructors = _CONSTRUCTORS
