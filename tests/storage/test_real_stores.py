"""Links against stores that check them: one behaviour for every kind of store and of credentials.

A link is worth something only if the store refuses what was changed, so that each store is shown
to refuse just what the other tests show it to accept.
"""

import http.client
import re
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest
from servers.azurite import Identity

from registry.domain import Entry, RelPath, StorageUrl
from registry.errors import CredentialsUnavailable, StorageUnavailable
from registry.storage import Reader, Signer
from registry.storage.azure import AzureSigner
from registry.storage.gateway import GatewayLinks
from registry.storage.http import HttpSigner
from registry.storage.s3 import S3Signer, static_credentials

pytestmark = pytest.mark.servers

NOW = datetime.now(timezone.utc)
HOUR = timedelta(hours=1)
DATA = b"sixteen bytes ok"
PLAIN_KEY = "files/md5/ab/cdef0123456789abcdef0123456789.dir"
KEYS = [
    PLAIN_KEY,
    "with space/plus+and%percent/%2F%41.bin",
    "é/模型/😀.bin",
    "a=b&c?d#e;f,g:h@i.bin",
    "(x)~!*'$[y]{z}^|\"<>`.bin",
]
ANOTHER_ACCOUNT_KEY = b64encode(b"another key of the tests".ljust(64, b".")).decode()
REFUSED = (400, 401, 403)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass(frozen=True)
class Store:
    """A store, a signer that holds its key, and one that holds another."""

    signer: Signer
    impostor: Signer
    put: Callable[[str, bytes], str | None]
    get: Callable[[str], bytes]
    prefix: str = ""
    trusted: Path | None = None
    versioned: bool = False

    def add(self, key: str, data: bytes = DATA) -> Entry:
        version = self.put(key, data)
        return entry(key, version if self.versioned else None)

    def link(self, wanted: Entry, now: datetime = NOW, signer: Signer | None = None) -> str:
        links = (signer or self.signer).links(now, 3600)
        return links.sign(self.prefix + wanted.key, wanted)

    def fetch(self, url: str, method: str = "GET", **headers: str) -> Answer:
        return fetch(url, method, self.trusted, **headers)

    def origin(self, wanted: Entry, signer: Signer | None = None):
        return (signer or self.signer).origin(
            self.prefix + wanted.key, wanted, datetime.now(timezone.utc)
        )


def entry(key: str, version: str | None = None) -> Entry:
    return Entry(RelPath("file"), key, version_id=version)


def fetch(url: str, method: str = "GET", trusted: Path | None = None, **headers: str) -> Answer:
    """Sends the URL as it stands. Names below `localhost` are this machine's, by RFC 6761, which
    not every resolver knows."""
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname.endswith(".localhost") else parts.hostname
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=trusted)
        connection = http.client.HTTPSConnection(host, parts.port, context=context, timeout=60)
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=60)
    with closing(connection):
        target = parts.path + ("?" + parts.query if parts.query else "")
        body = b"changed" if method in ("PUT", "POST") else None
        connection.request(method, target, body, {"Host": parts.netloc, **headers})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


def _s3(server, keys, bucket, *, versioned=False, **options) -> Store:
    def signer(secret: str) -> S3Signer:
        credentials = static_credentials(keys.access_key_id, secret, keys.session_token)
        options.setdefault("endpoint_url", server.endpoint_url)
        return S3Signer(bucket, credentials=credentials, **options)

    server.create_bucket(bucket, versioned=versioned)
    return Store(
        signer(keys.secret_access_key),
        signer(keys.secret_access_key[::-1]),
        lambda key, data: server.put(bucket, key, data),
        lambda key: server.get(bucket, key),
        versioned=versioned,
    )


def s3_in_the_path(server) -> Store:
    return _s3(server, server.keys, "in-the-path")


def s3_in_the_host(server) -> Store:
    return _s3(
        server,
        server.keys,
        "in-the-host",
        public_endpoint_url=server.domain_url,
        addressing_style="virtual",
    )


def s3_versions(server) -> Store:
    return _s3(server, server.keys, "versions", versioned=True)


def s3_session(server) -> Store:
    return _s3(server, server.session(), "session")


