"""Links to objects behind a web server: plain, signed for nginx, or through our own gateway."""

import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from datetime import datetime
from hashlib import md5
from typing import Literal
from urllib.parse import quote, unquote

from registry.domain import Entry, StorageUrl
from registry.storage import Links, Origin, lifespan
from registry.storage.gateway import GatewayLinks
from registry.storage.stores import Store

Signing = Literal["direct", "secure_link", "gateway"]

_OWN_READS = 300
_HEADER = re.compile(r"[\x20-\x7e\xa0-\xff]+")


class HttpSigner:
    """Links below one http(s) location. Takes part in `registry.storage.Signer`.

    - `direct`: the URL itself, for a server that lets everybody read.
    - `secure_link`: for nginx with `secure_link $arg_md5,$arg_expires;` and
      `secure_link_md5 "$secure_link_expires$uri SECRET";`
      (https://nginx.org/en/docs/http/ngx_http_secure_link_module.html).
    - `gateway`: through this service, which keeps the credentials of the server to itself.
    """

    def __init__(
        self,
        base: StorageUrl,
        signing: Signing = "direct",
        *,
        username: str | None = None,
        password: str | None = None,
        headers: Mapping[str, str] | None = None,
        secret: str | None = None,
        gateway: GatewayLinks | None = None,
    ) -> None:
        """`username`, `password` and `headers` are for the service alone, and in no link.

        Raises ValueError when something is missing for the kind of signing, or makes no sense.
        """
        if base.scheme not in ("http", "https"):
            raise ValueError(f"not an http(s) location: {base}")
        if (secret is not None) != (signing == "secure_link") or secret == "":
            raise ValueError("a secret goes with secure_link")
        if (gateway is not None) != (signing == "gateway"):
            raise ValueError("a gateway goes with signing by gateway")
        if signing == "direct" and (username or headers):
            raise ValueError("a plain link carries no credentials: sign by gateway")
        if not all(_HEADER.fullmatch(text) for pair in (headers or {}).items() for text in pair):
            raise ValueError("a header holds a line break, or what is not in Latin-1")
        self._base = base
        self._headers = dict(headers or {})
        if username is not None:
            basic = b64encode(f"{username}:{password or ''}".encode()).decode()
            self._headers["Authorization"] = f"Basic {basic}"
        self._secret = secret
        self._gateway = gateway

    @property
    def store(self) -> Store:
        """The web server. It looks at its clock where links to it are signed."""
        url = f"{self._base.scheme}://{self._base.authority}"
        return Store(url, timed=self._secret is not None)

    def links(self, now: datetime, lifetime: int) -> Links:
        """Links that live `lifetime` seconds. Never raises CredentialsUnavailable.

        A plain link has no end; that it holds for so long is all that is promised.
        """
        _, expires = lifespan(now, lifetime)
        return Links(expires, self._through_gateway(expires) or self._straight(expires))

    def origin(self, path: str, entry: Entry, now: datetime) -> Origin:
        """The object at the server itself, with the credentials of this service."""
        _, expires = lifespan(now, _OWN_READS)
        return Origin(self._straight(expires)(path, entry), self._headers)

    def _through_gateway(self, expires: datetime) -> Callable[[str, Entry], str] | None:
        gateway, base = self._gateway, self._base
        if gateway is None:
            return None
        return lambda path, entry: gateway.link(
            StorageUrl(base.scheme, base.authority, path), entry, expires
        )

    def _straight(self, expires: datetime) -> Callable[[str, Entry], str]:
        server = f"{self._base.scheme}://{self._base.authority}"
        secret = self._secret
        if secret is None:
            return lambda path, entry: server + _url_path(path, entry)
        until = int(expires.timestamp())

        def sign(path: str, entry: Entry) -> str:
            # nginx compares with $uri, which it has decoded.
            sent = _url_path(path, entry)
            text = f"{until}{unquote(sent)} {secret}"
            hashed = md5(text.encode(), usedforsecurity=False).digest()
            token = urlsafe_b64encode(hashed).decode().rstrip("=")
            return f"{server}{sent}?md5={token}&expires={until}"

        return sign


def _url_path(path: str, entry: Entry) -> str:
    """The path of the URL: the part before the key is a URL's path as it stands, the key is not."""
    before = path.removesuffix(entry.key)
    return f"/{before}{quote(entry.key, safe='/~')}"
