"""Whether the stores have what a manifest lists: "the tag says v3, but nobody pushed the data"."""

import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import datetime, timezone

from registry.catalog import Catalog
from registry.domain import Entry, Manifest, RelPath
from registry.errors import InvalidRequest, ObjectsMissing, StorageUnavailable
from registry.storage import Location, Reader

MOST = 2000
"""Objects of one answer that are asked for."""
PATIENCE = 4.0
"""Seconds that the stores have to answer for all of them."""
_ASKING = 16
"""Questions that a process asks at the same time, for all who want to know."""


class Presence:
    """Asks stores for objects. Safe to share between threads; `clock` gives Unix time."""

    def __init__(self, catalog: Catalog, reader: Reader, clock: Callable[[], float]) -> None:
        self._catalog = catalog
        self._reader = reader
        self._clock = clock
        self._executor = ThreadPoolExecutor(_ASKING, thread_name_prefix="presence")

    def require(self, manifest: Manifest) -> int:
        """How many objects the stores were asked for, and have. Raises ObjectsMissing,
        InvalidRequest for more than MOST of them, Unsignable, Unavailable.

        An object is asked for by one byte of it: a link for S3 or Azure is signed for GET alone,
        and one that holds for a download holds for that.
        """
        now = datetime.fromtimestamp(self._clock(), timezone.utc)
        deadline = time.monotonic() + PATIENCE
        asked: dict[tuple[int, str, str | None], tuple[Location, str, list[Entry]]] = {}
        for location, prefix, entries in self._catalog.located(manifest):
            for entry in entries:
                path = prefix + entry.key
                key = (id(location), path, entry.version_id)
                asked.setdefault(key, (location, path, []))[2].append(entry)
                if len(asked) > MOST:
                    raise InvalidRequest("verify", f"more than {MOST} objects: ask for fewer")
        futures = {
            self._executor.submit(self._has, location, path, entries[0], now): (location, entries)
            for location, path, entries in asked.values()
        }
        done, late = wait(futures, max(0.0, deadline - time.monotonic()), FIRST_EXCEPTION)
        for future in late:
            future.cancel()
        missing: set[RelPath] = set()
        for future in done:
            if not future.result():
                missing.update(entry.path for entry in futures[future][1])
        for future in late:
            problem = f"it does not answer for {len(asked)} objects within {PATIENCE:g} s"
            raise StorageUnavailable(str(futures[future][0].url), problem)
        if missing:
            paths = (entry.path for group in manifest.groups for entry in group.entries)
            raise ObjectsMissing(tuple(path for path in paths if path in missing), len(asked))
        return len(asked)

    def _has(self, location: Location, path: str, entry: Entry, now: datetime) -> bool:
        return self._reader.has(location.signer.origin(path, entry, now))

    def close(self) -> None:
        """Asks nothing more."""
        self._executor.shutdown(wait=False, cancel_futures=True)
