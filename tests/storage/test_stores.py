"""What the answers of stores tell of their clocks, and what is made of it."""

from email.utils import formatdate
from threading import Event

import pytest

from registry.errors import ClockSkewed
from registry.storage.stores import REFUSED, Store, Stores

NOW = 1_800_000_000.0
S3, OTHER, PLAIN = "https://s3.example", "https://other.example", "http://plain.example:8080"


class Clocks:
    """Ours, and one that nobody sets."""

    def __init__(self) -> None:
        self.ours = NOW
        self.steady = 5.0

    def pass_(self, seconds: float) -> None:
        self.ours += seconds
        self.steady += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def stores(clocks) -> Stores:
    known = [Store(S3, True), Store(OTHER, True), Store(PLAIN, False)]
    return Stores(known, lambda: clocks.ours, lambda: clocks.steady)


def date(seconds: float, **more: str) -> dict[str, str]:
    return {"Date": formatdate(seconds, usegmt=True), **more}


def test_a_store_that_was_never_asked_forbids_nothing(stores) -> None:
    assert stores.ahead(S3) is None
    assert (stores.furthest(), stores.skewed()) == (0.0, False)
    stores.require(S3, "s3://bucket")


@pytest.mark.parametrize(("ahead", "refused"), [(300, False), (301, True), (-300, False)])
def test_a_clock_may_differ_by_so_much_and_no_more(stores, ahead, refused) -> None:
    stores.answered(S3, date(NOW - ahead))

    assert stores.ahead(S3) == ahead
    assert stores.skewed() == refused
    if refused:
        with pytest.raises(ClockSkewed) as caught:
            stores.require(S3, "s3://bucket")
        assert (caught.value.location, caught.value.seconds) == ("s3://bucket", ahead)
        assert "301 s" in caught.value.detail
    else:
        stores.require(S3, "s3://bucket")


def test_a_clock_that_is_set_right_or_wrong_is_known_before_the_next_look(stores, clocks) -> None:
    stores.answered(S3, date(NOW))
    clocks.pass_(1000)
    assert stores.ahead(S3) == 0

    clocks.ours += REFUSED + 1
    assert stores.skewed()
    clocks.ours -= REFUSED + 1
    assert not stores.skewed()


def test_one_store_with_a_wrong_clock_is_not_our_fault(stores) -> None:
    stores.answered(S3, date(NOW - 4000))
    stores.answered(OTHER, date(NOW))

    assert not stores.skewed()
    assert stores.furthest() == 4000
    stores.require(OTHER, "s3://other")
    with pytest.raises(ClockSkewed):
        stores.require(S3, "s3://bucket")


def test_the_clock_of_a_server_that_checks_no_signature_does_not_matter(stores) -> None:
    stores.answered(PLAIN, date(NOW - 4000))

    assert stores.ahead(PLAIN) is None
    stores.require(PLAIN, "http://plain")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Date": "yesterday"},
        {"Date": ""},
        {"Date": "Fri, 99 Foo 2027 08:00:00 GMT"},
        date(NOW - 4000, Age="4000"),
    ],
)
def test_an_answer_that_does_not_tell_the_time_changes_nothing(stores, headers) -> None:
    stores.answered(S3, headers)

    assert stores.ahead(S3) is None


def test_a_problem_is_known_until_the_store_answers_again(stores) -> None:
    stores.failed(PLAIN, "it cannot be reached")
    stores.failed("https://nobody.example", "it cannot be reached")

    assert stores.problem(PLAIN) == "it cannot be reached"
    assert stores.problem(S3) is None
    assert stores.problem("https://nobody.example") is None
    stores.answered(PLAIN, {})
    assert stores.problem(PLAIN) is None


def test_all_stores_whose_clock_matters_are_asked_until_the_watch_ends(stores) -> None:
    asked: list[str] = []
    both = Event()

    def greet(url: str) -> None:
        asked.append(url)
        if len(asked) == 2:
            both.set()

    stores.watch(greet)

    assert both.wait(60)
    assert asked == [S3, OTHER]
    stores.close()
