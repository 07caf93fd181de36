"""How YAML is read that strangers wrote."""

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.dvc.yaml import DEEPEST_NESTING, LARGEST_FILE, MOST_MERGES, MOST_NODES, load
from registry.errors import InvalidMetadata

# What ruamel.yaml 0.19, which DVC uses, makes of each of them.
SCALARS = [
    *[
        (text, text)
        for text in ("yes", "no", "on", "12:30:45", "1:30", "_1", "0o", "1.2.3", ".5e3")
    ],
    *[(text, True) for text in ("true", "True", "TRUE")],
    *[(text, None) for text in ("~", "null", "Null", "NULL", "")],
    *[("010", 10), ("0o10", 8), ("+0o7", 7), ("0x1F", 31), ("-0x1f", -31), ("0b11", 3), ("08", 8)],
    *[("1_000", 1000), ("0_1", 1), ("+1", 1), ("-1", -1), ("1.", 1.0), (".5", 0.5), ("+.5", 0.5)],
    *[("1e3", 1000.0), ("1.5e-3", 0.0015), ("12e03", 12000.0), (".5e+3", 500.0)],
    *[(".inf", math.inf), ("-.inf", -math.inf), ("'1'", "1"), ("!!str 1", "1"), ("=", "=")],
]


@pytest.mark.parametrize(("written", "value"), SCALARS)
def test_scalars_are_what_dvc_takes_them_for(written, value):
    read = load(f"key: {written}\n".encode(), "f")["key"]

    assert read == value
    assert type(read) is type(value)


def test_not_a_number_is_a_number():
    assert math.isnan(load(b".nan", "f"))


def test_dates_stay_text():
    assert load(b"[2020-01-01, 2020-01-01T00:00:00Z]", "f") == [
        "2020-01-01",
        "2020-01-01T00:00:00Z",
    ]


@pytest.mark.parametrize("data", [b"", b"# a comment\n", b"\n", b"---\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_none(data):
    assert load(data, "f") is None


def test_the_last_of_duplicate_keys_counts():
    assert load(b"a: 1\na: 2\n", "f") == {"a": 2}


def test_merge_keys_give_way_to_what_is_written_out():
    data = b"a: &a {k: 1, l: 2}\nb: {<<: *a, k: 3}\nc: {<<: [{k: 4}, *a]}\n"

    assert load(data, "f") == {
        "a": {"k": 1, "l": 2},
        "b": {"k": 3, "l": 2},
        "c": {"k": 4, "l": 2},
    }


@pytest.mark.parametrize(
    "data",
    [
        b"a: b: c",
        b"[1",
        b"? [a]\n: unhashable",
        b"a: *nothing",
        b"&a [*a]",
        b"&a {k: *a}",
        b"&a {<<: *a}",
        b"--- 1\n--- 2\n",
        b"\xff",
        b"\xff\xfea\x00",
        b"\x00",
        b'"\\ud800"',
        b"!!python/object/apply:os.system [id]",
        b"!!set {a}",
        b"!!binary aGk=",
        b"!local x",
        b"!!int x",
        b"!!int [1]",
        b"!!bool 1",
        b"!!map [1]",
        b"<<: 1",
        b"9" * 5000,
    ],
)
def test_what_is_broken_or_hostile_is_invalid_metadata(data):
    with pytest.raises(InvalidMetadata) as caught:
        load(data, "sub/dvc.yaml")

    assert caught.value.file == "sub/dvc.yaml"
    assert "\n" not in caught.value.detail


def test_a_file_over_the_size_limit_is_refused_and_one_at_it_is_read():
    assert load(b"#" * LARGEST_FILE, "f") is None
    with pytest.raises(InvalidMetadata):
        load(b"#" * (LARGEST_FILE + 1), "f")


@given(st.integers(1, 2 * DEEPEST_NESTING), st.sampled_from(["[]", "{}", "- "]))
def test_only_so_many_levels_of_nesting_are_read(depth, kind):
    if kind == "[]":
        data = "[" * depth + "]" * depth
    elif kind == "{}":
        data = "{k: " * depth + "1" + "}" * depth
    else:
        data = "- " * depth + "1"

    if depth > DEEPEST_NESTING:
        with pytest.raises(InvalidMetadata):
            load(data.encode(), "f")
    else:
        load(data.encode(), "f")


def bomb(levels, width, merge):
    """A document whose node count, without aliases, is about width to the power of levels."""
    lines = ["a0: &a0 {k: v}"]
    for level in range(1, levels):
        parts = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{parts}]}}" if merge else f"[{parts}]"))
    return "\n".join(lines).encode()


@given(st.integers(2, 12), st.integers(2, 12), st.booleans())
def test_aliases_count_as_what_they_stand_for(levels, width, merge):
    nodes = weight = 3  # a mapping, its key and its value
    for _ in range(1, levels):
        weight = weight * width + (3 if merge else 1)  # `<<` and the list that it merges
        nodes += weight
    nodes += levels + 1  # the keys, and the mapping at the top

    if nodes > MOST_NODES:
        with pytest.raises(InvalidMetadata, match="aliases"):
            load(bomb(levels, width, merge), "f")
    else:
        assert len(load(bomb(levels, width, merge), "f")) == levels


def test_the_billion_laughs_are_not_built():
    for merge in (True, False):
        with pytest.raises(InvalidMetadata):
            load(bomb(40, 10, merge), "f")


def test_only_so_many_merge_keys_are_followed():
    with pytest.raises(InvalidMetadata, match="merge"):
        load(b"{" + b"<<: {}, " * (MOST_MERGES + 1) + b"}", "f")


@given(st.binary(max_size=200) | st.text("[]{}&*a:<!-?|>'\"\n #,", max_size=60).map(str.encode))
def test_any_bytes_give_a_value_or_invalid_metadata(data):
    with suppress(InvalidMetadata):
        load(data, "f")
