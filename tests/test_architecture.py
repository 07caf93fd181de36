"""Who may import whom: docs/architecture.md, held by reading the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "registry"
MODULES = sorted(PACKAGE.rglob("*.py"))

# The modules of the project that each may import; a package stands for all it holds.
ALLOWED = {
    "registry.__init__": {"registry.api"},
    "registry.api": {
        "registry.direct",
        "registry.domain",
        "registry.inquiry",
        "registry.receipt",
        "registry.transfer",
        "registry.user",
    },
    "registry.lockfile": {"registry.errors", "registry.receipt"},
    "registry.inquiry": {
        "registry.client",
        "registry.connections",
        "registry.direct",
        "registry.told",
        "registry.domain",
        "registry.errors",
        "registry.receipt",
        "registry.transfer",
        "registry.user",
    },
    "registry.user": set(),
    "registry.connections": {"registry.storage"},
    "registry.client": {
        "registry.connections",
        "registry.domain",
        "registry.errors",
        "registry.receipt",
        "registry.storage",
    },
    "registry.transfer": {
        "registry.connections",
        "registry.domain",
        "registry.errors",
        "registry.receipt",
        "registry.storage",
    },
    "registry.keyring": {
        "registry.domain",
        "registry.dvc.config",
        "registry.errors",
        "registry.storage",
        "registry.user",
    },
    "registry.told": {
        "registry.domain",
        "registry.errors",
        "registry.gto",
        "registry.overview",
        "registry.receipt",
        "registry.repository.inscription",
    },
    "registry.direct": {
        "registry.catalog",
        "registry.overview",
        "registry.contents",
        "registry.domain",
        "registry.dvc.config",
        "registry.errors",
        "registry.given",
        "registry.gto",
        "registry.keyring",
        "registry.receipt",
        "registry.repository",
        "registry.storage",
        "registry.user",
    },
    "registry.__main__": {"registry.cli"},
    "registry.domain": {"registry.errors"},
    "registry.errors": set(),
    "registry.gto": {"registry.domain", "registry.errors"},
    "registry.dvc": {"registry.domain", "registry.errors", "registry.dvc"},
    "registry.repository": {
        "registry.domain",
        "registry.errors",
        "registry.gto",
        "registry.repository",
    },
    "registry.storage": {"registry.domain", "registry.errors", "registry.storage"},
    "registry.storage.parts": {
        "registry.domain",
        "registry.dvc.manifest",
        "registry.errors",
        "registry.storage",
    },
    "registry.storage.keeping": {
        "registry.domain",
        "registry.dvc.manifest",
        "registry.errors",
        "registry.storage",
    },
    "registry.receipt": {"registry.domain", "registry.errors"},
    "registry.database": {"registry.errors"},
    "registry.access": {"registry.database", "registry.domain", "registry.errors"},
    "registry.audit": {"registry.database", "registry.errors", "registry.logs"},
    "registry.tracking": {
        "registry.database",
        "registry.domain",
        "registry.errors",
        "registry.tracking",
    },
    "registry.federation": {"registry.domain", "registry.errors", "registry.federation"},
    "registry.given": {
        "registry.contents",
        "registry.domain",
        "registry.dvc.manifest",
        "registry.errors",
        "registry.receipt",
        "registry.repository",
    },
    "registry.issued": {"registry.database", "registry.domain", "registry.receipt"},
    "registry.ledger": {
        "registry.catalog",
        "registry.contents",
        "registry.domain",
        "registry.errors",
        "registry.given",
        "registry.issued",
        "registry.receipt",
        "registry.repository",
    },
    "registry.overview": {
        "registry.catalog",
        "registry.contents",
        "registry.domain",
        "registry.dvc.project",
        "registry.errors",
        "registry.gto",
        "registry.repository",
    },
    "registry.presence": {
        "registry.catalog",
        "registry.domain",
        "registry.errors",
        "registry.storage",
    },
    "registry.limits": set(),
    "registry.logs": set(),
    "registry.metrics": set(),
    "registry.server": {
        "registry",
        "registry.errors",
        "registry.logs",
        "registry.metrics",
        "registry.services",
        "registry.settings",
        "registry.web",
    },
    "registry.worker": set(),
    "registry.settings": {"registry.domain", "registry.errors"},
    "registry.manifests": {"registry.domain", "registry.errors", "registry.dvc"},
    "registry.contents": {
        "registry.domain",
        "registry.errors",
        "registry.dvc",
        "registry.manifests",
        "registry.repository",
        "registry.storage",
    },
    "registry.catalog": {
        "registry.contents",
        "registry.domain",
        "registry.errors",
        "registry.repository",
        "registry.storage",
    },
    "registry.services": {
        "registry.access",
        "registry.audit",
        "registry.issued",
        "registry.ledger",
        "registry.overview",
        "registry.presence",
        "registry.limits",
        "registry.metrics",
        "registry.catalog",
        "registry.contents",
        "registry.domain",
        "registry.errors",
        "registry.federation",
        "registry.repository",
        "registry.settings",
        "registry.storage",
        "registry.tracking",
    },
    "registry.web": {
        "registry",
        "registry.access",
        "registry.audit",
        "registry.logs",
        "registry.metrics",
        "registry.catalog",
        "registry.domain",
        "registry.errors",
        "registry.federation",
        "registry.given",
        "registry.gto",
        "registry.ledger",
        "registry.limits",
        "registry.overview",
        "registry.presence",
        "registry.repository.inscription",
        "registry.receipt",
        "registry.services",
        "registry.storage",
        "registry.told",
        "registry.web",
        "registry.tracking",
    },
    "registry.check": {
        "registry.access",
        "registry.domain",
        "registry.errors",
        "registry.services",
        "registry.storage",
    },
    "registry.demo": {
        "registry.access",
        "registry.dvc",
        "registry.errors",
        "registry.settings",
    },
    "registry.cli.__init__": {"registry", "registry.cli.failures", "registry.errors"},
    "registry.cli": {
        "registry",
        "registry.access",
        "registry.audit",
        "registry.api",
        "registry.cli",
        "registry.connections",
        "registry.domain",
        "registry.inquiry",
        "registry.lockfile",
        "registry.receipt",
        "registry.transfer",
        "registry.user",
        "registry.check",
        "registry.demo",
        "registry.errors",
        "registry.issued",
        "registry.repository.commands",
        "registry.services",
        "registry.settings",
        "registry.tracking",
    },
    "registry.wsgi": {
        "registry",
        "registry.logs",
        "registry.server",
        "registry.services",
        "registry.settings",
        "registry.web",
    },
}

# Where a library, or a part of the standard library, may be used: nowhere else.
CONFINED = {
    "flask": {"registry.web"},
    "werkzeug": {"registry.web"},
    "markupsafe": {"registry.web"},
    "git": {"registry.repository.commands", "registry.repository.objects"},
    "boto3": {"registry.storage.s3"},
    "botocore": {"registry.storage.s3"},
    "azure": {"registry.storage.azure"},
    "jwt": {"registry.federation"},
    "urllib3": {
        "registry.client",
        "registry.connections",
        "registry.federation.keys",
        "registry.storage",
    },
    "sqlalchemy": {
        "registry.access",
        "registry.audit",
        "registry.database",
        "registry.issued",
        "registry.tracking",
    },
    "alembic": {"registry.tracking.migrations"},
    "prometheus_client": {"registry.metrics"},
    "fsspec": {"registry.storage.filesystem"},
    "gunicorn": {"registry.server", "registry.worker"},
    "rfc8785": {"registry.receipt"},
    "yaml": {"registry.dvc.yaml", "registry.settings"},
    "pydantic": {"registry.settings", "registry.services"},
    "click": {"registry.cli"},
    "itsdangerous": {
        "registry.access",
        "registry.audit",
        "registry.storage.gateway",
        "registry.storage.parts",
    },
}

EDGES = {"registry.settings", "registry.user", "registry.cli", "registry.server"}

PURE = {"registry.domain", "registry.errors", "registry.gto", "registry.receipt"}


def name_of(module: Path) -> str:
    return ".".join(("registry", *module.relative_to(PACKAGE).with_suffix("").parts))


def imports_of(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(module)}: imports are absolute"
            for alias in node.names:
                below = PACKAGE.parent / Path(*(node.module or "").split("."), alias.name)
                is_module = below.with_suffix(".py").exists() or below.is_dir()
                yield f"{node.module}.{alias.name}" if is_module else str(node.module)


def covers(wanted: set[str], name: str) -> bool:
    return any(name == item or name.startswith(f"{item}.") for item in wanted)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_imports_only_what_the_plan_allows(module: Path) -> None:
    name = name_of(module)
    rule = max((key for key in ALLOWED if covers({key}, name)), key=len)
    own = {item for item in imports_of(module) if covers({"registry"}, item)}

    exact = {"registry"} & ALLOWED[rule]
    forbidden = {item for item in own if not covers(ALLOWED[rule] - exact, item)} - exact

    assert forbidden == set()


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_library_is_used_only_where_it_belongs(module: Path) -> None:
    for item in imports_of(module):
        allowed = CONFINED.get(item.partition(".")[0])
        assert allowed is None or covers(allowed, name_of(module)), item


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_only_the_edges_read_the_environment(module: Path) -> None:
    if covers(EDGES, name_of(module)):
        return
    reads = [
        node
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in {"environ", "getenv"}
        and ast.unparse(node.value) == "os"
    ]

    assert reads == []


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_pure_modules_do_no_io(name: str) -> None:
    module = PACKAGE / f"{name.removeprefix('registry.')}.py"

    assert not {"os", "pathlib", "subprocess", "socket", "time"} & set(imports_of(module))


CORE = (
    "domain",
    "errors",
    "federation",
    "gto",
    "repository",
    "contents",
    "catalog",
    "receipt",
    "given",
    "ledger",
    "overview",
    "presence",
    "access",
    "tracking",
)


@pytest.mark.parametrize("name", CORE)
def test_the_core_never_says_the_name_of_a_dialect(name: str) -> None:
    modules = [module for module in MODULES if covers({f"registry.{name}"}, name_of(module))]
    names = {
        (node.id if isinstance(node, ast.Name) else node.attr).lower()
        for module in modules
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Name | ast.Attribute)
    }

    assert names
    assert not {word for word in names if "studio" in word or "mlflow" in word}


def test_nothing_is_called_by_a_name_that_says_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
    names = {module.stem.lower() for module in MODULES}
    for module in MODULES:
        names |= {
            node.name.lower()
            for node in ast.walk(ast.parse(module.read_text()))
            if isinstance(node, ast.ClassDef)
        }

    assert not {name for name in names if name in vague or name.endswith("manager")}
