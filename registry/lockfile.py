"""`registry.lock`: receipts to be downloaded again, byte for byte, and where they came from.

    {"artifacts": [{"receipt": {...}, "repo": "team/models"}, ...], "version": 1}

To be committed beside the program that needs the models. A stage that moves changes nothing until
`registry lock` is run again.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from registry.errors import InvalidReceipt, TargetUnusable
from registry.receipt import Receipt

LARGEST = 512 << 20
"""Bytes."""
_VERSION = 1


@dataclass(frozen=True)
class Locked:
    """A receipt, and the repository as it was named: a path, a URL, or a service's name for it."""

    repo: str
    receipt: Receipt

    @property
    def question(self) -> tuple[str, str, str, str]:
        """What was asked: of two answers to one question, the later counts."""
        ((parameter, value),) = self.receipt.selector.asked.items()
        return self.repo, self.receipt.name, parameter, value


def read(file: Path) -> list[Locked]:
    """What a lock file holds. Raises InvalidReceipt, and UnsafePath as Receipt.parse does."""
    try:
        if file.stat().st_size > LARGEST:
            raise InvalidReceipt(f"file {file} is larger than {LARGEST >> 20} MiB")
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise InvalidReceipt(f"file {file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InvalidReceipt(f"file {file} is not JSON") from None
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise InvalidReceipt(f"file {file} is no lock file of version {_VERSION}")
    artifacts = document.get("artifacts")
    if not isinstance(artifacts, list):
        raise InvalidReceipt(f"file {file} lists no artifacts")
    found = []
    for item in artifacts:
        repo = item.get("repo") if isinstance(item, dict) else None
        if not isinstance(repo, str) or not repo:
            raise InvalidReceipt(f"file {file} lists an artifact without its repo")
        found.append(Locked(repo, Receipt.of_json(item.get("receipt"))))
    return found


def write(file: Path, locked: Iterable[Locked]) -> None:
    """Replaces a lock file as a whole; the same artifacts give the same bytes.

    Raises TargetUnusable.
    """
    latest = {one.question: one for one in locked}
    artifacts = [
        {"receipt": one.receipt.as_json(), "repo": one.repo} for _, one in sorted(latest.items())
    ]
    text = json.dumps(
        {"artifacts": artifacts, "version": _VERSION}, indent=1, sort_keys=True, ensure_ascii=False
    )
    try:
        with NamedTemporaryFile(
            "w", dir=file.parent, prefix=f".{file.name}.", delete=False, encoding="utf-8"
        ) as temporary:
            try:
                temporary.write(text + "\n")
                temporary.flush()
                os.fchmod(temporary.fileno(), 0o644)
                os.replace(temporary.name, file)
            except BaseException:  # Ctrl-C, too
                os.unlink(temporary.name)
                raise
    except OSError as error:
        raise TargetUnusable(str(file), error.strerror or "I/O error") from None
