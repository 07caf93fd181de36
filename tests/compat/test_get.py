"""`registry get` and `registry.download` against a real service and real stores, with real faults.

The service signs links of two seconds, so that they are over before a test is.
"""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path

import pytest
import urllib3
from gitrepo import GitRepository
from servers import registry as registry_server
from servers.seaweedfs import SeaweedFS
from service import artifacts, key, output, remote

import registry
from registry.client import Service
from registry.domain import Selector
from registry.errors import ObjectCorrupt, ObjectMissing, TokenRefused
from registry.inquiry import AtService, InGit, at, connections_of
from registry.transfer import Job
from registry.user import User

pytestmark = pytest.mark.servers

BUCKET, LIFETIME = "get", 2
PATIENCE = 30.0
NAME = "team/models"
MODEL = {"v1.0.0": os.urandom(3 << 20), "v2.0.0": os.urandom(3 << 20)}
TOKENS = {f"part {n:02}/é+%{n}.bin": f"token {n}".encode() * n for n in range(30)}


@dataclass(frozen=True)
class Published:
    origin: GitRepository
    store: SeaweedFS
    service: registry_server.Service
    token: str

    def user(self, directory: Path, **more: object) -> User:
        """Somebody with a token and nothing else."""
        given = {"service": self.service.url, "token": self.token, **more}
        return User(directory=directory, cache=directory / "cache", **given)

    def own_keys(self) -> dict[str, str]:
        """The environment of somebody with keys of the store, and no service."""
        return {
            "AWS_ACCESS_KEY_ID": self.store.keys.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.store.keys.secret_access_key,
            "AWS_ENDPOINT_URL_S3": self.store.endpoint_url,
            "AWS_REGION": "us-east-1",
        }


def put(store: SeaweedFS, data: bytes, suffix: str = "") -> str:
    digest = md5(data).hexdigest()
    store.put(BUCKET, f"dvc/{key(data)}{suffix}", data)
    return digest + suffix


def files_of(store: SeaweedFS, data: bytes) -> dict[str, str]:
    listed = [{"md5": put(store, text), "relpath": path} for path, text in sorted(TOKENS.items())]
    tokens = put(store, json.dumps(listed, sort_keys=True).encode(), ".dir")
    recorded = output("m.pkl", put(store, data)).replace("size: 1", f"size: {len(data)}")
    return {
        ".dvc/config": remote(f"s3://{BUCKET}/dvc"),
        "dvc.yaml": artifacts(m="models/m.pkl", tokens="tokens"),
        "models/m.pkl.dvc": recorded,
        "tokens.dvc": output("tokens", tokens),
    }


@pytest.fixture(scope="module")
def published(seaweedfs, tmp_path_factory, servers_directory) -> Iterator[Published]:
    seaweedfs.create_bucket(BUCKET)
    origin = GitRepository(tmp_path_factory.mktemp("get") / "origin.git")
    for version, data in MODEL.items():
        origin.commit(files_of(seaweedfs, data))
        origin.tag(f"m@{version}")
    origin.tag("tokens@v1.0.0")
    origin.tag("m#prod#1", origin.git("rev-parse", "main^"))
    own = servers_directory / "get"
    own.mkdir()
    storage = {
        "url": f"s3://{BUCKET}/dvc",
        "repositories": ["*"],
        "endpoint_url": seaweedfs.endpoint_url,
        "access_key_id": seaweedfs.keys.access_key_id,
        "secret_access_key": seaweedfs.keys.secret_access_key,
    }
    repository = {"url": str(origin.path), "name": NAME, "refresh": 0}
    with registry_server.start(own, [repository], [storage], link_lifetime=LIFETIME) as service:
        yield Published(origin, seaweedfs, service, service.token())


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path) -> None:
    for name in list(os.environ):
        if name.startswith(("REGISTRY_", "DVC_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REGISTRY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def as_reader(published, monkeypatch) -> None:
    """With a service and a token in the environment, and no access to anything else."""
    monkeypatch.setenv("REGISTRY_URL", published.service.url)
    monkeypatch.setenv("REGISTRY_TOKEN", published.token)


def tree(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def tokens() -> dict[str, bytes]:
    return {f"tokens/{path}": data for path, data in TOKENS.items()}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"stage": "prod"}, "v1.0.0"),
        ({"version": "v1.0.0"}, "v1.0.0"),
        ({}, "v2.0.0"),
    ],
)
def test_a_token_is_enough_to_download_a_model(published, as_reader, tmp_path, asked, expected):
    paths = registry.download(NAME, "m", **asked, to=tmp_path / "out")

    assert paths == [tmp_path / "out/models/m.pkl"]
    assert tree(tmp_path / "out") == {"models/m.pkl": MODEL[expected]}


