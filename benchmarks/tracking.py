"""Tracking, beside a real `mlflow server` of the same number of workers, both on SQLite.

MLflow's server comes from PyPI, into an environment of its own; its background jobs are off, which
are no part of tracking. Its answers to kept connections leave in two parts, and the second waits
40 ms for the client's acknowledgement: the figures that count are those of a client that sends this
at once (`quick`), which flatters MLflow; those of a client as it comes stand in the note.
"""

import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import count
from pathlib import Path

import sqlalchemy as sa

from benchmarks import load
from benchmarks.world import Server, memory_of, registry_server, tree
from registry.access import Access
from registry.audit import AuditLog
from registry.settings import Settings
from registry.tracking import Tracking
from registry.tracking import schema as tables

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent / ".venv-mlflow-server"
RUNS = 10_000
WORKERS = 2
CONNECTIONS = 8
ROUNDS = 5
FILE = 64 << 20
"""Bytes of a file that is logged."""

_numbers = count(1)


@dataclass(frozen=True)
class Side:
    """One of the two servers, and a run to log to."""

    port: int
    token: str
    run: str
    pid: int


@dataclass(frozen=True)
class Measure:
    """What both are asked: `body` makes a request that was not made before. Of fewer `rounds` where
    an answer of MLflow's takes seconds.
    """

    what: str
    method: str
    path: str
    body: Callable[[Side], Mapping[str, object]] | None = None
    rounds: int = ROUNDS


def _metric(number: int) -> dict[str, object]:
    return {"key": f"m{number % 10}", "value": number * 0.5, "timestamp": number, "step": number}


def _log_metric(side: Side) -> Mapping[str, object]:
    return {"run_id": side.run, **_metric(next(_numbers))}


def _log_batch(side: Side) -> Mapping[str, object]:
    step = next(_numbers)
    return {
        "run_id": side.run,
        "metrics": [{**_metric(step), "key": f"b{number}"} for number in range(100)],
    }


def _create(_: Side) -> Mapping[str, object]:
    tags = [{"key": "mlflow.user", "value": "ada"}, {"key": "mlflow.source.type", "value": "LOCAL"}]
    return {"experiment_id": "0", "run_name": f"new {next(_numbers)}", "tags": tags}


def _filtered(_: Side) -> Mapping[str, object]:
    text = "metrics.m1 > 0.9 and params.k1 = '7'"
    return {"experiment_ids": ["0"], "filter": text, "max_results": 100}


def _ordered(_: Side) -> Mapping[str, object]:
    return {"experiment_ids": ["0"], "order_by": ["metrics.m2 DESC"], "max_results": 100}


def _experiments(_: Side) -> Mapping[str, object]:
    return {"max_results": 100}


MEASURES = (
    Measure("runs/search, filter over 10,000 runs", "POST", "runs/search", _filtered),
    Measure("experiments/search", "POST", "experiments/search", _experiments),
    Measure("runs/get", "GET", "runs/get?run_id={run}"),
    Measure("log-metric", "POST", "runs/log-metric", _log_metric),
    Measure("log-batch of 100 metrics", "POST", "runs/log-batch", _log_batch),
    Measure("runs/create", "POST", "runs/create", _create),
    Measure("runs/search, order by a metric of 10,000 runs", "POST", "runs/search", _ordered, 1),
)


def request(side: Side, measure: Measure) -> bytes:
    """One request of the measure, as a client that keeps its connection would send it."""
    body = json.dumps(measure.body(side)).encode() if measure.body else b""
    path = measure.path.replace("{run}", side.run)
    head = (
        f"{measure.method} /api/2.0/mlflow/{path} HTTP/1.1\r\nHost: 127.0.0.1:{side.port}\r\n"
        f"Authorization: Bearer {side.token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nAccept: */*\r\n\r\n"
    )
    return head.encode() + body


def apply(side: Side, measure: Measure, seconds: float, *, quick: bool = True) -> load.Load:
    """Keeps the connections busy with the measure, until as many were answered as there are."""
    return load.apply(
        side.port,
        lambda: request(side, measure),
        connections=CONNECTIONS,
        seconds=seconds,
        least=CONNECTIONS,
        quick=quick,
    )


