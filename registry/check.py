"""`registry check`: does the configuration hold against the world? Looks, and changes nothing.

The database is asked for its time, every repository's origin for its refs, and every issuer of ID
tokens for its keys. For every storage
location one byte of an object is downloaded by the very link a client would get, and the store's
clock compared with ours; the object is found through the latest version of some artifact, so that
what is checked is what will be used.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import islice

from registry.access import SCOPES
from registry.domain import Entry, Group, Principal, RelPath, Selector, StorageUrl
from registry.errors import (
    DatabaseUnavailable,
    IssuerUnavailable,
    ObjectCorrupt,
    ObjectMissing,
    RegistryError,
)
from registry.services import Services
from registry.storage import Location, Origin
from registry.storage.stores import WARNED

_OPERATOR = Principal("check", "registry check", frozenset(SCOPES), ("*",))
_PATIENCE = 600.0
_SAMPLES = 20
_LIFETIME = 600  # more than the clocks may differ by


@dataclass(frozen=True)
class Finding:
    """One row of the table: what was looked at, and what came of it."""

    ok: bool
    kind: str
    name: str
    result: str

    def as_dict(self) -> dict[str, object]:
        """The same for JSON."""
        return asdict(self)


def run(services: Services) -> Iterator[Finding]:
    """Looks at the database, then at every repository, location and issuer. Raises nothing that a
    row can say.
    """
    yield _database(services)
    groups: list[Group] = []
    for mirrored in services.repositories:
        repository = mirrored.repository
        try:
            repository.probe(10.0)
            index = repository.snapshot(mirrored.refresh, _PATIENCE).index
        except RegistryError as error:
            yield Finding(False, "repository", repository.name, error.detail)
            continue
        artifacts = index.artifacts()
        yield Finding(True, "repository", repository.name, f"{len(artifacts)} artifacts")
        for artifact in islice(artifacts, _SAMPLES):
            try:
                found = services.catalog.resolve(_OPERATOR, repository.name, Selector(artifact))
                groups += services.catalog.manifest(_OPERATOR, found).groups
            except (ObjectMissing, ObjectCorrupt) as error:
                name = f"{repository.name} {artifact}"
                yield Finding(False, "artifact", name, error.detail)
            except RegistryError:
                continue  # an artifact that cannot be served says nothing about a location
    for location in services.locations:
        yield _location(services, location, groups)
    for issuer in services.federation:
        try:
            keys = issuer.keys.probe()
        except IssuerUnavailable as error:
            yield Finding(False, "issuer", issuer.url, error.problem)
        else:
            yield Finding(keys > 0, "issuer", issuer.url, f"{keys} keys")


def _database(services: Services) -> Finding:
    try:
        services.access.probe()
    except DatabaseUnavailable as error:
        return Finding(False, "database", "tokens, audit", f"{error.detail} ({error.problem})")
    return Finding(True, "database", "tokens, audit", "answers")


def _location(services: Services, location: Location, groups: list[Group]) -> Finding:
    url, entry = _sample(services, location, groups)
    name, now = str(location.url), datetime.fromtimestamp(services.clock(), timezone.utc)
    try:
        link = location.signer.links(now, _LIFETIME).sign(url.path, entry)
        # A gateway link leads to the service, which need not be running: read what it would read.
        ours = link.startswith(services.gateway.base)
        origin = location.signer.origin(url.path, entry, now) if ours else Origin(link)
        stream = services.reader.stream(origin, "bytes=0-0")
        if stream is None:
            return Finding(not entry.md5, "storage", name, _missing(url, entry))
        with closing(stream):
            got = sum(map(len, stream))
    except RegistryError as error:
        return Finding(False, "storage", name, error.detail)
    result, outlook = f"signed and read {got} byte of {url.path}", services.outlook(location)
    if outlook.problem:
        result += f", but {outlook.problem}"
    elif outlook.ahead is not None and abs(outlook.ahead) > WARNED:
        result += f"; its clock and ours differ by {abs(outlook.ahead):.0f} s"
    return Finding(outlook.problem is None, "storage", name, result)


def _sample(
    services: Services, location: Location, groups: list[Group]
) -> tuple[StorageUrl, Entry]:
    """An object that some artifact leads to, or else a key that need not exist."""
    for group in groups:
        for entry in islice(group.entries, 1):
            url = group.storage.below(entry.key)
            if services.grants.holding(url) is location:
                return url, entry
    probe = Entry(RelPath("registry-check"), "registry-check")
    return location.url.below(probe.key), probe


def _missing(url: StorageUrl, entry: Entry) -> str:
    if entry.md5:
        return f"{url.path} is missing: run `dvc push`"
    return "reachable; no artifact's latest version lies here to test with"
