"""Real clients against a real service, real Git and real stores: DVC, GTO and DVC Studio's library.

A team publishes with DVC and GTO, each version to another kind of store. Somebody else has nothing
but a token: no clone, no keys of a store. The URL of the repository that they name does not
resolve, so that nothing but the service can have answered.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.request import urlopen

import pytest
from servers import registry
from servers.dvc import Clients
from servers.nginx import Nginx
from servers.seaweedfs import SeaweedFS

pytestmark = pytest.mark.servers

NAME = "team/models"
URL = f"https://git.invalid/{NAME}.git"
NESTED = {"sub/deep/weights.bin": b"weights"}

DVC_YAML = """\
artifacts:
  model:
    path: model.pkl
    type: model
  tokens:
    path: tokens
"""
NESTED_DVC_YAML = """\
artifacts:
  nested:
    path: deep/weights.bin
"""
LINKS = """\
import json
from dvc_studio_client.model_registry import get_download_uris

links = get_download_uris("{repo}", "tokens", stage="prod", dvc_studio_config={{"repo_url": "-"}})
print(json.dumps(links))
"""


@dataclass(frozen=True)
class Remote:
    """A store as DVC's configuration names it: what all may see, what only the team knows. And as
    ours does."""

    url: str
    storage: Mapping[str, object]
    options: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)

    def configure(self, project: Path) -> None:
        """Makes it the default remote of a project. The secrets stay out of Git."""
        known = _section({"url": self.url, **self.options})
        (project / ".dvc/config").write_text(f"[core]\n    remote = store\n{known}")
        (project / ".dvc/config.local").write_text(_section(self.secrets))


def _section(options: Mapping[str, str]) -> str:
    lines = [f"    {name} = {value}" for name, value in options.items()]
    return "\n".join(["['remote \"store\"']", *lines, ""])


def directory(request: pytest.FixtureRequest) -> Remote:
    store = request.getfixturevalue("tmp_path_factory").mktemp("store")
    return Remote(str(store), {"url": f"file://{store}"})


def http(request: pytest.FixtureRequest) -> Remote:
    server: Nginx = request.getfixturevalue("nginx")
    url = f"{server.url}/private/compat"
    names = {"username": server.username, "password": server.password}
    return Remote(
        url,
        {"url": url, "signing": "gateway", **names},
        options={"auth": "basic", "method": "PUT"},
        secrets={"user": server.username, "password": server.password},
    )


def azure(request: pytest.FixtureRequest) -> Remote:
    server = request.getfixturevalue("azurite")
    server.create_container("compat")
    url, secrets = "azure://compat/models", {"connection_string": server.connection_string}
    return Remote(url, {"url": url, **secrets}, secrets=secrets)


def s3(request: pytest.FixtureRequest) -> Remote:
    return _s3(request.getfixturevalue("seaweedfs"), "compat")


def s3_with_cloud_versions(request: pytest.FixtureRequest) -> Remote:
    return _s3(request.getfixturevalue("seaweedfs"), "compat-versions", version_aware="true")


def _s3(server: SeaweedFS, bucket: str, **options: str) -> Remote:
    server.create_bucket(bucket, versioned=bool(options))
    url = f"s3://{bucket}/models"
    secrets = {
        "access_key_id": server.keys.access_key_id,
        "secret_access_key": server.keys.secret_access_key,
    }
    return Remote(
        url,
        {"url": url, "endpoint_url": server.endpoint_url, **secrets},
        options={"endpointurl": server.endpoint_url, **options},
        secrets=secrets,
    )


VERSIONS: dict[str, Callable[[pytest.FixtureRequest], Remote]] = {
    "v1.0.0": directory,
    "v2.0.0": http,
    "v3.0.0": azure,
    "v4.0.0": s3,
    "v5.0.0": s3_with_cloud_versions,
}
every_version = pytest.mark.parametrize(
    "version", VERSIONS, ids=[make.__name__ for make in VERSIONS.values()]
)


def contents(version: str) -> dict[str, bytes]:
    """The files of a version: path -> bytes."""
    files = {
        "model.pkl": f"model {version}",
        "tokens/vocab.txt": f"vocabulary {version}",
        "tokens/a b/é+%.bin": f"odd name {version}",
        f"tokens/{version}": "",
    }
    return {path: text.encode() for path, text in files.items()}


def part(files: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if path.startswith(name)}


class Team:
    """Publishes from a working directory, as its members do, to a bare repository."""

    def __init__(self, home: Path) -> None:
        self.clients = Clients(home)
        self.project, self.origin = home / "project", home / "origin.git"
        self.project.mkdir()
        self.run("git", "init", "--quiet", "--bare", "-b", "main", str(self.origin))
        self.run("git", "init", "--quiet", "-b", "main")
        self.run("git", "remote", "add", "origin", str(self.origin))
        self.run("dvc", "init", "--quiet")
        self.write({"dvc.yaml": DVC_YAML.encode(), "sub/dvc.yaml": NESTED_DVC_YAML.encode()})
        self.write(NESTED)

    def run(self, *command: str) -> None:
        self.clients.run(*command, cwd=self.project)

    def write(self, files: Mapping[str, bytes]) -> None:
        for path, data in files.items():
            (self.project / path).parent.mkdir(parents=True, exist_ok=True)
            (self.project / path).write_bytes(data)

    def publish(self, version: str, remote: Remote) -> None:
        """Pushes a version of two artifacts to a store, and tags it."""
        remote.configure(self.project)
        for old in self.project.glob("tokens/*.*.*"):
            old.unlink()
        self.write(contents(version))
        self.run("dvc", "add", "--quiet", "model.pkl", "tokens", *NESTED)
        self.run("dvc", "push", "--quiet")
        self.run("git", "add", ".")
        self.run("git", "commit", "--quiet", "-m", f"Train {version}")
        for name in ("model", "tokens"):
            self.run("gto", "register", name, "--version", version)


@dataclass(frozen=True)
class Published:
    """A service over what a team published, and somebody who has a token for it and nothing else.

    `absent` has the versions whose store cannot be had on this machine, and why.
    """

    origin: Path
    service: registry.Service
    reader: Clients
    absent: Mapping[str, str]

    def need(self, version: str) -> None:
        """Skips the test when the version could not be published."""
        if version in self.absent:
            pytest.skip(self.absent[version])

    def get(self, name: str, *options: str, out: Path) -> dict[str, bytes]:
        """What `dvc artifacts get` leaves on disk: path -> bytes."""
        command = ["dvc", "artifacts", "get", URL, name, "-o", str(out), *options]
        self.reader.run(*command, cwd=out.parent)
        return {
            path.relative_to(out).as_posix(): path.read_bytes()
            for path in out.rglob("*")
            if path.is_file()
        }

    def with_token(self, token: str) -> Clients:
        return replace(self.reader, environ={**self.reader.environ, "DVC_STUDIO_TOKEN": token})


@pytest.fixture(scope="module")
def published(request, tmp_path_factory, servers_directory) -> Iterator[Published]:
    remotes, absent = {}, {}
    for version, make in VERSIONS.items():
        try:
            remotes[version] = make(request)
        except pytest.skip.Exception as reason:
            absent[version] = str(reason)
    team = Team(tmp_path_factory.mktemp("team"))
    for version, remote in remotes.items():
        team.publish(version, remote)
    for name in ("model", "tokens"):
        team.run("gto", "assign", name, "--version", "v1.0.0", "--stage", "prod")
    team.run("gto", "register", "sub:nested", "--version", "v0.1.0")
    team.run("git", "push", "--quiet", "--tags", "origin", "main")
    own = servers_directory / "registry"
    own.mkdir()
    repository = {"url": str(team.origin), "name": NAME, "aliases": [URL]}
    storage = [{**remote.storage, "repositories": [NAME]} for remote in remotes.values()]
    with registry.start(own, [repository], storage) as service:
        environ = {"DVC_STUDIO_URL": service.url, "DVC_STUDIO_TOKEN": service.token()}
        reader = Clients(tmp_path_factory.mktemp("reader"), environ)
        yield Published(team.origin, service, reader, absent)


@every_version
@pytest.mark.parametrize("name", ["model", "tokens"])
def test_dvc_gets_a_file_and_a_directory_from_every_kind_of_store(
    published, tmp_path, version, name
):
    published.need(version)

    got = published.get(name, "--rev", version, out=tmp_path / "out")

    assert got == part(contents(version), name)


@pytest.mark.parametrize("name", ["model", "tokens"])
def test_dvc_gets_what_is_in_a_stage(published, tmp_path, name):
    got = published.get(name, "--stage", "prod", out=tmp_path / "out")

    assert got == part(contents("v1.0.0"), name)


@pytest.mark.parametrize("name", ["model", "tokens"])
def test_dvc_gets_the_latest_version_when_none_is_named(published, tmp_path, name):
    latest = max(VERSIONS.keys() - published.absent.keys())

    got = published.get(name, out=tmp_path / "out")

    assert got == part(contents(latest), name)


def test_dvc_gets_an_artifact_of_a_subdirectory(published, tmp_path):
    assert published.get("sub:nested", out=tmp_path / "out") == NESTED


def test_the_library_of_dvc_studio_is_given_links_that_download(published, tmp_path):
    script = tmp_path / "links.py"
    script.write_text(LINKS.format(repo=URL))

    links = json.loads(published.reader.run("python", str(script), cwd=tmp_path))

    got = {}
    for path, link in links.items():
        with closing(urlopen(link, timeout=60)) as answer:
            got[path] = answer.read()
    assert got == part(contents("v1.0.0"), "tokens")


def test_without_a_token_dvc_gets_nothing(published, tmp_path):
    done = published.with_token("").attempt("dvc", "artifacts", "get", URL, "model", cwd=tmp_path)

    assert done.returncode != 0
    assert not list(tmp_path.iterdir())


def test_dvc_shows_what_the_service_says_of_a_wrong_token(published, tmp_path):
    """DVC then clones the repository itself, and fails again for want of the store's password."""
    published.need("v2.0.0")
    command = ["dvc", "artifacts", "get", f"file://{published.origin}", "model", "--rev", "v2.0.0"]

    done = published.with_token("wrong").attempt(*command, cwd=tmp_path)

    assert done.returncode != 0
    assert '{"detail":"Invalid token.","code":"unauthenticated"' in done.stderr
    assert not list(tmp_path.iterdir())
