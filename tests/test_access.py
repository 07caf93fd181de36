"""Tokens are shown once, kept by nobody, and end when they should."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa

from registry.access import FRESH, GRACE, Access, require
from registry.domain import Principal
from registry.errors import DatabaseUnavailable, Forbidden, TokenNotFound, Unauthenticated

OLD, NEW = "old-key-" * 5, "new-key-" * 5
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = START.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(database: str, clock: Clock) -> Iterator[Callable[..., Access]]:
    opened = []

    def access(*keys: str) -> Access:
        made = Access(database, list(keys or (OLD,)), clock)
        made.create_tables()
        opened.append(made)
        return made

    yield access
    for made in opened:
        made.close()


def issue(access: Access, days: int = 90) -> tuple[str, str]:
    token, text = access.create("ci", ["models:read"], ["team/*"], START + timedelta(days=days))
    return token.id, text


def test_a_token_stands_for_the_principal_it_was_made_for(make: Callable[..., Access]) -> None:
    access = make()
    token_id, text = issue(access)

    assert text.startswith("reg_")
    assert access.principal(text) == Principal(
        token_id, "ci", frozenset({"models:read"}), ("team/*",)
    )


def test_a_token_works_in_every_process(make: Callable[..., Access]) -> None:
    _, text = issue(make())

    assert make().principal(text).name == "ci"


@pytest.mark.parametrize("text", ["", "reg_", "reg_abc", "reg_abc.def", "isat_abc", "é", "a.b.c"])
def test_what_the_registry_did_not_issue_is_refused(make: Callable[..., Access], text: str) -> None:
    with pytest.raises(Unauthenticated):
        make().principal(text)


def test_a_changed_token_is_refused_wherever_it_is_changed(make: Callable[..., Access]) -> None:
    access = make()
    _, text = issue(access)

    for position in range(len(text)):
        changed = "A" if text[position] != "A" else "B"
        with pytest.raises(Unauthenticated):
            access.principal(text[:position] + changed + text[position + 1 :])


@pytest.mark.parametrize("more", ["=", "====", "!!!!", " ", "\n", "~"])
def test_a_token_has_one_spelling(make: Callable[..., Access], more: str) -> None:
    access = make()
    _, text = issue(access)

    for changed in (text + more, text[:-4] + more + text[-4:]):
        with pytest.raises(Unauthenticated):
            access.principal(changed)


def test_a_token_without_its_prefix_is_refused(make: Callable[..., Access]) -> None:
    access = make()
    _, text = issue(access)

    with pytest.raises(Unauthenticated):
        access.principal(text.removeprefix("reg_"))


def test_a_revoked_token_ends_in_every_worker_within_five_seconds(
    make: Callable[..., Access], clock: Clock
) -> None:
    here, there = make(), make()
    token_id, text = issue(here)
    there.principal(text)

    here.revoke(token_id)
    clock.now += 5

    for worker in (here, there):
        with pytest.raises(Unauthenticated):
            worker.principal(text)


def test_revoking_twice_keeps_the_first_time(make: Callable[..., Access], clock: Clock) -> None:
    access = make()
    token_id, _ = issue(access)
    first = access.revoke(token_id)
    clock.now += 60

    assert access.revoke(token_id) == first


def test_revoking_an_unknown_token_says_so(make: Callable[..., Access]) -> None:
    with pytest.raises(TokenNotFound):
        make().revoke("nope")


def test_a_token_ends_on_the_second_even_when_it_was_just_checked(
    make: Callable[..., Access], clock: Clock
) -> None:
    access = make()
    _, text = issue(access, days=1)
    clock.now += 86_399
    access.principal(text)
    clock.now += 1

    with pytest.raises(Unauthenticated):
        access.principal(text)


def test_the_database_holds_nothing_that_could_be_used(
    make: Callable[..., Access], database: str
) -> None:
    access = make()
    _, text = issue(access)
    secret = text.removeprefix("reg_").partition(".")[0]
    access.principal(text)

    engine = sa.create_engine(database)
    with engine.connect() as connection:
        dump = repr(connection.execute(sa.text("SELECT * FROM tokens")).all())
    engine.dispose()

    assert "ci" in dump
    assert text not in dump
    assert secret not in dump


def test_the_list_shows_what_is_known_and_never_a_token(make: Callable[..., Access]) -> None:
    access = make()
    token_id, text = issue(access)
    (listed,) = access.tokens()

    assert listed.id == token_id
    assert listed.expires == START + timedelta(days=90)
    assert text not in repr(listed)


def test_keys_rotate_without_ending_the_tokens_of_the_older_one(
    make: Callable[..., Access],
) -> None:
    _, before = issue(make(OLD))
    rotating = make(OLD, NEW)
    _, after = issue(rotating)

    assert rotating.principal(before).name == "ci"
    assert make(NEW).principal(after).name == "ci"
    with pytest.raises(Unauthenticated):
        make(NEW).principal(before)
    with pytest.raises(Unauthenticated):
        make(OLD).principal(after)


def test_a_known_token_outlives_the_database_for_a_while_and_then_fails_closed(
    make: Callable[..., Access], clock: Clock, database: str
) -> None:
    access = make()
    _, known = issue(access)
    _, unknown = issue(access)
    access.principal(known)

    access.close()  # or else SQLite goes on reading a file that was moved away
    with outage(database):
        clock.now += FRESH + 1
        assert access.principal(known).name == "ci"
        with pytest.raises(DatabaseUnavailable):
            access.principal(unknown)
        clock.now += GRACE
        with pytest.raises(DatabaseUnavailable):
            access.principal(known)

    assert access.principal(known).name == "ci"
    assert access.principal(unknown).name == "ci"


@contextmanager
def outage(database: str) -> Iterator[None]:
    """Takes the database away, also from those who are connected to it."""
    url = sa.make_url(database)
    if url.get_backend_name() == "sqlite":
        file, away = Path(str(url.database)), Path(f"{url.database}.away")
        file.rename(away)
        file.mkdir()  # or else a new database would be made
        yield
        file.rmdir()
        away.rename(file)
        return
    engine = sa.create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    allow = "ALTER DATABASE {} ALLOW_CONNECTIONS {}"
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"
    with engine.connect() as connection:
        connection.execute(sa.text(allow.format(url.database, "false")))
        connection.execute(sa.text(end.format(url.database)))
        yield
        connection.execute(sa.text(allow.format(url.database, "true")))
    engine.dispose()


def test_tokens_that_were_not_seen_for_long_are_forgotten(
    make: Callable[..., Access], clock: Clock, database: str
) -> None:
    *texts, last = [issue(make())[1] for _ in range(6)]
    access = Access(database, [OLD], clock, most=5)
    for text in texts:
        access.principal(text)
    assert len(access._checked) == 5

    clock.now += GRACE
    access.principal(last)

    assert len(access._checked) == 1
    access.close()


def test_a_principal_without_the_scope_is_refused() -> None:
    principal = Principal("1", "ci", frozenset({"models:read"}), ("*",))

    require(principal, "models:read")
    with pytest.raises(Forbidden):
        require(principal, "tracking:write")
