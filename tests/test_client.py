"""The client of a service: patient with one that says later, and believing none that lies."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from registry import client
from registry.client import ReceiptLinks, Service
from registry.connections import Connections, Proxies
from registry.domain import RelPath, Revision, Selector
from registry.errors import (
    ArtifactMoved,
    Forbidden,
    InvalidReceipt,
    InvalidRequest,
    NotARegistry,
    NotFoundThere,
    RegistryError,
    ServiceUnavailable,
    TokenRefused,
    UnsafePath,
    UnsignableThere,
)
from registry.inquiry import at
from registry.receipt import Receipt, ReceiptFile
from registry.user import User

TOKEN = "reg_canary"
M = Selector.parse("m", stage="prod")


@dataclass
class Script:
    """A server that answers as it is told: (status, body, headers) for each request to a route, and
    the last one for ever.
    """

    url: str = ""
    answers: dict[str, list[tuple[int, object, dict[str, str]]]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, list[str]], str | None]] = field(default_factory=list)

    def say(self, route: str, status: int, body: object, **headers: str) -> None:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.setdefault(route, []).append((status, body, sent))

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        self.asked.append((parts.path, parse_qs(parts.query), request.headers.get("Authorization")))
        said = self.answers.get(parts.path) or [
            (404, {"detail": "no route", "code": "not_found"}, {})
        ]
        status, body, headers = said.pop(0) if len(said) > 1 else said[0]
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)


RESOLVE, URLS = "/api/v1/resolve", "/api/v1/urls"
STUDIO = "/api/model-registry/get-download-uris"


@pytest.fixture
def server() -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            script.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        script.url = f"http://127.0.0.1:{running.server_port}"
        yield script
        running.shutdown()


@pytest.fixture
def connections() -> Iterator[Connections]:
    made = Connections(2)
    yield made
    made.close()


@pytest.fixture
def service(server, connections, monkeypatch) -> Service:
    monkeypatch.setattr(client, "_SHORTEST_PAUSE", 0.001)  # seconds that tests need not wait
    return Service(server.url, TOKEN, connections)


def receipt(selector: Selector = M, files: int = 2) -> Receipt:
    return Receipt(
        repository="team/models",
        selector=selector,
        revision=Revision("a" * 40),
        path=RelPath("dir"),
        files=tuple(ReceiptFile(RelPath(f"dir/{n}"), f"{n:032x}", n) for n in range(files)),
        version="v1.0.0",
        tag="m#prod#1",
    )


def given(receipt: Receipt) -> bytes:
    return bytes(receipt)


# ----------------------------------------------------------------------------------- receipts


def test_a_receipt_is_asked_for_with_the_token_in_a_header_alone(server, service) -> None:
    server.say(RESOLVE, 200, given(receipt()))

    found = service.receipt("team/models", M)

    assert found == receipt()
    assert server.asked == [
        (RESOLVE, {"repo": ["team/models"], "name": ["m"], "stage": ["prod"]}, f"token {TOKEN}")
    ]
    assert TOKEN not in repr(service)


@pytest.mark.parametrize(
    ("selector", "parameter"),
    [
        (Selector.parse("m", "v1.0.0"), {"version": ["v1.0.0"]}),
        (Selector.parse("m", rev="b" * 40), {"rev": ["b" * 40]}),
        (Selector.parse("path/to:m"), {}),
    ],
)
def test_every_kind_of_selector_is_spelled_as_the_service_reads_it(
    server, service, selector, parameter
) -> None:
    server.say(RESOLVE, 200, given(receipt(selector)))

    service.receipt("r", selector)

    name = {"name": [str(selector.artifact)], "repo": ["r"]}
    assert server.asked[0][1] == {**name, **parameter}


def test_a_service_without_receipts_is_known_by_its_404(server, service) -> None:
    assert service.receipt("r", M) is None


@pytest.mark.parametrize("body", [b"<html>nothing</html>", {"detail": "Not found."}])
def test_a_404_that_says_no_kind_is_about_the_route(server, service, body) -> None:
    server.say(RESOLVE, 404, body)

    assert service.receipt("r", M) is None


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"<html>", NotARegistry),
        (b"[" * 100_000, NotARegistry),
        (b"[]", InvalidReceipt),
        (b"{}", InvalidReceipt),
        (given(receipt(Selector.parse("other"))), NotARegistry),
        (given(receipt(Selector.parse("m", stage="dev"))), NotARegistry),
        (given(receipt()).replace(b"dir/0", b"dir/x"), InvalidReceipt),
    ],
)
def test_an_answer_that_cannot_be_the_receipt_is_refused(server, service, body, error) -> None:
    server.say(RESOLVE, 200, body)

    with pytest.raises(error):
        service.receipt("r", M)


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "a/../../b", "a\\b", ".git/hooks/x"])
def test_a_hostile_path_in_a_receipt_is_refused_however_well_it_is_signed(
    server, service, path
) -> None:
    fields = json.loads(given(receipt()))
    fields["files"][0]["path"] = path
    lie = Receipt(
        repository="team/models",
        selector=M,
        revision=Revision("a" * 40),
        path=RelPath("dir"),
        files=tuple(
            ReceiptFile(RelPath(it["path"]), it["md5"], it["size"]) for it in fields["files"]
        ),
        version="v1.0.0",
        tag="m#prod#1",
    )
    server.say(RESOLVE, 200, given(lie))

    with pytest.raises(UnsafePath):
        service.receipt("r", M)


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"detail": "name: not valid", "code": "invalid_request"}, InvalidRequest),
        (401, {"detail": "Invalid token.", "code": "unauthenticated"}, TokenRefused),
        (
            403,
            {"detail": "This token lacks the scope models:read.", "code": "forbidden"},
            Forbidden,
        ),
        (404, {"detail": "No such stage.", "code": "stage_not_found"}, NotFoundThere),
        (422, {"detail": "Not granted.", "code": "location_not_granted"}, UnsignableThere),
        (424, {"detail": "Missing.", "code": "object_missing"}, UnsignableThere),
        (302, b"", NotARegistry),
        (418, b"", NotARegistry),
    ],
)
def test_what_the_service_refuses_is_an_error_of_that_kind(
    server, service, status, body, error
) -> None:
    server.say(RESOLVE, status, body)

    with pytest.raises(error) as raised:
        service.receipt("r", M)

    assert "\n" not in str(raised.value)
    assert TOKEN not in str(raised.value)


def test_a_scope_that_is_missing_is_named(server, service) -> None:
    server.say(RESOLVE, 403, {"detail": "This token lacks the scope models:read."})

    with pytest.raises(Forbidden) as raised:
        service.receipt("r", M)

    assert raised.value.scope == "models:read"


def test_what_a_service_says_is_not_obeyed_by_a_terminal(server, service) -> None:
    server.say(
        RESOLVE, 404, {"detail": "\x1b[2Jgone\r\nnow" + "x" * 5000, "code": "stage_not_found"}
    )

    with pytest.raises(NotFoundThere) as raised:
        service.receipt("r", M)

    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600


def test_the_password_of_a_repository_is_not_for_the_service(server, connections, tmp_path) -> None:
    server.say(RESOLVE, 200, receipt().as_json())
    user = User(tmp_path, tmp_path, server.url, TOKEN)

    with at(user, "https://ada:canary@git.example/team/models", connections) as inquiry:
        inquiry.find(M)

    assert [query["repo"] for _, query, _ in server.asked] == [["https://git.example/team/models"]]


def test_a_redirect_is_not_followed_with_the_token(server, service) -> None:
    server.say(RESOLVE, 302, b"", Location=f"{server.url}/elsewhere")

    with pytest.raises(NotARegistry, match="redirects"):
        service.receipt("r", M)

    assert [path for path, _, _ in server.asked] == [RESOLVE]


@pytest.mark.parametrize(
    "url",
    [
        "registry.example",
        "ftp://h",
        "https://",
        "https://user:pass@host",
        "file:///etc",
        "http://[",
    ],
)
def test_what_is_no_url_of_a_service_is_refused(connections, url) -> None:
    with pytest.raises(InvalidRequest):
        Service(url, TOKEN, connections)


@pytest.mark.parametrize("token", ["can\nary", "can…ary", "can ary", "can\x00ary"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_quoted(connections, token) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Service("http://127.0.0.1:1", token, connections)

    assert "ary" not in str(refused.value)


def test_a_secret_that_ends_with_a_line_end_is_a_token_still() -> None:
    """As secrets from files do."""
    assert User.load({"REGISTRY_TOKEN": f"{TOKEN}\n"}).token == TOKEN


def test_a_proxy_that_is_not_spoken_to_is_what_is_wrong(monkeypatch) -> None:
    monkeypatch.setattr(client, "_SHORTEST_PAUSE", 0.001)  # seconds that tests need not wait
    made = Connections(1, Proxies({"all": "socks5://127.0.0.1:1"}))

    with pytest.raises(ServiceUnavailable, match="proxy"):
        Service("http://127.0.0.1:1", TOKEN, made).receipt("r", M)


def test_a_service_may_live_below_a_path(server, connections) -> None:
    server.say(f"/sub{RESOLVE}", 200, given(receipt()))

    assert Service(f"{server.url}/sub/", TOKEN, connections).receipt("r", M) == receipt()


# ------------------------------------------------------------------------------------ patience


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_service_that_says_later_is_asked_again(server, service, status) -> None:
    for _ in range(3):
        server.say(RESOLVE, status, {"detail": "later", "code": "x"}, Retry_After="0")
    server.say(RESOLVE, 200, given(receipt()))

    assert service.receipt("r", M) == receipt()
    assert len(server.asked) == 4


def test_patience_ends_with_what_the_service_said_last(server, service) -> None:
    server.say(RESOLVE, 503, {"detail": "Being cloned."}, Retry_After="3600")

    with pytest.raises(ServiceUnavailable) as raised:
        service.receipt("r", M)

    assert "Being cloned" in str(raised.value)
    assert len(server.asked) <= 2


def test_a_service_that_is_not_there_is_an_error_soon(connections, monkeypatch) -> None:
    monkeypatch.setattr(client, "_SHORTEST_PAUSE", 0.001)

    with pytest.raises(ServiceUnavailable, match="cannot be reached"):
        Service("http://127.0.0.1:9", TOKEN, connections).receipt("r", M)


# --------------------------------------------------------------------------------------- links


def page(first: int, count: int, generation: str = "1") -> dict[str, object]:
    files = [{"url": f"https://store.example/{first + n}?g={generation}"} for n in range(count)]
    return {"receipt": receipt().digest, "files": files}


def test_links_come_in_pages_and_fresh_ones_when_one_is_over(server, service, monkeypatch) -> None:
    monkeypatch.setattr(client, "PAGE", 2)
    whole = receipt(files=3)
    server.say(URLS, 200, page(0, 2))
    server.say(URLS, 200, page(2, 1))
    server.say(URLS, 200, page(0, 2, "2"))
    links = ReceiptLinks(service, whole)
    first, second, third = whole.files

    stale = links.origin(first, None)
    others = [links.origin(second, None).url, links.origin(third, None).url]
    fresh = links.origin(first, stale)

    assert (stale.url[-5:], fresh.url[-5:]) == ("0?g=1", "0?g=2")
    assert [url[-5:] for url in others] == ["1?g=1", "2?g=1"]
    assert links.origin(second, None).url.endswith("1?g=2")
    assert [query["after"] for _, query, _ in server.asked] == [["0"], ["2"], ["0"]]
    assert {query["receipt"][0] for _, query, _ in server.asked} == {whole.digest}


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"files": []},
        {"files": "x"},
        {"files": [{"url": "https://one.example"}]},
        {"files": [{"url": "file:///etc/passwd"}] * 2},
        {"files": [{"url": "https://[store.example/"}] * 2},
        {"files": [{"url": "https:///store.example"}] * 2},
        {"files": [{"url": None}] * 2},
        {"files": ["https://store.example"] * 2},
    ],
)
def test_links_that_make_no_sense_are_refused(server, service, body) -> None:
    server.say(URLS, 200, body)
    whole = receipt()

    with pytest.raises(NotARegistry):
        ReceiptLinks(service, whole).origin(next(iter(whole.files)), None)


# --------------------------------------------------------------------------- the route of Studio

KEY = "https://store.example/files/md5/ab/cdef0123456789abcdef0123456789"


def test_a_service_of_studio_s_gives_links_with_the_md5_in_them(server, service) -> None:
    server.say(STUDIO, 200, {"m.pkl": f"{KEY}?sig=1"}, X_Registry_Revision="a" * 40)

    links = service.studio("r", M)

    assert [(it.path, it.md5) for it in links.files] == [
        ("m.pkl", "abcdef0123456789abcdef0123456789")
    ]
    assert links.revision == "a" * 40


def test_it_is_not_asked_for_a_revision_which_it_would_overlook(server, service) -> None:
    with pytest.raises(InvalidRequest):
        service.studio("r", Selector.parse("m", rev="b" * 40))

    assert server.asked == []


def test_its_fresh_links_are_to_the_same_objects(server, service) -> None:
    server.say(STUDIO, 200, {"m.pkl": f"{KEY}?sig=1"})
    server.say(STUDIO, 200, {"m.pkl": f"{KEY}?sig=2"})
    links = service.studio("r", M)
    (file,) = links.files

    stale = links.origin(file, None)

    assert links.origin(file, stale).url == f"{KEY}?sig=2"


@pytest.mark.parametrize(
    "later",
    [
        {"m.pkl": f"{KEY[:-1]}0?sig=2"},
        {"other.pkl": f"{KEY}?sig=2"},
        {"m.pkl": f"{KEY}?sig=2", "more": f"{KEY}?sig=2"},
    ],
)
def test_a_stage_that_moved_meanwhile_does_not_mix_two_models(server, service, later) -> None:
    server.say(STUDIO, 200, {"m.pkl": f"{KEY}?sig=1"})
    server.say(STUDIO, 200, later)
    links = service.studio("r", M)
    (file,) = links.files

    with pytest.raises(ArtifactMoved):
        links.origin(file, links.origin(file, None))


def test_a_revision_that_is_another_one_by_now_is_noticed(server, service) -> None:
    server.say(STUDIO, 200, {"m": "https://h/objects/1"}, X_Registry_Revision="a" * 40)
    server.say(STUDIO, 200, {"m": "https://h/objects/2"}, X_Registry_Revision="b" * 40)
    links = service.studio("r", M)
    (file,) = links.files

    with pytest.raises(ArtifactMoved):
        links.origin(file, links.origin(file, None))


@pytest.mark.parametrize(
    "body",
    [
        {"../evil": KEY},
        {"/etc/passwd": KEY},
        {"a": KEY, "a/b": KEY},
        {"a": "javascript:1"},
        {},
        [],
    ],
)
def test_its_answers_are_not_believed_either(server, service, body) -> None:
    server.say(STUDIO, 200, body)

    with pytest.raises(RegistryError):
        service.studio("r", M)


# ------------------------------------------------------------------------------------- proxies


def test_a_proxy_is_used_where_the_environment_says_so(server) -> None:
    """The proxy is asked for the whole URL, of a host that nobody else could find."""
    server.say("/x", 200, b"by proxy")
    connections = Connections(1, Proxies({"http": server.url, "no": "direct.invalid"}))

    answer = connections.pool("http://store.invalid/x").request("GET", "http://store.invalid/x")

    assert answer.data == b"by proxy"
    assert connections.pool("http://direct.invalid/x") is connections.pool("https://other/")
    connections.close()
