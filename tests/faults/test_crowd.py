"""A thousand clients at once: one look at the origin, and one answer for all of them."""

import json
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import gitserver
import pytest

from faults.observer import ENDPOINT, Observer, until
from faults.origins import model
from faults.wire import Connection, request

pytestmark = pytest.mark.servers
CROWD = 1000


@dataclass(frozen=True)
class Told:
    """What one of them was told: all that is the same for everybody."""

    status: int
    revision: str | None
    tag: str | None
    places: tuple[tuple[str, str], ...]
    code: str | None


def ask_together(watched: Observer, repository: str) -> list[Told]:
    """All of them are connected before the first one asks, and all ask before one listens."""
    path = f"{ENDPOINT}?repo={repository}&name=m&stage=prod"
    data = request(path, f"Authorization: token {watched.token}")
    with ExitStack() as open_, room_for(2 * CROWD):
        crowd = [
            open_.enter_context(Connection(watched.service.url, timeout=60)) for _ in range(CROWD)
        ]
        for client in crowd:
            client.send(data)
        return [told(watched, *client.answer()) for client in crowd]


def told(watched: Observer, status: int, headers: dict[str, str], body: bytes) -> Told:
    found = json.loads(body)
    if status != 200:
        assert int(headers["retry-after"]) > 0
        return Told(status, None, None, (), found["code"])
    watched.hold_links(found, "an answer to the crowd")
    places = tuple((path, link.partition("?")[0]) for path, link in found.items())
    revision, tag = headers["x-registry-revision"], headers["x-registry-tag"]
    return Told(status, revision, tag, places, None)


@contextmanager
def room_for(files: int) -> Iterator[None]:
    """This process may have so many files open."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(files, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_thousand_clients_get_one_answer_for_one_look_at_the_origin(serve, tmp_path) -> None:
    origins = {name: model(tmp_path / f"{name}.git") for name in ("alone", "crowd")}
    with gitserver.serve_http(tmp_path) as git:
        hosted = {
            name: (origin, {"url": f"{git.url}/{name}.git"}) for name, origin in origins.items()
        }
        watched = serve(hosted, repository={"refresh": 3600})

        def looks(name: str) -> int:
            return sum(f"/{name}.git/" in line for line in git.requests)

        until(lambda: watched.ask("alone", stage="prod").status == 200)
        expected = watched.ask("alone", stage="prod")

        cold = set(ask_together(watched, "crowd"))
        until(lambda: watched.ask("crowd", stage="prod").status == 200)
        warm = set(ask_together(watched, "crowd"))

        (answer,) = warm
        assert (answer.revision, answer.tag) == (origins["crowd"].head(), expected.tag)
        # Whoever was not patient enough for the first look was told to come again, and no less.
        assert cold - warm <= {Told(503, None, None, (), "mirror_not_ready")}
        assert looks("crowd") == looks("alone")
