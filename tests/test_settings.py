"""The configuration is right, or the service does not start and says which key is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import SettingsError
from registry.settings import (
    AzureStorage,
    FileStorage,
    FilesystemStorage,
    HttpStorage,
    IssuerSettings,
    RepositorySettings,
    RuleSettings,
    S3Storage,
    Settings,
    name_of,
)

KEY = "k" * 32
SHIPPED = Path(__file__).parent.parent / "config" / "registry.yaml"
REPOSITORY = {"url": "https://github.com/o/n.git"}
S3 = {"url": "s3://bucket/prefix", "repositories": ["*"]}
SECTIONS = (
    *(Settings, RepositorySettings, S3Storage, AzureStorage, HttpStorage, FileStorage),
    FilesystemStorage,
    *(IssuerSettings, RuleSettings),
)


def parse(environ: dict[str, str] | None = None, **document: object) -> Settings:
    return Settings.parse({"secret_key": KEY, **document}, environ or {})


def test_only_the_secret_key_has_no_default() -> None:
    settings = parse()

    assert settings.data_dir == Path("var")
    assert settings.link_lifetime == 3600
    assert settings.database.startswith("sqlite:///")
    assert settings.repositories == ()


def test_the_shipped_file_is_a_valid_configuration() -> None:
    settings = Settings.load(SHIPPED, {"REGISTRY_SECRET_KEY": KEY})

    assert settings == parse()


def test_every_key_is_explained_in_the_shipped_file() -> None:
    text = SHIPPED.read_text()

    for section in SECTIONS:
        for key in section.model_fields:
            assert f"{key}:" in text, f"{section.__name__}.{key}"


def test_the_examples_in_the_shipped_file_are_valid_when_uncommented() -> None:
    lines = SHIPPED.read_text().replace(" []\n# -", "\n# -").splitlines()
    wanted = [line[2:] if line.startswith(("# -", "#   ")) else line for line in lines]
    document = yaml.safe_load("\n".join(wanted))
    document["storage"][1].pop("connection_string")
    http = document["storage"][2]
    assert {*document["storage"][0]} <= {*S3Storage.model_fields}
    assert {*http} <= {*HttpStorage.model_fields}
    del http["secret"]
    http["signing"] = "gateway"
    environ = dict.fromkeys(
        ["REGISTRY_SECRET_KEY", "GIT_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
        + ["AZURE_KEY", "STORE_PASSWORD", "STORE_KEY", "NGINX_SECRET", "WEBHOOK_SECRET"],
        KEY,
    )

    settings = Settings.parse(document, environ)

    assert len(settings.repositories) == 1
    assert [type(item) for item in settings.storage] == [
        S3Storage,
        AzureStorage,
        HttpStorage,
        FileStorage,
        FilesystemStorage,
    ]


@pytest.mark.parametrize(
    ("document", "key", "problem"),
    [
        ({"datadir": "x"}, "datadir", "did you mean data_dir"),
        ({"nonsense": 1}, "nonsense", "allowed are data_dir"),
        ({"secret_key": "short"}, "secret_key[0]", "at least 32 characters"),
        ({"secret_key": [KEY, "short"]}, "secret_key[1]", "at least 32 characters"),
        ({"secret_key": []}, "secret_key", "at least 1"),
        ({"link_lifetime": "soon"}, "link_lifetime", "valid integer"),
        ({"link_lifetime": 0}, "link_lifetime", "greater than or equal to 1"),
        ({"public_url": "localhost"}, "public_url", "http://"),
        ({"public_url": "http://h:99999"}, "public_url", "from 0 to 65535"),
        ({"public_url": "http://h/#registry"}, "public_url", "without a query"),
        ({"public_url": "http://user:hush@h"}, "public_url", "no user name"),
        ({"repositories": {}}, "repositories", "must be a list"),
        ({"repositories": ["x"]}, "repositories[0]", "must be a mapping"),
        ({"repositories": [{}]}, "repositories[0].url", "is missing"),
        ({"repositories": [{**REPOSITORY, "refresh": -1}]}, "repositories[0].refresh", "greater"),
        ({"repositories": [{**REPOSITORY, "name": "a b"}]}, "repositories[0]", "letters"),
        ({"repositories": [REPOSITORY, REPOSITORY]}, "registry.yaml", "two have the name 'o/n'"),
        ({"storage": [{"url": "s3://b"}]}, "storage[0].repositories", "or '*' for all"),
        ({"storage": [{**S3, "repositories": []}]}, "storage[0].repositories", "at least 1"),
        ({"storage": [{**S3, "regin": "x"}]}, "storage[0].regin", "did you mean region"),
        ({"storage": [{**S3, "url": "oss://b"}]}, "storage[0].url", "s3, azure"),
        ({"storage": [{**S3, "url": "s3://b/../c"}]}, "storage[0].url", "'..'"),
        ({"storage": [{**S3, "access_key_id": "A"}]}, "storage[0]", "go together"),
        ({"storage": [{**S3, "session_token": "t"}]}, "storage[0]", "goes with access_key_id"),
        ({"storage": [{**S3, "addressing_style": "x"}]}, "storage[0].addressing_style", "'auto'"),
        ({"storage": [{**S3, "url": "azure://c"}]}, "storage[0]", "account_name"),
        ({"storage": [{**S3, "url": "https://h/x", "secret": "s"}]}, "storage[0]", "secure_link"),
        ({"storage": [{**S3, "url": "https://h/x", "username": "u"}]}, "storage[0]", "gateway"),
    ],
)
def test_a_wrong_key_or_value_is_named(document: dict[str, object], key: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(**document)

    assert caught.value.key == key
    assert problem in caught.value.problem


@pytest.mark.parametrize("name", [".", "..", "../../x", "a/../b", "a/./b"])
def test_a_name_leads_nowhere_but_below_the_mirrors(name: str) -> None:
    with pytest.raises(SettingsError, match=r"'\.' or '\.\.'"):
        parse(repositories=[{**REPOSITORY, "name": name}])


@pytest.mark.parametrize("alias", ["", ".", "/srv/x", "../x", "owner/name", "a/b:c", "file:///x"])
def test_an_alias_names_a_repository_of_some_host(alias: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(repositories=[{**REPOSITORY, "aliases": ["github:o/n", alias]}])

    assert caught.value.key == "repositories[0].aliases[1]"
    assert "with a host" in caught.value.problem


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({**S3, "secret_access_key": "x"}, "access_key_id"),
        ({**S3, "access_key_id": "x"}, "secret_access_key"),
        ({**S3, "access_key_id": "x", "secret_access_key": "x"}, "session_token"),
        ({**S3}, "profile"),
        ({**S3, "url": "azure://c", "account_name": "a"}, "account_key"),
        ({**S3, "url": "azure://c"}, "connection_string"),
        ({**S3, "url": "https://h", "signing": "gateway", "username": "x"}, "password"),
        ({**S3, "url": "https://h", "signing": "secure_link"}, "secret"),
    ],
)
def test_an_empty_variable_is_an_error_and_not_another_kind_of_credentials(
    section: dict[str, object], key: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        parse({"EMPTY": ""}, storage=[{**section, key: "${EMPTY}"}])

    assert caught.value.key == f"storage[0].{key}"
    assert "is empty" in caught.value.problem


def test_a_missing_secret_key_says_how_to_set_it() -> None:
    with pytest.raises(SettingsError, match="REGISTRY_SECRET_KEY"):
        Settings.parse({}, {})


def test_variables_are_replaced_from_the_environment_anywhere_in_a_value() -> None:
    settings = parse({"HOST": "git.example", "N": "7"}, repositories=[
        {"url": "https://${HOST}/o/n.git", "refresh": "${N}", "aliases": ["git@${HOST}:x/y"]}
    ])  # fmt: skip

    assert settings.repositories[0].url == "https://git.example/o/n.git"
    assert settings.repositories[0].refresh == 7
    assert settings.repositories[0].aliases == ("git@git.example:x/y",)


def test_an_unset_variable_is_named_with_its_key() -> None:
    with pytest.raises(SettingsError) as caught:
        parse(repositories=[{**REPOSITORY, "password": "${GIT_TOKEN}"}])

    assert caught.value.key == "repositories[0].password"
    assert "GIT_TOKEN" in caught.value.problem


@given(st.text(max_size=40), st.text(min_size=1, max_size=40))
def test_a_value_from_the_environment_is_taken_literally(before: str, value: str) -> None:
    before = before.replace("$", "")
    settings = parse({"V": value}, repositories=[{**REPOSITORY, "password": before + "${V}"}])
    password = settings.repositories[0].password

    assert password is not None
    assert password.get_secret_value() == before + value


def test_secrets_do_not_show() -> None:
    settings = parse(
        database_url="postgresql://u:canary@h/d",
        repositories=[{**REPOSITORY, "password": "canary"}],
        storage=[
            {**S3, "access_key_id": "AKIA", "secret_access_key": "canary"},
            {**S3, "url": "azure://c", "connection_string": "AccountKey=canary"},
            {**S3, "url": "https://h", "signing": "gateway", "headers": {"X-Key": "canary"}},
        ],
    )

    assert "canary" not in repr(settings)
    assert KEY not in repr(settings)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="absent.yaml: cannot be read"):
        Settings.load(tmp_path / "absent.yaml", {})


def test_a_file_that_is_no_yaml_is_named_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text("a: 1\nb: [\n")

    with pytest.raises(SettingsError, match="is not valid YAML in line 3"):
        Settings.load(file, {})


def test_a_merged_mapping_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(
        f"secret_key: {KEY}\nrepositories:\n- &first {{url: 'https://h/o/a', refresh: 1}}\n"
        "- {<<: *first, url: 'https://h/o/b'}\n"
    )

    first, second = Settings.load(file, {}).repositories

    assert (first.refresh, second.refresh, second.name) == (1, 1, "o/b")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &a [*a]", r"a\[0\]: must be a value, not an alias"),
        ("a: &a {b: {c: *a}}", r"a\.b\.c: must be a value, not an alias"),
        ("[" * 5000, "is nested too deeply"),
    ],
)
def test_a_file_without_an_end_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(text)

    with pytest.raises(SettingsError, match=problem):
        Settings.load(file, {})


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://github.com/iterative/example.git", "iterative/example"),
        ("ssh://git@host:2222/a/b/repo.git", "a/b/repo"),
        ("git@github.com:o/n.git", "o/n"),
        ("/srv/git/team/models.git", "srv/git/team/models"),
    ],
)
def test_a_repository_is_named_after_the_path_of_its_url(url: str, name: str) -> None:
    assert name_of(url) == name


def test_the_command_refuses_a_wrong_configuration_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text("secret_key: short\n")

    done = subprocess.run(
        [sys.executable, "-m", "registry", "serve", "--config", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.startswith("Error: secret_key[0]: must have at least 32 characters")
    assert len(done.stderr.splitlines()) == 1


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(f"secret_key: {KEY}\ndata_dir: a\ndata_dir: b\n")

    with pytest.raises(SettingsError, match="data_dir: is given twice, the second time in line 3"):
        Settings.load(file, {})


GITHUB = "https://token.actions.githubusercontent.com"
RULE = {"claims": {"repository": "o/n"}, "repositories": ["*"]}


def issuer(url: str = "https://issuer.example", **more: object) -> IssuerSettings:
    (found,) = parse(issuers=[{"url": url, "rules": [RULE], **more}]).issuers
    return found


def test_claims_are_texts_however_yaml_reads_them() -> None:
    claims = {"a": True, "b": 42, "c": ["x", 1], "d": "y*"}

    (rule,) = issuer(rules=[{**RULE, "claims": claims}]).rules

    assert rule.claims == {"a": ("true",), "b": ("42",), "c": ("x", "1"), "d": ("y*",)}


@pytest.mark.parametrize(
    ("more", "key", "word"),
    [
        ({"url": "http://issuer.example"}, "issuers[0].url", "https"),
        ({"url": "https://user@issuer.example"}, "issuers[0].url", "user"),
        ({"url": "https://issuer.example/?x"}, "issuers[0].url", "query"),
        ({"jwks_url": "http://10.0.0.1/keys"}, "issuers[0].jwks_url", "https"),
        ({"algorithms": ["none"]}, "issuers[0].algorithms[0]", "RS256"),
        ({"algorithms": ["HS256"]}, "issuers[0].algorithms[0]", "RS256"),
        ({"algorithms": []}, "issuers[0].algorithms", "1"),
        ({"leeway": 301}, "issuers[0].leeway", "300"),
        ({"audience": ""}, "issuers[0].audience", "empty"),
        ({"rules": []}, "issuers[0].rules", "1"),
        ({"rules": ["x"]}, "issuers[0].rules[0]", "claims:"),
        ({"rules": [{"claims": {"a": "b"}}]}, "issuers[0].rules[0].repositories", "missing"),
        ({"rules": [{**RULE, "claim": 1}]}, "issuers[0].rules[0].claim", "did you mean claims"),
        ({"rules": [{**RULE, "claims": {}}]}, "issuers[0].rules[0].claims", "1"),
        ({"rules": [{**RULE, "claims": {"a": []}}]}, "issuers[0].rules[0].claims.a", "1"),
        ({"rules": [{**RULE, "claims": {"a": ""}}]}, "issuers[0].rules[0].claims.a[0]", "empty"),
        ({"rules": [{**RULE, "claims": {"a": "*"}}]}, "issuers[0]", "every job"),
        ({"rules": [{**RULE, "lifetime": 3601}]}, "issuers[0].rules[0].lifetime", "3600"),
    ],
)
def test_an_issuer_that_could_let_in_too_many_is_refused(more, key, word) -> None:
    with pytest.raises(SettingsError) as caught:
        issuer(**more)

    assert caught.value.key == key
    assert word in caught.value.problem


@pytest.mark.parametrize(
    ("claims", "is_fine"),
    [
        ({"repository": "team/*"}, True),
        ({"repository_owner_id": 65}, True),
        ({"sub": "repo:team/app:ref:refs/heads/main"}, True),
        ({"ref": "refs/heads/main"}, False),
        ({"repository": "*/app"}, False),
        ({"repository": ["team/app", "*"]}, False),
        ({"repository": "?eam/app"}, False),
        ({"repository": "[t]eam/app"}, False),
        ({"sub": "repo:*:ref:refs/heads/main"}, False),
        ({"sub": "*"}, False),
    ],
)
def test_a_rule_for_an_issuer_that_the_world_shares_says_whose_jobs_it_means(
    claims, is_fine
) -> None:
    rules = [{**RULE, "claims": claims}]
    if is_fine:
        assert issuer(GITHUB, rules=rules).url == GITHUB
    else:
        with pytest.raises(SettingsError, match=r"issuers\[0\]: rules\[0\].claims"):
            issuer(GITHUB, rules=rules)


def test_an_issuer_has_one_place() -> None:
    entry = {"url": "https://issuer.example", "rules": [RULE]}
    with pytest.raises(SettingsError, match="listed twice"):
        parse(issuers=[entry, entry])


def test_the_url_of_an_issuer_keeps_its_last_slash() -> None:
    assert issuer("https://issuer.example/").url == "https://issuer.example/"
