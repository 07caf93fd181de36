"""Links into S3 and whatever speaks its protocol: AWS Signature Version 4 in the query.

Written out rather than left to botocore, which takes some fifty times as long for each link. The
tests hold it to botocore's outcome, byte for byte. The rule:
https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html

    method \\n path \\n query \\n host:... \\n \\n host \\n UNSIGNED-PAYLOAD     canonical request
    AWS4-HMAC-SHA256 \\n date \\n scope \\n sha256(canonical request)       string to sign
    HMAC chain over secret, day, region, "s3", "aws4_request"           signing key, per day
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from hmac import digest
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from registry.domain import Entry, RelPath
from registry.errors import CredentialsUnavailable
from registry.storage import LEAST_LIFE, Links, Origin, Renewed, keyed_hmac, lifespan
from registry.storage.stores import Store

AddressingStyle = Literal["auto", "path", "virtual"]

_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
_REGION = re.compile(r"[a-z0-9-]{1,63}")
_HOST_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_IPV4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_PLAIN = re.compile(r"[A-Za-z0-9._~/-]*")
_LONGEST = 604_800
_OWN_READS = 300
_NO_HEADERS: Mapping[str, str] = {}
_ANY = Entry(RelPath.ROOT, "")

# Every region lies below amazonaws.com, except in these partitions.
_DNS_SUFFIXES = {
    "cn-": "amazonaws.com.cn",
    "eusc-": "amazonaws.eu",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
    "us-isof-": "csp.hci.ic.gov",
    "eu-isoe-": "cloud.adc-e.uk",
}


@dataclass(frozen=True)
class Credentials:
    """What signs a request. `expires` (aware) is None for keys that live until they are revoked."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    expires: datetime | None = None


def static_credentials(
    access_key_id: str, secret_access_key: str, session_token: str | None = None
) -> Callable[[datetime], Credentials]:
    """The keys of the configuration."""
    credentials = Credentials(access_key_id, secret_access_key, session_token)
    return lambda _now: credentials


def chain_credentials(profile: str | None = None) -> Callable[[datetime], Credentials]:
    """What boto3 finds: environment, profiles, SSO, web identity, container or instance role.

    Renewed at half of their life. The callable raises CredentialsUnavailable, and may be called
    from many threads.
    """
    where = f"AWS profile {profile!r}" if profile else "AWS"

    def obtain(_now: datetime) -> Credentials:
        # Imported when a chain is asked for the first time: boto3 weighs tens of megabytes.
        import boto3  # type: ignore[import-untyped]  # noqa: PLC0415
        from botocore.config import Config  # type: ignore[import-untyped]  # noqa: PLC0415
        from botocore.exceptions import (  # type: ignore[import-untyped]  # noqa: PLC0415
            BotoCoreError,
            ClientError,
        )
        from botocore.session import Session  # type: ignore[import-untyped]  # noqa: PLC0415

        try:
            # A new session for each renewal: one session would keep to its own, later schedule.
            session = Session(profile=profile)
            # With the limits of botocore, a token service that hangs is asked for minutes.
            limits = Config(connect_timeout=2, read_timeout=4, retries={"total_max_attempts": 2})
            session.set_default_client_config(limits)
            found: Any = boto3.Session(botocore_session=session).get_credentials()
            frozen = found.get_frozen_credentials() if found else None
        except (BotoCoreError, ClientError, OSError, ValueError, KeyError) as error:
            # The message may quote what a credential process printed.
            raise CredentialsUnavailable(where, type(error).__name__) from None
        if not (frozen and frozen.access_key and frozen.secret_key):
            raise CredentialsUnavailable(where, "the credential chain holds none")
        # botocore has no public name for the expiry; without one the keys count as static.
        expires = getattr(found, "_expiry_time", None)
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token, expires)

    return Renewed(obtain, lambda credentials: credentials.expires)


def chain_region(profile: str | None = None) -> str | None:
    """The region that the user's files say, None when they say none."""
    import boto3  # noqa: PLC0415 it weighs tens of megabytes
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415 it too

    try:
        region: str | None = boto3.Session(profile_name=profile).region_name
    except BotoCoreError:  # which the credentials will say better
        return None
    return region


