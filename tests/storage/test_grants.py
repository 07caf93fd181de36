"""Which repository may use which location, and what holds for the links of every kind of store."""

import time
from base64 import b64encode
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Barrier, Event, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain import Entry, RelPath, StorageUrl
from registry.errors import CredentialsUnavailable, LocationNotGranted
from registry.storage import Grants, Location, Origin, Renewed
from registry.storage.azure import AzureSigner
from registry.storage.gateway import GatewayLinks
from registry.storage.http import HttpSigner
from registry.storage.local import LocalSigner
from registry.storage.s3 import S3Signer, static_credentials

NOW = datetime(2025, 3, 4, 5, 6, 7, 890_123, tzinfo=timezone.utc)
SECRET = "hush-hush-" * 4
GATEWAY = GatewayLinks([SECRET], "https://models.example.com")
SIGNERS = {
    "s3://bkt/models": S3Signer("bkt", credentials=static_credentials("AKID", SECRET)),
    "azure://cont/models": AzureSigner.from_account_key(
        "cont", account_name="acct", account_key=b64encode(SECRET.encode()).decode()
    ),
    "https://h/models": HttpSigner(StorageUrl.parse("https://h/models")),
    "https://n/models": HttpSigner(
        StorageUrl.parse("https://n/models"), "secure_link", secret=SECRET
    ),
    "https://g/models": HttpSigner(
        StorageUrl.parse("https://g/models"),
        "gateway",
        username="user",
        password=SECRET,
        gateway=GATEWAY,
    ),
    "file:///srv/models": LocalSigner(Path("/srv/models"), GATEWAY),
}
every_signer = pytest.mark.parametrize(("text", "signer"), SIGNERS.items(), ids=list(SIGNERS))


def location(text, *repositories):
    return Location(StorageUrl.parse(text), repositories, SIGNERS["https://h/models"])


def entry(key="files/md5/ab/cd", version=None):
    return Entry(RelPath("model"), key, version_id=version)


@every_signer
def test_links_end_when_they_say(text, signer):
    links = signer.links(NOW, 3600)

    assert links.expires == NOW.replace(microsecond=0) + timedelta(hours=1)
    assert links.expires.utcoffset() == timedelta(0)


@every_signer
def test_the_same_question_at_the_same_time_gets_the_same_link(text, signer):
    path = StorageUrl.parse(text).below(entry().key).path
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))

    assert len({signer.links(now, 60).sign(path, entry()) for now in (NOW, NOW, elsewhere)}) == 1


@every_signer
def test_another_object_gets_another_link(text, signer):
    sign = signer.links(NOW, 60).sign
    url = StorageUrl.parse(text)

    links = {sign(url.below(key).path, entry(key)) for key in ("a", "b", "a/b", "a%2Fb", "A")}

    assert len(links) == 5


@every_signer
def test_secrets_are_in_no_link_and_do_not_show(text, signer):
    path = StorageUrl.parse(text).below(entry().key).path
    links = signer.links(NOW, 60)
    origin = signer.origin(path, entry(), NOW)

    for shown in (links.sign(path, entry()), repr(signer), repr(links), repr(origin), origin.place):
        assert SECRET not in shown
        assert b64encode(SECRET.encode()).decode() not in shown
    assert "sig" not in repr(origin).lower()


@every_signer
@pytest.mark.parametrize("lifetime", [0, -1])
def test_a_link_without_life_is_refused(text, signer, lifetime):
    with pytest.raises(ValueError, match="life"):
        signer.links(NOW, lifetime)


@every_signer
def test_a_time_without_a_zone_is_refused(text, signer):
    with pytest.raises(ValueError, match="aware"):
        signer.links(NOW.replace(tzinfo=None), 60)


def test_a_location_holds_what_lies_below_it_by_whole_segments():
    grants = Grants((location("s3://bkt/models", "*"),))

    for text in ("s3://bkt/models", "s3://bkt/models/", "s3://bkt/models/deep/er"):
        assert grants.locate("any/repo", StorageUrl.parse(text)).url.path == "models"
    for text in ("s3://bkt", "s3://bkt/models-2", "s3://other/models", "azure://bkt/models"):
        with pytest.raises(LocationNotGranted) as caught:
            grants.locate("any/repo", StorageUrl.parse(text))
        assert caught.value.repository == "any/repo"
        assert grants.holding(StorageUrl.parse(text)) is None


