"""Receipts: the same state gives the same bytes, and nothing that was changed passes for one."""

import json
import struct
import subprocess
from hashlib import md5, sha256
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain import ArtifactName, RelPath, Revision, Selector, StorageUrl
from registry.errors import InvalidReceipt, NoChecksum, RegistryError, UnsafePath
from registry.receipt import LARGEST_DETAILS, Receipt, ReceiptFile, canonical, details

REVISION = Revision("0123456789abcdef0123" * 2)
A, B = md5(b"a").hexdigest(), md5(b"b").hexdigest()
M = ArtifactName.parse("models:m")


def receipt(**more):
    fields = {
        "repository": "team/models",
        "selector": Selector(M, stage="prod"),
        "revision": REVISION,
        "path": RelPath.parse("models/data"),
        "files": (
            ReceiptFile(RelPath.parse("models/data/a b.bin"), A, 1),
            ReceiptFile(RelPath.parse('models/data/"é€😀'), B),
        ),
        "version": "v1.0.0",
        "tag": "models=m#prod#2",
        "type": "model",
        "labels": ("nlp", "é"),
        "description": 'Say "no"\n',
        "meta": {"z": 1, "a": [None, True, 0.1]},
        "total_size": 2,
    }
    return Receipt(**(fields | more))


def changed(**fields):
    """A receipt whose JSON was changed by somebody who can compute a digest."""
    value = {**receipt().as_json(), **fields}
    del value["digest"]
    return {**value, "digest": sha256(canonical(value)).hexdigest()}


# The samples of RFC 8785: appendix B for numbers, section 3.2.3 for the order of keys, and
# section 3.2.2 for all of them.


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("ffefffffffffffff", "-1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555554", "333333333.33333325"),
        ("41b3de4355555555", "333333333.3333333"),
        ("41b3de4355555556", "333333333.3333334"),
        ("41b3de4355555557", "333333333.33333343"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_numbers_are_written_as_the_rfc_does(bits, text):
    (number,) = struct.unpack(">d", bytes.fromhex(bits))

    assert canonical(number).decode() == text


def test_the_sample_of_the_rfc_is_written_as_the_rfc_does():
    sample = r"""{
      "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
      "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
      "literals": [null, true, false]
    }"""

    assert canonical(json.loads(sample)).decode() == (
        '{"literals":[null,true,false],'
        '"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def test_keys_are_ordered_by_their_utf_16_units():
    names = {
        "\u20ac": "Euro Sign",
        "\r": "Carriage Return",
        "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One",
        "\U0001f600": "Emoji: Grinning Face",
        "\u0080": "Control",
        "\u00f6": "Latin Small Letter O With Diaeresis",
    }

    assert list(json.loads(canonical(names)).values()) == [
        "Carriage Return",
        "One",
        "Control",
        "Latin Small Letter O With Diaeresis",
        "Euro Sign",
        "Emoji: Grinning Face",
        "Hebrew Letter Dalet With Dagesh",
    ]


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\\/"), min_size=1),
            st.integers(0, 2**53 - 1),
        )
    )
)
def test_the_parts_of_a_receipt_are_what_the_rfc_makes_of_the_whole(written):
    files = []
    for text, size in written:
        try:
            files.append(ReceiptFile(RelPath.parse(text), A if size % 2 else None, size))
        except UnsafePath:
            continue
    found = receipt(files=tuple(files))

    assert bytes(found) == canonical(found.as_json())


def test_a_receipt_is_its_canonical_bytes_and_their_digest():
    found = receipt()
    value = json.loads(bytes(found))

    assert value == {
        "description": 'Say "no"\n',
        "digest": "777a6b9082d291cff0c2f806e10292453da32f34fb70603f79b1116e086fadf3",
        "files": [
            {"md5": A, "path": "models/data/a b.bin", "size": 1},
            {"md5": B, "path": 'models/data/"é€😀', "size": None},
        ],
        "labels": ["nlp", "é"],
        "meta": {"a": [None, True, 0.1], "z": 1},
        "name": "models:m",
        "path": "models/data",
        "repository": "team/models",
        "revision": REVISION,
        "selector": {"stage": "prod"},
        "tag": "models=m#prod#2",
        "total_size": 2,
        "type": "model",
        "version": "v1.0.0",
    }
    del value["digest"]
    assert found.digest == sha256(canonical(value)).hexdigest()


