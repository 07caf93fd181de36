"""The receipts of the service: made once, remembered, and made again from what was noted of them.

    resolution -> receipt    from the artifact and its manifest at the revision; noted when given
    digest     -> receipt    from memory, or made again; never resolved again, so that a stage that
                             moved meanwhile cannot mix two models in one download

Who may see a receipt is asked on every use: its repository, and those that imports lead through.
"""

import logging
import re
from threading import Lock
from weakref import WeakKeyDictionary

from cachetools import LRUCache

from registry.catalog import GIT_WAIT, Repositories, Resolution
from registry.contents import Contents, weight_of
from registry.domain import Principal
from registry.errors import InvalidRequest, ReceiptNotFound
from registry.given import Given
from registry.issued import Issued
from registry.receipt import Terms
from registry.repository import Repository

logger = logging.getLogger(__name__)

LARGEST_CACHE = 64 << 20
"""Bytes of receipts that a process remembers. They share the lists of files with the manifests."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Ledger:
    """Makes receipts and finds them again. Safe to share between threads."""

    def __init__(self, repositories: Repositories, contents: Contents, issued: Issued) -> None:
        self._repositories = repositories
        self._contents = contents
        self._issued = issued
        self._lock = Lock()
        # The core gives the same resolution again while nothing changed, and then drops it.
        self._recent: WeakKeyDictionary[Resolution, Given] = WeakKeyDictionary()
        self._given: LRUCache[Terms, Given] = LRUCache(
            LARGEST_CACHE, getsizeof=lambda given: 2000 + weight_of(given.manifest)
        )

    def receipt(self, principal: Principal, resolution: Resolution) -> Given:
        """The receipt of what was resolved, which can be recalled from now on. Raises NotFound,
        Unsignable, Unavailable.
        """
        given = self.known(principal, resolution)
        if given is None:
            terms = _terms(resolution)
            given = self._made(principal, resolution.repository, terms)
            self._issued.keep(given.receipt.digest, terms)
            self._recent[resolution] = given
        return given

    def known(self, principal: Principal, resolution: Resolution) -> Given | None:
        """The same, if it is in memory that it was given out: waits for nothing."""
        given = self._recent.get(resolution)
        if given:
            return given if given.is_for(principal) else None
        given = self._remembered(principal, _terms(resolution))
        if given is None or given.receipt.digest not in self._issued:
            return None
        self._recent[resolution] = given
        return given

    def recall(self, principal: Principal, digest: str) -> Given:
        """The receipt that was given out under this digest, by whatever process. Raises
        InvalidRequest, ReceiptNotFound also when the principal may not see it, Unavailable.
        """
        if not _DIGEST.fullmatch(digest):
            raise InvalidRequest("receipt", "the digest of a receipt: 64 hexadecimal digits")
        terms = self._issued.find(digest)
        mirrored = self._repositories.named(principal, terms.repository) if terms else None
        if terms is None or mirrored is None:
            raise ReceiptNotFound(digest)
        given = self._remembered(principal, terms)
        if given is None:
            given = self._made(principal, mirrored.at(terms.revision, GIT_WAIT), terms)
        if given.receipt.digest != digest:
            logger.warning("receipt %s cannot be made again: the outcome differs", digest)
            raise ReceiptNotFound(digest)
        return given

    def _remembered(self, principal: Principal, terms: Terms) -> Given | None:
        with self._lock:
            given = self._given.get(terms)
        return given if given and given.is_for(principal) else None

    def _made(self, principal: Principal, repository: Repository, terms: Terms) -> Given:
        given = self._remembered(principal, terms)
        if given is None:
            given = Given.make(self._contents, principal, repository, terms)
            with self._lock:
                if self._given.getsizeof(given) <= self._given.maxsize:
                    self._given[terms] = given
        return given


def _terms(resolution: Resolution) -> Terms:
    return Terms(
        resolution.repository.name,
        resolution.selector,
        resolution.revision,
        resolution.version,
        resolution.tag,
    )
