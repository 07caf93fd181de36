"""Many writers, and writers that die: nothing is lost, and nothing is half there."""

import subprocess
import sys
from pathlib import Path

import pytest

from registry.errors import DatabaseUnavailable, ParamExists
from registry.tracking import Tracking
from registry.tracking.records import Dataset, Input, Metric
from registry.tracking.runs import Batch

PROCESSES = 16
ROUNDS = 100

_LOGS_METRICS = f"""
import sys
from registry.tracking import Tracking
from registry.tracking.records import Dataset, Input, Metric
from registry.tracking.runs import Batch

database, run, me = sys.argv[1], sys.argv[2], int(sys.argv[3])
tracking = Tracking.of(database)
for step in range({ROUNDS}):
    shared = Metric("shared", me * {ROUNDS} + step, step, step)
    metrics = [shared, Metric(f"own {{me}}", step, step, step)]
    tracking.runs.log(run, Batch(metrics=metrics))
"""

_LOGS_BATCHES = """
import sys
from itertools import count
from registry.tracking import Tracking
from registry.tracking.records import Dataset, Input, Metric
from registry.tracking.runs import Batch

database, run = sys.argv[1:]
tracking = Tracking.of(database)
for number in count():
    print(number, flush=True)
    metrics = [Metric(f"m{key}", number, number, number) for key in range(100)]
    batch = Batch(metrics, [(f"p{number}", "x")], {"last": str(number)})
    tracking.runs.log(run, batch)
"""


def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, *arguments]
    root = Path(__file__).parent.parent.parent
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


def test_sixteen_processes_log_to_one_run_and_nothing_is_lost(
    tracking: Tracking, database: str
) -> None:
    run = tracking.runs.create(0).id
    writers = [start(_LOGS_METRICS, database, run, str(me)) for me in range(PROCESSES)]
    for writer in writers:
        writer.communicate(timeout=120)

    assert [writer.returncode for writer in writers] == [0] * PROCESSES
    history = tracking.runs.history(run, "shared").found
    assert len(history) == PROCESSES * ROUNDS
    assert {metric.value for metric in history} == set(range(PROCESSES * ROUNDS))
    latest = {metric.key: metric for metric in tracking.runs.get(run).metrics}
    assert latest["shared"] == max(history, key=lambda it: it.order)
    for me in range(PROCESSES):
        assert len(tracking.runs.history(run, f"own {me}").found) == ROUNDS
        assert latest[f"own {me}"].value == ROUNDS - 1


def test_a_batch_of_a_writer_that_is_killed_is_whole_or_absent(
    tracking: Tracking, database: str
) -> None:
    for killed_in in (0, 3, 7):
        run = tracking.runs.create(0).id
        writer = start(_LOGS_BATCHES, database, run)
        assert writer.stdout
        for line in writer.stdout:
            if int(line) == killed_in:
                writer.kill()
                break
        writer.wait(timeout=30)
        writer.stdout.close()

        found = tracking.runs.get(run)
        whole = len(found.params)  # one for each batch
        assert whole >= killed_in
        assert found.tags == ({"last": str(whole - 1)} if whole else {})
        for key in range(100):
            values = [metric.value for metric in tracking.runs.history(run, f"m{key}").found]
            assert values == [*range(whole)]
        assert {metric.value for metric in found.metrics} == ({whole - 1} if whole else set())
    # Whoever was killed stands in nobody's way.
    tracking.runs.log(run, Batch(metrics=[Metric("after", 1.0, 0)]))


def test_of_two_who_write_a_param_one_wins_and_the_other_is_told(tracking: Tracking) -> None:
    run = tracking.runs.create(0).id
    tracking.runs.log(run, Batch(params=[("p", "1"), ("p", "1")]))
    tracking.runs.log(run, Batch(params=[("q", "2"), ("p", "1")]))

    assert tracking.runs.get(run).params == {"p": "1", "q": "2"}


@pytest.mark.parametrize("size", [1, 3, 4, 63, 85, 1000])
def test_a_batch_of_any_size_is_kept_whole(tracking: Tracking, size: int) -> None:
    run = tracking.runs.create(0).id
    metrics = [Metric(f"m{number}", number / 3, number, -number) for number in range(size)]
    params = [(f"p{number}", f"{number}") for number in range(size)]
    tracking.runs.log(run, Batch(metrics, params, dict(params)))
    tracking.runs.log(run, Batch(metrics, params, dict(params)))
    found = tracking.runs.get(run)

    assert sorted(found.metrics) == sorted(metrics)
    assert found.params == found.tags == dict(params)
    assert [tracking.runs.history(run, it.key).found for it in metrics[-3:]] == [
        [it] for it in metrics[-3:]
    ]
    with pytest.raises(ParamExists):
        tracking.runs.log(run, Batch([Metric("late", 1.0, 1)], [*params[:-1], ("p0", "other")]))
    assert len(tracking.runs.get(run).metrics) == size


def test_what_the_driver_raises_is_told_as_a_database_that_is_not_there(
    tracking: Tracking,
) -> None:
    run = tracking.runs.create(0).id
    with tracking.store.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE tracking_latest RENAME TO elsewhere")

    for asked in (
        lambda: tracking.runs.get(run),
        lambda: tracking.runs.log(run, Batch([Metric("m", 1.0, 1)])),
    ):
        with pytest.raises(DatabaseUnavailable) as raised:
            asked()
        assert raised.value.__cause__ is None
    with tracking.store.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO tracking_latest")
    # Nothing of a batch that failed is there, and everything goes on.
    tracking.runs.log(run, Batch([Metric("m", 2.0, 2)]))
    assert tracking.runs.history(run, "m").found == [Metric("m", 2.0, 2)]


def test_what_a_run_used_a_dataset_for_is_said_the_first_time(tracking: Tracking) -> None:
    run = tracking.runs.create(0).id
    data = Dataset("houses", "abc", "local", "{}")
    tracking.runs.log_inputs(run, [Input(data, {"mlflow.data.context": "train"})])
    tracking.runs.log_inputs(run, [Input(data, {"mlflow.data.context": "test", "part": "1"})])

    assert tracking.runs.get(run).inputs == [Input(data, {"mlflow.data.context": "train"})]
