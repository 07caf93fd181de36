"""The documentation cannot lie: it names what it must, and where it points there is something."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import pytest
import yaml

from registry import server, worker
from registry.audit import WAIT
from registry.catalog import GIT_WAIT
from registry.cli import cli, failures
from registry.cli.manual import manual
from registry.database import ANSWER, PATIENCE
from registry.errors import RegistryError
from registry.repository import FETCH_LIMIT
from registry.repository.mirror import LOOK_LIMIT
from registry.services import Services
from registry.settings import (
    IssuerSettings,
    RepositorySettings,
    RuleSettings,
    Settings,
    StorageSettings,
)
from registry.storage.gateway import ROUTE
from registry.web import create_app
from registry.web.errors import STATUS

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "config/registry.yaml"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EVERYTHING = "\n".join(page.read_text() for page in PAGES)

_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
_FENCE = re.compile(r"^( *)```\w*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def commands(group: click.Group, path: str = "registry") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command, name
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def uncommented() -> str:
    """The example configuration with every key that it only comments on.

    A line of prose begins with a capital or goes on from one; a commented key is `# key: ...` or
    `# - key: ...` in the indentation of its list.
    """
    found = re.sub(r"^# ?(- | {2,}(?:- )?[a-z_]+:)", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    return re.sub(r"^([a-z]+): \[\]$", r"\1:", found, flags=re.MULTILINE)


def example() -> dict[str, object]:
    document = yaml.safe_load(uncommented())
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text()) if "://" not in link]

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("key", Settings.model_fields)
def test_every_setting_stands_in_the_example_with_a_sentence_before_it(key: str) -> None:
    lines = EXAMPLE.read_text().splitlines()
    places = [number for number, line in enumerate(lines) if line.startswith(f"{key}:")]

    assert len(places) == 1
    assert lines[places[0] - 1].startswith("# ")


@pytest.mark.parametrize("key", RepositorySettings.model_fields)
def test_every_setting_of_a_repository_stands_in_the_example(key: str) -> None:
    (repository,) = example()["repositories"]

    assert key in repository


@pytest.mark.parametrize("model", get_args(StorageSettings), ids=lambda model: model.__name__)
def test_every_setting_of_a_storage_location_stands_in_the_example(model) -> None:
    schemes = {"S3Storage": "s3", "AzureStorage": "azure", "HttpStorage": "https"}
    scheme = {**schemes, "FilesystemStorage": "ssh"}.get(model.__name__, "file")
    (entry,) = [item for item in example()["storage"] if item["url"].startswith(f"{scheme}:")]

    assert set(entry) == set(model.model_fields)


def test_every_setting_of_an_issuer_stands_in_the_example() -> None:
    (issuer,) = example()["issuers"]
    (rule,) = issuer["rules"]

    assert set(issuer) == set(IssuerSettings.model_fields)
    assert set(rule) == set(RuleSettings.model_fields)


def test_the_example_shows_the_defaults() -> None:
    document = example()
    (repository,) = document["repositories"]
    shown = {
        **{f"{key}": value for key, value in document.items()},
        **{f"repositories.{key}": value for key, value in repository.items()},
    }

    for key in ("data_dir", "public_url", "link_lifetime", "exchange_limit"):
        assert str(shown[key]) == str(Settings.model_fields[key].default), key
    for key in ("refresh", "username"):
        assert shown[f"repositories.{key}"] == RepositorySettings.model_fields[key].default, key


def test_the_example_as_it_stands_is_a_valid_configuration() -> None:
    settings = Settings.load(EXAMPLE, {"REGISTRY_SECRET_KEY": "s" * 32})

    assert settings.repositories == settings.storage == ()


def test_the_configuration_in_the_readme_is_valid() -> None:
    blocks = [block for _, block in _FENCE.findall((ROOT / "README.md").read_text())]
    (block,) = [block for block in blocks if "secret_key:" in block]
    environ = {"REGISTRY_SECRET_KEY": "s" * 32, "GIT_TOKEN": "t"}

    settings = Settings.parse(yaml.safe_load(block), environ)

    assert settings.repositories[0].name == "team/models"
    assert settings.storage[0].repositories == ("team/*",)


@pytest.mark.parametrize(("name", "command"), [*commands(cli)])
def test_every_verb_is_documented_with_help_for_each_of_its_options(
    name: str, command: click.Command
) -> None:
    spoken = "make run" if name == "registry demo" else name  # a demo is started through make

    assert spoken in EVERYTHING
    assert command.help
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help, option.name


def test_the_manual_of_the_command_line_is_what_the_commands_say() -> None:
    """`make docs` writes it."""
    assert (ROOT / "docs/cli.md").read_text() == manual()


def test_every_exit_code_is_reached_by_a_kind_of_error() -> None:
    reached = {code for _, code in failures._CODES}

    assert reached == set(failures.CODES) - {0, 1, 130}


def test_every_variable_that_a_client_reads_is_documented() -> None:
    source = (ROOT / "registry/user.py").read_text()
    read = set(re.findall(r'"([A-Z][A-Z0-9_]{6,})"', source))

    assert {"REGISTRY_URL", "AWS_PROFILE"} <= read
    assert [name for name in sorted(read) if f"`{name}`" not in manual()] == []


def test_every_verb_that_the_documentation_names_exists() -> None:
    known = {name for name, _ in commands(cli)}
    named = re.findall(
        r"(?:^|[`$] ?)registry ((?:token |audit |database )?[a-z]+)", EVERYTHING, re.MULTILINE
    )

    assert {f"registry {verb}" for verb in named} <= known


def test_every_route_is_documented(tmp_path: Path) -> None:
    services = Services.of(Settings(secret_key="s" * 32, data_dir=tmp_path))
    rules = {rule.rule for rule in create_app(services).url_map.iter_rules()}
    services.close()
    documented = EVERYTHING + (ROOT / "registry/web/objects.py").read_text()

    for rule in rules:
        # What leads to the same under two more names is documented under one.
        path = rule.removeprefix("/mlflow").replace("/ajax-api/", "/api/", 1)
        assert path.partition("<")[0] in documented, rule
    assert f"{ROUTE}<token>" in rules


@pytest.mark.parametrize(
    "header", ["Revision", "Version", "Tag", "Expires", "Deprecated", "Mirror-Age"]
)
def test_every_header_of_an_answer_is_documented(header: str) -> None:
    page = (ROOT / "docs/dialects/studio.md").read_text()
    source = (ROOT / "registry/web/studio.py").read_text()

    assert f"`X-Registry-{header}`" in page
    assert f'"X-Registry-{header}"' in source


def test_every_limit_on_time_stands_in_one_table() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    (table,) = re.findall(r"^### Every limit on time\n\n(.*?)\n\n", page, re.DOTALL | re.MULTILINE)
    rows = {tuple(cell.strip() for cell in row.split("|")[4:6]) for row in table.splitlines()}
    configured = (ROOT / "config/nginx.conf").read_text()
    limits = {
        (seconds, f"`{name}`" + ("" if indent == "    " else " of the upstream" * (name[0] == "k")))
        for indent, name, seconds in re.findall(r"^( +)(\w+_timeout) (\d+)s;", configured, re.M)
    }
    own = {
        "HEAD": (worker, "`HEAD` in `registry/worker.py`"),
        "BODY": (worker, "`BODY`"),
        "WRITE": (worker, "`WRITE`"),
        "keepalive": (server, "`keepalive`"),
        "timeout": (server, "`timeout`"),
        "graceful_timeout": (server, "`graceful_timeout`"),
    }
    limits |= {(str(getattr(module, name)), cell) for name, (module, cell) in own.items()}
    limits |= {
        (f"{GIT_WAIT:g}", "`GIT_WAIT` in `registry/catalog.py`"),
        (f"{LOOK_LIMIT:g}", "`LOOK_LIMIT` in `registry/repository/mirror.py`"),
        (f"{FETCH_LIMIT:g}", "`FETCH_LIMIT` in `registry/repository/__init__.py`"),
        (str(PATIENCE), "`PATIENCE` in `registry/database.py`"),
        (str(ANSWER), "`ANSWER`"),
        (f"{WAIT:g}", "`WAIT` in `registry/audit.py`"),
        (str(server.graceful_timeout - worker.LAST), "`graceful_timeout` less `LAST`"),
    }

    assert len(limits) == 23
    assert limits <= rows


def test_every_status_of_an_error_is_documented() -> None:
    page = "\n".join(page.read_text() for page in (ROOT / "docs/dialects").glob("*.md"))
    for kind, status in STATUS.items():
        assert issubclass(kind, RegistryError)
        assert status == 500 or f"\n| {status} |" in page, status


def test_every_decision_is_listed_in_order_and_named_by_its_number() -> None:
    decisions = sorted((ROOT / "docs/adr").glob("*.md"))

    for number, page in enumerate(decisions, 1):
        assert page.name.startswith(f"{number:04}-")
        assert page.read_text().startswith(f"# {number}. ")
    assert "](adr)" in (ROOT / "docs/architecture.md").read_text()


def test_every_decision_that_is_referred_to_exists() -> None:
    sources = "\n".join(file.read_text() for file in (ROOT / "registry").rglob("*.py"))
    referred = {int(number) for number in re.findall(r"ADR (\d+)", EVERYTHING + sources)}

    assert referred <= {int(page.name[:4]) for page in (ROOT / "docs/adr").glob("*.md")}


def test_every_make_target_that_is_documented_exists_and_has_help() -> None:
    targets = dict(re.findall(r"^([a-z-]+):.*?## (.+)$", (ROOT / "Makefile").read_text(), re.M))
    documented = set(re.findall(r"\bmake ([a-z-]+)\b(?= |`|$)", shell_text(), re.MULTILINE))

    assert documented
    assert documented <= set(targets)
    assert {"run", "test", "check", "compat", "image"} <= set(targets)


def shell_text() -> str:
    """What stands in code: fenced blocks, and words between backticks."""
    fenced = [block for _, block in _FENCE.findall(EVERYTHING)]
    rest = _FENCE.sub("", EVERYTHING)
    return "\n".join([*fenced, *re.findall(r"`([^`\n]+)`", rest)])


def test_every_module_has_its_line_on_the_architecture_page() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    modules = {path.name for path in (ROOT / "registry").iterdir()} - {
        "__init__.py", "__main__.py", "__pycache__", "py.typed",
    }  # fmt: skip

    assert [name for name in sorted(modules) if name not in page] == []
