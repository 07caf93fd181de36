"""Links into Azure Blob Storage: a service SAS for one blob, read-only, limited in time.

Signed with the account's key, or with a user delegation key, which Azure hands out to an identity
and which can be revoked. The rule, of which the tests compare each byte with Azure's own library:
https://learn.microsoft.com/en-us/rest/api/storageservices/create-service-sas
https://learn.microsoft.com/en-us/rest/api/storageservices/create-user-delegation-sas
"""

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit

from registry.domain import Entry
from registry.errors import CredentialsUnavailable
from registry.storage import LEAST_LIFE, Links, Origin, Renewed, keyed_hmac, lifespan
from registry.storage.stores import Store

SERVICE_VERSION = "2022-11-02"
"""The version of the rule. Every service of today knows it; later ones only add to it."""

_OWN_READS = 300
_SKEW = timedelta(minutes=5)
_DELEGATION_LIFE = timedelta(hours=24)
_ACCOUNT = re.compile(r"[a-z0-9-]{1,63}")
_CONTAINER = re.compile(r"\$?[a-z0-9-]{1,63}")
_PLAIN = re.compile(r"[A-Za-z0-9._~/-]*")
_DEVELOPMENT = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
    "http://127.0.0.1:10000/devstoreaccount1",
)


@dataclass(frozen=True)
class AccountKey:
    """One of the two keys of a storage account. It lives until it is regenerated."""

    value: bytes = field(repr=False)
    expires: None = None

    @classmethod
    def parse(cls, text: str) -> "AccountKey":
        """Reads the base64 that Azure's portal shows. Raises ValueError."""
        return cls(_base64(text))


@dataclass(frozen=True)
class DelegationKey:
    """A user delegation key, with the fields that each link repeats, as Azure wrote them."""

    value: bytes = field(repr=False)
    object_id: str
    tenant_id: str
    start: str
    expiry: str
    service: str
    version: str

    @cached_property
    def expires(self) -> datetime:
        """The end of its life, and of each link it signs. Raises ValueError for another format."""
        return datetime.strptime(self.expiry, _TIME).replace(tzinfo=timezone.utc)

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """Names and values, in the order in which they are signed."""
        return (
            ("skoid", self.object_id),
            ("sktid", self.tenant_id),
            ("skt", self.start),
            ("ske", self.expiry),
            ("sks", self.service),
            ("skv", self.version),
        )


Key = AccountKey | DelegationKey
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def _base64(text: str) -> bytes:
    try:
        value = b64decode(text.strip(), validate=True)
    except (Base64Error, ValueError):
        value = b""
    if not value:
        # Without the cause: it could quote the key.
        raise ValueError("the account key is not valid base64") from None
    return value


