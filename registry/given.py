"""A receipt beside the manifest that it was made from: what it lists can be had."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from itertools import islice

from registry.contents import Contents
from registry.domain import Entry, Group, Manifest, Principal, RelPath
from registry.dvc.manifest import Listing
from registry.errors import InvalidMetadata, PathNotFound
from registry.receipt import LARGEST_NUMBER, Receipt, ReceiptFile, Terms, details
from registry.repository import Repository


@dataclass(frozen=True)
class Given:
    """A receipt, and the manifest that its links are made from."""

    receipt: Receipt
    manifest: Manifest

    @classmethod
    def make(
        cls, contents: Contents, principal: Principal, repository: Repository, terms: Terms
    ) -> "Given":
        """Makes the receipt from what the repository holds. Raises NotFound, Unsignable,
        Unavailable.
        """
        name, revision = terms.selector.artifact, terms.revision
        manifest = contents.manifest(principal, repository, revision, name)
        artifact = contents.artifact(principal, repository, revision, name)
        try:
            meta = details(artifact.type, artifact.description, artifact.labels, artifact.meta)
        except ValueError as error:
            file = name.directory / RelPath("dvc.yaml")
            raise InvalidMetadata(file, f"artifact {name.name!r}: {error}") from None
        path = artifact.url or artifact.path
        assert path is not None
        receipt = Receipt(
            repository=terms.repository,
            selector=terms.selector,
            revision=revision,
            path=path,
            files=_Files(manifest),
            version=terms.version,
            tag=terms.tag,
            type=artifact.type,
            labels=artifact.labels,
            description=artifact.description,
            meta=meta,
            total_size=_total(manifest),
        )
        return cls(receipt, manifest)

    @cached_property
    def repositories(self) -> frozenset[str]:
        """The repositories that it depends on."""
        return frozenset(self.manifest.repositories)

    def is_for(self, principal: Principal) -> bool:
        """Whether the principal may see all that it depends on."""
        return all(principal.may_see(name) for name in self.repositories)

    def page(self, pattern: str, after: int, limit: int | None) -> tuple[Manifest, int | None]:
        """The files whose path matches `pattern` (`*` stands for any characters), without the first
        `after` of the receipt, and `limit` of them at most; and the `after` for those that are
        left, None when none is. Raises PathNotFound when there are none at all.
        """
        if not pattern and not after and (limit is None or len(self.manifest) <= limit):
            return self.manifest, None
        # Not by fnmatchcase, which remembers 32,768 patterns: clients choose them.
        fits = re.compile(translate(pattern or "*")).match
        matching = (
            (number, group, entry)
            for number, (group, entry) in enumerate(_pairs(self.manifest), 1)
            if number > after and fits(entry.path)
        )
        found = list(islice(matching, limit))
        if not found:
            after_those = f" after the first {after}" if after else ""
            problem = f"no file of the receipt matches{after_those}"
            raise PathNotFound(pattern or "*", self.receipt.revision, problem)
        chosen: dict[int, tuple[Group, list[Entry]]] = {}
        for _, group, entry in found:
            chosen.setdefault(id(group), (group, []))[1].append(entry)
        groups = tuple(
            Group(group.repository, group.storage, tuple(entries), group.via)
            for group, entries in chosen.values()
        )
        more = next(matching, None) is not None
        return Manifest(groups), found[-1][0] if more else None


class _Files(Collection[ReceiptFile]):
    """The files of a receipt, made from its manifest as they are asked for."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def __len__(self) -> int:
        return len(self._manifest)

    def __iter__(self) -> Iterator[ReceiptFile]:
        for group in self._manifest.groups:
            for entry in group.entries:
                yield ReceiptFile(entry.path, entry.md5, _representable(entry.size))

    def __contains__(self, file: object) -> bool:
        return any(file == one for one in self)


def _pairs(manifest: Manifest) -> Iterator[tuple[Group, Entry]]:
    for group in manifest.groups:
        for entry in group.entries:
            yield group, entry


def _total(manifest: Manifest) -> int | None:
    """The bytes of all files, as far as DVC records them for each or for their directory."""
    total = 0
    for group in manifest.groups:
        size = group.size
        if not isinstance(group.entries, Listing):  # which knows no sizes
            sizes = [entry.size for entry in group.entries]
            known = [size for size in sizes if size is not None]
            size = sum(known) if len(known) == len(sizes) else size
        if size is None:
            return None
        total += size
    return _representable(total)


def _representable(size: int | None) -> int | None:
    """A size that every reader of JSON can hold; nobody has eight million gigabytes."""
    return size if size is None or size <= LARGEST_NUMBER else None