@contextmanager
def ours(directory: Path) -> Iterator[Side]:
    """The registry, with its runs."""
    directory.mkdir(parents=True)
    config = directory / "registry.yaml"
    document = {"data_dir": str(directory / "data"), "secret_key": "a key of the benchmark, long"}
    document["secret_key"] += "-enough-to-be-one"
    config.write_text(json.dumps(document))
    settings = Settings.load(config)
    settings.data_dir.mkdir()
    access = Access(settings.database, settings.secret_keys)
    access.create_tables()
    audit = AuditLog(settings.database, settings.secret_keys, "best_effort")
    audit.create_tables()
    until = datetime.now(timezone.utc) + timedelta(days=1)
    _, token = access.create("bench", ["tracking:read", "tracking:write"], ["*"], until)
    tracking = Tracking.of(settings.database)
    tracking.upgrade()
    _fill(tracking)
    for part in (access, audit, tracking):
        part.close()
    with registry_server(config, WORKERS) as server:
        yield _with_a_run(server, token)


def _fill(tracking: Tracking) -> None:
    chance = random.Random(1)
    runs = [
        {
            "number": number + 1, "id": f"{number:032x}", "experiment": 0, "name": f"run {number}",
            "user_id": "ada", "status": "FINISHED", "started": 1_700_000_000_000 + number,
            "ended": None, "deleted": False,
        }
        for number in range(RUNS)
    ]  # fmt: skip
    latest = [
        {"run": run["number"], "key": f"m{key}", "experiment": 0, "started": run["started"],
         "timestamp": 1, "step": 1, "value": chance.random(), "nan": False}
        for run in runs for key in range(3)
    ]  # fmt: skip
    with tracking.store.writing() as connection:
        connection.execute(sa.insert(tables.runs), runs)
        connection.execute(sa.insert(tables.latest), latest)
        for table in (tables.params, tables.tags):
            texts = [
                {
                    "run": run["number"],
                    "key": f"k{key}",
                    "experiment": 0,
                    "started": run["started"],
                    "value": str(chance.randrange(100)),
                }
                for run in runs
                for key in range(3)
            ]
            connection.execute(sa.insert(table), texts)


@contextmanager
def theirs(directory: Path) -> Iterator[Side]:
    """MLflow's server, with the same runs."""
    directory.mkdir(parents=True)
    program = ENVIRONMENT / "bin/mlflow"
    database = directory / "mlflow.db"
    environ = {
        "HOME": str(directory),
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }

    def command(host: str, port: int) -> list[str]:
        options = ("--host", host, "--port", str(port), "--workers", str(WORKERS))
        store = ("--backend-store-uri", f"sqlite:///{database}")
        store += ("--artifacts-destination", str(directory / "artifacts"))
        # By default it ends its own workers when one is busy for 5 s, as with an ordered search.
        patience = ("--uvicorn-opts", "--timeout-worker-healthcheck 600")
        return [str(program), "server", *options, *store, *patience]

    with _running(Server(command, environ)) as server:
        _with_a_run(server, "")  # when it answers, its tables are there
        fill = [ENVIRONMENT / "bin/python", HERE / "fill_mlflow.py", database, str(RUNS)]
        subprocess.run(fill, check=True, env={**os.environ, **environ})
        yield _with_a_run(server, "")


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        below = tree(server.pid)
        try:
            server.close()
        except subprocess.TimeoutExpired:
            for pid in below:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _with_a_run(server: Server, token: str) -> Side:
    """A side with a run that has logged a little. Waits until the server answers."""

    def post(path: str, message: Mapping[str, object]) -> dict[str, object]:
        url = f"http://127.0.0.1:{server.port}/api/2.0/mlflow/{path}"
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        asked = urllib.request.Request(url, json.dumps(message).encode(), headers)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            found: dict[str, object] = json.load(answer)
        return found

    for _ in range(300):
        try:
            run = post("runs/create", {"experiment_id": "0", "run_name": "logged to"})["run"]
            break
        except OSError:
            time.sleep(0.2)
    assert isinstance(run, dict)
    run_id = run["info"]["run_id"]
    texts = [{"key": f"k{number}", "value": "x"} for number in range(5)]
    metrics = [_metric(number) for number in range(5)]
    post("runs/log-batch", {"run_id": run_id, "metrics": metrics, "params": texts, "tags": texts})
    return Side(server.port, token, run_id, server.pid)