class AzureSigner:
    """Signs read links for the blobs of one container. Takes part in `registry.storage.Signer`."""

    def __init__(
        self,
        container: str,
        *,
        account_name: str,
        key: Callable[[datetime], Key],
        endpoint: str | None = None,
        public_endpoint: str | None = None,
    ) -> None:
        """`endpoint` is the URL of the account, by default `https://<account>.blob.core.windows.net`;
        clients reach it at `public_endpoint`. Raises ValueError for what cannot be addressed.
        """
        if not _ACCOUNT.fullmatch(account_name):
            raise ValueError(f"not the name of a storage account: {account_name[:80]!r}")
        if not _CONTAINER.fullmatch(container):
            raise ValueError(f"not the name of a container: {container[:80]!r}")
        self._container = container
        self._account = account_name
        self._key = key
        self._internal = _endpoint(endpoint or _public_cloud(account_name))
        self._public = _endpoint(public_endpoint or self._internal)

    @classmethod
    def from_account_key(
        cls,
        container: str,
        *,
        account_name: str,
        account_key: str,
        endpoint: str | None = None,
        public_endpoint: str | None = None,
    ) -> "AzureSigner":
        """Signs with a key of the account. Raises ValueError if that is not base64."""
        key = AccountKey.parse(account_key)
        return cls(
            container,
            account_name=account_name,
            key=lambda _now: key,
            endpoint=endpoint,
            public_endpoint=public_endpoint,
        )

    @classmethod
    def from_connection_string(
        cls, container: str, connection_string: str, *, public_endpoint: str | None = None
    ) -> "AzureSigner":
        """Signs with the account key of a connection string. Raises ValueError.

        One with a SharedAccessSignature is refused: that signature opens more than one blob, and
        would be handed to everybody who asks for one.
        """
        account, key, endpoint = _parse_connection_string(connection_string)
        return cls.from_account_key(
            container,
            account_name=account,
            account_key=key,
            endpoint=endpoint,
            public_endpoint=public_endpoint,
        )

    @classmethod
    def from_default_credential(
        cls,
        container: str,
        *,
        account_name: str,
        endpoint: str | None = None,
        public_endpoint: str | None = None,
        credential: Any = None,
    ) -> "AzureSigner":
        """Signs with a user delegation key, for the identity that this service runs as.

        `credential` is one of `azure.identity`; without one, DefaultAzureCredential. The identity
        needs the role Storage Blob Delegator, and Storage Blob Data Reader on the container.
        """
        url = _endpoint(endpoint or _public_cloud(account_name))
        return cls(
            container,
            account_name=account_name,
            key=Renewed(_delegation(url, credential), lambda key: key.expires),
            endpoint=url,
            public_endpoint=public_endpoint,
        )

    @property
    def store(self) -> Store:
        """The host of the account, which refuses what does not begin before its own time."""
        parts = urlsplit(self._internal)
        return Store(f"{parts.scheme}://{parts.netloc}", timed=True)

    def links(self, now: datetime, lifetime: int) -> Links:
        """Links that live `lifetime` seconds, or as long as the delegation key.

        Raises CredentialsUnavailable when that lives less than five minutes more.
        """
        return self._links(now, lifetime, self._public)

    def origin(self, path: str, entry: Entry, now: datetime) -> Origin:
        """A link of five minutes, against the endpoint that the service reaches."""
        return Origin(self._links(now, _OWN_READS, self._internal).sign(path, entry))

    def _links(self, now: datetime, lifetime: int, endpoint: str) -> Links:
        key = self._key(now)
        if key.expires and key.expires - now < LEAST_LIFE:
            raise CredentialsUnavailable(
                f"azure://{self._container}", "the delegation key expires within five minutes"
            )
        start, expires = lifespan(now, lifetime, key.expires)
        # Earlier than now: a store whose clock is a little behind would refuse a fresh link.
        terms = _Terms(
            (start - _SKEW).strftime(_TIME), expires.strftime(_TIME), _protocol(endpoint)
        )
        return Links(expires, _signing(endpoint, self._account, self._container, key, terms))


@dataclass(frozen=True)
class _Terms:
    start: str
    expiry: str
    protocol: str


