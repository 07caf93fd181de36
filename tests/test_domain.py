"""The nouns refuse what they must not hold."""

import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from registry.domain import (
    ArtifactName,
    Digest,
    Principal,
    RelPath,
    Selector,
    StorageUrl,
    canonical_repository,
    matches,
    parse_revision,
    reject_conflicts,
)
from registry.errors import InvalidRequest, UnsafePath

UNSAFE = [
    "",
    "/",
    "/abs",
    "//host/share",
    "..",
    "../up",
    "a/..",
    "a/../b",
    "a/./b",
    ".",
    "./a",
    "a/",
    "a//b",
    "a\\b",
    "..\\up",
    "\\\\host\\share",
    "C:evil",
    "c:/evil",
    "a\0b",
    "a\nb",
    "a\rb",
    "a\x1bb",
    "a\x7fb",
    "a\ud800b",
    "x" * 256,
    "é" * 128,
    "a/" * 2048 + "a",
    None,
    7,
    b"bytes",
]


@pytest.mark.parametrize("text", UNSAFE)
def test_a_path_that_could_leave_the_target_or_confuse_a_client_is_refused(text: object) -> None:
    with pytest.raises(UnsafePath):
        RelPath.parse(text)


@pytest.mark.parametrize(
    "text", ["a", "a/b.txt", "sp ace/tw#o%20+é.txt", "...", "a..b", ".hidden", "x" * 255, "~", "-x"]
)
def test_odd_but_harmless_paths_are_kept_as_they_are(text: str) -> None:
    assert RelPath.parse(text) == text


@given(st.text(st.sampled_from("ab./\\:~ \0\n"), max_size=12))
@example("a/..")
def test_whatever_passes_stays_below_the_directory_it_is_joined_to(text: str) -> None:
    try:
        path = RelPath.parse(text)
    except UnsafePath:
        return
    parts = path.split("/")

    assert ".." not in parts
    assert all(parts)
    assert not path.startswith("/")


@pytest.mark.parametrize(
    ("directory", "parts", "expected"),
    [
        ("", ["model.pkl"], "model.pkl"),
        ("", ["./model.pkl"], "model.pkl"),
        ("", ["data/"], "data"),
        ("", ["data\\a"], "data/a"),
        ("path/to", ["../../model.pkl"], "model.pkl"),
        ("path/to", ["..", "up.bin"], "path/up.bin"),
        ("path", ["w", "out.bin"], "path/w/out.bin"),
        ("path", ["..", "."], ""),
        ("a", ["", "b"], "a/b"),
    ],
)
def test_paths_that_people_write_are_joined_as_dvc_does(
    directory: str, parts: list[str], expected: str
) -> None:
    assert RelPath.resolve(RelPath(directory), *parts) == expected


@pytest.mark.parametrize("part", ["..", "../x", "a/../../x", "/abs", "\\abs", "C:\\x", "a\0"])
def test_a_written_path_that_leaves_the_repository_is_refused_and_not_clamped(part: str) -> None:
    with pytest.raises(UnsafePath):
        RelPath.resolve(RelPath.ROOT, part)


def test_a_path_knows_its_directories_nearest_first_and_the_root_last() -> None:
    assert list(RelPath("a/b/c").ancestors()) == ["a/b", "a", ""]
    assert list(RelPath.ROOT.ancestors()) == []


def test_within_counts_whole_parts() -> None:
    assert RelPath("a/b").within(RelPath("a"))
    assert RelPath("a").within(RelPath("a"))
    assert RelPath("a").within(RelPath.ROOT)
    assert not RelPath("ab").within(RelPath("a"))


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "a/b"], ["a/b/c", "a/b"], ["x/y", "a", "x"]])
def test_a_file_that_is_wanted_twice_or_is_also_a_directory_is_refused(paths: list[str]) -> None:
    with pytest.raises(UnsafePath):
        reject_conflicts(map(RelPath, paths))


def test_siblings_with_a_common_prefix_do_not_conflict() -> None:
    reject_conflicts(map(RelPath, ["a/b", "a/bc", "a/b.d/e", "ab"]))


@pytest.mark.parametrize(
    ("text", "directory", "name"),
    [
        ("m", "", "m"),
        (":m", "", "m"),
        ("dvc.yaml:m", "", "m"),
        ("path/to:m", "path/to", "m"),
        ("path/to/:m", "path/to", "m"),
        ("./path/to:m", "path/to", "m"),
        ("path//to:m", "path/to", "m"),
        ("path/to/dvc.yaml:m", "path/to", "m"),
        ("a/b", "", "a/b"),
        ("other.yaml:m", "other.yaml", "m"),
    ],
)
def test_artifact_names_are_read_as_dvc_accepts_and_sends_them(
    text: str, directory: str, name: str
) -> None:
    assert ArtifactName.parse(text) == ArtifactName(RelPath(directory), name)


@pytest.mark.parametrize(
    "text",
    ["bad name", "bad.name", "_x", "x-", "m@v1.0.0", "m#prod", "", ":", "/path/to:m", "a/../b:m"]
    + ["path=to:m", "a:b:c", "é", "m\n", "x" * 256, "a b:m", "a/..:m"],
)
def test_a_name_that_no_tag_could_hold_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        ArtifactName.parse(text)


def test_an_artifact_is_spelled_with_a_colon_by_people_and_an_equals_sign_in_tags() -> None:
    name = ArtifactName.parse("path/to/dvc.yaml:m")

    assert str(name) == "path/to:m"
    assert name.in_tags == "path/to=m"