def _azure(server, container: str, signer: Callable[[str], Signer]) -> Store:
    server.create_container(container)
    return Store(
        signer(server.account_key),
        signer(ANOTHER_ACCOUNT_KEY),
        lambda key, data: server.put(container, key, data),
        lambda key: server.get(container, key),
        trusted=server.certificate,
    )


def azure_key(server) -> Store:
    return _azure(
        server,
        "by-key",
        lambda key: AzureSigner.from_account_key(
            "by-key",
            account_name=server.account_name,
            account_key=key,
            endpoint=server.endpoint_url,
        ),
    )


def azure_connection_string(server) -> Store:
    return _azure(
        server,
        "by-string",
        lambda key: AzureSigner.from_connection_string(
            "by-string", server.connection_string.replace(server.account_key, key)
        ),
    )


def azure_identity(server) -> Store:
    signer = AzureSigner.from_default_credential(
        "by-identity",
        account_name=server.account_name,
        endpoint=server.endpoint_url,
        credential=Identity(NOW),
    )
    # The key is asked for here, so that it covers the links that the tests sign for the past.
    signer.links(NOW - 2 * HOUR, 60)
    store = _azure(server, "by-identity", lambda key: signer)
    impostor = AzureSigner.from_account_key(
        "by-identity",
        account_name=server.account_name,
        account_key=ANOTHER_ACCOUNT_KEY,
        endpoint=server.endpoint_url,
    )
    return Store(signer, impostor, store.put, store.get, trusted=store.trusted)


def secure_link(server) -> Store:
    base = StorageUrl.parse(f"{server.url}/signed")
    return Store(
        HttpSigner(base, "secure_link", secret=server.secret),
        HttpSigner(base, "secure_link", secret="another secret"),
        server.put,
        server.get,
        prefix="signed/",
    )


STORES = [
    ("seaweedfs", s3_in_the_path),
    ("seaweedfs", s3_in_the_host),
    ("seaweedfs", s3_versions),
    ("seaweedfs", s3_session),
    ("juicefs", s3_in_the_path),
    ("azurite", azure_key),
    ("azurite", azure_connection_string),
    ("azurite_https", azure_identity),
    ("nginx", secure_link),
]


@pytest.fixture(scope="module", params=STORES, ids=lambda pair: f"{pair[0]}-{pair[1].__name__}")
def store(request) -> Iterator[Store]:
    fixture, make = request.param
    server = request.getfixturevalue(fixture)
    with pytest.MonkeyPatch.context() as patch:
        trusted = getattr(server, "certificate", None)
        if trusted:
            # How an operator makes the service trust a private authority.
            patch.setenv("REQUESTS_CA_BUNDLE", str(trusted))
            patch.setenv("SSL_CERT_FILE", str(trusted))
        yield make(server)


@pytest.mark.parametrize("key", KEYS)
def test_a_link_downloads_the_bytes(store, key):
    link = store.link(store.add(key))

    answer = store.fetch(link)

    assert answer.status == 200
    assert answer.body == DATA


def test_a_link_serves_a_range_so_that_a_download_can_be_resumed(store):
    link = store.link(store.add(PLAIN_KEY))

    answer = store.fetch(link, Range="bytes=10-")

    assert answer.status == 206
    assert answer.headers["Content-Range"] == "bytes 10-15/16"
    assert answer.body == DATA[10:]


def test_a_link_works_as_often_as_it_is_used(store):
    link = store.link(store.add(PLAIN_KEY))

    assert [store.fetch(link).body for _ in range(2)] == [DATA, DATA]


def test_a_link_to_what_is_not_there_finds_nothing(store):
    assert store.fetch(store.link(entry("missing"))).status == 404


def test_an_expired_link_is_refused(store):
    wanted = store.add(PLAIN_KEY)

    answer = store.fetch(store.link(wanted, NOW - 2 * HOUR))

    assert answer.status in (*REFUSED, 410)
    assert DATA not in answer.body


def test_a_link_for_an_hour_opens_shortly_before_its_end(store):
    wanted = store.add(PLAIN_KEY)

    answer = store.fetch(store.link(wanted, datetime.now(timezone.utc) - timedelta(minutes=58)))

    assert answer.body == DATA


