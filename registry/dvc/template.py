r"""Resolves the templates of dvc.yaml: `${train.lr}`, `${models[0]}`, `${item.name}`, `\${not}`.

Values come from `params.yaml` beside the dvc.yaml, its `vars`, the `vars` of a stage, and the
`item` and `key` of a loop (dvc/parsing). What a template yields is never resolved again.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from registry.domain import RelPath
from registry.dvc.yaml import mapping
from registry.errors import InvalidMetadata

Load = Callable[[RelPath], object | None]
"""Gives the parsed YAML of a file, None when it is absent; raises InvalidMetadata."""
Layers = tuple[Mapping[object, object], ...]
"""Variables by name; a later layer goes before an earlier one."""

MOST_VARS = 100
"""Entries of one `vars` list."""
LONGEST_TEXT = 4096
"""Characters of a template, and of what it yields: as many as a path may have bytes."""
MOST_WORK = 200_000
"""Steps that one dvc.yaml may cost: loops in loops and templates without end stop there."""

_DEFAULT_FILE = "params.yaml"
_INDEX = re.compile(r"-?[0-9]{1,9}")
_MISSING = object()


@dataclass
class Work:
    """Counts the steps that a file costs, so that the time it takes has a bound.

    All the files that one search goes through share what is `left`.
    """

    file: RelPath
    left: int = MOST_WORK

    def spend(self, steps: int) -> None:
        """Raises InvalidMetadata when too many were spent."""
        self.left -= steps
        if self.left < 0:
            raise InvalidMetadata(self.file, "its stages and templates expand to too much")


@dataclass(frozen=True)
class Scope:
    """What the templates of a file, or of one stage in it, can refer to.

    `layers` is called only when there is a template to resolve: most files have none, and a
    broken params.yaml is no harm to them.
    """

    file: RelPath
    work: Work
    layers: Callable[[], Layers]

    def text(self, template: str) -> str:
        """The text with all templates replaced. Raises InvalidMetadata when one has no value."""
        if len(template) > LONGEST_TEXT:
            raise InvalidMetadata(self.file, f"a text of more than {LONGEST_TEXT} characters")
        if "${" not in template:
            return template
        written = [
            self._spelled(part) if is_template else part.replace("\\${", "${")
            for is_template, part in _parts(template)
        ]
        if sum(map(len, written)) > LONGEST_TEXT:
            raise InvalidMetadata(self.file, f"a template yields over {LONGEST_TEXT} characters")
        return "".join(written)

    def value(self, template: str) -> object:
        """The value itself for a text that is one template and nothing else; else as `text`."""
        if "${" not in template:
            return template
        parts = list(_parts(template[: LONGEST_TEXT + 1]))
        whole = len(parts) == 1 and parts[0][0]
        return self._select(parts[0][1]) if whole else self.text(template)

    def deep(self, data: object) -> object:
        """`data` with every text in its lists and mappings replaced by its value."""
        self.work.spend(1)
        if isinstance(data, str):
            return self.value(data)
        if isinstance(data, list):
            return [self.deep(value) for value in data]
        if isinstance(data, dict):
            return {
                self.text(key) if isinstance(key, str) else key: self.deep(value)
                for key, value in data.items()
            }
        return data

    def loop(self, data: object) -> object:
        """What a `foreach` goes over: as `deep`, but a mapping that one template names is put
        together from all places that define a part of it, as DVC merges them.
        """
        found = self.deep(data)
        parts = list(_parts(data)) if isinstance(data, str) else []
        if not isinstance(found, dict) or not parts:
            return found
        steps = _steps(parts[0][1])
        merged: Mapping[object, object] = {}
        for layer in self.layers():
            merged = _merged(merged, mapping(_walk(layer, steps)))
        return merged

    def plus(self, layer: Mapping[object, object]) -> "Scope":
        """The same with more names: the `item` and `key` of a loop."""
        return Scope(self.file, self.work, lambda: (*self.layers(), layer))

    def plus_vars(self, entries: object, directory: RelPath, load: Load) -> "Scope":
        """The same with a `vars` list: mappings, and files relative to `directory`."""
        if not isinstance(entries, list) or not entries:
            return self
        layers = cache(lambda: (*self.layers(), *self._vars(entries, directory, load)))
        return Scope(self.file, self.work, layers)

    def _vars(
        self, entries: list[object], directory: RelPath, load: Load
    ) -> Iterator[Mapping[object, object]]:
        if len(entries) > MOST_VARS:
            raise InvalidMetadata(self.file, f"more than {MOST_VARS} entries in vars")
        for entry in entries:
            self.work.spend(100)  # a file has to be found
            if isinstance(entry, str):
                path, _, keys = entry.partition(":")
                variables = mapping(_read(RelPath.resolve(directory, path), load))
                wanted = [key for key in keys.split(",") if key]
                yield {k: variables[k] for k in wanted if k in variables} if wanted else variables
            else:
                yield mapping(entry)

    def _spelled(self, expression: str) -> str:
        value = self._select(expression)
        if isinstance(value, dict | list):
            raise InvalidMetadata(self.file, f"template ${{{expression}}} is not one value")
        return spell(value)

    def _select(self, expression: str) -> object:
        """The value of `a.b[0]` in the last layer that has one."""
        steps, layers = _steps(expression), self.layers()
        self.work.spend(len(steps) + len(layers))
        for layer in reversed(layers):
            value = _walk(layer, steps)
            if value is not _MISSING:
                return value
        shown = expression if len(expression) <= 100 else expression[:97] + "..."
        raise InvalidMetadata(self.file, f"template ${{{shown}}} cannot be resolved")


def file_scope(work: Work, entries: object, load: Load) -> Scope:
    """The scope of a dvc.yaml with these `vars`: params.yaml beside it counts by itself."""
    file = work.file
    default = file.parent / RelPath(_DEFAULT_FILE)
    scope = Scope(file, work, cache(lambda: (mapping(load(default)),)))
    return scope.plus_vars(entries, file.parent, load)


def spell(value: object) -> str:
    """A value inside a text: booleans as YAML has them, all else as Python (dvc/parsing)."""
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    r"""The text in pieces: (False, literal) and (True, what `${}` holds).

    Goes over the text once, and so in linear time; `\${` is literal.
    """
    start = position = 0
    while (opened := text.find("${", position)) >= 0:
        position = opened + 2
        if opened and text[opened - 1] == "\\":
            continue
        closed = text.find("}", position)
        if closed < 0:
            break
        if opened > start:
            yield False, text[start:opened]
        yield True, text[position:closed]
        start = position = closed + 1
    if start < len(text) or not text:
        yield False, text[start:]


def _steps(expression: str) -> list[str]:
    """`a.b[0]` as `a`, `b`, `0` (normalize_key in dvc/parsing/interpolate.py)."""
    return [s.strip() for s in expression.replace("[", ".").replace("]", "").split(".")]


def _walk(value: object, steps: list[str]) -> object:
    for step in steps:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and _INDEX.fullmatch(step):
            value = next(iter(value[int(step) :][:1]), _MISSING)
        else:
            return _MISSING
    return value


def _merged(into: Mapping[object, object], update: Mapping[object, object]) -> dict[object, object]:
    merged = dict(into)
    for key, value in update.items():
        known = merged.get(key)
        both = isinstance(known, dict) and isinstance(value, dict)
        merged[key] = _merged(mapping(known), mapping(value)) if both else value
    return merged


def _read(path: RelPath, load: Load) -> object | None:
    """A file of variables. DVC also reads TOML and Python here, which nothing has needed yet."""
    return load(path) if path.endswith((".yaml", ".yml", ".json")) else None
