"""A store that is down, slow or wrong: what is known goes on, what is not is refused in time."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import CalledProcessError
from urllib.parse import urlsplit

import pytest
import urllib3
from gitrepo import GitRepository
from servers import registry as server
from servers import s3
from service import WebServer, artifacts, digest, key, output, remote

from faults.observer import Observer, until
from faults.proxy import Proxy

pytestmark = pytest.mark.servers
NAME, BUCKET = "team/models", "stores"
PREFIX = f"{BUCKET}/dvc"


def listing(number: str) -> str:
    return json.dumps([{"md5": digest(f"{name} of {number}"), "relpath": name} for name in "ab"])


def directories(*numbers: str) -> dict[str, str]:
    """An artifact `d<number>` for each, which is a directory of its own, and the file `m`."""
    paths = {"m": "model.pkl", **{f"d{number}": f"data{number}" for number in numbers}}
    return {
        ".dvc/config": remote(f"s3://{PREFIX}"),
        "dvc.yaml": artifacts(**paths),
        "model.pkl.dvc": output("model.pkl", digest("model")),
        **{
            f"data{number}.dvc": output(f"data{number}", f"{digest(listing(number))}.dir")
            for number in numbers
        },
    }


class Shop:
    """A service before a store that is reached through a proxy: artifacts `d0`, `d1`, ... are
    directories, of which the service knows `d0` when the test begins; `m` is a file.
    """

    def __init__(self, watched: Observer, proxy: Proxy, store: s3.Server) -> None:
        self.watched = watched
        self.proxy = proxy
        self._store = store

    def put(self, number: str, data: str | None = None) -> None:
        """What the store has where the directory `d<number>` is listed: what it should, if not
        `data`.
        """
        name = f"{PREFIX[len(BUCKET) + 1 :]}/{key(listing(number))}.dir"
        self._store.put(BUCKET, name, (data or listing(number)).encode())

    def ask(self, name: str) -> tuple[int, dict[str, object]]:
        """Status and body."""
        answer = self.watched.ask(NAME, name)
        return answer.status, json.loads(answer.body)

    def paths(self, name: str) -> set[str]:
        return set(self.watched.ask(NAME, name).links)

    def problem(self) -> str | None:
        """What /readyz says of the location."""
        state = json.loads(self.watched.get("/readyz").body)
        assert state["status"] == "ready"
        problem: str | None = state["locations"][f"s3://{PREFIX}"]["problem"]
        return problem

    def is_failing(self) -> bool:
        """What /metrics says of it."""
        name = f'registry_location_failing{{location="s3://{PREFIX}"}} 1.0'
        return name in self.watched.get("/metrics").body.decode()


@pytest.fixture(scope="module")
def shop(
    servers_directory: Path, tmp_path_factory: pytest.TempPathFactory, seaweedfs
) -> Iterator[Shop]:
    """One worker, so that what a test made it see is what it is asked for."""
    directory = servers_directory / "stores"
    directory.mkdir()
    origin = GitRepository(tmp_path_factory.mktemp("stores") / "models.git")
    numbers = [str(number) for number in range(12)]
    origin.commit(directories(*numbers))
    for name in ("m", *(f"d{number}" for number in numbers)):
        origin.tag(f"{name}@v1.0.0")
    seaweedfs.create_bucket(BUCKET)
    target = urlsplit(seaweedfs.endpoint_url).port
    with ExitStack() as running:
        proxy = running.enter_context(Proxy(target))
        location = {
            "url": f"s3://{PREFIX}",
            "repositories": ["*"],
            "endpoint_url": proxy.url,
            "addressing_style": "path",
            "access_key_id": seaweedfs.keys.access_key_id,
            "secret_access_key": seaweedfs.keys.secret_access_key,
        }
        repository = {"name": NAME, "url": str(origin.path), "refresh": 3600}
        service = running.enter_context(
            server.start(directory, [repository], [location], workers=1, metrics="public")
        )
        watched = Observer(
            service,
            {NAME: origin},
            granted=[f"{proxy.url}/{PREFIX}/"],
            secrets=[seaweedfs.keys.secret_access_key],
        )
        shop = Shop(running.enter_context(watched), proxy, seaweedfs)
        for number in numbers:
            shop.put(number)
        assert shop.paths("d0") == {"data0/a", "data0/b"}
        yield shop


def trickle(proxy: Proxy) -> None:
    proxy.refuses()  # a connection that was kept would pass on what it has read already
    proxy.passes()
    proxy.trickles(20)


@pytest.mark.parametrize(
    ("number", "fault", "problem"),
    [
        ("1", lambda proxy: proxy.refuses(), "it cannot be reached"),
        ("2", lambda proxy: proxy.hangs(), "it does not answer in time"),
        ("3", trickle, "it does not answer in time"),
        ("4", lambda proxy: proxy.cuts(10), "it breaks off the connection"),
    ],
    ids=["refuses", "hangs", "trickles", "cuts"],
)
def test_what_is_known_is_served_while_the_store_fails_and_the_rest_afterwards(
    shop, number, fault, problem
) -> None:
    before = shop.paths("d0")
    fault(shop.proxy)
    try:
        missed, body = shop.ask(f"d{number}")

        assert (missed, body["code"]) == (502, "storage_unavailable")
        assert problem in str(body["detail"])
        assert shop.paths("d0") == before
        assert shop.paths("m") == {"model.pkl"}
        assert shop.problem() == problem
        assert shop.is_failing()
    finally:
        shop.proxy.passes()

    assert until(lambda: shop.ask(f"d{number}")[0] == 200)
    assert shop.paths(f"d{number}") == {f"data{number}/a", f"data{number}/b"}
    assert shop.problem() is None
    assert not shop.is_failing()


@pytest.mark.parametrize(
    ("number", "data"),
    [
        ("5", listing("of another")),
        ("6", "<!DOCTYPE html><html><body>It works!</body></html>"),
        ("7", listing("7")[:-1]),
        ("8", listing("8") + " "),
    ],
    ids=["other bytes", "html", "truncated", "longer"],
)
def test_other_bytes_than_those_of_the_md5_are_never_served_nor_kept(shop, number, data) -> None:
    shop.put(number, data)

    status, body = shop.ask(f"d{number}")
    again, _ = shop.ask(f"d{number}")

    assert (status, again, body["code"]) == (502, 502, "object_corrupt")
    assert f"{digest(listing(number))}.dir" in str(body["detail"])
    shop.put(number)
    assert shop.paths(f"d{number}") == {f"data{number}/a", f"data{number}/b"}


def test_an_object_that_was_never_pushed_is_named_until_it_is(shop) -> None:
    directory = shop.watched.service.config.parent / "data/manifests"
    kept = sorted(directory.rglob("*"))
    name = f"dvc/{key(listing('9'))}.dir"
    shop._store.client.delete_object(Bucket=BUCKET, Key=name)

    status, body = shop.ask("d9")

    assert (status, body["code"]) == (424, "object_missing")
    assert f"{digest(listing('9'))}.dir" in str(body["detail"])
    assert sorted(directory.rglob("*")) == kept
    with pytest.raises(CalledProcessError) as failed:
        shop.watched.service.command("check", "--json")
    shop.watched.hold_secrets("registry check", failed.value.stdout.encode())
    (row,) = [row for row in json.loads(failed.value.stdout) if row["kind"] == "artifact"]
    assert (row["ok"], row["name"]) == (False, f"{NAME} d9")
    assert f"{digest(listing('9'))}.dir" in row["result"]
    shop.put("9")
    assert shop.paths("d9") == {"data9/a", "data9/b"}


def test_a_file_that_was_never_pushed_has_a_link_that_finds_nothing_until_it_is(shop) -> None:
    """As DVC Studio answered: nothing is asked of a store for a single file."""
    link = shop.watched.ask(NAME).links["model.pkl"]

    with urllib3.PoolManager(retries=False) as pool:
        assert pool.request("GET", link).status == 404
        shop._store.put(BUCKET, f"dvc/{key('model')}", b"model")
        assert pool.request("GET", link).data == b"model"


def test_a_download_through_the_gateway_ends_in_time_or_visibly_too_early(serve, tmp_path) -> None:
    data = bytes(1 << 20)
    origin = GitRepository(tmp_path / "models.git")
    with WebServer({f"/dvc/{key(data)}": data}) as web, Proxy(urlsplit(web.url).port) as proxy:
        origin.commit(
            {
                ".dvc/config": remote(f"{proxy.url}/dvc"),
                "dvc.yaml": artifacts(m="model.pkl"),
                "model.pkl.dvc": output("model.pkl", digest(data)),
            }
        )
        origin.tag("m@v1.0.0")
        location = {"url": proxy.url, "repositories": ["*"], "signing": "gateway"}
        watched = serve({NAME: origin}, storage=[location], workers=1)
        until(lambda: watched.ask(NAME).status == 200)
        link = watched.ask(NAME).links["model.pkl"]
        path = urlsplit(link).path

        for fault in (proxy.refuses, proxy.hangs):
            fault()
            answer = watched.get(path)
            assert (answer.status, json.loads(answer.body)["code"]) == (502, "storage_unavailable")
            proxy.passes()
        proxy.cuts(len(data) // 2)
        with pytest.raises(urllib3.exceptions.ProtocolError):
            watched.get(path)
        proxy.passes()

        assert watched.get(path).body == data


class Liar:
    """A web server whose answers begin well: `says` is sent at once, and then `drips` over and
    over, a little at a time.
    """

    def __init__(self, says: bytes, drips: bytes) -> None:
        self._says = says
        self._drips = drips
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @contextmanager
    def running(self) -> Iterator["Liar"]:
        threads = [threading.Thread(target=self._take)]
        threads[0].start()
        try:
            yield self
        finally:
            self._over.set()
            self._listener.shutdown(socket.SHUT_RDWR)
            threads[0].join()
            self._listener.close()

    def _take(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65_536)
                connection.sendall(self._says)
                while self._drips and not self._over.wait(0.05):
                    connection.sendall(self._drips)
            except OSError:
                pass  # whoever asked has heard enough


LIES = {
    "headers without end": (b"HTTP/1.1 200 OK\r\n", b"X"),
    "a body without end": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"["),
    "a length that is too long": (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n[]", b""),
    "a length that is too short": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n[]", b""),
    "no http": (b"220 smtp.example ESMTP\r\n", b""),
    "a part of what nobody asked for": (
        b"HTTP/1.1 206 Partial Content\r\n"
        b"Content-Length: 2\r\nContent-Range: bytes 0-1/9\r\n\r\n[]",
        b"",
    ),
}


def test_a_store_that_lies_about_its_answer_keeps_nobody_waiting(serve, tmp_path) -> None:
    """All at once, and somebody asks for something else meanwhile."""
    origin = GitRepository(tmp_path / "models.git")
    numbers = [str(number) for number in range(len(LIES))]
    files = directories(*numbers)
    with ExitStack() as running:
        urls = [running.enter_context(Liar(*lie).running()).url for lie in LIES.values()]
        for number, url in zip(numbers, urls, strict=True):
            files[f"data{number}.dvc"] += f"  remote: liar{number}\n"
            files[".dvc/config"] += f"['remote \"liar{number}\"']\n    url = {url}/dvc\n"
        origin.commit(files)
        for name in ("m", *(f"d{number}" for number in numbers)):
            origin.tag(f"{name}@v1.0.0")
        watched = serve(
            {NAME: origin},
            storage=[
                *({"url": url, "repositories": ["*"]} for url in urls),
                {"url": f"s3://{PREFIX}", "repositories": ["*"], "access_key_id": "A",
                 "secret_access_key": "canary-in-the-keys-of-the-store"},
            ],
            granted=[f"https://{BUCKET}.s3.amazonaws.com/dvc/"],
            workers=1,
        )  # fmt: skip
        assert until(lambda: watched.ask(NAME).status == 200)
        clients = {number: watched.client() for number in numbers}
        answers = {}
        threads = [
            threading.Thread(
                target=lambda it=it: answers.update({it: clients[it].ask(NAME, f"d{it}")})
            )
            for it in numbers
        ]
        for thread in threads:
            thread.start()
        assert watched.ask(NAME).status == 200
        for thread in threads:
            thread.join()

        codes = {json.loads(answer.body)["code"] for answer in answers.values()}
        assert {number: answers[number].status for number in answers} == dict.fromkeys(numbers, 502)
        assert codes == {"storage_unavailable", "object_corrupt"}
        assert watched.ask(NAME).status == 200