def install() -> bool:
    """Makes the environment of MLflow's server, once."""
    if not (ENVIRONMENT / "bin/mlflow").exists():
        done = subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=False)
        pip = [ENVIRONMENT / "bin/python", "-m", "pip", "install", "--quiet"]
        wanted = ["--requirement", HERE / "requirements-mlflow.txt"]
        done = subprocess.run([*pip, *wanted], check=False)
        return done.returncode == 0
    return True


@dataclass(frozen=True)
class Compared:
    """Both rates and 99th percentiles of one measure, and both rates of a client as it comes."""

    what: str
    rates: tuple[float, float]
    p99s: tuple[float, float]
    plain: tuple[float, float]


@dataclass(frozen=True)
class Transferred:
    """At how many MiB/s both took a file, or gave one."""

    what: str
    rates: tuple[float, float]


def _transfers(sides: tuple[Side, Side]) -> Iterator[Transferred]:
    """One client, one large file after the other: up, and down again."""
    data = os.urandom(FILE)

    def put(side: Side, number: int) -> float:
        return _transfer(side, "PUT", number, number.to_bytes(8, "big") + data[8:])

    def get(side: Side, number: int) -> float:
        return _transfer(side, "GET", number)

    for what, how in (("up", put), ("down", get)):
        rounds = [[how(side, number) for side in sides] for number in range(ROUNDS + 1)][1:]
        mine, other = (statistics.median(it) for it in zip(*rounds, strict=True))
        yield Transferred(f"a file of {FILE >> 20} MiB, {what}", (mine, other))


def _transfer(side: Side, method: str, number: int, body: bytes | None = None) -> float:
    """Sends or fetches a file, and returns how many MiB/s that were."""
    path = f"/api/2.0/mlflow-artifacts/artifacts/0/{side.run}/artifacts/file{number}"
    connection = http.client.HTTPConnection("127.0.0.1", side.port, timeout=120)
    with closing(connection):
        begun = time.perf_counter()
        headers = {"Authorization": f"Bearer {side.token}"}
        connection.request(method, path, body, headers)
        answer, size = connection.getresponse(), 0
        while piece := answer.read(1 << 20):
            size += len(piece)
        took = time.perf_counter() - begun
    assert answer.status == 200, answer.status
    assert body is not None or size == FILE
    return (FILE >> 20) / took


def compare(directory: Path) -> Iterator[Compared | Transferred | tuple[int, int]]:
    """Every measure, both sides by turns; at the end the memory of both, in bytes (PSS)."""
    with ours(directory / "ours") as mine, theirs(directory / "theirs") as other:
        sides = (mine, other)
        yield from _transfers(sides)
        for measure in MEASURES:
            for side in sides:
                apply(side, measure, 0.5)
            rounds = [[apply(side, measure, 2) for side in sides] for _ in range(measure.rounds)]
            plain = [apply(side, measure, 2, quick=False).rate for side in sides]
            yield Compared(
                measure.what,
                (_median(rounds, 0, "rate"), _median(rounds, 1, "rate")),
                (_median(rounds, 0, "p99"), _median(rounds, 1, "p99")),
                (plain[0], plain[1]),
            )
        yield (memory_of(tree(mine.pid)), memory_of(tree(other.pid)))


def _median(rounds: list[list[load.Load]], side: int, what: str) -> float:
    found = [pair[side] for pair in rounds]
    if what == "rate":
        return statistics.median(it.rate for it in found)
    return statistics.median(it.percentile(0.99) for it in found)
