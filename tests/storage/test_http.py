"""Objects behind a web server: how links are made, and how the service itself reads."""

import hashlib
import threading
from base64 import b64encode, urlsafe_b64encode
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain import Entry, RelPath, StorageUrl
from registry.errors import StorageUnavailable
from registry.storage import Origin, Reader
from registry.storage.gateway import GatewayLinks
from registry.storage.http import HttpSigner
from registry.storage.stores import Store, Stores

NOW = datetime(2025, 3, 4, 5, 6, 7, tzinfo=timezone.utc)
BASE = StorageUrl.parse("https://store.example.com:8443/my%20models")
GATEWAY = GatewayLinks(["k" * 32], "https://models.example.com")
keys = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


def entry(key="k"):
    return Entry(RelPath("file"), key)


def signed(signer, key="k"):
    return signer.links(NOW, 3600).sign(BASE.below(key).path, entry(key))


@given(keys)
def test_a_plain_link_is_the_url_of_the_object_with_the_key_quoted(key):
    link = signed(HttpSigner(BASE), key)

    parts = urlsplit(link)
    assert (parts.scheme, parts.netloc) == ("https", "store.example.com:8443")
    assert not parts.query
    assert not parts.fragment
    assert parts.path.startswith("/my%20models/")
    assert unquote(parts.path) == f"/my models/{key}"


def test_a_deeper_part_of_the_url_stands_as_it_is_too():
    url = BASE.below("v%C3%A9")
    signer = HttpSigner(BASE)

    link = signer.links(NOW, 60).sign(url.below("é%").path, entry("é%"))

    assert link == "https://store.example.com:8443/my%20models/v%C3%A9/%C3%A9%25"


@given(keys)
def test_a_secure_link_signs_what_nginx_decodes(key):
    link = signed(HttpSigner(BASE, "secure_link", secret="se cret"), key)

    parts = urlsplit(link)
    until = int((NOW + timedelta(hours=1)).timestamp())
    text = f"{until}{unquote(parts.path)} se cret"
    hashed = urlsafe_b64encode(hashlib.md5(text.encode()).digest()).decode().rstrip("=")
    assert parse_qs(parts.query) == {"md5": [hashed], "expires": [str(until)]}
    assert unquote(parts.path) == f"/my models/{key}"
    assert "cret" not in parts.query


def test_a_gateway_link_leads_back_to_the_origin_with_its_credentials():
    signer = HttpSigner(
        BASE,
        "gateway",
        username="us:er",
        password="pä ss",
        headers={"X-Key": "hush-hush"},
        gateway=GATEWAY,
    )

    link = signed(signer, "é /%")
    opened = GATEWAY.open(link.rpartition("/")[2], NOW)
    origin = signer.origin(opened.url.path, opened.entry, NOW)

    assert link.startswith("https://models.example.com/objects/")
    assert origin.url == "https://store.example.com:8443/my%20models/%C3%A9%20/%25"
    assert origin.headers["X-Key"] == "hush-hush"
    basic = b64encode("us:er:pä ss".encode()).decode()
    assert origin.headers["Authorization"] == f"Basic {basic}"
    assert "hush" not in repr(origin)


@pytest.mark.parametrize(
    ("signing", "options"),
    [
        ("direct", {"username": "u", "password": "p"}),
        ("direct", {"headers": {"X-Key": "v"}}),
        ("direct", {"secret": "s"}),
        ("direct", {"gateway": GATEWAY}),
        ("secure_link", {}),
        ("secure_link", {"secret": ""}),
        ("gateway", {}),
    ],
)
def test_options_that_do_not_fit_the_signing_are_refused(signing, options):
    with pytest.raises(ValueError, match=signing.split("_")[0] + r"|secret|gateway|plain"):
        HttpSigner(BASE, signing, **options)


@pytest.mark.parametrize("header", [("X-Key", "hush\n"), ("X-Key", "ключ"), ("X\r\nY", "v")])
def test_a_header_that_cannot_be_sent_is_refused_without_quoting_it(header):
    with pytest.raises(ValueError, match="header") as caught:
        HttpSigner(BASE, "gateway", headers=dict([header]), gateway=GATEWAY)
    assert "hush" not in str(caught.value)


def test_a_store_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="http"):
        HttpSigner(StorageUrl.parse("s3://bucket"))


class _Store(BaseHTTPRequestHandler):
    """Answers by path; what it was asked is kept on the server."""

    protocol_version = "HTTP/1.1"
    BODY = bytes(range(256)) * 2000

    def do_GET(self):
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        getattr(self, "get_" + self.path.strip("/").partition("?")[0])()

    do_HEAD = do_GET  # noqa: N815 - the name that http.server asks for

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def get_object(self):
        if self.headers["Range"]:
            self.answer(206, self.BODY[5:10], Content_Range="bytes 5-9/512000")
        else:
            self.answer(200, self.BODY, Content_Type="text/html", ETag='"e"', Set_Cookie="a=b")

    def get_missing(self):
        self.answer(404, b"no such object")

    def get_forbidden(self):
        self.answer(403, b"<Error>AccessDenied</Error>")

    def get_elsewhere(self):
        self.answer(302, Location=f"http://127.0.0.1:{self.server.server_port}/object")

    def get_short(self):
        self.answer(200, b"only this", Content_Length=1000)
        self.close_connection = True

    def get_zipped(self):
        self.answer(200, b"not really gzip", Content_Encoding="gzip")

    def get_silent(self):
        self.server.over.wait(30)
        self.close_connection = True

    def get_stalling(self):
        self.answer(200, b"only this", Content_Length=1000)
        self.get_silent()

    def get_dripping(self):
        with suppress(OSError):  # whoever asked has heard enough
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.server.over.wait(0.05):
                self.wfile.write(b"X")
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def store():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Store) as server:
        server.seen, server.over = [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def reader():
    with Reader(total=0.5, silence=0.5) as reader:
        yield reader


def test_an_object_is_read_with_the_headers_of_its_origin(reader, store):
    content = reader.read(Origin(f"{store.url}/object", {"X-Key": "v"}), 10**6)

    assert content == _Store.BODY
    assert store.seen[0][2]["X-Key"] == "v"


def test_an_object_that_the_store_does_not_have_is_none(reader, store):
    assert reader.read(Origin(f"{store.url}/missing"), 10) is None
    assert reader.stream(Origin(f"{store.url}/missing")) is None


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("forbidden", "403"),
        ("elsewhere", "302"),
        ("short", "breaks off"),
        ("silent", "in time"),
        ("stalling", "in time"),
        ("object", "larger"),
    ],
)
def test_a_fault_of_the_store_is_unavailable_and_quotes_no_signature(reader, store, path, problem):
    with pytest.raises(StorageUnavailable) as caught:
        reader.read(Origin(f"{store.url}/{path}?X-Amz-Signature=hush"), 1100)

    assert problem in caught.value.problem
    assert caught.value.location == f"{store.url}/{path}"
    assert len(store.seen) == 1


