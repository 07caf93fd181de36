"""Clients that are slow, silent, gone or too large, with no proxy before the service."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from gitrepo import GitRepository
from servers import registry as server
from service import WebServer, artifacts, digest, output, remote

from faults.observer import ENDPOINT, Observer, until
from faults.origins import BUCKET, LINKS, model
from faults.processes import Burden, needs_linux, workers
from faults.wire import Connection, request
from registry.dvc.manifest import object_key

pytestmark = [pytest.mark.servers, needs_linux]
NAME = "team/models"
ALIVE = request("/healthz")
CROWD = 200
FILES = 20_000  # megabytes of links: more than what fits into the buffers of a connection
GONE = 10_000
STORE = {
    "url": BUCKET,
    "repositories": ["*"],
    "access_key_id": "AKIATEST",
    "secret_access_key": "canary-in-the-keys-of-the-store",
}


@pytest.fixture(scope="module")
def watched(tmp_path_factory, servers_directory) -> Iterator[Observer]:
    """One service that takes it all: it is the same processes until the end."""
    directory = servers_directory / "faults-http"
    directory.mkdir()
    origin = model(tmp_path_factory.mktemp("http") / "models.git")
    key = "canary-in-the-key-that-signs-tokens-and-links"
    repository = {"name": NAME, "url": str(origin.path)}
    with (
        server.start(directory, [repository], [STORE], secret_key=key) as service,
        Observer(
            service, {NAME: origin}, granted=[LINKS], secrets=[key, STORE["secret_access_key"]]
        ) as watched,
    ):
        before = workers(service.pid)
        yield watched
        assert workers(service.pid) == before


def question(watched: Observer, name: str = "m") -> bytes:
    return request(f"{ENDPOINT}?repo={NAME}&name={name}", f"Authorization: token {watched.token}")


def crowd(
    watched: Observer, held: ExitStack, count: int = CROWD, receive: int | None = None
) -> list[Connection]:
    url = watched.service.url
    return [held.enter_context(Connection(url, receive=receive)) for _ in range(count)]


def test_a_small_answer_is_one_segment(watched) -> None:
    """In two, the second one could wait for the client's kernel to have seen the first: 40 ms."""
    asked = [question(watched), ALIVE, question(watched, "unknown"), request("/readyz")]
    with Connection(watched.service.url) as client:
        for count, data in enumerate(asked * 5, 1):
            client.send(data)
            client.answer()
            assert client.segments() == count
        client.send(request("/healthz", method="HEAD"))
        client.answer(has_body=False)
        assert client.segments() == len(asked) * 5 + 1


def test_a_client_that_asks_whether_to_go_on_is_told_before_anything_else(watched) -> None:
    head = request("/hooks/github", "Content-Length: 2", "Expect: 100-continue", method="POST")
    with Connection(watched.service.url) as client:
        client.send(head)
        assert client.answer()[0] == 100
        client.send(b"{}")
        assert client.answer()[0] == 401


def test_clients_that_say_nothing_keep_nobody_waiting(watched) -> None:
    with ExitStack() as held:
        silent = crowd(watched, held)

        assert watched.ask(NAME).status == 200
        for client in silent:  # nor are they forgotten
            client.send(ALIVE)
        assert {client.answer()[0] for client in silent} == {200}


def test_clients_that_keep_their_connections_keep_nobody_waiting(watched) -> None:
    with ExitStack() as held:
        idle = crowd(watched, held)
        for client in idle:
            client.send(ALIVE)
        assert {client.answer()[0] for client in idle} == {200}

        assert watched.ask(NAME).status == 200
        for client in idle:
            client.send(ALIVE)
        assert {client.answer()[0] for client in idle} == {200}


def test_requests_that_come_in_one_piece_are_answered_one_by_one_and_keep_nobody_waiting(
    watched,
) -> None:
    with ExitStack() as held:
        greedy = crowd(watched, held)
        for client in greedy:
            client.send(ALIVE * 50 + request("/healthz", "Connection: close"))

        assert watched.ask(NAME).status == 200
        for client in greedy:
            assert {client.answer()[0] for _ in range(51)} == {200}
            assert until(client.is_closed)


def test_a_connection_that_nothing_more_comes_on_is_closed(tmp_path, servers_directory) -> None:
    directory = servers_directory / "faults-idle"
    directory.mkdir()
    options = {"GUNICORN_CMD_ARGS": "--keep-alive 1"}
    with (
        server.start(directory, [], [], environ=options) as service,
        Connection(service.url) as client,
    ):
        for _ in range(3):
            client.send(ALIVE)
            assert client.answer()[0] == 200
        assert until(client.is_closed)


@pytest.mark.parametrize("data", [request("/healthz", "Connection: close"), b"nonsense\r\n\r\n"])
def test_clients_that_do_not_hang_up_keep_nobody_waiting(watched, data) -> None:
    """Each was told that the connection is over, and keeps its own end."""
    with ExitStack() as held:
        for client in crowd(watched, held):
            client.send(data)

        assert watched.ask(NAME).status == 200


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"GET /healthz HTTP/1.1\r\nX: ", b"x"),
        (request("/hooks/github", "Content-Length: 1000", method="POST") + b"{", b""),
    ],
    ids=["head", "body"],
)
def test_what_does_not_come_is_not_waited_for(watched, begun, more) -> None:
    """Far more clients than threads, some of which send a byte now and then."""
    with ExitStack() as held:
        slow = crowd(watched, held)
        for client in slow:
            client.send(begun)
        # Each of them has its seconds, and the last one has no more than the first.
        assert watched.client(timeout=20).ask(NAME).status == 200

        def all_closed() -> bool:
            for client in slow:
                client.send(more)
            return all(client.is_closed() for client in slow)

        until(all_closed)


