"""Credentials that end, are renewed, or cannot be: every link lives as long as it says."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from gitrepo import GitRepository
from service import artifacts, digest, remote

from faults.clock import Clock
from faults.observer import ENDPOINT, Answer, Observer, until
from registry.domain import Entry, RelPath
from registry.storage.s3 import S3Signer, static_credentials

pytestmark = pytest.mark.servers
NAME, BUCKET = "team/models", "credentials"
NOWHERE = "http://127.0.0.1:9"
"""A store that says nothing, and so not what time it is there. Links to it are made offline."""
FILES = 50


class Source:
    """Hands out temporary keys as a container's agent does, each with an end of its own: the first
    is called KEY-1. While it is `down` it refuses, and while it `hangs` it says nothing.
    """

    def __init__(self, clock: Clock, life: timedelta) -> None:
        self.number = 0
        self.down = False
        self.hangs = False
        self.over = threading.Event()
        source = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                while source.hangs and not source.over.wait(0.05):
                    pass
                if source.down:
                    self.send_error(500)
                    return
                source.number += 1
                end = datetime.fromtimestamp(clock(), timezone.utc) + life
                keys = {
                    "AccessKeyId": f"KEY-{source.number}",
                    "SecretAccessKey": secret(source.number),
                    "Token": f"token-{source.number}",
                    "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
                }
                body = json.dumps(keys).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        url = f"http://127.0.0.1:{self._server.server_port}/keys"
        self.environ = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": url, **clock.environ}

    @contextmanager
    def running(self) -> Iterator["Source"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.over.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def secret(number: int) -> str:
    return f"canary-of-the-temporary-keys-{number}"


def keys_of(answer: Answer) -> set[tuple[str, str]]:
    """The ids and the tokens that the links of an answer were signed with."""
    found = set()
    for link in answer.links.values():
        query = parse_qs(urlsplit(link).query)
        credential = query["X-Amz-Credential"][0].partition("/")[0]
        found.add((credential, query["X-Amz-Security-Token"][0]))
    return found


def number_of(answer: Answer) -> int:
    """The number of the one key that signed all of an answer."""
    ((credential, token),) = keys_of(answer)
    number = int(credential.removeprefix("KEY-"))
    assert token == f"token-{number}"
    return number


def expires(answer: Answer) -> datetime:
    return datetime.strptime(answer.headers["X-Registry-Expires"], "%Y-%m-%dT%H:%M:%S%z")


@pytest.fixture
def origin(tmp_path: Path) -> GitRepository:
    """`m` lists its files in Git, so that nothing is asked of a store."""
    listed = "".join(
        f"  - relpath: f{number}\n    md5: {digest(str(number))}\n" for number in range(FILES)
    )
    origin = GitRepository(tmp_path / "models.git")
    origin.commit(
        {
            ".dvc/config": remote(f"s3://{BUCKET}"),
            "dvc.yaml": artifacts(m="data"),
            "data.dvc": f"outs:\n- path: data\n  hash: md5\n  files:\n{listed}",
        }
    )
    origin.tag("m@v1.0.0")
    return origin


def start(serve, origin: GitRepository, clock: Clock, source: Source) -> Observer:
    location = {"url": f"s3://{BUCKET}", "repositories": ["*"], "endpoint_url": NOWHERE}
    watched = serve(
        {NAME: origin},
        storage=[location],
        granted=[f"{NOWHERE}/{BUCKET}/"],
        secrets=[secret(number) for number in range(1, 30)],
        environ=source.environ,
        repository={"refresh": 86_400},
        settings={"link_lifetime": 7200},
        workers=1,
    )
    watched.clock = clock
    return watched


def test_links_end_with_their_credentials_which_are_renewed_or_serve_to_their_last_minutes(
    serve, origin, tmp_path
) -> None:
    clock = Clock(tmp_path / "clock")
    with Source(clock, timedelta(hours=1)).running() as source:
        watched = start(serve, origin, clock, source)

        def ask() -> Answer:
            return watched.client().ask(NAME)

        def at(minutes: int) -> None:
            clock.set(60 * minutes)

        first = until(lambda: (answer := ask()).status == 200 and answer)
        assert number_of(first) == 1
        at(20)
        assert number_of(ask()) == 1
        assert expires(ask()) == expires(first)  # and not two hours after it was asked for

        at(31)
        assert until(lambda: number_of(ask()) == 2)
        renewed = expires(ask())
        assert renewed - expires(first) >= timedelta(minutes=31)

        source.down = True
        for minutes in (62, 84):
            at(minutes)
            assert number_of(ask()) == 2
            assert expires(ask()) == renewed
        source.down, source.hangs = False, True
        at(85)
        assert number_of(ask()) == 2

        at(88)
        refused = until(lambda: (answer := ask()).status != 200 and answer)
        assert (refused.status, json.loads(refused.body)["code"]) == (
            503,
            "credentials_unavailable",
        )
        (location,) = json.loads(watched.get("/readyz").body)["locations"].values()
        assert location["problem"]
        assert "registry_location_failing{" in watched.get("/metrics").body.decode()

        source.hangs = False
        at(90)
        recovered = until(lambda: (answer := ask()).status == 200 and answer)
        assert number_of(recovered) > 2
        assert expires(recovered) > renewed


def test_no_answer_mixes_two_keys_while_they_rotate_under_load(serve, origin, tmp_path) -> None:
    clock, rotations = Clock(tmp_path / "clock"), 4
    with Source(clock, timedelta(hours=1)).running() as source:
        watched = start(serve, origin, clock, source)
        until(lambda: watched.client().ask(NAME).status == 200)
        over, problems = threading.Event(), []
        newest = [0] * 8

        def load(it: int) -> None:
            client = watched.client()
            try:
                while not over.is_set():
                    answer = client.get(f"{ENDPOINT}?repo={NAME}&name=m")
                    newest[it] = number_of(answer)
                    assert len(answer.links) == FILES
                    hold_signature(answer, newest[it])
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=load, args=(it,)) for it in range(len(newest))]
        for thread in threads:
            thread.start()
        try:
            for rotation in range(1, rotations + 1):
                clock.set(2000 * rotation)
                until(lambda wanted=rotation: problems or min(newest) > wanted)
        finally:
            over.set()
            for thread in threads:
                thread.join()

        assert problems == []
        assert source.number == rotations + 1  # many threads, and one asked


def hold_signature(answer: Answer, number: int) -> None:
    """Some link is what this key signs, and not only names it."""
    path, link = next(iter(answer.links.items()))
    url = urlsplit(link)
    query = parse_qs(url.query)
    signer = S3Signer(
        BUCKET,
        credentials=static_credentials(f"KEY-{number}", secret(number), f"token-{number}"),
        endpoint_url=NOWHERE,
    )
    now = datetime.strptime(query["X-Amz-Date"][0] + "+0000", "%Y%m%dT%H%M%SZ%z")
    links = signer.links(now, int(query["X-Amz-Expires"][0]))
    key = url.path.removeprefix(f"/{BUCKET}/")

    assert links.sign(key, Entry(RelPath(path), key)) == link
