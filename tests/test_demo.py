"""The demo: real on disk, served like anything else, and kept from one start to the next."""

from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gitrepo import GitRepository
from service import ENDPOINT

from registry import demo
from registry.access import Access
from registry.errors import SettingsError
from registry.services import Services
from registry.web import create_app

URL = "http://localhost:8080"


class Started:
    """A demo that was started in a directory, asked through Flask's test client."""

    def __init__(self, directory: Path) -> None:
        self.settings = demo.create(directory, URL)
        self.settings.data_dir.mkdir(exist_ok=True)
        access = Access(self.settings.database, self.settings.secret_keys)
        access.create_tables()
        self.token = demo.token(directory, access)
        access.close()
        self.services = Services.of(self.settings)
        self.client = create_app(self.services).test_client()

    def links(self, **query: str) -> dict[str, str]:
        answer = self.client.get(
            ENDPOINT,
            query_string={"repo": demo.REPOSITORY, **query},
            headers={"Authorization": f"token {self.token}"},
        )
        assert answer.status_code == 200, answer.text
        links: dict[str, str] = answer.json
        return links

    def download(self, link: str) -> tuple[bytes, str]:
        """The bytes, and the MD5 that the answer claims for them."""
        assert link.startswith(f"{URL}/objects/")
        answer = self.client.get(urlsplit(link).path, buffered=True)
        return answer.data, answer.headers["ETag"].strip('"')


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    running = []

    def started() -> Started:
        running.append(Started(tmp_path / "demo"))
        return running[-1]

    yield started
    for one in running:
        one.services.close()


def test_the_model_in_prod_is_downloaded_whole(start) -> None:
    registry = start()

    ((path, link),) = registry.links(name=demo.ARTIFACT, stage="prod").items()
    data, claimed = registry.download(link)

    assert path == "model.pkl"
    assert len(data) == 65_536
    assert md5(data).hexdigest() == claimed


def test_the_stage_and_the_latest_version_are_two_models(start) -> None:
    registry = start()

    (prod,) = registry.links(name=demo.ARTIFACT, stage="prod").values()
    (latest,) = registry.links(name=demo.ARTIFACT).values()

    assert registry.download(prod) != registry.download(latest)


def test_the_directory_is_downloaded_file_by_file(start) -> None:
    registry = start()

    links = registry.links(name="tokenizer")
    files = {path: registry.download(link) for path, link in links.items()}

    assert {path: data for path, (data, _) in files.items()} == {
        "tokenizer/merges/en.txt": b"w h\nh o\n",
        "tokenizer/vocab.txt": b"how\nwhat\nwhy\n",
    }
    assert all(md5(data).hexdigest() == claimed for data, claimed in files.values())


def test_it_is_found_by_the_url_that_dvc_needs_as_well(start) -> None:
    registry = start()

    assert registry.links(repo="https://git.example/demo/models.git", name="tokenizer")


def test_the_store_lies_as_dvc_3_lays_it_out(start, tmp_path) -> None:
    start()
    store = tmp_path / "demo/store"
    files = [file for file in store.rglob("*") if file.is_file()]

    assert len(files) == 5
    for file in files:
        first, rest = file.relative_to(store / "files/md5").parts
        assert first + rest.removesuffix(".dir") == md5(file.read_bytes()).hexdigest()


def test_a_second_start_keeps_everything(start, tmp_path) -> None:
    first = start()
    origin = GitRepository(tmp_path / "demo/origin.git")
    origin.tag("text-classifier@v9.0.0")
    link = first.links(name="tokenizer")["tokenizer/vocab.txt"]

    second = start()

    assert second.token == first.token
    assert second.settings == first.settings
    assert second.download(link)[0] == b"how\nwhat\nwhy\n"
    assert second.links(name=demo.ARTIFACT, version="v9.0.0")


def test_a_token_that_no_longer_holds_is_replaced(start, tmp_path) -> None:
    first = start()
    first.services.close()
    for file in (tmp_path / "demo/var").glob("registry.db*"):
        file.unlink()

    second = start()

    assert second.token != first.token
    assert second.links(name="tokenizer")


def test_secrets_are_for_nobody_else_to_read(start, tmp_path) -> None:
    start()

    for name in ("token", "registry.yaml"):
        assert (tmp_path / "demo" / name).stat().st_mode & 0o077 == 0


def test_every_demo_has_a_key_of_its_own(tmp_path) -> None:
    one, two = (demo.create(tmp_path / name, URL) for name in ("one", "two"))

    assert one.secret_keys != two.secret_keys


def test_without_git_it_says_what_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(SettingsError, match="git cannot make it"):
        demo.create(tmp_path / "demo", URL)
