"""Receipts and links as text: for people, for curl and for aria2. Pure.

Paths and links come from repositories. `RelPath` holds no line break, no backslash and no way out
of the target; what else a program would take for syntax is escaped or refused here.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime

from registry.domain import Entry
from registry.errors import UnsafePath
from registry.receipt import Receipt

Pairs = Iterable[tuple[Entry, str]]

FEW = 20
"""Files that a person is shown."""


def plain(receipt: Receipt) -> Iterator[str]:
    """A receipt for people, a line for each fact."""
    for name, fact in receipt.facts():
        yield f"{name:<9} {printable(fact)}\n"
    for line in (receipt.description or "").splitlines():
        yield f"    {printable(line)}\n"
    yield "\n"
    for number, file in enumerate(receipt.files):
        if number == FEW:
            yield f"... and {len(receipt.files) - FEW:,} more\n"
            break
        shown = "-" if file.size is None else f"{file.size:,}"
        yield f"{file.md5 or '-':<32} {shown:>15} {printable(file.path)}\n"


def printable(text: str) -> str:
    """A text that can be shown on a terminal: what would move its cursor is escaped."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def curl_config(pairs: Pairs, expires: datetime) -> Iterator[str]:
    """What `curl --config -` reads: every file goes to its path below the working directory.

    Without `globoff` curl takes brackets in links, and `#1` in names, for patterns; without
    `fail-early` it forgets all failures but that of the last file.
    """
    yield f"# These links end at {expires:%Y-%m-%dT%H:%M:%SZ}.\n"
    yield 'create-dirs\nfail\nfail-early\ngloboff\nproto = "=http,https"\n'
    for entry, link in pairs:
        # A dash alone would be the standard output.
        output = f"./{entry.path}" if entry.path.startswith("-") else entry.path
        yield f'\nurl = "{_quoted(link)}"\noutput = "{_quoted(output)}"\n'


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def aria2_input(pairs: Pairs) -> Iterator[str]:
    """What `aria2c --input-file -` reads: it checks every file for which there is an MD5.

    Raises UnsafePath for a name that aria2 would cut, as this is read: see `check_for_aria2`.
    """
    for entry, link in pairs:
        checksum = f"\n checksum=md5={entry.md5}" if entry.md5 else ""
        options = " allow-overwrite=true\n auto-file-renaming=false"
        yield f"{link}\n out=./{entry.path}{checksum}\n{options}\n"


def check_for_aria2(entries: Iterable[Entry]) -> None:
    """Raises UnsafePath for a name that cannot be said in an input file of aria2's."""
    for entry in entries:
        if entry.path != entry.path.strip():
            raise UnsafePath(entry.path, "aria2 drops the space at its end: use curl")