def test_a_directory_is_downloaded_with_keys_of_one_s_own(published, tmp_path, monkeypatch):
    for name, value in published.own_keys().items():
        monkeypatch.setenv(name, value)

    registry.download(str(published.origin.path), "tokens", to=tmp_path / "out")

    assert tree(tmp_path / "out") == tokens()


@pytest.mark.parametrize("whose", ["the service's", "one's own"])
def test_links_download_with_curl(published, as_reader, tmp_path, monkeypatch, whose):
    repo = NAME
    if whose == "one's own":
        monkeypatch.delenv("REGISTRY_URL")
        repo = str(published.origin.path)
        for name, value in published.own_keys().items():
            monkeypatch.setenv(name, value)

    (link,) = registry.get_download_uris(repo, "m", "v1.0.0").values()

    command = ["curl", "--fail", "--silent", "--show-error", "--output", str(tmp_path / "m"), link]
    subprocess.run(command, check=True, timeout=PATIENCE)
    assert (tmp_path / "m").read_bytes() == MODEL["v1.0.0"]


def test_links_are_given_to_a_revision_as_well(published, as_reader, tmp_path):
    first = published.origin.git("rev-parse", "main^")

    done = run("urls", NAME, "m", "--rev", first, cwd=tmp_path, environ={})

    with urllib3.PoolManager(retries=False) as pool:
        assert pool.request("GET", done.stdout.strip()).data == MODEL["v1.0.0"]


def test_the_service_and_git_itself_say_the_same(published, tmp_path):
    selector = Selector.parse("m", stage="prod")
    reader = published.user(tmp_path)
    owner = published.user(tmp_path, service=None, s3_endpoint=published.store.endpoint_url)
    told = []
    for user, repo in ((reader, NAME), (owner, str(published.origin.path))):
        with connections_of(user) as connections, at(user, repo, connections) as inquiry:
            receipt = inquiry.find(selector).receipt
            assert receipt
            # But for the name, by which a service knows a repository and a path does not.
            fields = {**receipt.as_json(), "repository": "", "digest": ""}
            looks = [inquiry.look("/m/versions", {}), inquiry.look("/m/explain", {"stage": "prod"})]
            listed = inquiry.look("", {})
            for artifact in listed["artifacts"]:
                artifact.pop("links")
            told.append((fields, looks, listed, type(inquiry)))

    assert told[0][:3] == told[1][:3]
    assert [kind for *_, kind in told] == [AtService, InGit]


def test_links_that_are_over_are_replaced_for_the_same_receipt_though_the_stage_moved(
    published, tmp_path
):
    """Nothing is downloaded until the store refuses the first links, and prod means another model
    by then.
    """
    user = published.user(tmp_path)
    with connections_of(user) as connections, at(user, NAME, connections) as inquiry:
        found = inquiry.find(Selector.parse("m", stage="prod"))
        (file,) = found.files
        link = found.sources.origin(file, None).url
        published.origin.tag("m#prod#9", published.origin.head())
        try:
            with urllib3.PoolManager(retries=False) as pool:
                until(lambda: pool.request("GET", link, preload_content=False).status == 403)

            Job(found.files, found.sources, tmp_path / "out", connections).run()

            assert found.sources.origin(file, None).url != link
            assert inquiry.find(Selector.parse("m", stage="prod")).receipt != found.receipt
        finally:
            published.origin.delete_tag("m#prod#9")
    assert tree(tmp_path / "out") == {"models/m.pkl": MODEL["v1.0.0"]}