def test_a_version_and_a_stage_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest):
        Selector.parse("m", "v1.0.0", "prod")


@pytest.mark.parametrize("version", ["", "latest", "greatest"])
def test_an_empty_version_and_its_aliases_mean_the_latest(version: str) -> None:
    assert Selector.parse("m", version, "") == Selector(ArtifactName.parse("m"))


@pytest.mark.parametrize("parameter", ["version", "stage"])
def test_a_selector_has_a_sane_length(parameter: str) -> None:
    with pytest.raises(InvalidRequest):
        Selector.parse("m", **{parameter: "x" * 256})


@pytest.mark.parametrize("text", ["../../../secret", "A" * 32, "a" * 31, "a" * 32 + ".dirx", "", 7])
def test_an_md5_that_is_none_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="not an MD5"):
        Digest(text)  # type: ignore[arg-type]


def test_the_md5_of_a_directory_ends_in_dir() -> None:
    assert Digest("a" * 32 + ".dir").is_directory
    assert not Digest("a" * 32).is_directory


@pytest.mark.parametrize("text", ["", "HEAD", "a" * 39, "A" * 40, "a" * 40 + "\n", "-" + "a" * 39])
def test_only_a_full_commit_id_is_a_revision(text: str) -> None:
    with pytest.raises(ValueError, match="commit id"):
        parse_revision(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bkt/pre", "s3://bkt/pre"),
        ("s3://bkt/pre/", "s3://bkt/pre"),
        ("s3://bkt", "s3://bkt/"),
        ("s3://bkt//a//b/", "s3://bkt//a//b"),
        ("s3://bkt/a%20b", "s3://bkt/a%20b"),
        ("azure://cont/path", "azure://cont/path"),
        ("https://User:pw@Host:443/p/q/", "https://host/p/q"),
        ("http://h:8080", "http://h:8080/"),
        ("https://[::1]:8443/x", "https://[::1]:8443/x"),
        ("file:///srv/x", "file:///srv/x"),
        ("ssh://User:pw@Host:22/srv/x/", "ssh://host/srv/x"),
        ("ssh://host:2222//srv", "ssh://host:2222/srv"),
        ("gs://bkt/pre", "gs://bkt/pre"),
    ],
)
def test_storage_urls_are_read_without_credentials(text: str, expected: str) -> None:
    assert str(StorageUrl.parse(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "/srv/x",
        "oss://b/k",
        "s3:///key",
        "ssh:///srv",
        "ssh://-x/srv",
        "ssh://h:x/srv",
        "ssh://[::1]/srv",
        "file://host/x",
        "https://h/x?token=1",
        "https://h/#f",
    ]
    + ["s3://b/../x", "https://h/a/%2e%2e/b", "https://h/a%2fb", "s3://b/a\nb", "https://h\\x/y"]
    + ["https://h:99999/", "https:///x", "file:///srv/../etc"],
)
def test_a_storage_url_that_means_two_places_or_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        StorageUrl.parse(text)


def test_a_location_contains_what_lies_below_it_by_whole_segments() -> None:
    location = StorageUrl.parse("s3://bkt/pre")

    assert location.contains(StorageUrl.parse("s3://bkt/pre"))
    assert location.contains(StorageUrl.parse("s3://bkt/pre/x"))
    assert not location.contains(StorageUrl.parse("s3://bkt/prefix"))
    assert not location.contains(StorageUrl.parse("s3://bkt2/pre"))
    assert not location.contains(StorageUrl.parse("azure://bkt/pre"))
    assert StorageUrl.parse("s3://bkt").contains(StorageUrl.parse("s3://bkt/any"))


@pytest.mark.parametrize(
    "spelling",
    [
        "https://github.com/o/n.git",
        "https://github.com/o/n",
        "https://GitHub.com/o/n/",
        "https://user:secret@github.com:443/o/n.git",
        "ssh://git@github.com/o/n.git",
        "ssh://git@github.com:22/o/n",
        "git@github.com:o/n.git",
        "github.com:o/n",
        "github:o/n",
        " https://github.com/o/n ",
    ],
)
def test_every_spelling_of_a_hosted_repository_is_one(spelling: str) -> None:
    assert canonical_repository(spelling) == "github.com/o/n"


@pytest.mark.parametrize(
    "spelling", [".", "./x", "../x", "/srv/git/x", "file:///srv/x", "~/x", "C:\\x", "", "https://"]
)
def test_what_names_no_hosted_repository_has_no_canonical_form(spelling: str) -> None:
    assert canonical_repository(spelling) is None


def test_nothing_is_remembered_of_what_is_too_long_for_a_url() -> None:
    tracemalloc.start()
    for number in range(50):
        assert canonical_repository(f"https://host/{number}/{'x' * 1_000_000}") is None
    remembered, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert remembered < 1_000_000


def test_a_star_in_a_pattern_stands_for_any_characters() -> None:
    assert matches(["iterative/*"], "iterative/example")
    assert matches(["*"], "group/sub/project")
    assert not matches(["iterative/*"], "other/example")
    assert not matches([], "any")
    assert not matches(["Iterative/*"], "iterative/example")


def test_a_principal_sees_what_its_patterns_match() -> None:
    principal = Principal("1", "ci", frozenset(), ("team/*",))

    assert principal.may_see("team/models")
    assert not principal.may_see("other/models")