def test_no_parameter_of_a_link_can_be_changed(store):
    base, _, query = store.link(store.add(PLAIN_KEY)).partition("?")
    parameters = query.split("&")
    for index, parameter in enumerate(parameters):
        name, value = parameter.split("=", 1)
        changed = [*parameters]
        changed[index] = f"{name}={_other(value)}"

        answer = store.fetch(f"{base}?{'&'.join(changed)}")

        assert (name, answer.status) in [(name, status) for status in REFUSED]
        assert DATA not in answer.body


def test_no_parameter_of_a_link_can_be_left_out(store):
    base, _, query = store.link(store.add(PLAIN_KEY)).partition("?")
    parameters = query.split("&")
    for parameter in parameters:
        left = "&".join(other for other in parameters if other != parameter)

        answer = store.fetch(f"{base}?{left}")

        name = parameter.partition("=")[0]
        assert (name, answer.status) in [(name, status) for status in REFUSED]
        assert DATA not in answer.body


def test_without_a_signature_nothing_is_given(store):
    link = store.link(store.add(PLAIN_KEY))

    answer = store.fetch(link.partition("?")[0])

    assert answer.status >= 400
    assert DATA not in answer.body


@pytest.mark.parametrize("other", ["other.bin", PLAIN_KEY.upper(), PLAIN_KEY.removesuffix(".dir")])
def test_a_link_opens_no_other_object(store, other):
    link = store.link(store.add(PLAIN_KEY))
    store.add(other, b"secret")
    moved = link.replace(quote(PLAIN_KEY), quote(other))
    assert moved != link

    answer = store.fetch(moved)

    assert answer.status in REFUSED
    assert b"secret" not in answer.body


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
def test_a_link_changes_nothing(store, method):
    link = store.link(store.add(PLAIN_KEY))

    answer = store.fetch(link, method)

    assert answer.status in (*REFUSED, 405)
    assert store.get(PLAIN_KEY) == DATA


def test_a_link_that_another_key_signed_is_refused(store):
    wanted = store.add(PLAIN_KEY)

    answer = store.fetch(store.link(wanted, signer=store.impostor))

    assert answer.status in REFUSED
    assert DATA not in answer.body


def test_the_service_reads_an_object_itself(store):
    wanted = store.add(PLAIN_KEY)

    with Reader() as reader:
        assert reader.read(store.origin(wanted), 100) == DATA


def test_the_service_streams_a_range_of_an_object(store):
    wanted = store.add(PLAIN_KEY)

    with Reader() as reader, closing(reader.stream(store.origin(wanted), "bytes=2-4")) as stream:
        assert stream.status == 206
        assert stream.headers["Content-Range"] == "bytes 2-4/16"
        assert b"".join(stream) == DATA[2:5]


def test_the_service_finds_nothing_where_no_object_is(store):
    with Reader() as reader:
        assert reader.read(store.origin(entry("missing")), 100) is None


def test_a_refusal_of_the_store_is_no_absence(store):
    wanted = store.add(PLAIN_KEY)

    with Reader() as reader, pytest.raises(StorageUnavailable, match="it answers 40[013]"):
        reader.read(store.origin(wanted, store.impostor), 100)
    with Reader() as reader, pytest.raises(StorageUnavailable, match="it answers 40[013]"):
        reader.has(store.origin(wanted, store.impostor))


def test_the_service_sees_whether_an_object_is_there(store):
    there, empty = store.add(PLAIN_KEY), store.add("empty", b"")

    with Reader() as reader:
        assert reader.has(store.origin(there))
        assert reader.has(store.origin(empty))
        assert not reader.has(store.origin(entry("missing")))


def test_a_link_to_a_version_gives_its_bytes_after_they_were_replaced(seaweedfs):
    store = s3_versions(seaweedfs)
    older, newer = store.add("replaced", b"older"), store.add("replaced", b"newer")

    assert older.version_id != newer.version_id
    assert store.fetch(store.link(older)).body == b"older"
    assert store.fetch(store.link(newer)).body == b"newer"


def test_a_link_to_one_version_opens_no_other(seaweedfs):
    store = s3_versions(seaweedfs)
    older, newer = store.add("versions", b"older"), store.add("versions", b"newer")

    answer = store.fetch(store.link(older).replace(older.version_id, newer.version_id))

    assert answer.status == 403