def test_a_store_that_drips_is_given_up_when_the_time_is_over(store):
    with (
        Reader(total=4, clock=count(step=3).__next__) as reader,
        pytest.raises(StorageUnavailable) as caught,
    ):
        reader.read(Origin(f"{store.url}/object"), 10**6)

    assert "in time" in caught.value.problem


def test_headers_that_come_a_byte_at_a_time_are_not_waited_for(reader, store):
    """No single one of them is late."""
    with pytest.raises(StorageUnavailable, match="in time"):
        reader.stream(Origin(f"{store.url}/dripping"))
    with pytest.raises(StorageUnavailable, match="in time"):
        reader.read(Origin(f"{store.url}/dripping"), 10)


def test_a_connection_whose_headers_came_in_time_is_used_again(reader, store):
    for _ in range(3):
        assert reader.read(Origin(f"{store.url}/object"), 10**6) == _Store.BODY


def test_what_the_stores_say_is_passed_on(store):
    stores = Stores([Store(store.url, timed=True)])
    with Reader(total=0.5, stores=stores) as reader:
        for path, problem in (
            ("silent", "it does not answer in time"),
            ("missing", None),
            ("forbidden", "it answers 403"),
            ("object", None),
        ):
            with suppress(StorageUnavailable):
                reader.read(Origin(f"{store.url}/{path}"), 10**6)
            assert stores.problem(store.url) == problem
        assert abs(stores.ahead(store.url)) < 60
        store.shutdown()
        store.server_close()

        reader.greet(store.url)
        assert stores.problem(store.url)


def test_a_store_that_is_not_there_is_unavailable(reader):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Store) as server:
        port = server.server_port

    with pytest.raises(StorageUnavailable):
        reader.read(Origin(f"http://127.0.0.1:{port}/object"), 10)


@pytest.mark.parametrize("url", ["http://", "http://[", "ftp://127.0.0.1/x", "http://h:99999/"])
def test_a_url_that_leads_nowhere_is_unavailable(reader, url):
    with pytest.raises(StorageUnavailable):
        reader.read(Origin(url), 10)


def test_a_stream_hands_on_only_the_headers_that_describe_the_object(reader, store):
    stream = reader.stream(Origin(f"{store.url}/object"))

    assert stream.status == 200
    assert stream.headers == {
        "Content-Length": "512000",
        "Content-Type": "text/html",
        "ETag": '"e"',
    }
    assert b"".join(stream) == _Store.BODY
    stream.close()


def test_a_range_and_a_question_for_the_head_are_handed_to_the_store(reader, store):
    part = reader.stream(Origin(f"{store.url}/object"), "bytes=5-9")
    assert (part.status, part.headers["Content-Range"]) == (206, "bytes 5-9/512000")
    assert b"".join(part) == _Store.BODY[5:10]
    part.close()

    head = reader.stream(Origin(f"{store.url}/object"), None, "HEAD")
    assert (head.headers["Content-Length"], b"".join(head)) == ("512000", b"")
    head.close()
    assert [seen[0] for seen in store.seen] == ["GET", "HEAD"]


def test_a_range_that_makes_no_sense_never_reaches_the_store(reader, store):
    for asked in ("bytes=0-1,5-6", "bytes=0-1\r\nX-Key: v", "rows=1-2"):
        stream = reader.stream(Origin(f"{store.url}/object"), asked)
        assert stream.status == 200
        stream.close()

    assert all("Range" not in seen[2] for seen in store.seen)


def test_bytes_arrive_as_they_are_stored_and_are_never_unpacked(reader, store):
    assert reader.read(Origin(f"{store.url}/zipped"), 100) == b"not really gzip"
    assert store.seen[0][2]["Accept-Encoding"] == "identity"


def test_a_stream_that_breaks_off_never_looks_complete(reader, store):
    for path in ("short", "stalling"):
        stream = reader.stream(Origin(f"{store.url}/{path}"))
        with pytest.raises(StorageUnavailable):
            b"".join(stream)
        stream.close()


def test_a_stream_that_the_client_gave_up_leaves_nothing_for_the_next_one(reader, store):
    for _ in range(3):
        stream = reader.stream(Origin(f"{store.url}/object"))
        next(iter(stream))
        stream.close()

        assert reader.read(Origin(f"{store.url}/object"), 10**6) == _Store.BODY
