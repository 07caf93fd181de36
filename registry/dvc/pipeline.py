"""The outputs that a dvc.yaml declares, with what dvc.lock beside it records of them.

dvc.yaml                                dvc.lock
stages:                                 schema: "2.0"     (without: DVC 1, stages at the top)
  train:                                stages:
    wdir: sub                             train:
    outs:                                   outs:
    - model.pkl:      flags, paths,         - path: model.pkl    hashes, by the path
        remote: big   templates               md5: ...           as it was resolved
  clean:
    foreach: [a, b]                       clean@a: ...
    do: {outs: ["${item}.csv"]}           clean@b: ...
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from math import prod

from registry.domain import RelPath
from registry.dvc.template import Load, Scope, Work, file_scope, spell
from registry.dvc.yaml import mapping, sequence, text
from registry.errors import InvalidMetadata, UnsafePath, Unsignable

_READ = 20
"""The steps it costs to find and read a dvc.yaml that declares nothing."""
_OUTPUT_KEYS = ("outs", "metrics", "plots")


@dataclass(frozen=True)
class Declared:
    """An output as a file declares it. `recorded` gives what is known of its contents, empty when
    nothing is; it may raise InvalidMetadata. See registry.dvc.output.read for the rest.
    """

    path: RelPath
    file: RelPath
    flags: Callable[[], Mapping[object, object]]
    recorded: Callable[[], Mapping[object, object]]
    dependency: Mapping[object, object]


@dataclass(frozen=True)
class Doubt:
    """A part of a file that cannot be read: it might declare the output that is looked for.

    `paths` are the outputs it had when it was last run, None when even that is unknown.
    """

    file: RelPath
    error: Unsignable
    paths: tuple[RelPath, ...] | None = None


@dataclass(frozen=True)
class _Stage:
    """One stage, with its loop resolved."""

    name: str
    body: Mapping[object, object]
    scope: Scope


def declarations(work: Work, load: Load) -> Iterator[Declared | Doubt]:
    """Everything the stages of a dvc.yaml declare. Raises InvalidMetadata when it is broken, or
    costs more than the work that is left.
    """
    file = work.file
    work.spend(_READ)
    data = document(load(file), file)
    scope = file_scope(work, data.get("vars"), load)
    lock = cache(lambda: _lock(file, load))
    for name, definition in mapping(data.get("stages")).items():
        if isinstance(name, str) and isinstance(definition, dict):
            yield from _group(name, definition, scope, lock, load)


def document(data: object, file: RelPath) -> Mapping[object, object]:
    """The mapping at the top of a file; empty for an empty file. Raises InvalidMetadata."""
    if data is not None and not isinstance(data, dict):
        raise InvalidMetadata(file, "not a mapping at the top")
    return mapping(data)


_Lock = Callable[[], Mapping[object, object]]


def _group(
    name: str, definition: Mapping[object, object], scope: Scope, lock: _Lock, load: Load
) -> Iterator[Declared | Doubt]:
    """What one entry under `stages` declares: one stage, or those of a loop."""
    try:
        for stage in _stages(name, definition, scope):
            yield from _stage(stage, lock, load)
    except (InvalidMetadata, UnsafePath) as error:
        if scope.work.left < 0:
            raise
        yield from _doubt_loop(name, error, scope, lock)


def _doubt_loop(name: str, error: Unsignable, scope: Scope, lock: _Lock) -> Iterator[Doubt]:
    """A loop whose data cannot be resolved matters when any stage of it was ever run."""
    try:
        stages = lock()
    except InvalidMetadata as broken:
        yield Doubt(scope.file, broken)
        return
    scope.work.spend(len(stages))
    if any(str(stage).startswith(f"{name}@") for stage in stages):
        yield Doubt(scope.file, error)


def _stages(name: str, definition: Mapping[object, object], scope: Scope) -> Iterator[_Stage]:
    """The stages behind an entry; those of loops are called `name@key` (dvc/parsing)."""
    if "matrix" in definition:
        for key, item in _matrix(scope, definition["matrix"]):
            scope.work.spend(1 + _weight(name, key))
            yield _Stage(f"{name}@{key}", definition, scope.plus({"item": item, "key": key}))
    elif "foreach" in definition:
        body = mapping(definition.get("do"))
        data = scope.loop(definition["foreach"])
        for key, item in _items(data):
            scope.work.spend(1 + _weight(name, key))
            names: dict[object, object] = {"item": item}
            if isinstance(data, dict):
                names["key"] = key
            yield _Stage(f"{name}@{key}", body, scope.plus(names))
    else:
        yield _Stage(name, definition, scope)


def _weight(*texts: str) -> int:
    """The steps it costs to make a name of them: none, unless they are absurdly long."""
    return sum(map(len, texts)) // 200


def _items(data: object) -> Iterator[tuple[str, object]]:
    """The keys and values of a `foreach`. Plain values of a list are their own keys, but as soon
    as one of them is a list or a mapping, all keys are indices.
    """
    if isinstance(data, dict):
        yield from ((spell(key), value) for key, value in data.items())
    else:
        values = sequence(data)
        composite = any(isinstance(value, dict | list) for value in values)
        yield from (
            (str(index) if composite else spell(value), value) for index, value in enumerate(values)
        )


def _matrix(scope: Scope, data: object) -> Iterator[tuple[str, object]]:
    """The keys (`linux-3-model0`) and values of a `matrix`: all combinations of its axes."""
    axes = {name: sequence(values) for name, values in mapping(scope.deep(data)).items()}
    scope.work.spend(len(axes) * prod(map(len, axes.values())))
    fragments = {
        name: [
            f"{name}{index}" if isinstance(value, dict | list) else spell(value)
            for index, value in enumerate(values)
        ]
        for name, values in axes.items()
    }
    for values, parts in zip(product(*axes.values()), product(*fragments.values()), strict=True):
        scope.work.spend(_weight(*parts))
        yield "-".join(parts), dict(zip(axes, values, strict=True))


def _stage(stage: _Stage, lock: _Lock, load: Load) -> Iterator[Declared | Doubt]:
    """What a stage declares. A doubt stands for an output whose path cannot be resolved."""
    file, body = stage.scope.file, stage.body
    wdir, scope = "", stage.scope
    if isinstance(body.get("wdir"), str):
        try:
            wdir = scope.text(str(body["wdir"]))
        except (InvalidMetadata, UnsafePath) as error:
            yield from _doubt(stage, error, lock)
            return
    try:
        directory = RelPath.resolve(file.parent, wdir)
        scope = scope.plus_vars(body.get("vars"), directory, load)
    except UnsafePath:
        pass  # `vars` cannot be read there, but `../x` below it may still lie inside
    recorded = cache(partial(_recorded, stage, wdir, lock))
    resolved: set[RelPath] = set()
    failed: Unsignable | None = None
    for written, flags in _written(body):
        scope.work.spend(1)
        try:
            where = scope.text(written)
            path = RelPath.resolve(file.parent, wdir, where)
        except (InvalidMetadata, UnsafePath) as error:
            failed = failed or error
            continue
        if "://" not in where:  # outputs in external storage are gone since DVC 3
            resolved.add(path)
            flags_of, recorded_of = partial(_resolved, flags, scope), partial(_of, recorded, path)
            yield Declared(path, file, flags_of, recorded_of, {})
    if failed:
        yield from _doubt(stage, failed, lock, lambda: tuple(recorded().keys() - resolved))


def _written(
    body: Mapping[object, object],
) -> Iterator[tuple[str, Mapping[object, object]]]:
    """The outputs of a stage, as `path` or as `{path: flags}`."""
    for key in _OUTPUT_KEYS:
        for entry in sequence(body.get(key)):
            if isinstance(entry, str):
                yield entry, {}
            for path, flags in mapping(entry).items():
                if isinstance(path, str):
                    yield path, mapping(flags)


def _resolved(flags: Mapping[object, object], scope: Scope) -> Mapping[object, object]:
    """The flags that matter, without templates."""
    return {
        key: scope.value(value) if isinstance(value, str) else value
        for key, value in flags.items()
        if key in ("remote", "cache")
    }


def _doubt(
    stage: _Stage,
    error: Unsignable,
    lock: _Lock,
    paths: Callable[[], tuple[RelPath, ...] | None] = lambda: None,
) -> Iterator[Doubt]:
    """A stage that was never run has no outputs to miss. For others, dvc.lock knows the paths."""
    file = stage.scope.file
    try:
        if stage.name in lock():
            yield Doubt(file, error, paths())
    except InvalidMetadata as broken:
        yield Doubt(file, broken)


def _recorded(stage: _Stage, wdir: str, lock: _Lock) -> Mapping[RelPath, Mapping[object, object]]:
    """What dvc.lock records of a stage's outputs, by path."""
    recorded = {}
    outputs = sequence(mapping(lock().get(stage.name)).get("outs"))
    stage.scope.work.spend(len(outputs))
    for entry in map(mapping, outputs):
        path = text(entry.get("path"))
        try:
            recorded[RelPath.resolve(stage.scope.file.parent, wdir, path or "")] = entry
        except UnsafePath:
            continue  # no output can have this path
    return recorded


def _of(
    recorded: Callable[[], Mapping[RelPath, Mapping[object, object]]], path: RelPath
) -> Mapping[object, object]:
    return recorded().get(path, {})


def _lock(file: RelPath, load: Load) -> Mapping[object, object]:
    """The stages of the dvc.lock beside a dvc.yaml. Raises InvalidMetadata."""
    lock = file.parent / RelPath("dvc.lock")
    data = document(load(lock), lock)
    schema = data.get("schema")
    if schema is None:
        return data
    if str(schema) != "2.0":
        raise InvalidMetadata(lock, f"schema {str(schema)[:50]!r} is not supported, only 2.0 is")
    return mapping(data.get("stages"))