def long_line(length: int) -> bytes:
    path = "/healthz?" + "x" * (length - len("GET /healthz? HTTP/1.1"))
    return request(path, "Connection: close")


LIMITS = [
    (200, long_line(8190)),
    (414, long_line(8191)),
    (414, long_line(100_000)),
    (200, request("/healthz", "X: " + "x" * 8000, "Connection: close")),
    (431, request("/healthz", "X: " + "x" * 65_536)),
    (431, request("/healthz", *["X: y"] * 65)),
    (401, request("/hooks/github", method="POST", body=b"x" * (1 << 20))),
    (413, request("/hooks/github", method="POST", body=b"x" * ((1 << 20) + 1))),
    (413, request("/hooks/github", "Content-Length: 9999999999", method="POST")),
    (400, b"nonsense\r\n\r\n"),
    (501, request("/healthz", "Transfer-Encoding: xchunked")),
    (200, request("/healthz", "Connection: close", body=b"x" * 65_536)),
]


def test_what_is_too_large_or_no_http_is_refused_in_one_form_and_costs_no_worker(watched) -> None:
    before = workers(watched.service.pid)
    for status, data in LIMITS:
        with Connection(watched.service.url) as client:
            client.send(data)
            given, headers, body = client.answer()
        assert given == status, data[:40]
        assert headers["content-type"] == "application/json"
        assert status == 200 or {"detail", "code"} <= json.loads(body).keys()
        assert ("retry-after" in headers) == (status >= 500)

    assert watched.ask(NAME).status == 200
    assert workers(watched.service.pid) == before


def test_a_client_whose_body_was_not_read_is_told_that_the_connection_is_over(watched) -> None:
    """Or else its next request would be lost."""
    large = b"x" * (1 << 20)
    for length, kept in ((100, True), (len(large), True), (len(large) + 1, False)):
        data = request("/hooks/github", f"Content-Length: {length}", method="POST")
        with Connection(watched.service.url) as client:
            client.send(data + large[:length])
            _, headers, _ = client.answer()
            assert (headers["connection"] == "keep-alive") is kept
            client.send(ALIVE)
            if kept:
                assert client.answer()[0] == 200
            else:
                with pytest.raises((EOFError, ConnectionError)):
                    client.answer()


@pytest.fixture
def streaming(serve, tmp_path) -> Iterator[Observer]:
    """A service whose artifact `m` is a directory of so many files that its answer is streamed."""
    files = [{"md5": digest(str(n)), "relpath": f"part-{n:05}.bin"} for n in range(FILES)]
    manifest = json.dumps(files).encode()
    md5 = f"{digest(manifest)}.dir"
    with WebServer({f"/dvc/{object_key(md5, legacy=False)}": manifest}) as store:
        origin = GitRepository(tmp_path / "models.git")
        origin.commit(
            {
                ".dvc/config": remote(f"{store.url}/dvc"),
                "dvc.yaml": artifacts(m="data"),
                "data.dvc": output("data", md5),
            }
        )
        origin.tag("m@v1.0.0")
        location = {"url": f"{store.url}/dvc", "repositories": ["*"]}
        yield serve({NAME: origin}, storage=[location], granted=[f"{store.url}/dvc/"])


def test_clients_that_go_away_or_do_not_read_on_leave_nothing_behind(streaming) -> None:
    url, asked = streaming.service.url, question(streaming)

    def go_away(_: object) -> bool:
        with Connection(url, receive=4096) as client:
            client.send(asked)
            begun = client.socket.recv(512).startswith(b"HTTP/1.1 200 ")
            client.reset()
        return begun

    def many(count: int) -> None:
        with ThreadPoolExecutor(32) as clients:
            begun = sum(clients.map(go_away, range(count)))
        assert begun >= count * 0.9  # nobody is waited for for ever: a crowd may be told 503

    for _ in range(8):  # both workers have read the directory
        assert len(streaming.ask(NAME).links) == FILES
    many(GONE // 10)
    before, there = Burden.of(streaming.service.pid), workers(streaming.service.pid)
    with ExitStack() as held:
        deaf = crowd(streaming, held, 4, receive=4096)
        for client in deaf:
            client.send(asked)
        many(GONE)
        until(lambda: all(client.is_refused() for client in deaf))
    # One for a hundred clients would be too much; a pool of threads may have grown to its size.
    until(lambda: Burden.of(streaming.service.pid).files <= before.files + GONE // 100)
    after = Burden.of(streaming.service.pid)
    assert after.threads <= before.threads + 2 * 16
    assert after.memory <= before.memory + (24 << 20)
    assert workers(streaming.service.pid) == there
    assert len(streaming.ask(NAME).links) == FILES