class S3Signer:
    """Signs GET links for the objects of one bucket. Takes part in `registry.storage.Signer`."""

    def __init__(
        self,
        bucket: str,
        *,
        credentials: Callable[[datetime], Credentials],
        region: str = "us-east-1",
        endpoint_url: str | None = None,
        public_endpoint_url: str | None = None,
        addressing_style: AddressingStyle = "auto",
    ) -> None:
        """Clients reach the store at `public_endpoint_url`, the service itself at `endpoint_url`;
        each stands for the other if only one is given, and without both it is AWS.

        Raises ValueError for a bucket, region or endpoint that cannot be addressed.
        """
        if not _BUCKET.fullmatch(bucket) or bucket.endswith(("--x-s3", "--op-s3")):
            raise ValueError(
                f"not the name of an S3 bucket that can be signed for: {bucket[:80]!r}"
            )
        if not _REGION.fullmatch(region):
            raise ValueError(f"not a region: {region[:80]!r}")
        self._bucket = bucket
        self._credentials = credentials
        self._region = region
        self._public = _address(
            bucket, region, public_endpoint_url or endpoint_url, addressing_style
        )
        self._internal = _address(bucket, region, endpoint_url, addressing_style)
        self._key_of_the_day: tuple[Credentials, str, bytes] | None = None
        self._links_of_the_second: tuple[tuple[object, ...], Links] | None = None

    @property
    def store(self) -> Store:
        """The host of the bucket, which refuses what was not signed at its own time."""
        return Store(self._internal.base, timed=True)

    def links(self, now: datetime, lifetime: int) -> Links:
        """Links that live `lifetime` seconds (a week at most), or as long as the credentials.

        Raises CredentialsUnavailable when those live less than five minutes more.
        """
        return self._links(now, lifetime, self._public)

    def origin(self, path: str, entry: Entry, now: datetime) -> Origin:
        """A link of five minutes, against the endpoint that the service reaches."""
        return Origin(self._links(now, _OWN_READS, self._internal).sign(path, entry))

    def request(
        self,
        method: str,
        path: str,
        now: datetime,
        parameters: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """A URL of five minutes by which the service itself does to an object what the method,
        `parameters` and `headers` say, which are sent with it. Raises CredentialsUnavailable.
        """
        terms = self._terms(now, _OWN_READS)
        more = _query(parameters or {})
        return self._signing(self._internal, *terms, method, more, headers or {})(path, _ANY)

    def part(self, path: str, upload: str, number: int, now: datetime, lifetime: int) -> str:
        """A URL by which a client sends one part of an upload. Raises CredentialsUnavailable."""
        more = _query({"partNumber": str(number), "uploadId": upload})
        return self._signing(self._public, *self._terms(now, lifetime), "PUT", more)(path, _ANY)

    def source(self, path: str) -> str:
        """An object of the bucket as one that another is copied from."""
        return quote(f"/{self._bucket}/{path}", safe="/~")

    def _links(self, now: datetime, lifetime: int, address: "_Address") -> Links:
        credentials, start, expires = self._terms(now, lifetime)
        # A busy service signs many answers in one second, and all but the paths is the same.
        terms, known = (credentials, address, start, expires), self._links_of_the_second
        if known and known[0] == terms:
            return known[1]
        links = Links(expires, self._signing(address, credentials, start, expires))
        self._links_of_the_second = terms, links
        return links

    def _terms(self, now: datetime, lifetime: int) -> tuple[Credentials, datetime, datetime]:
        credentials = self._credentials(now)
        if credentials.expires and credentials.expires - now < LEAST_LIFE:
            raise CredentialsUnavailable(f"s3://{self._bucket}", "they expire within five minutes")
        if lifetime > _LONGEST:
            raise ValueError("S3 accepts no link that lives longer than a week")
        return credentials, *lifespan(now, lifetime, credentials.expires)

    def _signing(
        self,
        address: "_Address",
        credentials: Credentials,
        start: datetime,
        expires: datetime,
        method: str = "GET",
        parameters: str = "",
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> Callable[[str, Entry], str]:
        timestamp = start.strftime("%Y%m%dT%H%M%SZ")
        scope = f"{timestamp[:8]}/{self._region}/s3/aws4_request"
        return _signing(
            address,
            credentials,
            f"AWS4-HMAC-SHA256\n{timestamp}\n{scope}\n",
            f"X-Amz-Algorithm=AWS4-HMAC-SHA256"
            f"&X-Amz-Credential={_quote(f'{credentials.access_key_id}/{scope}')}"
            f"&X-Amz-Date={timestamp}"
            f"&X-Amz-Expires={int((expires - start).total_seconds())}",
            self._signing_key(credentials, timestamp[:8]),
            method,
            parameters,
            headers,
        )

    def _signing_key(self, credentials: Credentials, day: str) -> bytes:
        known = self._key_of_the_day
        if known and known[0] is credentials and known[1] == day:
            return known[2]
        key = f"AWS4{credentials.secret_access_key}".encode()
        for part in (day, self._region, "s3", "aws4_request"):
            key = digest(key, part.encode(), "sha256")
        self._key_of_the_day = credentials, day, key
        return key


@dataclass(frozen=True)
class _Address:
    """Where a bucket answers: `base` and then the path of a link, which begins with `prefix`."""

    base: str
    host: str
    prefix: str


def _signing(
    address: _Address,
    credentials: Credentials,
    heading: str,
    query: str,
    key: bytes,
    method: str,
    parameters: str,
    headers: Mapping[str, str],
) -> Callable[[str, Entry], str]:
    """What is the same for a whole answer is put together here, once.

    The names of `parameters` are those of S3's methods, which sort behind `X-Amz-...`, and those of
    `headers` are lower-case `x-amz-...`, which sort behind `host`.
    """
    base, prefix = address.base, address.prefix
    token = credentials.session_token
    token = f"&X-Amz-Security-Token={_quote(token)}" if token is not None else ""
    names = ("host", *sorted(headers))
    signed_headers = f"&X-Amz-SignedHeaders={'%3B'.join(names)}"
    # Canonically the names are sorted; in the link they stand in the order that botocore writes.
    canonical = f"{query}{token}{signed_headers}"
    query = f"{query}{signed_headers}{token}&X-Amz-Signature="
    if parameters:
        canonical += f"&{parameters}"
        query = f"{parameters}&{query}"
    lines = "".join(f"{name}:{headers[name]}\n" for name in names[1:])
    ending = f"\nhost:{address.host}\n{lines}\n{';'.join(names)}\nUNSIGNED-PAYLOAD"
    signature = keyed_hmac(key)

    def sign(path: str, entry: Entry) -> str:
        # Most keys of DVC need no quoting, and quote() takes its time to find that out.
        path = prefix + (path if _PLAIN.fullmatch(path) else quote(path, safe="/~"))
        if entry.version_id is None:
            request = f"{method}\n{path}\n{canonical}{ending}"
            link = f"{base}{path}?{query}"
        else:
            version = f"versionId={_quote(entry.version_id)}"
            request = f"{method}\n{path}\n{canonical}&{version}{ending}"
            link = f"{base}{path}?{version}&{query}"
        hashed = sha256(request.encode()).hexdigest()
        return link + signature((heading + hashed).encode()).hexdigest()

    return sign


def _query(parameters: Mapping[str, str]) -> str:
    return "&".join(f"{name}={_quote(value)}" for name, value in parameters.items())


def _quote(value: str) -> str:
    return quote(value, safe="-_.~")


def _address(
    bucket: str, region: str, endpoint_url: str | None, style: AddressingStyle
) -> _Address:
    """The host and path of a bucket, by botocore's rules.

    One difference: `auto` on AWS means the host of the region. botocore gives the global host for
    presigned links, which redirects for a new bucket, and no signature survives a redirect.
    """
    if endpoint_url is None:
        endpoint_url = f"https://{_aws_host(region)}"
        style = "virtual" if style == "auto" else style
    parts = urlsplit(endpoint_url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or parts.query:
        raise ValueError("an endpoint is an http(s) URL without user name, password and query")
    netloc, path = parts.netloc, parts.path.rstrip("/")
    if style == "virtual" and _fits_host(bucket, dots=parts.scheme == "http", host=host):
        netloc, host = f"{bucket}.{netloc}", f"{bucket}.{host}"
    else:
        path = f"{path}/{bucket}"
    return _Address(
        f"{parts.scheme}://{netloc}", _host_header(host, parts.scheme, parts.port), f"{path}/"
    )


def _aws_host(region: str) -> str:
    if region == "us-east-1":
        return "s3.amazonaws.com"
    suffixes = (suffix for start, suffix in _DNS_SUFFIXES.items() if region.startswith(start))
    return f"s3.{region}.{next(suffixes, 'amazonaws.com')}"


def _fits_host(bucket: str, *, dots: bool, host: str) -> bool:
    """Whether a bucket can be a part of the host's name.

    A certificate for `*.host` does not cover a name with another dot in it.
    """
    if len(bucket) < 3 or ":" in host or _IPV4.fullmatch(host) or _IPV4.fullmatch(bucket):
        return False
    labels = bucket.split(".") if dots else [bucket]
    return all(_HOST_LABEL.fullmatch(label) for label in labels)


def _host_header(host: str, scheme: str, port: int | None) -> str:
    if ":" in host:
        host = f"[{host}]"
    default = {"http": 80, "https": 443}[scheme]
    return host if port in (None, default) else f"{host}:{port}"