def _signing(
    endpoint: str, account: str, container: str, key: Key, terms: _Terms
) -> Callable[[str, Entry], str]:
    """What is the same for a whole answer is put together here, once.

    What is signed are lines: permission, start, expiry, resource; for an account key an empty
    policy, for a delegation key its fields and three identities that we do not name; then
    address, protocol, version, kind of resource, snapshot or version, encryption scope, and five
    headers of the answer that we leave as they are.
    """
    fields = key.fields if isinstance(key, DelegationKey) else ()
    identity = [value for _, value in fields] + [""] * (3 if fields else 1)
    before = f"r\n{terms.start}\n{terms.expiry}\n/blob/{account}/{container}/"
    between = "\n".join(["", *identity, "", terms.protocol, SERVICE_VERSION, ""])
    after = "\n" * 6
    base = f"{endpoint}/{quote(container)}/"
    query = (
        f"?st={quote(terms.start)}&se={quote(terms.expiry)}&sp=r"
        f"&spr={quote(terms.protocol)}&sv={SERVICE_VERSION}&sr="
    )
    delegation = "".join(f"&{name}={quote(value)}" for name, value in fields)
    hashed = keyed_hmac(key.value)

    def sign(path: str, entry: Entry) -> str:
        # Most keys of DVC need no quoting, and quote() takes its time to find that out.
        quoted = path if _PLAIN.fullmatch(path) else quote(path, safe="/~")
        if entry.version_id is None:
            text = f"{before}{path}{between}b\n{after}"
            link = f"{base}{quoted}{query}b{delegation}&sig="
        else:
            # The version is signed in the place of a snapshot, and named outside of the SAS.
            text = f"{before}{path}{between}bv\n{entry.version_id}{after}"
            version = f"&versionid={quote(entry.version_id, safe='')}"
            link = f"{base}{quoted}{query}bv{delegation}{version}&sig="
        signature = b64encode(hashed(text.encode()).digest()).decode()
        return link + signature.replace("+", "%2B").replace("=", "%3D")

    return sign


def _delegation(endpoint: str, credential: Any) -> Callable[[datetime], DelegationKey]:
    def obtain(now: datetime) -> DelegationKey:
        # Imported when a key is asked for the first time: the libraries weigh tens of megabytes.
        from azure.core.exceptions import AzureError  # noqa: PLC0415
        from azure.identity import DefaultAzureCredential  # noqa: PLC0415
        from azure.storage.blob import BlobServiceClient  # noqa: PLC0415

        try:
            with BlobServiceClient(
                endpoint,
                credential=credential or DefaultAzureCredential(),
                api_version=SERVICE_VERSION,
                connection_timeout=2,
                read_timeout=4,
                retry_total=0,
            ) as client:
                # From earlier than now, so that it covers the start of every link.
                found = client.get_user_delegation_key(now - 2 * _SKEW, now + _DELEGATION_LIFE)
            return _delegation_key(found)
        except (AzureError, ValueError) as error:
            raise CredentialsUnavailable(endpoint, type(error).__name__) from None

    return obtain


def _delegation_key(found: Any) -> DelegationKey:
    """Raises ValueError for a key whose value or expiry cannot be read."""
    key = DelegationKey(
        value=_base64(str(found.value)),
        object_id=str(found.signed_oid),
        tenant_id=str(found.signed_tid),
        start=str(found.signed_start),
        expiry=str(found.signed_expiry),
        service=str(found.signed_service),
        version=str(found.signed_version),
    )
    # Read here, where a fault of the store is expected, and not when the first link is signed.
    _ = key.expires
    return key


def _public_cloud(account: str) -> str:
    return f"https://{account}.blob.core.windows.net"


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("an endpoint is an http(s) URL without user name and password")
    if parts.query or parts.fragment:
        raise ValueError("an endpoint has no query: a SAS opens more than one blob")
    return url.rstrip("/")


def _protocol(endpoint: str) -> str:
    return "https,http" if endpoint.startswith("http://") else "https"


def _parse_connection_string(text: str) -> tuple[str, str, str]:
    """Account, key and endpoint. Raises ValueError, which never quotes a value."""
    pairs = [part.strip().partition("=") for part in text.split(";") if part.strip()]
    values = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if values.get("usedevelopmentstorage", "").lower() == "true":
        return _DEVELOPMENT
    if "sharedaccesssignature" in values:
        raise ValueError("a SharedAccessSignature opens more than one blob: give an AccountKey")
    missing = [name for name in ("AccountName", "AccountKey") if not values.get(name.lower())]
    if missing:
        raise ValueError(f"the connection string has no {' and no '.join(missing)}")
    account = values["accountname"]
    scheme = values.get("defaultendpointsprotocol", "https")
    suffix = values.get("endpointsuffix", "core.windows.net")
    endpoint = values.get("blobendpoint") or f"{scheme}://{account}.blob.{suffix}"
    return account, values["accountkey"], endpoint
