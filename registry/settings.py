"""The configuration file: read once, validated whole, frozen.

The only module that reads the environment. Everything below the edge receives plain values.
Every key, its default and its meaning are listed in `config/registry.yaml`.
"""

import os
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from registry.domain import StorageUrl, canonical_repository
from registry.errors import SettingsError

DEFAULT_FILE = Path("config/registry.yaml")

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_REPOSITORY_NAME = re.compile(
    r"(?!\.{1,2}(?:/|$))[A-Za-z0-9_.-]+(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.-]+)*"
)

Given = TypeVar("Given", str, SecretStr)


def _storage_url(value: object) -> StorageUrl:
    return StorageUrl.parse(str(value))


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be an http:// or https:// URL without a query")
    if "@" in parts.netloc:  # it would be in every link that begins with this
        raise ValueError("must have no user name and no password in it")
    try:
        _ = parts.port
    except ValueError:
        # Without the cause: what looks like a port could be a part of a password.
        raise ValueError("the port must be a number from 0 to 65535") from None
    return value.rstrip("/")


def _hosted(value: str) -> str:
    found = canonical_repository(value)
    # A spelling with a host never begins with its canonical form; a bare owner/name does.
    if found is None or value.strip().startswith(found):
        raise ValueError(
            "must be a URL with a host, such as https://git.example/o/n or git@git.example:o/n"
        )
    return value


def _given(value: Given) -> Given:
    # A variable that is set to nothing must not turn into the default: that is, other credentials.
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not text:
        raise ValueError("is empty: give a value, or leave the key out")
    return value


def _long_enough(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < 32:
        raise ValueError(
            "must have at least 32 characters; make one with "
            "python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"
        )
    return value


def _issuer_url(value: str) -> str:
    """As it is written: tokens name their issuer in exactly this spelling."""
    parts = urlsplit(value)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        raise ValueError("must be an https:// URL; http:// is for localhost alone")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must be a URL without a user, a query and a fragment")
    return value


def _as_texts(value: object) -> object:
    """YAML reads `true` and `42` where a claim has the texts "true" and "42"."""
    if isinstance(value, list):
        return [_as_texts(one) for one in value]
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else value


def _off(value: object) -> object:
    # YAML takes a bare `off` for false.
    return "off" if value is False else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


HttpUrl = Annotated[str, AfterValidator(_http_url)]
Alias = Annotated[str, AfterValidator(_hosted)]
Text = Annotated[str, AfterValidator(_given)]
Secret = Annotated[SecretStr, AfterValidator(_given)]
SecretKey = Annotated[SecretStr, AfterValidator(_long_enough)]
Patterns = Annotated[tuple[str, ...], Field(min_length=1)]
Location = Annotated[StorageUrl, BeforeValidator(_storage_url)]
IssuerUrl = Annotated[str, AfterValidator(_issuer_url)]
ClaimPatterns = Annotated[
    tuple[Text, ...],
    BeforeValidator(_as_list),
    BeforeValidator(_as_texts),
    Field(min_length=1),
]
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, arbitrary_types_allowed=True
    )


class RepositorySettings(_Section):
    """One repository that is mirrored. `name` is how requests, tokens and grants speak of it."""

    url: str
    name: str
    aliases: tuple[Alias, ...] = ()
    refresh: Annotated[int, Field(ge=0)] = 30
    max_stale: Annotated[int, Field(ge=0)] = 86_400
    tag_policy: Literal["frozen", "follow"] = "frozen"
    git_files: Literal["refused", "gateway"] = "refused"
    webhook_secret: Annotated[SecretStr, Field(min_length=8)] | None = None
    username: str = "git"
    password: Secret | None = None
    ssh_key: Path | None = None
    ssh_known_hosts: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_from_url(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("url"), str):
            values = {**values, "name": values.get("name") or name_of(values["url"])}
        return values

    @model_validator(mode="after")
    def _check_name(self) -> "RepositorySettings":
        if not _REPOSITORY_NAME.fullmatch(self.name):
            raise ValueError(
                "name: letters, digits, '.', '_', '-' and '/' only, and no part '.' or '..'"
            )
        return self


