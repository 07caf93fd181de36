"""The composition root: builds every collaborator from the settings, and nothing else does."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache, partial
from mmap import mmap
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from pydantic import SecretStr

from registry.access import SCOPES, Access
from registry.audit import AuditLog, Change
from registry.catalog import Catalog, Mirrored, Repositories
from registry.contents import Contents, git_storage
from registry.domain import StorageUrl
from registry.errors import SettingsError
from registry.federation import Federation, Issuer, Rule
from registry.federation.keys import KeySource
from registry.issued import Issued
from registry.ledger import Ledger
from registry.limits import RateLimit
from registry.metrics import Metrics
from registry.overview import Overview
from registry.presence import Presence
from registry.repository import Repository
from registry.repository.lanes import Lanes
from registry.repository.mirror import TagChange
from registry.settings import (
    AzureStorage,
    FileStorage,
    FilesystemStorage,
    HttpStorage,
    IssuerSettings,
    RepositorySettings,
    S3Storage,
    Settings,
    StorageSettings,
)
from registry.storage import Grants, Location, Outlook, Reader, Signer
from registry.storage.azure import AzureSigner
from registry.storage.filesystem import Filesystem
from registry.storage.gateway import GatewayLinks
from registry.storage.http import HttpSigner
from registry.storage.keeping import DirectoryKeeper, Keeper, S3Keeper
from registry.storage.local import LocalSigner
from registry.storage.opened import Opened, OpenedSigner
from registry.storage.s3 import Credentials, S3Signer, chain_credentials, static_credentials
from registry.storage.stores import Stores

if TYPE_CHECKING:
    from registry.tracking import Tracking


@dataclass(frozen=True)
class Services:
    """What the dialects and the command line speak to.

    `handoffs` maps a file location to the internal URL prefix under which nginx serves it, and
    `webhook_secrets` the name of a repository to the secret that its webhooks are signed with.
    `rate_limit` is None where there is no limit; `trusted_proxies` is how many stand before us.
    `exchange_limit` counts the attempts of an address to exchange what is good for no token.
    `keeper` has the objects of logged files.
    """

    access: Access
    federation: Federation
    exchange_limit: RateLimit
    audit: AuditLog
    rate_limit: RateLimit | None
    metrics: Metrics
    contents: Contents
    metrics_are_public: bool
    trusted_proxies: int
    data_dir: Path
    catalog: Catalog
    issued: Issued
    ledger: Ledger
    overview: Overview
    presence: Presence
    repositories: Repositories
    locations: tuple[Location, ...]
    grants: Grants
    handoffs: Mapping[StorageUrl, str]
    webhook_secrets: Mapping[str, str] = field(repr=False)
    stores: Stores
    reader: Reader
    gateway: GatewayLinks
    keeper: Keeper
    clock: Callable[[], float]
    _tracking: "_Tracking" = field(repr=False)

    @property
    def tracking(self) -> "Tracking":
        """Experiments and runs: loaded when they are first asked for, for many never are."""
        return self._tracking.get()

    @classmethod
    def of(
        cls,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        notices: mmap | None = None,
    ) -> "Services":
        """Builds all of them. Opens no connection and spawns no process. Raises SettingsError.

        `notices` is memory that the workers of one server share: see `repository.Mirror`.
        """
        metrics = Metrics()
        gateway = GatewayLinks(settings.secret_keys, settings.public_url)
        # One source for all locations of a profile: an answer over two of them has one key, too.
        chain = lru_cache(maxsize=None)(chain_credentials)
        locations = tuple(
            _location(item, f"storage[{index}]", gateway, chain)
            for index, item in enumerate(settings.storage)
        )
        _refuse_twins(settings.storage)
        audit = AuditLog(
            settings.database, settings.secret_keys, settings.audit, clock, metrics.audited
        )
        lanes = Lanes()
        repositories = Repositories(
            _mirrored(
                item, f"repositories[{index}]", settings, lanes, notices, metrics, audit, clock
            )
            for index, item in enumerate(settings.repositories)
        )
        shared = tuple(
            _shared(mirrored.repository, gateway)
            for mirrored in repositories
            if mirrored.repository.shares_files
        )
        keeper = _keeper(settings, locations, gateway, clock)
        grants = Grants((*locations, keeper.location, *shared))
        stores = Stores((it.signer.store for it in locations if it.signer.store), clock)
        reader = Reader(stores=stores)
        issued = Issued(settings.database, clock)
        contents = Contents(repositories.at, grants, reader, settings.data_dir / "manifests", clock)
        catalog = Catalog(repositories, contents, grants, stores, settings.link_lifetime, clock)
        return cls(
            access=Access(settings.database, settings.secret_keys, clock),
            federation=Federation(
                [
                    _issuer(item, f"issuers[{index}]", settings.public_url, clock)
                    for index, item in enumerate(settings.issuers)
                ],
                clock,
            ),
            exchange_limit=RateLimit(settings.exchange_limit, clock),
            audit=audit,
            rate_limit=RateLimit(settings.rate_limit, clock) if settings.rate_limit else None,
            metrics=metrics,
            contents=contents,
            metrics_are_public=settings.metrics == "public",
            trusted_proxies=settings.trusted_proxies,
            data_dir=settings.data_dir.absolute(),
            catalog=catalog,
            issued=issued,
            ledger=Ledger(repositories, contents, issued),
            overview=Overview(repositories, contents, clock),
            presence=Presence(catalog, reader, clock),
            repositories=repositories,
            locations=locations,
            grants=grants,
            handoffs={
                item.url: item.x_accel_redirect
                for item in settings.storage
                if isinstance(item, FileStorage) and item.x_accel_redirect
            },
            webhook_secrets={
                item.name: item.webhook_secret.get_secret_value()
                for item in settings.repositories
                if item.webhook_secret
            },
            stores=stores,
            reader=reader,
            gateway=gateway,
            keeper=keeper,
            clock=clock,
            _tracking=_Tracking(settings.database, clock),
        )

    def outlook(self, location: Location) -> Outlook:
        """What a link to the location is worth now."""
        now = datetime.fromtimestamp(self.clock(), timezone.utc)
        return Outlook.on(location, self.stores, now)

    def watch(self) -> None:
        """From now on, looks at the clocks of the stores once a minute, in a thread of its own."""
        self.stores.watch(self.reader.greet)

    def close(self) -> None:
        """Ends every process, thread and connection that was opened meanwhile."""
        self.stores.close()
        self.presence.close()
        with self.reader:
            for mirrored in self.repositories:
                mirrored.repository.close()
            self._tracking.close()
            self.federation.close()
            self.audit.close()
            self.issued.close()
            self.access.close()


class _Tracking:
    """Built once, by whoever asks first. Safe to share between threads."""

    def __init__(self, database: str, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._lock = Lock()
        self._built: Tracking | None = None

    def get(self) -> "Tracking":
        with self._lock:
            if self._built is None:
                from registry.tracking import Tracking  # noqa: PLC0415 a worker may never need it

                self._built = Tracking.of(self._database, self._clock)
            return self._built

    def close(self) -> None:
        if self._built is not None:
            self._built.close()


def _mirrored(
    item: RepositorySettings,
    key: str,
    settings: Settings,
    lanes: Lanes,
    notices: mmap | None,
    metrics: Metrics,
    audit: AuditLog,
    clock: Callable[[], float],
) -> Mirrored:
    def note(change: TagChange) -> None:
        audit.note(Change(item.name, change.tag, change.event, change.kept, change.origin))

    mirror = settings.data_dir.absolute() / "mirrors" / f"{item.name}.git"
    try:
        repository = Repository(
            item.name,
            item.url,
            mirror,
            username=item.username,
            password=_secret(item.password),
            ssh_key=item.ssh_key,
            ssh_known_hosts=item.ssh_known_hosts,
            lanes=lanes,
            shares_files=item.git_files == "gateway",
            frozen=item.tag_policy == "frozen",
            notices=notices,
            max_stale=item.max_stale,
            clock=clock,
            timed=partial(metrics.fetched, item.name),
            noticed=note,
        )
    except ValueError as error:
        raise SettingsError(f"{key}.url", str(error)) from None
    return Mirrored(repository, item.refresh, (item.url, *item.aliases))


def _shared(repository: Repository, gateway: GatewayLinks) -> Location:
    """The blobs of a repository, as a location that is granted to it alone."""

    def opened(oid: str) -> Opened | None:
        size = repository.size(oid)
        if size is None:
            return None
        return Opened(size, lambda first, length: repository.stream(oid, first, length))

    url = git_storage(repository.name)
    signer = OpenedSigner(url.scheme, url.authority, opened, gateway)
    return Location(url, (repository.name,), signer)


def _issuer(item: IssuerSettings, key: str, public_url: str, clock: Callable[[], float]) -> Issuer:
    for index, rule in enumerate(item.rules):
        if unknown := set(rule.scopes) - set(SCOPES):
            problem = f"{', '.join(sorted(unknown))}: allowed are {', '.join(SCOPES)}"
            raise SettingsError(f"{key}.rules[{index}].scopes", problem)
    return Issuer(
        url=item.url,
        audience=item.audience or public_url,
        algorithms=item.algorithms,
        leeway=item.leeway,
        single_use=item.single_use,
        rules=tuple(
            Rule(rule.claims, rule.repositories, rule.scopes, rule.lifetime) for rule in item.rules
        ),
        keys=KeySource(item.url, item.jwks_url, item.ca_file, clock),
    )


Chain = Callable[[str | None], Callable[[datetime], Credentials]]


def _location(item: StorageSettings, key: str, gateway: GatewayLinks, chain: Chain) -> Location:
    try:
        return Location(item.url, item.repositories, _signer(item, gateway, chain))
    except ValueError as error:
        raise SettingsError(key, str(error)) from None


def _keeper(
    settings: Settings,
    locations: tuple[Location, ...],
    gateway: GatewayLinks,
    clock: Callable[[], float],
) -> Keeper:
    """Where the objects of logged files go: below a configured location, or below data_dir."""
    url = settings.logged_files
    location = Grants(locations).holding(url)
    if location is None and settings.tracking.storage:
        problem = "must be one of the locations below `storage`, or lie in one"
        raise SettingsError("tracking.storage", problem)
    if location is None or not settings.tracking.storage:
        # Granted to no repository: no .dvc/config can ask for what lies there.
        location = Location(url, (), LocalSigner(Path("/", url.path), gateway))
    if isinstance(location.signer, S3Signer):
        spool = settings.data_dir.absolute() / "uploads"
        return S3Keeper(location, url, location.signer, spool, clock, keys=settings.secret_keys)
    return DirectoryKeeper(location, url)


def _refuse_twins(storage: tuple[StorageSettings, ...]) -> None:
    """Links through the gateway name a place, and so could not tell whose credentials to use."""
    seen: set[StorageUrl] = set()
    for index, item in enumerate(storage):
        if isinstance(item, FileStorage | FilesystemStorage) or (
            isinstance(item, HttpStorage) and item.signing == "gateway"
        ):
            if item.url in seen:
                problem = "is listed twice, which the gateway cannot tell apart: list it once"
                raise SettingsError(f"storage[{index}].url", problem)
            seen.add(item.url)


def _signer(item: StorageSettings, gateway: GatewayLinks, chain: Chain) -> Signer:
    match item:
        case S3Storage():
            return _s3(item, chain)
        case AzureStorage():
            return _azure(item)
        case HttpStorage():
            return HttpSigner(
                item.url,
                item.signing,
                username=item.username,
                password=_secret(item.password),
                headers={name: value.get_secret_value() for name, value in item.headers.items()},
                secret=_secret(item.secret),
                gateway=gateway if item.signing == "gateway" else None,
            )
        case FileStorage():
            return LocalSigner(Path("/", item.url.path), gateway)
        case FilesystemStorage():
            options = {
                name: value.get_secret_value() if isinstance(value, SecretStr) else value
                for name, value in item.options.items()
            }
            opened = Filesystem(item.url, options).open
            return OpenedSigner(item.url.scheme, item.url.authority, opened, gateway)


def _s3(item: S3Storage, chain: Chain) -> S3Signer:
    if item.access_key_id and item.secret_access_key:
        credentials: Callable[[datetime], Credentials] = static_credentials(
            item.access_key_id,
            item.secret_access_key.get_secret_value(),
            _secret(item.session_token),
        )
    else:
        credentials = chain(item.profile)
    return S3Signer(
        item.url.authority,
        credentials=credentials,
        region=item.region,
        endpoint_url=item.endpoint_url,
        public_endpoint_url=item.public_endpoint_url,
        addressing_style=item.addressing_style,
    )


def _azure(item: AzureStorage) -> AzureSigner:
    container, public = item.url.authority, item.public_endpoint_url
    if item.connection_string:
        return AzureSigner.from_connection_string(
            container, item.connection_string.get_secret_value(), public_endpoint=public
        )
    assert item.account_name
    if item.account_key:
        return AzureSigner.from_account_key(
            container,
            account_name=item.account_name,
            account_key=item.account_key.get_secret_value(),
            endpoint=item.endpoint_url,
            public_endpoint=public,
        )
    return AzureSigner.from_default_credential(
        container,
        account_name=item.account_name,
        endpoint=item.endpoint_url,
        public_endpoint=public,
    )


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None
