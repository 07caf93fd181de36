"""How `.dvc/config` is read, and what a remote is."""

import string
from contextlib import suppress
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.dvc.config import LARGEST_FILE, Config, Remote, parse
from registry.errors import InvalidMetadata, RemoteUnusable


def config(text):
    return parse(text.encode(), ".dvc/config")


def with_url(url, more=""):
    return config(f"[core]\n    remote = s\n['remote \"s\"']\n    url = {url}\n{more}")


def test_the_default_remote_is_the_one_that_core_names():
    found = with_url("s3://bkt/pre").remote(None)

    assert (found.name, str(found.url), found.versioned) == ("s", "s3://bkt/pre", False)


@pytest.mark.parametrize(
    ("url", "objects"),
    [
        ("s3://bkt/pre", "s3://bkt/pre/k"),
        ("s3://bkt/pre/", "s3://bkt/pre/k"),
        ("s3://bkt", "s3://bkt/k"),
        ("s3://bkt//a//b/", "s3://bkt//a//b/k"),
        ("s3://bkt/my pre/ünï", "s3://bkt/my pre/ünï/k"),
        ("s3://bkt/a%20b", "s3://bkt/a%20b/k"),
        ("s3://bkt/pre  # a comment", "s3://bkt/pre/k"),
        ("s3://bkt/pre#a comment", "s3://bkt/pre/k"),
        ('"s3://bkt/a#c"', "s3://bkt/a#c/k"),
        ("'s3://bkt/a,c' # a comment", "s3://bkt/a,c/k"),
        ("azure://cont/path", "azure://cont/path/k"),
        ("azure://cont", "azure://cont/k"),
        ("https://h/p/q/", "https://h/p/q/k"),
        ("https://u:p@h/p", "https://h/p/k"),
        ("/srv/store", "file:///srv/store/k"),
        ("file:///srv/store", "file:///srv/store/k"),
    ],
)
def test_objects_lie_below_the_url_as_dvc_has_it(url, objects):
    assert str(with_url(url).remote(None).url.below("k")) == objects


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("s3://bkt/pre", "s3://bkt/pre/sub/dir"),
        ("s3://bkt/pre/", "s3://bkt/pre//sub/dir"),
        ("s3://bkt", "s3://bkt/sub/dir"),
    ],
)
def test_a_remote_may_refer_to_another_one(base, url):
    found = with_url("remote://Base/sub/dir", f"['remote \"base\"']\n url = {base}\n")

    assert str(found.remote("S").url) == url
    assert str(found.resolve("remote://s/file.bin")) == f"{url}/file.bin"


def test_own_options_go_before_those_of_the_remote_referred_to():
    base = "['remote \"base\"']\n url = s3://bkt\n version_aware = True\n"

    assert with_url("remote://base/a", base).remote(None).versioned
    assert not with_url("remote://base/a", f" version_aware = false\n{base}").remote(None).versioned


@pytest.mark.parametrize("option", ["version_aware = true", "WORKTREE = TRUE"])
def test_a_remote_may_keep_versions(option):
    assert with_url("s3://bkt", f" {option}\n").remote("s").versioned


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no default remote: core.remote is not set"),
        ("[core]\nremote = zz\n", "'zz': it is not defined"),
        ("[core]\nremote = a, b\n", "no default remote"),
        ("[core]\nremote = s\n['remote \"s\"']\n", "it has no url"),
        ("[core]\nremote = s\n['remote \"s\"']\nurl = s3://a, s3://b\n", "a list"),
        ("[core]\nremote = s\n['remote \"s\"']\nurl = s3://b/%(x)s\n", "not supported"),
        ("[core]\nremote = s\n['remote \"s\"']\nurl = ../store\n", "local remote"),
        ("[core]\nremote = s\n['remote \"s\"']\nurl = C:\\store\n", "local remote"),
        ("[core]\nremote = s\n['remote \"s\"']\nurl = file://host/x\n", "cannot be used"),
        ("[core]\nremote = s\n['remote \"s\"']\nurl = remote://s/x\n", "refers to itself"),
        ("[core]\nremote = s\n['remote \"s\"']\nurl = remote://t/x\n", "'t': it is not defined"),
        ("[core]\nremote = s\n['remote \"s\"']\nurl = https://h/p?tok=secret\n", "no query"),
        ("[core]\nremote = s\n['remote \"s\"']\nurl = https://h:x/p\n", "cannot be used"),
        ("[core]\nremote = s\n['remote \"s\"']\nurl = s3://b/../c\n", "cannot be used"),
        (
            "[core]\nremote = s\n['remote \"s\"']\nurl = s3://b\nworktree=true\nversion_aware=false",
            "",
        ),
        *[
            (
                f"[core]\nremote = s\n['remote \"s\"']\nurl = {scheme}://x/y\n",
                f"for {scheme} remotes",
            )
            for scheme in ("gdrive", "webdavs", "oss", "hdfs", "gcs")
        ],
    ],
)
def test_an_unusable_remote_says_why(text, problem):
    with pytest.raises(RemoteUnusable) as caught:
        config(text).remote(None)

    assert problem in caught.value.detail
    assert "secret" not in caught.value.detail


