"""MLflow's language of filters and orders -> comparisons of the core.

    filter     := comparison (AND comparison)*
    comparison := name operator value | name IS [NOT] NULL | name [NOT] IN ( text, ... )
    name       := [entity .] key
    key        := bare | `back ticks` | "double quotes"
    operator   := = | == | != | < | <= | > | >= | LIKE | ILIKE
    value      := number | 'text' | "text", in which a quote is written twice
    order      := name [ASC | DESC]

Words of the language may be written in any case, names may not. What is not in it is refused; what
is becomes values, and never a part of SQL.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, cast

from registry.errors import InvalidRequest
from registry.tracking.query import Comparison, Kind, Operator, Order, Value

LONGEST = 20_000
"""Characters of a filter."""
CLAUSES = 50
"""Comparisons of a filter."""
COLUMNS = 10
"""Parts of an order: each may be one more table to look into."""

_NUMERIC = frozenset({"=", "!=", "<", "<=", ">", ">="})
_PLAIN = frozenset({"=", "!=", "like"})
_TEXTUAL = _PLAIN | {"ilike"}
_LISTS = frozenset({"in", "not in"})
_ABSENCE = frozenset({"missing", "present"})
_SPELLED = {"missing": "IS NULL", "present": "IS NOT NULL"}

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
  | (?P<single>'(?:[^']|'')*')
  | (?P<double>"(?:[^"]|"")*")
  | (?P<ticks>`[^`]+`)
  | (?P<sign>!=|<=|>=|==|=|<|>|\(|\)|,)
  | (?P<word>\w[\w./:@-]*)
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Language:
    """What can be searched for in one place.

    `entities` are the words before a key, and `attributes` the keys of the one without; those of
    `numbers` are numbers. `bare` allows an attribute without its entity. `listed` are attributes,
    and `lists` whole kinds, that can be compared with a list; `textual` are the operators of texts,
    and `absence` the kinds that can be asked for being there at all.
    """

    entities: Mapping[str, Kind]
    attributes: Mapping[str, str]
    numbers: frozenset[str]
    bare: bool = True
    listed: frozenset[str] = frozenset()
    lists: frozenset[Kind] = frozenset()
    textual: frozenset[str] = _TEXTUAL
    absence: frozenset[Kind] = frozenset()


def _entities(**spellings: str) -> dict[str, Kind]:
    return {
        spelling: cast(Kind, kind.replace("_", " "))
        for kind, words in spellings.items()
        for spelling in words.split()
    }


_LOGGED = {
    "metric": "metric metrics",
    "param": "param params parameter parameters",
    "tag": "tag tags",
}

SEED = Language(_entities(**_LOGGED), {}, frozenset(), bare=False, textual=_PLAIN)
"""Runs, as the early REST document has it."""

RUNS = Language(
    _entities(**_LOGGED, attribute="attribute attributes attr run", dataset="dataset datasets"),
    {
        "run_id": "id",
        **dict.fromkeys(("run_name", "run name", "Run name", "Run Name"), "name"),
        **dict.fromkeys(("start_time", "created", "Created"), "started"),
        "end_time": "ended",
        "user_id": "user_id",
        "status": "status",
    },
    frozenset({"started", "ended"}),
    listed=frozenset({"id"}),
    lists=frozenset({"dataset", "input tag"}),
    absence=frozenset({"tag", "param"}),
)
EXPERIMENTS = Language(
    _entities(attribute="attribute attributes attr", tag="tag tags"),
    {
        "name": "name",
        "experiment_id": "id",
        "creation_time": "created",
        "last_update_time": "updated",
    },
    frozenset({"created", "updated"}),
    listed=frozenset({"id"}),
    absence=frozenset({"tag"}),
)
MODELS = Language(
    _entities(**_LOGGED, attribute="attribute attributes attr"),
    {
        "model_id": "id",
        "name": "name",
        "model_type": "type",
        "status": "status",
        "source_run_id": "source_run",
        **dict.fromkeys(
            ("creation_timestamp", "creation_time", "creation_timestamp_ms"), "created"
        ),
        **dict.fromkeys(
            ("last_updated_timestamp", "last_updated_time", "last_updated_timestamp_ms"), "updated"
        ),
    },
    frozenset({"created", "updated"}),
    listed=frozenset({"id", "name", "type", "status", "source_run"}),
    lists=frozenset({"param", "tag"}),
)

_CONTEXT = "mlflow.data.context"
"""The tag of an input that says what a dataset was used for."""


class _Token(NamedTuple):
    kind: str
    text: str

    @property
    def quoted(self) -> str:
        """What stands between quotes."""
        mark = self.text[0]
        return self.text[1:-1].replace(mark * 2, mark)

    def says(self, *words: str) -> bool:
        return self.kind in ("word", "sign") and self.text.upper() in words


class _Name(NamedTuple):
    kind: Kind
    key: str


def parse(text: str, language: Language) -> tuple[Comparison, ...]:
    """The comparisons of a filter, all of which must hold. Raises InvalidRequest."""
    if len(text) > LONGEST:
        raise InvalidRequest("filter", f"longer than {LONGEST} characters")
    reader = _Reader(text, "filter", language)
    if reader.ended:
        return ()
    found = [reader.comparison()]
    while not reader.ended:
        reader.expect("AND")
        found.append(reader.comparison())
    if len(found) > CLAUSES:
        raise InvalidRequest("filter", f"more than {CLAUSES} comparisons")
    return tuple(found)


def parse_orders(texts: Sequence[str], language: Language) -> tuple[Order, ...]:
    """The parts of an order. Raises InvalidRequest."""
    if len(texts) > COLUMNS:
        raise InvalidRequest("order_by", f"more than {COLUMNS} columns")
    return tuple(_order(text, language) for text in texts)


def _order(text: str, language: Language) -> Order:
    if len(text) > LONGEST:
        raise InvalidRequest("order_by", f"longer than {LONGEST} characters")
    reader = _Reader(text, "order_by", language)
    name = reader.name()
    if name.kind not in ("metric", "param", "tag", "attribute"):
        raise InvalidRequest("order_by", f"nothing can be ordered by a {name.kind}")
    descending = reader.take("DESC")
    if not descending:
        reader.take("ASC")
    if not reader.ended:
        reader.refuse()
    return Order(name.kind, name.key, not descending)


class _Reader:
    """Goes through the tokens of one text from left to right."""

    def __init__(self, text: str, parameter: str, language: Language) -> None:
        self._text = text
        self._parameter = parameter
        self._language = language
        self._tokens = self._tokenized(text)
        self._next = 0

    @property
    def ended(self) -> bool:
        return self._next == len(self._tokens)

    def comparison(self) -> Comparison:
        name = self.name()
        operator = self._operator()
        self._check(name, operator)
        value: Value = None
        if operator in _LISTS:
            value = self._list()
        elif operator not in _ABSENCE:
            value = self._value(name)
        return Comparison(name.kind, name.key, operator, value)

    def name(self) -> _Name:
        token = self._take("a name such as metrics.loss", "word", "ticks", "double")
        text = token.quoted if token.kind != "word" else token.text
        entity, dot, key = text.partition(".") if token.kind == "word" else ("", "", text)
        if token.kind == "word" and dot and not key:
            key = self._take("a key", "ticks", "double").quoted
        elif not dot:
            entity, key = "", text
            if not self._language.bare:
                self._fail(f"expected a name such as metrics.loss and not {self._shown(text)}")
        kind = self._language.entities.get(entity or "attribute")
        if kind is None:
            known = ", ".join(sorted(set(self._language.entities.values())))
            self._fail(f"invalid entity type {self._shown(entity)}: valid are {known}")
        return self._resolved(kind, key)

    def _resolved(self, kind: Kind, key: str) -> _Name:
        if kind == "attribute":
            if key not in self._language.attributes:
                known = ", ".join(sorted(self._language.attributes))
                self._fail(f"invalid attribute key {self._shown(key)}: valid are {known}")
            return _Name(kind, self._language.attributes[key])
        if kind == "dataset" and key == "context":
            return _Name("input tag", _CONTEXT)
        if kind == "dataset" and key not in ("name", "digest"):
            self._fail(f"invalid dataset key {self._shown(key)}: valid are name, digest, context")
        return _Name(kind, key)

    def take(self, word: str) -> bool:
        """Goes on if the next token is this word."""
        found = not self.ended and self._tokens[self._next].says(word)
        self._next += found
        return found

    def expect(self, word: str) -> None:
        if not self.take(word):
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raises InvalidRequest about the next token."""
        rest = "the end" if self.ended else self._shown(self._tokens[self._next].text)
        self._fail(f"invalid clause(s) in filter string: {rest}")

    def _operator(self) -> Operator:
        negated = self.take("NOT")
        if self.take("IN"):
            return "not in" if negated else "in"
        if negated:
            self.refuse()
        if self.take("IS"):
            present = self.take("NOT")
            self.expect("NULL")
            return "present" if present else "missing"
        token = self._take("a comparator such as =", "sign", "word")
        found = "=" if token.text == "==" else token.text.lower()
        if found not in _NUMERIC | _TEXTUAL:
            self._next -= 1
            self.refuse()
        return cast(Operator, found)

    def _check(self, name: _Name, operator: Operator) -> None:
        """Raises InvalidRequest for an operator that such a name does not have."""
        language = self._language
        if self._is_number(name):
            allowed = _NUMERIC
        else:
            allowed = language.textual
            listed = name.kind == "attribute" and name.key in language.listed
            if listed or name.kind in language.lists:
                allowed = allowed | _LISTS
        if name.kind in language.absence:
            allowed = allowed | _ABSENCE
        if operator not in allowed:
            shown = ", ".join(sorted(map(_spelled, allowed)))
            self._fail(f"invalid comparator {_spelled(operator)!r} for {name.kind}: one of {shown}")

    def _is_number(self, name: _Name) -> bool:
        if name.kind == "attribute":
            return name.key in self._language.numbers
        return name.kind == "metric"

    def _value(self, name: _Name) -> Value:
        if self._is_number(name):
            text = self._take("a number", "number").text
            return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else float(text)
        return self._take("a quoted text", "single", "double").quoted

    def _list(self) -> tuple[str, ...]:
        self.expect("(")
        values = [self._take("a quoted text", "single", "double").quoted]
        while self.take(","):
            if self.take(")"):
                return tuple(values)  # as Python writes a tuple of one
            values.append(self._take("a quoted text", "single", "double").quoted)
        self.expect(")")
        return tuple(values)

    def _take(self, wanted: str, *kinds: str) -> _Token:
        token = None if self.ended else self._tokens[self._next]
        if token is None or token.kind not in kinds:
            found = "the end" if token is None else self._shown(token.text)
            self._fail(f"expected {wanted} and not {found}")
        self._next += 1
        return token

    def _tokenized(self, text: str) -> list[_Token]:
        found = []
        place = 0
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                self._fail(f"cannot be read from {self._shown(text[place:])} on")
            place = match.end()
            if match.lastgroup and match.lastgroup != "space":
                found.append(_Token(match.lastgroup, match[0]))
        return found

    def _shown(self, text: str) -> str:
        return repr(text if len(text) <= 60 else text[:57] + "...")

    def _fail(self, problem: str) -> NoReturn:
        raise InvalidRequest(self._parameter, problem)


def _spelled(operator: str) -> str:
    """An operator as filters have it."""
    return _SPELLED.get(operator, operator.upper())
