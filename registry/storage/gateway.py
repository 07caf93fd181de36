"""Links to this service itself, for objects that no store can sign a link for.

    {public_url}/objects/<payload>.<signature>

The payload names the object, its digest, its file name and when the link expires: nothing that is
secret. It is signed with itsdangerous under a salt of its own, so that no other token of this
service can pass for a link.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from itsdangerous import BadData, URLSafeSerializer

from registry.domain import Entry, RelPath, StorageUrl
from registry.errors import InvalidLink

ROUTE = "/objects/"
"""Where the web part answers the links; the token follows."""

_SALT = "registry.gateway-link"
# itsdangerous decodes leniently. The one way it writes a token: 256 bits in 43 characters leave two
# bits of the last one, which are zero.
_TOKEN = re.compile(r"\.?[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")


@dataclass(frozen=True)
class GatewayLink:
    """What a link that holds stands for: an object, to be served under the name of its entry."""

    url: StorageUrl
    entry: Entry
    expires: datetime


class GatewayLinks:
    """Makes links and opens them; any process with the same keys opens those of the others.

    `base` is what every link begins with.
    """

    def __init__(self, keys: Sequence[str], public_url: str) -> None:
        """`keys` oldest first: the last one signs, all of them open."""
        if not keys or not all(keys):
            raise ValueError("gateway links need a key to sign them with")
        self.base = public_url.rstrip("/") + ROUTE
        self._serializer = URLSafeSerializer(
            list(keys),
            salt=_SALT,
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    def link(self, url: StorageUrl, entry: Entry, expires: datetime) -> str:
        """A link to the object at `url`, whose path ends with `entry.key`."""
        payload = [
            url.scheme,
            url.authority,
            url.path,
            entry.key,
            entry.path.name,
            entry.md5,
            int(expires.timestamp()),
        ]
        return self.base + self._serializer.dumps(payload)

    def open(self, token: str, now: datetime) -> GatewayLink:
        """What the token stands for. Raises InvalidLink when it was changed, or is over."""
        if not _TOKEN.fullmatch(token):
            raise InvalidLink("it is not spelled as links are")
        try:
            scheme, authority, path, key, name, md5, expires = self._serializer.loads(token)
        except (BadData, ValueError, TypeError) as error:
            raise InvalidLink(f"the token does not hold: {type(error).__name__}") from None
        if now.timestamp() >= expires:
            raise InvalidLink("the link has expired")
        return GatewayLink(
            StorageUrl(scheme, authority, path),
            Entry(RelPath(name), key, md5),
            datetime.fromtimestamp(expires, timezone.utc),
        )
