"""A clock that is wrong: links that a store would refuse, or take for too long, are not made."""

import json
import os
import re
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
import urllib3
from gitrepo import GitRepository
from service import artifacts, digest, key, output, remote

from faults.clock import Clock
from faults.observer import Answer, Observer, until
from faults.proxy import Proxy

pytestmark = pytest.mark.servers
NAME, BUCKET = "team/models", "clocks"


def ask(watched: Observer) -> Answer:
    """By a new client each time: to one, a clock that jumps looks like going back in time."""
    return watched.client().ask(NAME)


def ready(watched: Observer) -> dict[str, dict[str, object]]:
    state: dict[str, dict[str, object]] = json.loads(watched.get("/readyz").body)
    return state


def check(watched: Observer, clock: Clock) -> tuple[bool, int]:
    """Whether `registry check`, with the same clock, has nothing against the location, and by how
    much it says that the clocks differ, to ten seconds.
    """
    command = [sys.executable, "-m", "registry", "check", "--json"]
    done = subprocess.run(
        [*command, "--config", str(watched.service.config)],
        env={**os.environ, **clock.environ},
        stdout=subprocess.PIPE,
        check=False,
    )
    (row,) = [row for row in json.loads(done.stdout) if row["kind"] == "storage"]
    told = re.search(r"differ by (\d+) s", row["result"])
    assert told, row["result"]
    return row["ok"], round(int(told[1]), -1)


def ahead(watched: Observer) -> float | None:
    """By how much the service says that its clock is ahead of the store's."""
    text = watched.get("/metrics").body.decode()
    found = re.search(r"^registry_store_clock_ahead_seconds\{.*\} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


def test_no_link_is_signed_by_a_clock_that_differs_from_the_stores(
    serve, seaweedfs, tmp_path
) -> None:
    origin = GitRepository(tmp_path / "models.git")
    origin.commit(
        {
            ".dvc/config": remote(f"s3://{BUCKET}"),
            "dvc.yaml": artifacts(m="model.pkl"),
            "model.pkl.dvc": output("model.pkl", digest("model")),
        }
    )
    origin.tag("m@v1.0.0")
    seaweedfs.create_bucket(BUCKET)
    seaweedfs.put(BUCKET, key("model"), b"model")
    clock = Clock(tmp_path / "clock")
    location = {
        "url": f"s3://{BUCKET}",
        "repositories": ["*"],
        "endpoint_url": seaweedfs.endpoint_url,
        "access_key_id": seaweedfs.keys.access_key_id,
        "secret_access_key": seaweedfs.keys.secret_access_key,
    }
    watched = serve(
        {NAME: origin},
        storage=[location],
        granted=[f"{seaweedfs.endpoint_url}/{BUCKET}/"],
        secrets=[seaweedfs.keys.secret_access_key],
        environ=clock.environ,
        workers=1,
    )
    watched.clock = clock

    # The store is asked for its time without anybody else asking for anything.
    until(lambda: ahead(watched) is not None)
    link = ask(watched).links["model.pkl"]
    with urllib3.PoolManager(retries=False) as pool:
        assert pool.request("GET", link).data == b"model"
    assert "warnings" not in ready(watched)

    for seconds in (100, -100):
        clock.set(seconds)
        state = ready(watched)

        assert state["status"] == "ready"
        assert "that of a store" in str(state["warnings"]["clock"])
        assert round(ahead(watched) or 0, -1) == seconds
        assert ask(watched).status == 200
    assert check(watched, clock) == (True, 100)

    for seconds in (400, -400):
        clock.set(seconds)
        answer = ask(watched)

        assert (answer.status, json.loads(answer.body)["code"]) == (503, "clock_skewed")
        assert "differ by" in answer.detail
        unready = watched.get("/readyz")
        assert unready.status == 503
        assert "every store" in json.loads(unready.body)["checks"]["clock"]
        (location,) = ready(watched)["locations"].values()
        assert "its clock and ours differ" in location["problem"]

    assert check(watched, clock) == (False, 400)
    clock.set(0)
    assert ask(watched).status == 200
    assert "warnings" not in ready(watched)


def test_a_service_that_starts_with_a_wrong_clock_finds_out(serve, seaweedfs, tmp_path) -> None:
    """Also when its store is only reached later, and by what the store says to a read."""
    listing = json.dumps([{"md5": digest("a"), "relpath": "a"}])
    origin = GitRepository(tmp_path / "models.git")
    origin.commit(
        {
            ".dvc/config": remote(f"s3://{BUCKET}"),
            "dvc.yaml": artifacts(m="data"),
            "data.dvc": output("data", f"{digest(listing)}.dir"),
        }
    )
    origin.tag("m@v1.0.0")
    seaweedfs.create_bucket(BUCKET)
    seaweedfs.put(BUCKET, f"{key(listing)}.dir", listing.encode())
    clock = Clock(tmp_path / "clock", ahead=-7200)
    with Proxy(urlsplit(seaweedfs.endpoint_url).port) as proxy:
        proxy.refuses()
        location = {
            "url": f"s3://{BUCKET}",
            "repositories": ["*"],
            "endpoint_url": proxy.url,
            "access_key_id": seaweedfs.keys.access_key_id,
            "secret_access_key": seaweedfs.keys.secret_access_key,
        }
        watched = serve(
            {NAME: origin},
            storage=[location],
            granted=[f"{proxy.url}/{BUCKET}/"],
            secrets=[seaweedfs.keys.secret_access_key],
            environ=clock.environ,
            workers=1,
        )
        watched.clock = clock
        assert until(lambda: ask(watched).status == 502)
        assert "warnings" not in ready(watched)

        proxy.passes()
        answer = ask(watched)

        # The store refuses what was signed two hours ago, and says what time it is.
        assert (answer.status, json.loads(answer.body)["code"]) == (503, "clock_skewed")
        clock.set(0)
        assert set(ask(watched).links) == {"data/a"}
