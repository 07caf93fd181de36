"""Where objects lie, and which files a `.dir` object lists."""

import json
from hashlib import md5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain import Digest, RelPath
from registry.dvc.manifest import object_key, parse
from registry.errors import InvalidMetadata, UnsafePath

A = "0" * 31 + "a"
EMPTY = "d41d8cd98f00b204e9800998ecf8427e"


def read(data):
    data = data if isinstance(data, bytes) else json.dumps(data, sort_keys=True).encode()
    digest = Digest(md5(data).hexdigest() + ".dir")
    return parse(data, digest, "s3://bkt/x.dir", RelPath("data"), legacy=False)


def listing(*paths):
    found = read([{"md5": A, "relpath": path} for path in paths])
    return [(entry.path, entry.key, entry.md5) for entry in found]


def entry(path):
    return f"data/{path}", f"files/md5/{A[:2]}/{A[2:]}", A


@pytest.mark.parametrize(
    ("digest", "legacy", "key"),
    [
        (EMPTY, False, "files/md5/d4/1d8cd98f00b204e9800998ecf8427e"),
        (EMPTY, True, "d4/1d8cd98f00b204e9800998ecf8427e"),
        (EMPTY + ".dir", False, "files/md5/d4/1d8cd98f00b204e9800998ecf8427e.dir"),
        (EMPTY + ".dir", True, "d4/1d8cd98f00b204e9800998ecf8427e.dir"),
    ],
)
def test_keys_are_laid_out_as_dvc_does(digest, legacy, key):
    assert object_key(digest, legacy) == key


def test_a_manifest_lists_files_in_its_order():
    names = ["a/one.txt", "dupe1", "empty", "sp ace/tw#o%20+é.txt", ".hidden/..x", "a b.c/-"]

    assert listing(*names) == [entry(name) for name in names]
    assert all(isinstance(path, RelPath) for path, _, _ in listing(*names))


def test_the_keys_of_a_legacy_manifest_are_legacy():
    data = json.dumps([{"md5": A, "relpath": "a"}]).encode()
    (only,) = parse(data, Digest(md5(data).hexdigest() + ".dir"), "f", RelPath.ROOT, legacy=True)

    assert (only.path, only.key) == ("a", f"{A[:2]}/{A[2:]}")


@given(st.lists(st.sampled_from(["a", "a/b", "a/bc", "b/a/b", "ab", "é", "é/a", "a.b/c"])))
def test_the_files_below_a_directory_are_those_whose_path_says_so(paths):
    try:
        found = read([{"md5": A, "relpath": path} for path in paths])
    except UnsafePath:
        return
    for wanted in ("data", "data/a", "data/b/a", "data/é", "data/ab", "data/x"):
        below = found.below(RelPath(wanted))

        assert list(below) == [one for one in found if one.path.within(RelPath(wanted))]
        assert len(below) == len(list(below))
        assert all(one in below for one in below)


def test_an_empty_manifest_lists_nothing():
    assert list(read(b"[]")) == []


def test_bytes_of_another_digest_are_refused():
    for digest in (A + ".dir", md5(b"[]").hexdigest()):
        with pytest.raises(InvalidMetadata, match="named by"):
            parse(b"[]", Digest(digest), "f", RelPath.ROOT, legacy=False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"[1]",
        b"[[]]",
        b"[{}]",
        b"\xff[]",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" + b"9" * 1_000_000 + b"]",
        [{"md5": A}, {"relpath": "x"}],
        [{"md5": A.upper(), "relpath": "x"}],
        [{"md5": A + ".dir", "relpath": "x"}],
        [{"md5": A + "\n", "relpath": "x"}],
        [{"md5": 1, "relpath": "x"}],
        [{"md5": A, "relpath": None}],
        [{"md5": A, "relpath": ["x"]}],
        [{"md5": "../../../../../../../../secret..", "relpath": "x"}],
    ],
)
def test_what_is_broken_or_hostile_is_invalid_metadata(data):
    with pytest.raises(InvalidMetadata) as caught:
        read(data)

    assert caught.value.file == "s3://bkt/x.dir"


