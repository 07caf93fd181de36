"""Objects in stores that only a library for them can open, such as sshfs or gcsfs, through fsspec.

    ssh://host:port/path     the path on the server         sshfs
    gs://bucket/path         the name of the object         gcsfs

The libraries are no part of the service: whoever grants such a location installs one. They are
loaded when an object is read for the first time.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from threading import Lock
from typing import Any

from registry.domain import StorageUrl
from registry.errors import StorageUnavailable
from registry.storage.opened import Opened

logger = logging.getLogger(__name__)

LIBRARIES = {"ssh": "sshfs", "gs": "gcsfs"}
"""The library behind each scheme."""
_CHUNK = 1 << 18

_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    # sshfs would take any host for the right one, and wait for it for minutes.
    "ssh": {
        "known_hosts": (),  # those of the account
        "config": None,
        "connect_timeout": 4,
        "login_timeout": 4,
        "keepalive_interval": 5,
        "keepalive_count_max": 2,
    },
    "gs": {"use_listings_cache": False},
}


class Filesystem:
    """One place in such a store. Safe to share between threads."""

    def __init__(self, place: StorageUrl, options: Mapping[str, object]) -> None:
        """`options` are for the library, and may hold secrets. Raises ValueError when there is no
        library for the place.
        """
        library = LIBRARIES[place.scheme]
        if not (importlib.util.find_spec("fsspec") and importlib.util.find_spec(library)):
            raise ValueError(f"{place.scheme} needs a library: pip install {library}")
        self._place = place
        self._options = dict(options)
        self._lock = Lock()
        self._opened: Any = None

    def open(self, path: str) -> Opened | None:
        """The object at a path in the place's authority, None when there is none. Raises
        StorageUnavailable.
        """
        name = self._name(path)
        info = self._asked(path, lambda system: system.info(name))
        if info is None or info.get("type") != "file":
            return None
        size = info.get("size")
        if not isinstance(size, int) or size < 0:
            raise StorageUnavailable(self._shown(path), "it does not say how large it is")
        modified = info.get("mtime")
        return Opened(
            size,
            lambda first, length: self._read(path, name, first, length),
            modified.timestamp() if isinstance(modified, datetime) else None,
        )

    def _name(self, path: str) -> str:
        """The path as the library spells it."""
        return f"/{path}" if self._place.scheme == "ssh" else f"{self._place.authority}/{path}"

    def _shown(self, path: str) -> str:
        return str(StorageUrl(self._place.scheme, self._place.authority, path))

    def _read(self, path: str, name: str, first: int, length: int) -> Iterator[bytes]:
        file = self._asked(path, lambda system: system.open(name, "rb"))
        if file is None:
            raise StorageUnavailable(self._shown(path), "it was removed while it was read")
        try:
            while length:
                try:
                    file.seek(first)
                    part = file.read(min(length, _CHUNK))
                except Exception as error:  # every library has its own
                    raise self._failed(path, error) from None
                if not part:
                    raise StorageUnavailable(self._shown(path), "it became shorter")
                first, length = first + len(part), length - len(part)
                yield part
        finally:
            file.close()

    def _asked(self, path: str, question: Callable[[Any], Any]) -> Any:
        """What the library answers, None where it finds nothing. A connection that was lost while
        nobody asked is made again, once.
        """
        with self._lock:
            known = self._opened
        for system in (known, None):
            try:
                return question(system or self._connected())
            except FileNotFoundError:
                return None
            except Exception as error:  # every library has its own
                with self._lock:
                    self._opened = None
                if system is None:
                    raise self._failed(path, error) from None
        raise AssertionError("unreachable")

    def _connected(self) -> Any:
        import fsspec  # noqa: PLC0415 it is no part of the service

        options = {**_DEFAULTS[self._place.scheme], **self._options}
        if self._place.scheme == "ssh":
            host, _, port = self._place.authority.partition(":")
            options = {"host": host, "port": int(port or 22), **options}
        system = fsspec.filesystem(self._place.scheme, skip_instance_cache=True, **options)
        with self._lock:
            self._opened = system
        return system

    def _failed(self, path: str, error: Exception) -> StorageUnavailable:
        # Its text may quote what it was given: keep the kind.
        logger.warning("%s cannot be read: %s", self._shown(path), type(error).__name__)
        return StorageUnavailable(self._shown(path), f"it cannot be read: {type(error).__name__}")
