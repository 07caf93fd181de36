"""The audit log: what is written stays as it was, or is found out."""

import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service import NOW, Clock

from registry.audit import AuditLog, Change, Event
from registry.errors import DatabaseUnavailable

KEYS = ["an old key for tests, long enough", "a new key for tests, long enough"]
DAY, NEXT = "2027-01-15", "2027-01-16"
CHANGE = Change("team/models", "m@v1.0.0", "moved", "1" * 40, "2" * 40)
EVENT = Event("request", "10.0.0.1", "token", "team/models", "m#prod", "granted", files=1)


def url_of(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(file: Path, clock: Clock) -> Iterator[AuditLog]:
    log = AuditLog(url_of(file), KEYS, "required", clock)
    log.create_tables()
    yield log
    log.close()


def fill(log: AuditLog, clock: Clock) -> None:
    """Three rows on one day, and three on the next."""
    for _ in range(2):
        for _ in range(3):
            log.write(EVENT)
        clock.now += 86_400


def tamper(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def test_a_row_says_who_was_given_what_and_when(log) -> None:
    log.write(EVENT)

    (row,) = log.rows()
    assert (row.day, row.number, row.previous) == (DAY, 1, "")
    assert json.loads(row.record) == {
        "at": "2027-01-15T08:00:00.000Z",
        "request": "request",
        "address": "10.0.0.1",
        "token": "token",
        "repository": "team/models",
        "selector": "m#prod",
        "decision": "granted",
        "reason": None,
        "revision": None,
        "version": None,
        "files": 1,
    }


def test_a_row_says_what_became_of_a_version(log) -> None:
    log.note(CHANGE)
    log.write(EVENT)

    changed, _ = log.rows()
    assert json.loads(changed.record) == {
        "at": "2027-01-15T08:00:00.000Z",
        "repository": "team/models",
        "selector": "m@v1.0.0",
        "decision": "moved",
        "revision": "1" * 40,
        "origin": "2" * 40,
    }


def test_a_whole_log_has_nothing_to_complain_about(log, clock) -> None:
    assert list(log.verify()) == []

    fill(log, clock)

    assert [row.name for row in log.rows()] == [
        f"{day} row {number}" for day in (DAY, NEXT) for number in (1, 2, 3)
    ]
    for day in (None, DAY, NEXT, "2027-01-14", "2027-01-17"):
        assert list(log.verify(day)) == [], day


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        (f"UPDATE audit SET record = '{{}}' WHERE day = '{DAY}' AND number = 2", f"{DAY} row 2"),
        (f"UPDATE audit SET hash = 'x' WHERE day = '{DAY}' AND number = 1", f"{DAY} row 1"),
        (f"UPDATE audit SET number = 9 WHERE day = '{DAY}' AND number = 2", f"{DAY} row 9"),
        (f"DELETE FROM audit WHERE day = '{DAY}' AND number = 1", f"{DAY} row 2"),
        (f"DELETE FROM audit WHERE day = '{DAY}' AND number = 2", f"{DAY} row 3"),
        (f"DELETE FROM audit WHERE day = '{DAY}' AND number = 3", f"{NEXT} row 1"),
        (f"DELETE FROM audit WHERE day = '{NEXT}' AND number = 3", f"{NEXT} row 3"),
        (f"DELETE FROM audit WHERE day = '{NEXT}'", f"{NEXT} row 3"),
        ("DELETE FROM audit", f"{NEXT} row 3"),
        (f"INSERT INTO audit VALUES ('{NEXT}', 4, '{{}}', '', '')", f"{NEXT} row 4"),
        (f"INSERT INTO audit VALUES ('{DAY}', 0, '{{}}', '', '')", f"{DAY} row 0"),
        ("UPDATE audit_head SET number = 2", "the seal"),
        ("DELETE FROM audit_head", "the head"),
    ],
)
def test_what_was_changed_removed_or_inserted_is_named(log, file, clock, statement, named) -> None:
    fill(log, clock)

    tamper(file, statement)

    assert any(named in problem for problem in log.verify())


def test_a_removed_end_of_a_day_is_found_by_looking_at_that_day_alone(log, file, clock) -> None:
    fill(log, clock)

    tamper(file, f"DELETE FROM audit WHERE day = '{DAY}' AND number = 3")

    assert list(log.verify(DAY))


def test_a_row_rewritten_with_the_right_hash_does_not_fit_its_neighbour(log, file, clock) -> None:
    fill(log, clock)
    forged = list(log.rows())[1]
    forged = type(forged).after(forged.previous, forged.day, forged.number, '{"files":0}')

    tamper(
        file,
        f"UPDATE audit SET record = '{forged.record}', hash = '{forged.hash}'"
        f" WHERE day = '{DAY}' AND number = 2",
    )

    (problem,) = log.verify()
    assert problem.startswith(f"{DAY} row 3 does not follow from {DAY} row 2")