HOSTILE = [
    *["", ".", "..", "../x", "a/../../x", "a/..", "/abs", "a//b", "a/", "./a", "a/./b"],
    *["C:/x", "c:x", "a\\b", "..\\x", "\\\\host\\x", "a\x00b", "a\nb", "a\x7f", "x" * 256],
    *["/".join(["x" * 99] * 50), "\ud800"],
]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_path_that_no_client_must_write_to_is_refused(path):
    with pytest.raises(UnsafePath):
        listing("good.txt", path)


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b/c", "a/b")])
def test_paths_that_exclude_each_other_are_refused(paths):
    with pytest.raises(UnsafePath):
        listing(*paths)


@given(st.lists(st.text("ab.- _/\\:é\n", max_size=8), min_size=1, max_size=4).map("/".join))
def test_the_fast_way_lets_nothing_through_that_the_rule_refuses(path):
    try:
        expected = RelPath.parse(path)
    except UnsafePath:
        with pytest.raises(UnsafePath):
            listing(path)
    else:
        assert listing(path) == [entry(expected)]


def test_a_hundred_thousand_files_are_read():
    assert len(listing(*(f"img/{i % 100}/{i}.jpg" for i in range(100_000)))) == 100_000


@pytest.mark.parametrize("part", ["[]", "{}", "0", "[[[[]]]]"])
def test_a_text_of_brackets_is_refused_for_what_it_would_take_and_not_after(part):
    data = f"[{','.join([part] * 300_000)}]".encode()

    with pytest.raises(InvalidMetadata):
        read(data)


PATHS = st.lists(
    st.text("ab.- /\\\"é:!'{}[],\t", min_size=1, max_size=6)
    | st.sampled_from(['"}, {"md5": "', '", "relpath": "', "a/b", "a", "a.b", ".git/x", "x" * 300]),
    max_size=6,
)


@given(PATHS, st.booleans(), st.sampled_from([None, A.upper(), A + "x", 'x", "relpath": "y']))
def test_the_spelling_of_json_changes_nothing(paths, ordered, odd):
    """What DVC writes is read without a JSON parser, where nothing in it is out of the ordinary."""
    listed = [{"md5": A, "relpath": path} for path in (sorted(paths) if ordered else paths)]
    if odd and listed:
        listed[-1]["md5"] = odd

    def outcome(data):
        try:
            return [(entry.path, entry.key) for entry in read(data)]
        except (InvalidMetadata, UnsafePath) as error:
            return type(error)

    dvc = json.dumps(listed).encode()
    assert outcome(dvc) == outcome(json.dumps(listed, indent=1).encode())
    assert outcome(dvc) == outcome(json.dumps(listed, ensure_ascii=False).encode())


@pytest.mark.parametrize("piece", [1, 60, 200])
def test_a_long_list_is_read_in_pieces(piece, monkeypatch):
    monkeypatch.setattr("registry.dvc.manifest._PIECE", piece)
    names = [f"dir {n % 7}/é{n}" if n % 5 == 0 else f"dir {n % 7}/{n}.png" for n in range(50)]

    assert listing(*names) == [entry(name) for name in names]
    with pytest.raises(UnsafePath):
        listing(*names, "dir 1")
    with pytest.raises(UnsafePath):
        listing(*sorted([*names, names[7]]))


@pytest.mark.parametrize(
    "data",
    [
        b'[{"md5": "%b\t%b"}]' % (A.encode(), b"x"),
        b'[{"md5": "%b", "relpath": "x\n%b\ty"}]' % (A.encode(), A.encode()),
        b'[{"md5": "%b", "relpath": "x"}, {"md5": "%b"}]' % (A.encode(), A.encode()),
        b'[{"md5": "%b", "relpath": "x", "relpath": "y"}, {"md5": ""}]' % A.encode(),
        b'[{"md5": "%b"}]' % A.encode(),
        b'[{"md5": "", "relpath": "x", "z": [{"md5": "%b", "relpath": "y"}]}]' % A.encode(),
        b'[{"md5": "%b", "relpath": "x"}, ]' % A.encode(),
    ],
)
def test_what_only_looks_like_a_list_of_dvc_is_none(data):
    with pytest.raises(InvalidMetadata):
        read(data)
