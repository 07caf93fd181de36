"""What people wrote into a tag: who, and why. All of it is theirs to choose."""

import re
from dataclasses import dataclass

LONGEST_NAME = 300
LONGEST_MESSAGE = 10_000
"""Characters; what is longer is cut."""

_TAGGER = re.compile(rb"(.*?) ?(?:-?[0-9]+ [+-][0-9]{4})?")
_SIGNATURE = re.compile(r"^-----BEGIN (?:PGP|SSH) SIGNATURE-----$.*", re.DOTALL | re.MULTILINE)
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Inscription:
    """`target` is the id of the object that is tagged, `who` the tagger as `Name <mail>`, None
    where there is none.
    """

    target: str
    who: str | None
    message: str

    @classmethod
    def parse(cls, data: bytes) -> "Inscription":
        """Reads a tag object. Never fails: what is missing is empty, what is too long is cut."""
        head, _, body = data.partition(b"\n\n")
        fields = dict(line.partition(b" ")[::2] for line in reversed(head.split(b"\n")))
        found = _TAGGER.fullmatch(fields.get(b"tagger", b""))
        who = _shown(found[1] if found else b"", LONGEST_NAME).replace("\n", " ").strip()
        message = _SIGNATURE.sub("", _shown(body, LONGEST_MESSAGE)).strip()
        return cls(fields.get(b"object", b"").decode(errors="replace"), who or None, message)


def _shown(data: bytes, longest: int) -> str:
    text = data[: 4 * longest].decode(errors="replace")
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)[:longest]
