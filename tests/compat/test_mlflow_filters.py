"""MLflow's own parser of filters beside ours: what it understands, we understand as it does."""

import json
from pathlib import Path
from random import Random

from servers.mlflow import Client

from registry.errors import InvalidRequest
from registry.tracking.query import Comparison
from registry.web.mlflow.filters import RUNS, parse

COUNT = 6000
ENTITIES = (
    *("metrics", "metric", "params", "param", "parameters", "parameter", "tags", "tag"),
    *("attributes", "attribute", "attr", "run", "datasets", "dataset", "", "Metrics", "nothing"),
)
KEYS = {
    "metric": ("m", "a.b", "a_b", "a-b", "`a b`", '"a/b"', "`a`", "1a", "\u00e4", "name", "a:b"),
    "attribute": (
        *("status", "start_time", "run_id", "run_name", "end_time", "user_id", "created"),
        *("`run name`", '"Run Name"', "Created", "nothing", "Status"),
    ),
    "dataset": ("name", "digest", "context", "`name`", "nothing"),
}
NUMBERS = ("1", "1.5", "-2", "1e5", ".5", "99999999999999999999", "'1'", "a", "nan")
TEXTS = (
    *(
        "'a'",
        '"a"',
        "'a b'",
        "'%a_'",
        "''",
        '""',
        "'it\"s'",
        '"it\'s"',
        "'AND'",
        "'a=b'",
        "'\u00e4'",
    ),
    *("1", "a", "`a`", "NULL"),
)
LISTS = ("('a')", "('a','b')", "('a', 'b')", "('a',)", "()", "(1)", "'a'")

THEIRS = """
import pathlib
from mlflow.exceptions import MlflowException
from mlflow.utils.search_utils import SearchUtils
known = (SearchUtils.is_metric, SearchUtils.is_param, SearchUtils.is_tag, SearchUtils.is_dataset)
ofs = (SearchUtils.is_string_attribute, SearchUtils.is_numeric_attribute)

def understood(text):
    found = []
    for it in SearchUtils.parse_search_filter(text):
        kind, key, operator = it["type"], it["key"], it["comparator"].upper()
        # Which operators there are for what is looked at where it searches.
        if not (any(of(kind, operator) for of in known)
                or any(of(kind, key, operator) for of in ofs)):
            return None
        found.append([kind, key, operator.lower(), it["value"]])
    return found

found = []
for text in json.loads(pathlib.Path("filters.json").read_text()):
    try:
        found.append(understood(text))
    except MlflowException:
        found.append(None)
"""


def comparison(chance: Random) -> str:
    """Mostly one that fits together."""
    entity = chance.choice(ENTITIES)
    kind = "metric"
    if entity in ("attributes", "attribute", "attr", "run", ""):
        kind = "attribute"
    elif entity.startswith("dataset"):
        kind = "dataset"
    key = chance.choice(KEYS[kind])
    name = f"{entity}.{key}" if entity else key
    if chance.random() < 0.15:
        return f"{name} {chance.choice(('IS NULL', 'IS NOT NULL', 'is null'))}"
    if chance.random() < 0.2:
        return f"{name} {chance.choice(('IN', 'NOT IN', 'in'))} {chance.choice(LISTS)}"
    if chance.random() < 0.25:
        words = ("LIKE", "ILIKE", "like", "ilike", "NOT LIKE")
        return f"{name} {chance.choice(words)} {chance.choice(TEXTS)}"
    space = chance.choice(("", " ", "  "))
    values = NUMBERS if entity.lower().startswith("metric") or "time" in key else TEXTS
    return f"{name}{space}{chance.choice(('=', '!=', '>', '<', '>=', '<='))}{space}" + (
        chance.choice(values)
    )


def filters() -> list[str]:
    chance = Random(7)
    joints = (" AND ", " and ", "  AND  ", " OR ")
    return [
        chance.choice(joints).join(comparison(chance) for _ in range(chance.choice((1, 1, 2, 3))))
        for _ in range(COUNT)
    ]


def agrees(ours: Comparison, theirs: list[object]) -> bool:
    """Whether both mean the same."""
    kind, key, operator, value = theirs
    words = {"missing": "is null", "present": "is not null"}
    if ours.kind == "input tag":
        same = (kind, key) == ("dataset", "context")
    elif ours.kind == "attribute":
        same = kind == "attribute" and RUNS.attributes[str(key)] == ours.key
    else:
        same = (str(kind).replace("parameter", "param"), key) == (ours.kind, ours.key)
    if isinstance(ours.value, int | float):
        same = same and float(str(value)) == ours.value
    elif isinstance(ours.value, tuple):
        same = same and value == list(ours.value)
    elif ours.value is not None:
        same = same and value == ours.value
    return same and words.get(ours.operator, ours.operator) == operator


def test_a_filter_that_mlflow_understands_means_the_same_here(tmp_path: Path) -> None:
    texts = filters()
    (tmp_path / "filters.json").write_text(json.dumps(texts))
    understood = Client(tmp_path, {}).run("import json\n" + THEIRS)

    refused, others = [], []
    for text, theirs in zip(texts, understood, strict=True):
        if theirs is None:
            continue
        try:
            ours = parse(text, RUNS)
        except InvalidRequest as error:
            refused.append((text, error.problem))
            continue
        if len(ours) != len(theirs) or not all(map(agrees, ours, theirs)):
            others.append((text, ours, theirs))
    assert (refused, others) == ([], [])
    assert sum(it is not None for it in understood) > COUNT // 10