class S3Storage(_Section):
    """An S3 bucket, or a prefix of one."""

    url: Location
    repositories: Patterns
    region: str = "us-east-1"
    endpoint_url: HttpUrl | None = None
    public_endpoint_url: HttpUrl | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    access_key_id: Text | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    profile: Text | None = None

    @model_validator(mode="after")
    def _one_kind_of_credentials(self) -> "S3Storage":
        if bool(self.access_key_id) != bool(self.secret_access_key):
            raise ValueError("access_key_id and secret_access_key go together")
        if self.session_token and not self.access_key_id:
            raise ValueError("session_token goes with access_key_id and secret_access_key")
        if self.profile and self.access_key_id:
            raise ValueError("give either a profile or access_key_id and secret_access_key")
        return self


class AzureStorage(_Section):
    """A container of Azure Blob Storage, or a prefix of one."""

    url: Location
    repositories: Patterns
    account_name: Text | None = None
    account_key: Secret | None = None
    connection_string: Secret | None = None
    endpoint_url: HttpUrl | None = None
    public_endpoint_url: HttpUrl | None = None

    @model_validator(mode="after")
    def _one_kind_of_credentials(self) -> "AzureStorage":
        if self.connection_string and (self.account_name or self.account_key):
            raise ValueError("a connection_string already names the account and its key")
        if not self.connection_string and not self.account_name:
            raise ValueError("give a connection_string, or an account_name")
        return self


class HttpStorage(_Section):
    """A store behind a web server."""

    url: Location
    repositories: Patterns
    signing: Literal["direct", "gateway", "secure_link"] = "direct"
    username: Text | None = None
    password: Secret | None = None
    headers: dict[str, Secret] = {}
    secret: Secret | None = None

    @model_validator(mode="after")
    def _keys_fit_signing(self) -> "HttpStorage":
        if bool(self.secret) != (self.signing == "secure_link"):
            raise ValueError("secret goes with signing: secure_link")
        if (self.username or self.headers) and self.signing == "direct":
            raise ValueError("a plain link carries no credentials: use signing: gateway")
        if bool(self.username) != bool(self.password):
            raise ValueError("username and password go together")
        return self


class FileStorage(_Section):
    """A directory of this machine, handed out through the gateway."""

    url: Location
    repositories: Patterns
    x_accel_redirect: Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./-]*/$")] | None = None


class FilesystemStorage(_Section):
    """A store that only a library for it can open, handed out through the gateway. `options` are
    for the library.
    """

    url: Location
    repositories: Patterns
    options: dict[str, bool | int | Secret] = {}


StorageSettings = S3Storage | AzureStorage | HttpStorage | FileStorage | FilesystemStorage

_STORAGE: Mapping[str, type[StorageSettings]] = {
    "s3": S3Storage,
    "azure": AzureStorage,
    "http": HttpStorage,
    "https": HttpStorage,
    "file": FileStorage,
    "ssh": FilesystemStorage,
    "gs": FilesystemStorage,
}


class RuleSettings(_Section):
    """Which jobs of an issuer get a token, and for what."""

    claims: Annotated[dict[str, ClaimPatterns], Field(min_length=1)]
    repositories: Patterns
    scopes: Patterns = ("models:read",)
    lifetime: Annotated[int, Field(ge=60, le=3600)] = 3600


class IssuerSettings(_Section):
    """A CI system whose jobs may exchange their ID tokens."""

    url: IssuerUrl
    rules: Annotated[tuple[RuleSettings, ...], Field(min_length=1)]
    audience: Text | None = None
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256")
    leeway: Annotated[int, Field(ge=0, le=300)] = 30
    single_use: bool = True
    jwks_url: IssuerUrl | None = None
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _every_rule_says_whose_jobs(self) -> "IssuerSettings":
        tenants = _TENANTS.get(self.url)
        for index, rule in enumerate(self.rules):
            if not any(_begins(patterns) for patterns in rule.claims.values()):
                raise ValueError(f"rules[{index}].claims: would let every job of the issuer in")
            if tenants and not any(
                _begins(patterns, tenants[name])
                for name, patterns in rule.claims.items()
                if name in tenants
            ):
                raise ValueError(
                    f"rules[{index}].claims: anybody can get a token of this issuer: say whose in "
                    f"one of {', '.join(tenants)}, with no wildcard before it"
                )
        return self


