"""Objects in a directory of this machine, handed out through the gateway."""

from datetime import datetime
from pathlib import Path

from registry.domain import Entry, StorageUrl
from registry.storage import Links, Origin, lifespan
from registry.storage.gateway import GatewayLinks


class LocalSigner:
    """Links to the files below one directory. Takes part in `registry.storage.Signer`."""

    def __init__(self, root: Path, gateway: GatewayLinks) -> None:
        """`root` is absolute; no file outside of it is ever read. Raises ValueError."""
        if not root.is_absolute():
            raise ValueError("a file location is an absolute path")
        self._root = root
        self._gateway = gateway

    @property
    def store(self) -> None:
        """None: the objects are on this machine."""
        return None

    def links(self, now: datetime, lifetime: int) -> Links:
        """Gateway links that live `lifetime` seconds. Never raises CredentialsUnavailable."""
        _, expires = lifespan(now, lifetime)
        gateway = self._gateway
        return Links(
            expires, lambda path, entry: gateway.link(StorageUrl("file", "", path), entry, expires)
        )

    def origin(self, path: str, entry: Entry, now: datetime) -> Origin:  # noqa: ARG002 a Signer's
        """The file itself; the Reader refuses it when it lies outside of the root."""
        return Origin(f"file:///{path}", root=self._root)