def test_there_is_no_only_remote_default():
    with pytest.raises(RemoteUnusable):
        config("['remote \"s\"']\nurl = s3://bkt\n").remote(None)


SECRETS = [
    *["endpointurl", "profile", "access_key_id", "secret_access_key", "session_token", "user"],
    *["credentialpath", "configpath", "account_key", "connection_string", "sas_token", "keyfile"],
    *["password", "custom_auth_header", "ssl_verify"],
]


def test_credentials_endpoints_and_profiles_are_never_kept():
    secrets = "".join(f" {option} = hidden\n" for option in SECRETS)

    assert "hidden" not in repr(asdict(with_url("s3://bkt", secrets)))


def test_what_is_broken_is_skipped():
    text = (
        "[[nested]]\nremote = a\n[core\nremote = b\nno sign\n[core]\n;\n= 3\nremote = c\n[x]y\n[]"
    )

    assert config(text).default == "c"


def test_sections_of_one_name_count_as_one_and_of_options_the_last():
    text = '[remote "S"]\nurl = s3://a\n[\'remote "s"\']\nurl = s3://b\n[CORE]\nREMOTE = S\n'

    assert str(config(text).remote(None).url) == "s3://b/"


@pytest.mark.parametrize("data", [b"#" * (LARGEST_FILE + 1), b"\xff"])
def test_what_is_too_large_or_no_text_is_invalid(data):
    with pytest.raises(InvalidMetadata):
        parse(data, "f")


def test_an_absent_config_names_no_remote():
    assert Config() == parse(b"", ".dvc/config")


NAMES = st.text(string.ascii_lowercase + string.digits + "-_", min_size=1, max_size=10)
URLS = st.text(string.ascii_letters + "/-_ =%[]'\"", max_size=20).map(
    lambda path: f"s3://bkt/{path.strip()}x"
)


@given(st.dictionaries(NAMES, st.tuples(URLS, st.booleans()), min_size=1), st.data())
def test_what_was_written_is_read(remotes, data):
    default = data.draw(st.sampled_from(sorted(remotes)))
    quoted = data.draw(st.booleans())
    lines = ["[core]", "    analytics = false", f"    remote = {default}"]
    for name, (url, versioned) in remotes.items():
        lines.append(f"['remote \"{name}\"']" if quoted else f'[remote "{name}"]')
        lines += [
            f"    url = {url}",
            f"    version_aware = {str(versioned).lower()}",
            "    x = y,z",
        ]

    read = config("\n".join(lines))

    assert read.remote(None) == read.remote(default)
    for name, (url, versioned) in remotes.items():
        found = read.remote(name)
        assert isinstance(found, Remote)
        assert (str(found.url), found.versioned) == (url, versioned)


@given(st.text("[]'\"remot=,# \n\\%()s:/{}", max_size=300))
def test_any_text_is_read_or_refused(text):
    read = config('[core]\nremote=r\n[remote "r"]\nurl=' + text)
    for name in (None, "r", *read.options):
        with suppress(RemoteUnusable):
            read.remote(name)


@pytest.mark.parametrize("char", ["'", '"', ",", "[", "]", "=", "#", " ", "\\", "a,"])
def test_hostile_lines_are_read_too(char):
    """Against these, the patterns of ConfigObj take exponential time."""
    line = (char * LARGEST_FILE)[: LARGEST_FILE - 100]

    config(f"[core]\nremote = {line}")
    config(f"[core]\n{line}")
    config(f"[{line}")