def test_a_rewritten_end_needs_the_key_of_the_seal(log, file, clock) -> None:
    fill(log, clock)
    last = list(log.rows())[-1]
    forged = type(last).after(last.previous, last.day, last.number, "{}")

    tamper(
        file,
        f"UPDATE audit SET record = '{{}}', hash = '{forged.hash}' WHERE hash = '{last.hash}'",
        f"UPDATE audit_head SET hash = '{forged.hash}'",
    )

    (problem,) = log.verify()
    assert "seal" in problem


def test_an_old_key_still_holds_its_seal_after_a_rotation(file, clock) -> None:
    with closing(AuditLog(url_of(file), KEYS[:1], "required", clock)) as before:
        before.create_tables()
        before.write(EVENT)

    with closing(AuditLog(url_of(file), KEYS, "required", clock)) as after:
        assert list(after.verify()) == []
        after.create_tables()
        after.write(EVENT)
        assert list(after.verify()) == []


def test_the_oldest_days_can_be_retired(log, file, clock) -> None:
    fill(log, clock)

    tamper(file, f"DELETE FROM audit WHERE day = '{DAY}'")

    assert list(log.verify()) == []


def test_a_clock_that_is_set_back_does_not_break_the_order(log, clock) -> None:
    clock.now += 86_400
    log.write(EVENT)
    clock.now -= 86_400
    log.write(EVENT)

    assert [row.name for row in log.rows()] == [f"{NEXT} row 1", f"{NEXT} row 2"]
    assert list(log.verify()) == []


@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(text=st.text(st.characters(codec=None, exclude_categories=[]), max_size=50))
def test_whatever_a_client_says_can_be_written_and_verified(tmp_path_factory, text) -> None:
    file = tmp_path_factory.mktemp("audit") / "registry.db"
    with closing(AuditLog(url_of(file), KEYS, "required", Clock())) as log:
        log.create_tables()
        log.write(Event("r", "a", "t", text, text, "refused", "NotFound"))

        (row,) = log.rows()
        assert json.loads(row.record)["selector"] == text
        assert list(log.verify()) == []


def write_many(url: str, count: int) -> None:
    with closing(AuditLog(url, KEYS, "required", Clock())) as log, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: log.write(EVENT), range(count)))


def test_processes_that_write_at_once_do_not_fork_the_chain(log, file) -> None:
    context = get_context("spawn")
    processes = [
        context.Process(target=write_many, args=(url_of(file), 50)) for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(log.rows())) == 150
    assert list(log.verify()) == []


class TestALockedDatabase:
    @pytest.fixture
    def lock(self, log, file) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield connection

    def test_a_row_that_is_required_is_not_there_and_that_is_said(self, log, lock) -> None:
        with pytest.raises(DatabaseUnavailable) as caught:
            log.write(EVENT)

        assert caught.value.retry_after > 0
        lock.rollback()
        assert list(log.rows()) == []
        log.write(EVENT)
        assert list(log.verify()) == []

    def test_a_change_of_a_tag_that_nobody_waits_for_is_not_lost(self, log, lock) -> None:
        log.note(CHANGE)
        with pytest.raises(DatabaseUnavailable):
            log.write(EVENT)
        lock.rollback()
        log.write(EVENT)

        assert [json.loads(row.record)["decision"] for row in log.rows()] == ["moved", "granted"]
        assert list(log.verify()) == []

    def test_rows_that_are_not_required_follow_when_it_is_free_again(self, file, lock) -> None:
        counted: list[tuple[str, int]] = []
        log = AuditLog(
            url_of(file), KEYS, "best_effort", Clock(), lambda *it: counted.append(it)
        )  # fmt: skip
        log.write(EVENT)
        log.write(EVENT)

        lock.rollback()
        log.close()

        assert len(list(log.rows())) == 2
        assert counted == [("written", 2)]

    def test_what_is_lost_at_the_end_is_counted(self, file, lock, caplog) -> None:
        counted: list[tuple[str, int]] = []
        log = AuditLog(
            url_of(file), KEYS, "best_effort", Clock(), lambda *it: counted.append(it)
        )  # fmt: skip
        log.write(EVENT)
        log.close()

        assert counted == [("lost", 1)]
        assert "1 audit rows are lost" in caplog.text


def test_a_log_that_is_off_touches_no_database(file) -> None:
    with closing(AuditLog(url_of(file), KEYS, "off", Clock())) as log:
        log.write(EVENT)

    assert not file.exists()


def test_a_log_without_tables_says_what_to_do(file) -> None:
    log = AuditLog(url_of(file), KEYS, "required", Clock())
    with closing(log), pytest.raises(DatabaseUnavailable):
        log.write(EVENT)


def test_now_is_the_day_of_the_tests() -> None:
    assert NOW == 1_800_000_000  # DAY and NEXT follow from it
