"""The refs of an origin as text, the way `git ls-remote` prints them: a line for each.

    <object id> TAB <full name> [TAB <commit> SPACE <time>]

The last part is ours. It follows a version tag that is frozen, and that the origin moved since: the
commit and the time of the tag that was first seen, which is what the version goes on meaning.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from registry import gto
from registry.domain import Revision

_TAG = re.compile(
    r"^([0-9a-f]{40,64})\trefs/tags/([!-~]*[@#][!-~]*)(?:\t([0-9a-f]{40,64}) ([0-9]+))?$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class _Unparsed:
    """The lines of some tags, which are taken apart when they are looked at: most never are."""

    lines: Sequence[str]

    def __iter__(self) -> Iterator[gto.Tag | gto.Ref]:
        return iter(_parsed("\n".join(self.lines)))


def tags(text: bytes) -> list[gto.Tag | gto.Ref]:
    """The tags that may be one of GTO's. Of most, nothing but the object is known."""
    return _parsed(text.decode(errors="replace"))


def grouped(text: bytes) -> dict[str, Iterable[gto.Tag | gto.Ref]]:
    """The same by the full name of their artifact."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in text.decode(errors="replace").split("\n"):
        tag = line.partition("\trefs/tags/")[2]
        artifact = gto.fullname_of(tag)
        if len(artifact) < len(tag):
            found[artifact].append(line)
    return {artifact: _Unparsed(lines) for artifact, lines in found.items()}


def _parsed(text: str) -> list[gto.Tag | gto.Ref]:
    return [
        gto.Tag(name, Revision(commit), int(time), annotated=True) if commit else gto.Ref(name, oid)
        for oid, name, commit, time in _TAG.findall(text)
    ]


def lines(text: bytes) -> list[bytes]:
    """One for each ref. `splitlines` knows more ends, which names of refs may hold."""
    return text.removesuffix(b"\n").split(b"\n") if text else []


def text(lines: Iterable[bytes]) -> bytes:
    """What `lines` takes apart."""
    return b"".join(b"%b\n" % line for line in lines)


def name(line: bytes) -> bytes:
    """The full name of the ref."""
    return line.split(b"\t", 2)[1] if b"\t" in line else b""


def listed(line: bytes) -> bytes:
    """The line as the origin listed it, without what is ours."""
    return b"\t".join(line.split(b"\t", 2)[:2])


def frozen(line: bytes, first: gto.Tag) -> bytes:
    """The line of a version that means what it did at first."""
    return b"%b\t%b %d" % (listed(line), str(first.revision).encode(), first.time)


def difference(old: bytes, new: bytes) -> tuple[list[bytes], list[bytes]]:
    """The lines that only the old text has, and those that only the new one has.

    What both begin and end with is compared as a whole: line by line, a hundred thousand refs take
    a tenth of a second, and mostly one of them is new.
    """
    shorter = min(len(old), len(new))
    head = _longest(shorter, lambda a, b: old[a:b] == new[a:b])
    head = old.rfind(b"\n", 0, head) + 1
    o, n = len(old), len(new)
    tail = _longest(shorter - head, lambda a, b: old[o - b : o - a] == new[n - b : n - a])
    tail = o - (old.find(b"\n", o - tail) + 1 or o)
    before, after = lines(old[head : o - tail]), lines(new[head : n - tail])
    known, there = set(before), set(after)
    return (
        [line for line in before if line not in there],
        [line for line in after if line not in known],
    )


def _longest(limit: int, same: Callable[[int, int], bool]) -> int:
    """How far both agree, when `same` says whether they do from one place to another."""
    known = 0
    while known < limit:
        middle = (known + limit + 1) // 2
        if same(known, middle):
            known = middle
        else:
            limit = middle - 1
    return known