def test_a_session_token_is_part_of_the_link_and_of_what_is_signed(seaweedfs):
    store = s3_session(seaweedfs)
    link = store.link(store.add(PLAIN_KEY))

    without = re.sub(r"&X-Amz-Security-Token=[^&]+", "", link)

    assert without != link
    assert store.fetch(link).status == 200
    assert store.fetch(without).status in REFUSED


def test_a_link_signed_for_another_region_is_refused(juicefs):
    wanted = _s3(juicefs, juicefs.keys, "regions").add(PLAIN_KEY)
    elsewhere = _s3(juicefs, juicefs.keys, "regions", region="eu-west-1")

    answer = elsewhere.fetch(elsewhere.link(wanted))

    assert answer.status in REFUSED
    assert DATA not in answer.body


def test_a_link_signed_for_the_future_is_refused_until_then(juicefs):
    store = _s3(juicefs, juicefs.keys, "future")

    answer = store.fetch(store.link(store.add(PLAIN_KEY), NOW + HOUR))

    assert answer.status in REFUSED


def test_an_identity_whose_token_has_expired_gives_no_links(azurite_https):
    signer = AzureSigner.from_default_credential(
        "by-identity",
        account_name=azurite_https.account_name,
        endpoint=azurite_https.endpoint_url,
        credential=Identity(NOW - timedelta(days=3)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(azurite_https.certificate))
        with pytest.raises(CredentialsUnavailable):
            signer.links(NOW, 3600)


def test_a_link_for_https_is_refused_over_plain_http(azurite):
    """The servers have one account: the signature holds, and only the protocol does not."""
    store = azure_key(azurite)
    wanted = store.add(PLAIN_KEY)
    signer = AzureSigner.from_account_key(
        "by-key",
        account_name=azurite.account_name,
        account_key=azurite.account_key,
        endpoint=azurite.endpoint_url.replace("http:", "https:"),
    )
    link = store.link(wanted, signer=signer)

    answer = store.fetch(link.replace("https:", "http:", 1))

    assert link.startswith("https:")
    assert answer.status == 403


@pytest.mark.parametrize("key", KEYS)
def test_a_plain_link_downloads_from_a_server_that_is_open_to_all(nginx, key):
    nginx.put(key, DATA)
    base = StorageUrl.parse(f"{nginx.url}/public")

    link = HttpSigner(base).links(NOW, 3600).sign(base.below(key).path, entry(key))

    assert fetch(link).body == DATA
    assert fetch(link, Range="bytes=0-3").body == DATA[:4]


def _behind_a_password(nginx, password: str) -> tuple[HttpSigner, str, Entry]:
    nginx.put(PLAIN_KEY, DATA)
    base = StorageUrl.parse(f"{nginx.url}/private")
    signer = HttpSigner(
        base,
        "gateway",
        username=nginx.username,
        password=password,
        gateway=GatewayLinks(["k" * 32], "https://models.example"),
    )
    return signer, base.below(PLAIN_KEY).path, entry(PLAIN_KEY)


def test_the_service_reads_behind_a_password_that_no_link_holds(nginx):
    signer, path, wanted = _behind_a_password(nginx, nginx.password)

    link = signer.links(NOW, 3600).sign(path, wanted)
    with Reader() as reader:
        data = reader.read(signer.origin(path, wanted, NOW), 100)

    assert data == DATA
    assert link.startswith("https://models.example/")
    assert nginx.password not in unquote(link)


def test_a_wrong_password_is_no_absence(nginx):
    signer, path, wanted = _behind_a_password(nginx, "wrong")

    assert fetch(f"{nginx.url}/{path}").status == 401
    with Reader() as reader, pytest.raises(StorageUnavailable, match="it answers 401"):
        reader.read(signer.origin(path, wanted, NOW), 100)


def _other(value: str) -> str:
    """The value with another first character: an expiry stays one, and moves far away."""
    first = value[0]
    if first.isdigit():
        return f"{(int(first) + 1) % 10}{value[1:]}"
    return ("b" if first != "b" else "c") + value[1:]
