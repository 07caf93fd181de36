"""Gateway links: they open what was meant, for as long as was meant, and nothing else."""

import re
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer

from registry.domain import Entry, RelPath, StorageUrl
from registry.errors import InvalidLink
from registry.storage.gateway import GatewayLinks

NOW = datetime(2025, 3, 4, 5, 6, 7, tzinfo=timezone.utc)
HOUR = NOW + timedelta(hours=1)
OLD, NEW = "old-key-" * 5, "new-key-" * 5
LINKS = GatewayLinks([OLD], "https://models.example.com/")
PREFIX = "https://models.example.com/objects/"
URL = StorageUrl.parse("file:///srv/store")
ENTRY = Entry(RelPath("dir/model.pkl"), "files/md5/ab/cd", "ab" * 16, 5)


def token(links=LINKS, url=URL, entry=ENTRY, expires=HOUR):
    return links.link(url.below(entry.key), entry, expires).removeprefix(PREFIX)


def test_a_link_opens_as_what_it_was_made_for():
    opened = LINKS.open(token(), NOW)

    assert opened.url == URL.below(ENTRY.key)
    assert opened.expires == HOUR
    assert opened.entry == Entry(RelPath("model.pkl"), ENTRY.key, ENTRY.md5)


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=80)


@given(texts, texts, st.none() | st.just("0" * 32 + ".dir"))
def test_a_token_is_safe_in_the_path_of_a_url_whatever_is_in_it(key, name, md5):
    name = name.replace("/", "-")
    made = token(entry=Entry(RelPath(name), key, md5))

    assert re.fullmatch(r"[A-Za-z0-9_.-]+", made)
    assert LINKS.open(made, NOW).entry == Entry(RelPath(name), key, md5)


def test_a_link_holds_until_its_last_second_and_not_longer():
    made = token()

    assert LINKS.open(made, HOUR - timedelta(seconds=1)).url == URL.below(ENTRY.key)
    for late in (timedelta(0), timedelta(days=400)):
        with pytest.raises(InvalidLink):
            LINKS.open(made, HOUR + late)


@pytest.mark.parametrize("more", ["=", "====", "!!!!", "~~~~", "\n"])
def test_a_link_has_one_spelling(more):
    made = token()

    for changed in (made + more, made[:-4] + more + made[-4:]):
        with pytest.raises(InvalidLink):
            LINKS.open(changed, NOW)


@given(st.data())
def test_a_link_that_was_changed_in_any_place_does_not_open(data):
    made = token()
    place = data.draw(st.integers(0, len(made) - 1))
    other = data.draw(
        st.sampled_from("abcXYZ019-_.=!~ ").filter(lambda found: found != made[place])
    )
    changed = made[:place] + other + made[place + 1 :]

    with pytest.raises(InvalidLink):
        LINKS.open(changed, NOW)


@given(st.text())
def test_nonsense_does_not_open(text):
    with pytest.raises(InvalidLink):
        LINKS.open(text, NOW)


def test_keys_rotate_without_breaking_the_links_of_the_last_hour():
    both = GatewayLinks([OLD, NEW], PREFIX.removesuffix("/objects/"))
    only_new = GatewayLinks([NEW], PREFIX.removesuffix("/objects/"))

    assert both.open(token(), NOW).url == URL.below(ENTRY.key)
    assert only_new.open(token(both), NOW).url == URL.below(ENTRY.key)
    with pytest.raises(InvalidLink):
        only_new.open(token(), NOW)


def test_a_token_that_was_signed_for_another_purpose_does_not_open():
    payload = ["file", "", "etc/passwd", "passwd", "passwd", None, int(HOUR.timestamp())]
    for salt in (b"itsdangerous", "registry.session"):
        with pytest.raises(InvalidLink):
            LINKS.open(URLSafeSerializer(OLD, salt=salt).dumps(payload), NOW)


def test_without_a_key_there_are_no_links():
    for keys in ([], [""]):
        with pytest.raises(ValueError, match="key"):
            GatewayLinks(keys, "https://models.example.com")


def test_no_key_is_in_a_link_or_shows():
    assert OLD not in repr(LINKS)
    assert OLD not in token()
