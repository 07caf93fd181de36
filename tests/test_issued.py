"""What receipts are made from is written once, and found by every process."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from registry.domain import ArtifactName, Revision, Selector
from registry.errors import DatabaseUnavailable
from registry.issued import Issued
from registry.receipt import Terms

REVISION = Revision("a" * 40)
M = ArtifactName.parse("path/to:m")


@pytest.fixture
def issued(database) -> Iterator[Issued]:
    with closing(Issued(database)) as made:
        made.create_tables()
        yield made


@pytest.mark.parametrize(
    "terms",
    [
        Terms("team/models", Selector(M), REVISION, "v1.0.0", "path/to=m@v1.0.0"),
        Terms("team/models", Selector(M, version="v1.0.0"), REVISION, "v1.0.0", "m@v1.0.0"),
        Terms("team/models", Selector(M, stage="eu/prod"), REVISION, None, "m#eu/prod#1"),
        Terms("r" * 255, Selector(M, revision=Revision("b" * 64)), Revision("b" * 64), None, None),
    ],
)
def test_what_was_kept_is_found_by_another_process(issued, database, terms) -> None:
    issued.keep("0" * 64, terms)
    with closing(Issued(database)) as other:
        assert other.find("0" * 64) == issued.find("0" * 64) == terms
        assert other.find("1" * 64) is None


def test_many_who_keep_the_same_at_once_keep_it_once(issued, database) -> None:
    terms = Terms("team/models", Selector(M), REVISION, None, None)
    others = [Issued(database) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda other: other.keep("0" * 64, terms), others))
    for other in others:
        other.close()

    assert issued.find("0" * 64) == terms


def test_tables_that_are_there_stay_as_they_are(issued) -> None:
    terms = Terms("team/models", Selector(M), REVISION, None, None)
    issued.keep("0" * 64, terms)
    issued.create_tables()

    assert issued.find("0" * 64) == terms


def test_a_database_without_the_table_is_unavailable(tmp_path) -> None:
    with closing(Issued(f"sqlite:///{tmp_path / 'empty.db'}")) as issued:
        with pytest.raises(DatabaseUnavailable):
            issued.find("0" * 64)
        with pytest.raises(DatabaseUnavailable):
            issued.keep("0" * 64, Terms("r", Selector(M), REVISION, None, None))