def test_the_longest_location_decides_alone():
    grants = Grants(
        (
            location("s3://bkt", "*"),
            location("s3://bkt/private", "org/secret"),
            location("s3://bkt/private/shared", "*"),
        )
    )

    def place(repository, text):
        return str(grants.locate(repository, StorageUrl.parse(text)).url)

    assert place("org/app", "s3://bkt/x") == "s3://bkt/"
    assert place("org/secret", "s3://bkt/private/x") == "s3://bkt/private"
    assert place("org/app", "s3://bkt/private/shared/x") == "s3://bkt/private/shared"
    with pytest.raises(LocationNotGranted):
        place("org/app", "s3://bkt/private/x")


def test_one_place_may_be_granted_twice_with_other_credentials():
    first = location("s3://bkt/m", "team-a/*")
    second = Location(first.url, ("team-b/*",), SIGNERS["s3://bkt/models"])
    grants = Grants((first, second))

    assert grants.locate("team-a/x", first.url) is first
    assert grants.locate("team-b/x", first.url) is second
    with pytest.raises(LocationNotGranted):
        grants.locate("team-c/x", first.url)


@pytest.mark.parametrize(
    "text",
    [
        "https://h/store/private/x",
        "https://h/store/%70rivate/x",
        "https://h/store//private/x",
        "https://h//store/private//x",
        "HTTPS://H:443/store/private/x",
        "file:///store/private/x",
        "file:///store//private/x",
        "file:////store/private/x",
    ],
)
def test_another_spelling_of_a_private_place_is_private_too(text):
    grants = Grants(
        tuple(
            location(f"{start}/store{end}", name)
            for start in ("https://h", "file://")
            for end, name in (("", "*"), ("/private", "org/secret"))
        )
    )

    with pytest.raises(LocationNotGranted):
        grants.locate("org/app", StorageUrl.parse(text))
    assert grants.locate("org/secret", StorageUrl.parse(text)).url.path == "store/private"


def test_an_object_store_takes_keys_as_they_are():
    grants = Grants((location("s3://bkt/a", "*"), location("s3://bkt/a/b", "org/secret")))

    assert grants.locate("org/app", StorageUrl.parse("s3://bkt/a//b")).url.path == "a"


def test_a_url_is_divided_when_a_location_lies_below_it():
    grants = Grants((location("s3://bkt", "*"), location("s3://bkt/a/b", "*")))

    assert grants.divides(StorageUrl.parse("s3://bkt"))
    assert grants.divides(StorageUrl.parse("s3://bkt/a"))
    assert not grants.divides(StorageUrl.parse("s3://bkt/a/b"))
    assert not grants.divides(StorageUrl.parse("s3://bkt/a/b/c"))
    assert not grants.divides(StorageUrl.parse("s3://bkt/c"))


segments = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=3).map("/".join)


@given(st.lists(st.tuples(segments, st.booleans()), max_size=5), segments)
def test_the_rule_of_the_longest_prefix_holds_for_all_locations(places, path):
    grants = Grants(
        tuple(location(f"s3://bkt/{place}", "me" if mine else "you") for place, mine in places)
    )
    parts = [part for part in path.split("/") if part]
    granted = False
    for length in range(len(parts), -1, -1):
        here = [mine for place, mine in places if place == "/".join(parts[:length])]
        if here:
            granted = any(here)
            break

    try:
        grants.locate("me", StorageUrl.parse(f"s3://bkt/{path}"))
        found = True
    except LocationNotGranted:
        found = False

    assert granted == found


def test_an_origin_shows_neither_its_query_nor_its_headers():
    origin = Origin("https://h/x?sig=hush", {"Authorization": "hush"})

    assert repr(origin) == "Origin('https://h/x')"


