"""Every endpoint, request by request: golden/<generation>/<endpoint>.json.

Each file is asked of a service with one experiment, "vision", and one run in it, `<id 1>`, that
logged a little. Ids are written in the order in which they appear.
"""

import json
import re
from pathlib import Path

import pytest
from service import Registry

from registry.domain import RelPath
from registry.tracking.query import Search
from registry.tracking.records import Dataset, Input, LoggedFile, Metric, Owner
from registry.tracking.runs import Batch
from registry.web.mlflow.routes import TABLES

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*/*.json"))
PREFIXES = {"preview": "/api/2.0/preview/mlflow/", "current": "/api/2.0/mlflow/"}
GENERATIONS = {"preview": "api/2.0/preview/mlflow", "current": "api/2.0/mlflow"}

_ID = re.compile(r"[0-9a-f]{32}")


@pytest.fixture
def vision(registry: Registry) -> Registry:
    """A service with one experiment and one run."""
    tracking = registry.services.tracking
    number = tracking.experiments.create("vision", tags={"team": "eyes"})
    run = tracking.runs.create(
        number,
        name="first",
        user_id="ada",
        started=1_600_000_000_000,
        tags={"mlflow.runName": "first", "mlflow.source.type": "LOCAL"},
    )
    metrics = [Metric("loss", 0.5, 1000), Metric("loss", 0.25, 2000), Metric("acc", 0.75, 1000)]
    tracking.runs.log(run.id, Batch(metrics=metrics, params=[("depth", "3")]))
    data = Dataset("train", "abc", "http", "http://data.example/train.csv")
    tracking.runs.log_inputs(run.id, [Input(data, {"mlflow.data.context": "training"})])
    for path in ("plots/loss.png", "notes.txt"):
        file = LoggedFile(RelPath(path), "0cc175b9c0f1b6a831c399e269772661", 1)
        tracking.files.put(Owner("run", run.id, number), file)
    return registry


class Scribe:
    """Asks, and writes ids as the files do."""

    def __init__(self, registry: Registry) -> None:
        (run,) = registry.services.tracking.runs.search([1], "all", Search()).found
        self.ids = [run.id]
        self._client = registry.client
        token = registry.token(scopes=["tracking:read", "tracking:write"])
        self._headers = {"Authorization": f"Bearer {token}"}

    def ask(self, prefix: str, method: str, path: str, send: object) -> tuple[int, object]:
        """The status and the body of an answer."""
        text = json.dumps(send)
        for number, known in enumerate(self.ids, 1):
            text, path = (it.replace(f"<id {number}>", known) for it in (text, path))
        if method == "GET":
            how = {"query_string": json.loads(text)}
        else:
            how = {"data": text, "content_type": "application/json"}
        answer = self._client.open(prefix + path, method=method, headers=self._headers, **how)
        return answer.status_code, json.loads(_ID.sub(self._written, answer.text))

    def _written(self, found: re.Match[str]) -> str:
        if found[0] not in self.ids:
            self.ids.append(found[0])
        return f"<id {self.ids.index(found[0]) + 1}>"


@pytest.mark.parametrize("file", FILES, ids=lambda it: f"{it.parent.name}/{it.stem}")
def test_every_request_is_answered_as_it_is_written(vision: Registry, file: Path) -> None:
    scribe = Scribe(vision)
    for step in json.loads(file.read_text()):
        status, answer = scribe.ask(
            PREFIXES[file.parent.name], step["method"], step["path"], step["send"]
        )
        if isinstance(answer, dict):
            answer.pop("request_id", None)

        assert (status, answer) == (step["status"], step["answer"]), step


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_endpoint_has_a_request_that_succeeds_and_one_that_fails(generation: str) -> None:
    routes = TABLES[GENERATIONS[generation]].routes
    written: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
    for file in GOLDEN.glob(f"{generation}/*.json"):
        for step in json.loads(file.read_text()):
            route, _ = TABLES[GENERATIONS[generation]].find(step["method"], step["path"])
            written[step["status"] == 200].add((route.method, route.path))

    every = {(route.method, route.path) for route in routes if not route.gives}
    assert written[True] == every
    # To list experiments can hardly fail, and to search by GET is to search.
    assert every - written[False] <= {("GET", "experiments/search"), ("GET", "runs/search")}


def test_both_twins_and_both_roots_answer_the_same(vision: Registry) -> None:
    scribe = Scribe(vision)
    answers = [
        scribe.ask(f"{root}/{twin}/2.0/{preview}mlflow/", "GET", "runs/get", {"run_id": "<id 1>"})
        for preview in ("", "preview/")
        for root in ("", "/mlflow")
        for twin in ("api", "ajax-api")
    ]

    assert {status for status, _ in answers} == {200}
    assert answers[:4] == answers[:1] * 4
    assert answers[4:] == answers[4:5] * 4