def until(ready) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_route_of_dvc_studio_alone_is_enough(published, tmp_path):
    with connections_of(published.user(tmp_path)) as connections:
        service = Service(published.service.url, published.token, connections)
        links = service.studio(NAME, Selector.parse("tokens"))

        Job(links.files, links, tmp_path / "out", connections).run()

    assert all(file.md5 for file in links.files)
    assert tree(tmp_path / "out") == tokens()


def test_an_object_with_other_bytes_is_never_given_its_name(published, as_reader, tmp_path):
    wrong = MODEL["v1.0.0"][:-1] + b"?"
    place = f"dvc/{key(MODEL['v1.0.0'])}"
    published.store.put(BUCKET, place, wrong)
    try:
        with pytest.raises(ObjectCorrupt):
            registry.download(NAME, "m", "v1.0.0", to=tmp_path / "out")
    finally:
        published.store.put(BUCKET, place, MODEL["v1.0.0"])

    assert not (tmp_path / "out/models/m.pkl").exists()


def test_an_object_that_was_never_pushed_is_named(published, as_reader, tmp_path):
    place = f"dvc/{key(MODEL['v1.0.0'])}"
    published.store.client.delete_object(Bucket=BUCKET, Key=place)
    try:
        with pytest.raises(ObjectMissing, match="dvc push"):
            registry.download(NAME, "m", "v1.0.0", to=tmp_path / "out")
    finally:
        published.store.put(BUCKET, place, MODEL["v1.0.0"])


def test_a_wrong_token_is_refused_in_one_line(published, as_reader, tmp_path):
    with pytest.raises(TokenRefused, match="REGISTRY_TOKEN"):
        registry.download(NAME, "m", token="reg_wrong", to=tmp_path / "out")


def run(*arguments: object, cwd: Path, environ: Mapping[str, str]) -> "subprocess.CompletedProcess":
    return subprocess.run(
        [sys.executable, "-m", "registry", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_command_line_locks_gets_and_verifies_with_a_token(published, as_reader, tmp_path):
    environ = dict(os.environ)

    locked = run("lock", NAME, "m#prod", "tokens@v1.0.0", cwd=tmp_path, environ=environ)
    got = run("get", "--locked", "-o", "out", cwd=tmp_path, environ=environ)
    verified = run("verify", "out", "--receipt", "registry.lock", cwd=tmp_path, environ=environ)

    assert locked.returncode == got.returncode == verified.returncode == 0, got.stderr
    assert tree(tmp_path / "out") == {"models/m.pkl": MODEL["v1.0.0"], **tokens()}
    assert got.stderr == ""


def test_what_is_locked_is_downloaded_while_the_origin_is_down(published, as_reader, tmp_path):
    assert run("lock", NAME, "m#prod", cwd=tmp_path, environ={}).returncode == 0
    away = published.origin.path.with_name("away.git")
    published.origin.path.rename(away)
    try:
        got = run("get", "--locked", "-o", "out", cwd=tmp_path, environ={})
    finally:
        away.rename(published.origin.path)

    assert got.returncode == 0, got.stderr
    assert tree(tmp_path / "out") == {"models/m.pkl": MODEL["v1.0.0"]}


def test_the_bar_is_drawn_where_somebody_looks(published, as_reader, tmp_path):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown = bytearray()

    def look() -> None:
        while True:
            try:
                shown.extend(os.read(leader, 4096))
            except OSError:
                return

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    command = [sys.executable, "-m", "registry", "get", NAME, "m", "-o", "out"]
    done = subprocess.run(
        command, cwd=tmp_path, stderr=follower, stdout=subprocess.PIPE, timeout=PATIENCE, check=True
    )
    os.close(follower)
    looking.join(PATIENCE)

    assert b"100%" in shown
    assert done.stdout == b"out/models/m.pkl\n"
