"""The user's own keys: a repository says where objects are, and never where keys are sent."""

import subprocess
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gitrepo import GitRepository
from service import artifacts, output, remote

from registry.direct import Direct
from registry.domain import Entry, RelPath, Selector, StorageUrl
from registry.errors import CredentialsUnavailable, InvalidMetadata, RemoteUnusable
from registry.keyring import Keyring
from registry.storage import Origin
from registry.user import User

NOW = datetime(2027, 1, 15, 8, tzinfo=timezone.utc)
HOSTILE = "https://collector.evil.example"
KEYS = "    access_key_id = AKIAMINE\n    secret_access_key = canary\n"


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path) -> None:
    """Without the keys of whoever runs the tests, and without a look at a cloud's own service."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))


@pytest.fixture
def keyring(tmp_path):
    """The keyring over a repository's configuration and a file of the user's."""

    def made(committed: str, own: str = "", *, local: bool = False, **user: object) -> Keyring:
        file = tmp_path / "own"
        file.write_text(own)
        environment = User(directory=tmp_path, cache=tmp_path / "cache", **user)
        return Keyring.of(environment, [committed.encode()], [file], local=local)

    return made


def origin(keyring: Keyring, url: str) -> Origin:
    """How an object would be read there."""
    place = StorageUrl.parse(url)
    location = keyring.grants().locate("any/repository", place)
    return location.signer.origin(f"{place.path}/k", Entry(RelPath("m"), "k"), NOW)


def own(more: str, name: str = "storage") -> str:
    return f"['remote \"{name}\"']\n{more}"


S3 = "s3://bucket/pre"


def test_keys_of_the_user_s_own_file_sign_for_the_bucket_of_the_repository(keyring) -> None:
    found = origin(keyring(remote(S3), own(KEYS)), S3)

    assert urlsplit(found.url).hostname == "bucket.s3.amazonaws.com"
    assert "AKIAMINE" in found.url
    assert "canary" not in found.url


@pytest.mark.parametrize("keys", ["", KEYS])
def test_an_endpoint_that_only_the_repository_names_gets_nothing(keyring, keys) -> None:
    committed = remote(S3, more=f"    endpointurl = {HOSTILE}\n")

    with pytest.raises(RemoteUnusable) as raised:
        origin(keyring(committed, own(keys)), S3)

    assert "AWS_ENDPOINT_URL_S3" in str(raised.value)
    assert HOSTILE in str(raised.value)


def test_the_user_s_own_file_or_environment_names_the_endpoint(keyring) -> None:
    committed = remote(S3, more=f"    endpointurl = {HOSTILE}\n")
    named = own(f"{KEYS}    endpointurl = http://minio.mine:9000\n    region = eu-west-1\n")

    by_file = origin(keyring(committed, named), S3)
    by_environment = origin(keyring(committed, own(KEYS), s3_endpoint="http://minio.mine:9000"), S3)

    assert by_file.url.startswith("http://minio.mine:9000/bucket/pre/k?")
    assert "eu-west-1" in by_file.url
    assert by_environment.url.startswith("http://minio.mine:9000/bucket/pre/k?")


def test_a_profile_of_the_repository_chooses_none_of_the_user_s_accounts(keyring, tmp_path) -> None:
    (tmp_path / "aws-credentials").write_text(
        "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = x\n"
        "[production]\naws_access_key_id = AKIAPRODUCTION\naws_secret_access_key = x\n"
    )
    committed = remote(S3, more="    profile = production\n")

    assert "AKIADEFAULT" in origin(keyring(committed), S3).url
    assert "AKIAPRODUCTION" in origin(keyring(committed, own("    profile = production\n")), S3).url


def test_keys_of_the_repository_are_not_used(keyring) -> None:
    committed = remote(S3, more="    access_key_id = AKIATHEIRS\n    secret_access_key = x\n")

    with pytest.raises(CredentialsUnavailable):
        origin(keyring(committed), S3)


def test_a_section_with_a_url_of_its_own_counts_there_alone(keyring) -> None:
    elsewhere = own(f"    url = s3://other\n{KEYS}")

    with pytest.raises(CredentialsUnavailable):
        origin(keyring(remote(S3), elsewhere), S3)
    assert "AKIAMINE" in origin(keyring(remote(S3), elsewhere), "s3://other/deep").url


def test_of_the_user_s_files_the_last_counts(keyring, tmp_path) -> None:
    first, last = tmp_path / "first", tmp_path / "last"
    first.write_text(own(f"{KEYS}    region = eu-west-1\n"))
    last.write_text(own("    region = us-west-2\n"))
    user = User(directory=tmp_path, cache=tmp_path)

    found = origin(Keyring.of(user, [remote(S3).encode()], [first, last], local=False), S3)

    assert "us-west-2" in found.url
    assert "AKIAMINE" in found.url


def test_a_broken_file_of_the_user_is_said_to_be_broken(keyring, tmp_path) -> None:
    made = keyring(remote(S3))
    (tmp_path / "own").write_bytes(b"\xff\xfe")

    with pytest.raises(InvalidMetadata, match="own"):
        made.grants()


# ------------------------------------------------------------------------------------ web servers

WEB = "https://files.example/dvc"
PASSWORD = "    user = ada\n    password = canary\n"


def test_a_web_server_without_a_password_is_simply_asked(keyring) -> None:
    found = origin(keyring(remote(WEB)), WEB)

    assert (found.url, found.headers) == (f"{WEB}/k", {})


def test_a_password_is_sent_to_the_url_that_the_user_gives_it_for(keyring) -> None:
    found = origin(keyring(remote(WEB), own(f"    url = {WEB}\n{PASSWORD}")), WEB)

    assert found.headers["Authorization"].startswith("Basic ")
    assert "canary" not in repr(found)


def test_a_password_is_not_sent_where_the_repository_says(keyring) -> None:
    with pytest.raises(RemoteUnusable) as raised:
        origin(keyring(remote(HOSTILE), own(PASSWORD)), HOSTILE)

    assert "dvc remote modify --global storage url" in str(raised.value)
    assert "canary" not in str(raised.value)


# ----------------------------------------------------------------------------------------- others

AZURE = "azure://container/pre"
CONNECTION = (
    "DefaultEndpointsProtocol=https;AccountName=mine;AccountKey=Y2FuYXJ5;"
    "EndpointSuffix=core.windows.net"
)


def test_an_azure_account_is_the_user_s_to_name(keyring) -> None:
    committed = remote(AZURE, more="    account_name = theirs\n")

    by_environment = origin(keyring(committed, azure_connection_string=CONNECTION), AZURE)
    by_file = origin(keyring(committed, own(f"    connection_string = {CONNECTION}\n")), AZURE)

    for found in (by_environment, by_file):
        assert urlsplit(found.url).hostname == "mine.blob.core.windows.net"
    with pytest.raises(RemoteUnusable, match="AZURE_STORAGE_ACCOUNT_NAME"):
        origin(keyring(committed), AZURE)


@pytest.mark.parametrize("url", ["ssh://ada@host/srv/dvc", "gs://bucket/dvc"])
def test_what_only_a_service_reads_is_said_to_be_so(keyring, url) -> None:
    with pytest.raises(RemoteUnusable, match="only a service"):
        origin(keyring(remote(url)), url)


def test_a_directory_is_read_for_a_repository_of_this_machine_alone(keyring, tmp_path) -> None:
    place = f"file://{tmp_path}/store"

    assert origin(keyring(remote(place), local=True), place).root == tmp_path / "store"
    with pytest.raises(RemoteUnusable, match="another machine"):
        origin(keyring(remote(place)), place)
    assert origin(keyring(remote(place), own(f"    url = {place}\n")), place).root


# -------------------------------------------------------------------------- the clone's own file


@pytest.mark.parametrize("tracked", [False, True])
def test_the_clone_s_own_file_counts_unless_a_commit_brought_it(tmp_path, tracked) -> None:
    bare = GitRepository(tmp_path / "origin.git")
    mine = own(f"{KEYS}    endpointurl = {HOSTILE}\n")
    bare.commit(
        {
            ".dvc/config": remote(S3),
            "dvc.yaml": artifacts(m="m"),
            "m.dvc": output("m", "ab" * 16),
            **({".dvc/config.local": mine} if tracked else {}),
        }
    )
    bare.tag("m@v1.0.0")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(bare.path), str(clone)], check=True)
    (clone / ".dvc/config.local").write_text(mine)

    with Direct(User(directory=clone, cache=tmp_path / "cache")) as direct:
        given = direct.receipt(Selector.parse("m"))
        origins = direct.origins(given)
        (file,) = given.receipt.files
        if tracked:
            with pytest.raises(CredentialsUnavailable):
                origins.origin(file, None)
        else:
            assert origins.origin(file, None).url.startswith(HOSTILE)


def test_the_environment_is_read_once_and_an_empty_variable_is_none(tmp_path) -> None:
    user = User.load(
        {
            "REGISTRY_URL": "",
            "DVC_STUDIO_URL": "https://registry.example",
            "REGISTRY_TOKEN": "canary",
            "REGISTRY_CACHE_DIR": str(tmp_path),
            "DVC_GLOBAL_CONFIG_DIR": "/g",
            "DVC_SYSTEM_CONFIG_DIR": "/s",
            "HTTP_PROXY": "http://ignored",
            "https_proxy": "http://proxy",
        }
    )

    assert user.service == "https://registry.example"
    assert user.token == "canary"
    assert user.cache == tmp_path
    assert user.dvc_configs == (Path("/s/config"), Path("/g/config"))
    assert user.proxies == {"https": "http://proxy"}
    assert "canary" not in repr(user)