_TENANTS: Mapping[str, Mapping[str, str]] = {
    "https://token.actions.githubusercontent.com": {
        "repository": "",
        "repository_id": "",
        "repository_owner": "",
        "repository_owner_id": "",
        "sub": "repo:",
    },
    "https://gitlab.com": {
        "project_path": "",
        "project_id": "",
        "namespace_path": "",
        "namespace_id": "",
        "sub": "project_path:",
    },
    "https://agent.buildkite.com": {
        "organization_slug": "",
        "organization_id": "",
        "pipeline_id": "",
        "sub": "organization:",
    },
}
"""Issuers that the world shares -> claims that tell whose job it is -> how all of those begin."""


def _begins(patterns: tuple[str, ...], shared: str = "") -> bool:
    """Whether each of a claim's patterns has text of its own before its first wildcard."""
    return all(len(re.split(r"[*?[]", pattern)[0].removeprefix(shared)) > 0 for pattern in patterns)


class TrackingSettings(_Section):
    """Where what is logged is kept."""

    storage: Location | None = None

    @model_validator(mode="after")
    def _can_be_written(self) -> "TrackingSettings":
        if self.storage and self.storage.scheme not in ("file", "s3"):
            raise ValueError("storage: can only be file:// or s3://")
        return self


class Settings(_Section):
    """The whole configuration. Build it directly in tests; `load` reads a file."""

    data_dir: Path = Path("var")
    public_url: HttpUrl = "http://localhost:8080"
    secret_key: Annotated[tuple[SecretKey, ...], BeforeValidator(_as_list), Field(min_length=1)]
    link_lifetime: Annotated[int, Field(ge=1, le=604_800)] = 3600
    database_url: Secret | None = None
    audit: Annotated[Literal["required", "best_effort", "off"], BeforeValidator(_off)] = (
        "best_effort"
    )
    rate_limit: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    metrics: Literal["token", "public"] = "token"
    trusted_proxies: Annotated[int, Field(ge=0, le=10)] = 0
    repositories: tuple[RepositorySettings, ...] = ()
    storage: tuple[StorageSettings, ...] = ()
    issuers: tuple[IssuerSettings, ...] = ()
    exchange_limit: Annotated[int, Field(ge=1, le=1_000_000)] = 60
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Settings":
        names = [repository.name for repository in self.repositories]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"repositories: two have the name {name!r}")
        urls = [issuer.url for issuer in self.issuers]
        for url in urls:
            if urls.count(url) > 1:
                raise ValueError(f"issuers: {url} is listed twice: give it all rules in one place")
        return self

    @property
    def database(self) -> str:
        """The SQLAlchemy URL of the database; SQLite below `data_dir` unless one is given."""
        if self.database_url:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir.absolute() / 'registry.db'}"

    @property
    def logged_files(self) -> StorageUrl:
        """Where the objects of logged files lie; below `data_dir` unless it is said."""
        if self.tracking.storage:
            return self.tracking.storage
        return StorageUrl.parse(f"file://{self.data_dir.absolute() / 'artifacts'}")

    @property
    def secret_keys(self) -> list[str]:
        """The keys that signatures are checked with, oldest first; the last one signs."""
        return [key.get_secret_value() for key in self.secret_key]

    @classmethod
    def load(cls, path: Path | None = None, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Reads `path`, or the file that REGISTRY_CONFIG names, or config/registry.yaml.

        Raises SettingsError, which names the key and what is allowed there.
        """
        path = path or Path(environ.get("REGISTRY_CONFIG") or DEFAULT_FILE)
        try:
            text = path.read_text(encoding="utf-8")
            document = yaml.load(text, Loader=_Loader)  # noqa: S506 it is a SafeLoader
        except OSError as error:
            raise SettingsError(str(path), f"cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            where = getattr(error, "problem_mark", None)
            line = f" in line {where.line + 1}" if where else ""
            raise SettingsError(str(path), f"is not valid YAML{line}") from None
        except RecursionError:
            raise SettingsError(str(path), "is nested too deeply") from None
        return cls.parse(document, environ)

    @classmethod
    def parse(cls, document: object, environ: Mapping[str, str]) -> "Settings":
        """The configuration that a parsed YAML document spells. Raises SettingsError."""
        values = _expand(document if document is not None else {}, environ, "")
        if not isinstance(values, dict):
            raise SettingsError("registry.yaml", "must be a mapping of keys to values")
        if "secret_key" not in values:
            raise SettingsError("secret_key", "is missing: set it to ${REGISTRY_SECRET_KEY}")
        values["repositories"] = _items(
            values.get("repositories"), "repositories", lambda _, __: RepositorySettings
        )
        values["storage"] = _items(values.get("storage"), "storage", _storage_model)
        values["issuers"] = _items(values.get("issuers"), "issuers", _issuer_model)
        return _validated(cls, values, "")


def name_of(url: str) -> str:
    """The default name of a repository: the path of its URL, without `.git`.

    >>> name_of("git@github.com:iterative/example-get-started.git")
    'iterative/example-get-started'
    """
    if "://" in url:
        path = urlsplit(url).path
    elif ":" in url and not url.startswith("/"):
        path = url.partition(":")[2]
    else:
        path = url
    return path.strip("/").removesuffix(".git").rstrip("/")


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would keep the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping, as it is written. Raises SettingsError."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                line = key.start_mark.line + 1
                raise SettingsError(key.value, f"is given twice, the second time in line {line}")
            seen.add(key.value)
        return node


def _expand(
    value: object, environ: Mapping[str, str], key: str, above: tuple[object, ...] = ()
) -> object:
    """Replaces `${VAR}` everywhere, and drops keys without a value: they mean the default.

    `above` is what holds the value: an alias may not lead back there.
    """
    if any(value is one for one in above):
        raise SettingsError(key, "must be a value, not an alias of what it stands in")
    if isinstance(value, dict):
        return {
            str(name): _expand(
                item, environ, f"{key}.{name}" if key else str(name), (*above, value)
            )
            for name, item in value.items()
            if item is not None
        }
    if isinstance(value, list):
        return [
            _expand(item, environ, f"{key}[{index}]", (*above, value))
            for index, item in enumerate(value)
        ]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise SettingsError(key, f"the environment variable {match[1]} is not set")
        return environ[match[1]]

    return _VARIABLE.sub(variable, value)


def _storage_model(values: dict[str, object], key: str) -> type[StorageSettings]:
    scheme = str(values.get("url", "")).partition("://")[0].lower()
    if scheme not in _STORAGE:
        raise SettingsError(f"{key}.url", f"must begin with one of {', '.join(_STORAGE)} and ://")
    return _STORAGE[scheme]


def _issuer_model(values: dict[str, object], key: str) -> type[IssuerSettings]:
    if "rules" in values:
        # One by one, so that a mistake is told with the keys that a rule has.
        values["rules"] = _items(values["rules"], f"{key}.rules", lambda _, __: RuleSettings)
    return IssuerSettings


Model = TypeVar("Model", bound=BaseModel)


def _items(
    values: object, key: str, model: Callable[[dict[str, object], str], type[Model]]
) -> list[Model]:
    if not isinstance(values, list | None):
        raise SettingsError(key, "must be a list")
    found = []
    for index, item in enumerate(values or []):
        place = f"{key}[{index}]"
        if not isinstance(item, dict):
            first = "claims" if key.endswith(".rules") else "url"
            raise SettingsError(place, f"must be a mapping that begins with {first}:")
        found.append(_validated(model(item, place), item, place))
    return found


def _validated(model: type[Model], values: dict[str, object], key: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
        )
        problem = _problem(model, first["type"], first["msg"], str((first["loc"] or ("",))[-1]))
        raise SettingsError((key + place).lstrip(".") or "registry.yaml", problem) from None


def _problem(model: type[BaseModel], kind: str, message: str, name: str) -> str:
    allowed = list(model.model_fields)
    if kind == "extra_forbidden":
        near = get_close_matches(name, allowed, 1)
        hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(allowed)}"
        return f"unknown key; {hint}"
    if kind == "missing" and name == "repositories":
        return "is missing: list the repositories that it is for, or '*' for all"
    if kind == "missing":
        return "is missing"
    return message.removeprefix("Value error, ")