@pytest.mark.parametrize(
    ("selector", "asked"),
    [
        (Selector(M), {"version": "latest"}),
        (Selector(M, version="v1.0.0"), {"version": "v1.0.0"}),
        (Selector(M, stage="prod"), {"stage": "prod"}),
        (Selector(M, revision=REVISION), {"rev": REVISION}),
    ],
)
def test_a_receipt_says_how_it_was_asked_for_and_can_be_asked_again(selector, asked):
    found = receipt(selector=selector)

    assert json.loads(bytes(found))["selector"] == asked
    assert Selector.parse(found.name, **asked) == selector


def test_two_questions_have_two_receipts_also_with_one_answer():
    digests = {
        receipt(selector=selector).digest
        for selector in (Selector(M), Selector(M, version="v1.0.0"), Selector(M, stage="prod"))
    }

    assert len(digests) == 3


def test_receipts_are_equal_when_their_digests_are():
    assert receipt() == receipt(files=list(receipt().files))
    assert receipt() != receipt(total_size=3)
    assert len({receipt(), receipt(), receipt(meta=None)}) == 2


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"path": StorageUrl.parse("s3://bucket/models/m.bin"), "files": ()},
        {"path": RelPath.ROOT, "version": None, "tag": None, "type": None, "meta": None},
        {"description": None, "labels": (), "total_size": None},
        {"selector": Selector(M)},
        {"selector": Selector(M, revision=REVISION)},
    ],
)
def test_a_receipt_that_was_kept_reads_as_it_was_written(more):
    found = receipt(**more)
    pretty = json.dumps(found.as_json(), indent=2)

    assert Receipt.parse(bytes(found)) == Receipt.parse(pretty) == found
    assert bytes(Receipt.parse(pretty)) == bytes(found)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"a":1,"a":1}',
        b'{"a":NaN}',
        bytes(receipt())[:-1],
        bytes(receipt()).replace(A.encode(), B.encode()),
        bytes(receipt()).replace(b'"stage":"prod"', b'"stage":"qa"'),
        bytes(receipt()).replace(b'"size":1', b'"size":1,"size":1'),
        bytes(receipt()).replace(b'"type":"model",', b""),
        bytes(receipt()).replace(b'"type":"model",', b'"type":"model","url":"x",'),
        bytes(receipt()).replace(receipt().digest.encode(), b"0" * 64),
    ],
)
def test_what_was_changed_is_no_receipt(data):
    with pytest.raises(InvalidReceipt):
        Receipt.parse(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"repository": ""},
        {"repository": "a\nb"},
        {"repository": None},
        {"name": "../m"},
        {"name": 7},
        {"selector": {}},
        {"selector": {"stage": "a", "version": "v1.0.0"}},
        {"selector": {"branch": "main"}},
        {"selector": {"stage": None}},
        {"selector": {"rev": "main"}},
        {"selector": {"version": "greatest"}},
        {"selector": "stage=prod"},
        {"revision": "HEAD"},
        {"revision": REVISION.upper()},
        {"path": "ftp://host/x"},
        {"path": "s3://bucket/../x"},
        {"files": {}},
        {"files": [None]},
        {"files": [{"path": "a", "md5": A}]},
        {"files": [{"path": "a", "md5": A, "size": 1, "url": "x"}]},
        {"files": [{"path": "a", "md5": f"{A}.dir", "size": 1}]},
        {"files": [{"path": "a", "md5": A.upper(), "size": 1}]},
        {"files": [{"path": "a", "md5": A, "size": -1}]},
        {"files": [{"path": "a", "md5": A, "size": 1.5}]},
        {"files": [{"path": "a", "md5": A, "size": True}]},
        {"total_size": "1"},
        {"version": ""},
        {"tag": "\x1b[31m"},
        {"labels": "abc"},
        {"labels": [1]},
        {"type": 7},
        {"meta": "x" * LARGEST_DETAILS},
        {"meta": json.loads("[" * 70 + "]" * 70)},
    ],
)
def test_what_makes_no_sense_is_no_receipt_whoever_wrote_it(fields):
    with pytest.raises(InvalidReceipt):
        Receipt.of_json(changed(**fields))


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../b", "a\\b", "C:x", ".git/config", ""]
)
def test_no_file_of_a_receipt_can_leave_the_target(path):
    with pytest.raises(UnsafePath):
        Receipt.of_json(changed(files=[{"path": path, "md5": A, "size": 1}]))