class _Source:
    """Hands out credentials that live an hour: (number, end). Can be made to fail."""

    def __init__(self):
        self.asked = 0
        self.down = False

    def __call__(self, now):
        self.asked += 1
        if self.down:
            raise CredentialsUnavailable("the source", "it is down")
        return self.asked, now + timedelta(hours=1)


def minutes(number):
    return NOW + timedelta(minutes=number)


def test_credentials_are_renewed_at_half_of_their_life():
    source = _Source()
    renewed = Renewed(source, lambda found: found[1])

    assert [renewed(minutes(at))[0] for at in (0, 10, 30, 31, 60, 62)] == [1, 1, 1, 2, 2, 3]


def test_a_source_that_is_down_is_asked_once_a_minute_while_the_old_ones_serve():
    source = _Source()
    renewed = Renewed(source, lambda found: found[1])
    renewed(NOW)
    source.down = True

    assert {renewed(minutes(31 + second / 60))[0] for second in range(180)} == {1}
    assert source.asked == 1 + 3
    assert renewed(minutes(55))[0] == 1
    with pytest.raises(CredentialsUnavailable) as caught:
        renewed(minutes(55.1 + 1))
    assert caught.value.problem == "it is down"


def test_without_credentials_the_source_is_asked_again_after_seconds():
    source = _Source()
    source.down = True
    renewed = Renewed(source, lambda found: found[1])

    for second in range(10):
        with pytest.raises(CredentialsUnavailable):
            renewed(NOW + timedelta(seconds=second))
    assert source.asked == 2
    source.down = False
    assert renewed(NOW + timedelta(seconds=10))[0] == 3


def test_credentials_without_an_end_are_asked_for_once():
    source = _Source()
    renewed = Renewed(source, lambda found: None)

    assert [renewed(minutes(at))[0] for at in (0, 10**5, 10**6)] == [1, 1, 1]


def test_a_source_that_gives_too_short_a_life_is_not_asked_for_every_request():
    source = _Source()
    renewed = Renewed(source, lambda found: found[1] - timedelta(minutes=58))

    for _ in range(10):
        with pytest.raises(CredentialsUnavailable):
            renewed(NOW)
    assert source.asked == 1


class _Hanging(_Source):
    """The same, but it says nothing before it is let go."""

    def __init__(self):
        super().__init__()
        self.let_go = Event()
        self.let_go.set()

    def __call__(self, now):
        assert self.let_go.wait(60)
        return super().__call__(now)


def test_nobody_waits_for_a_source_that_hangs_while_the_old_credentials_serve():
    source = _Hanging()
    renewed = Renewed(source, lambda found: found[1], patience=60)
    renewed(NOW)
    source.let_go.clear()

    assert [renewed(minutes(at))[0] for at in (31, 40, 55)] == [1, 1, 1]
    source.let_go.set()


def test_a_source_that_hangs_without_old_credentials_is_used_when_it_answers():
    source = _Hanging()
    source.let_go.clear()
    renewed = Renewed(source, lambda found: found[1], patience=0.01)

    for _ in range(3):
        with pytest.raises(CredentialsUnavailable, match="does not answer"):
            renewed(NOW)
    source.let_go.set()
    found, deadline = None, time.monotonic() + 60
    while found is None and time.monotonic() < deadline:
        with suppress(CredentialsUnavailable):
            found = renewed(NOW)

    assert found == (1, NOW + timedelta(hours=1))
    assert source.asked == 1


def test_a_source_with_a_mistake_is_unavailable_and_its_mistake_is_logged(caplog):
    def mistaken(now):
        raise RuntimeError("not what anybody expected")

    with pytest.raises(CredentialsUnavailable, match="RuntimeError"):
        Renewed(mistaken, lambda found: None)(NOW)

    assert "not what anybody expected" in caplog.text


def test_many_threads_ask_the_source_once():
    source = _Source()
    renewed = Renewed(source, lambda found: found[1])
    together = Barrier(8)
    found = []

    def ask():
        together.wait()
        found.append(renewed(NOW)[0])

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [1] * 8
    assert source.asked == 1