def test_two_files_of_a_receipt_cannot_have_one_path():
    files = [{"path": path, "md5": A, "size": 1} for path in ("a", "a/b")]

    with pytest.raises(UnsafePath):
        Receipt.of_json(changed(files=files))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda it: st.lists(it) | st.dictionaries(st.text(), it),
    )
)
def test_whatever_is_given_as_a_receipt_is_refused_in_a_known_way(value):
    for fields in ({"meta": value}, {"files": [value]}, {"selector": value}, {"labels": value}):
        with pytest.raises(RegistryError):
            Receipt.of_json({**receipt().as_json(), **fields})


@pytest.mark.parametrize(
    ("meta", "plain"),
    [
        (
            {2: "a", None: "b", True: "c", 0.5: "d"},
            {"2": "a", "null": "b", "true": "c", "0.5": "d"},
        ),
        ([nan, inf, -inf], [".nan", ".inf", "-.inf"]),
        ([2**53 - 1, -(2**53) + 1], [2**53 - 1, -(2**53) + 1]),
        ([2**53], ["0x20000000000000"]),
        ("text", "text"),
        (None, None),
    ],
)
def test_what_yaml_knows_and_json_does_not_becomes_text(meta, plain):
    assert details("model", None, (), meta) == plain


def test_details_that_grow_without_end_are_refused():
    bomb: object = "x" * 1000
    for _ in range(8):
        bomb = [bomb] * 10

    with pytest.raises(ValueError, match="over"):
        details(None, None, (), bomb)
    with pytest.raises(ValueError, match="over"):
        details(None, None, ("x" * 1000,) * 1000, None)


def test_md5sum_itself_reads_the_checksums(tmp_path):
    names = ["plain.bin", "-dash", " sp ace ", "*star", 'quo"te$(x)`', "dir/é", "#hash"]
    files = []
    for name in names:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(name.encode())
        files.append(ReceiptFile(RelPath.parse(name), md5(name.encode()).hexdigest()))
    text = "".join(receipt(files=tuple(files)).md5sums())

    def check():
        command = ["md5sum", "--check", "--strict", "--quiet"]
        return subprocess.run(command, input=text.encode(), cwd=tmp_path, check=False).returncode

    assert check() == 0
    (tmp_path / "-dash").write_bytes(b"other")
    assert check() == 1


def test_there_is_no_list_of_checksums_where_one_is_missing():
    with pytest.raises(NoChecksum) as caught:
        receipt(files=(ReceiptFile(RelPath("a"), A), ReceiptFile(RelPath("b")))).md5sums()

    assert caught.value.path == "b"


def test_a_directory_is_verified_file_by_file():
    files = tuple(
        ReceiptFile(RelPath(name), digest)
        for name, digest in (("same", A), ("other", A), ("gone", A), ("unknown", None))
    )
    there = {"same": A, "other": B, "unknown": B}

    assert list(receipt(files=files).verify(there.get)) == [
        ("other", "changed"),
        ("gone", "missing"),
        ("unknown", "unchecked"),
    ]
