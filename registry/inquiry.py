"""The same questions to a service and to a repository itself, and the same answers.

at(user, repo)          a service where one is set, and the repository is not a path
  AtService             asked over HTTP, with a token
  InGit                 straight from Git and the stores, with the user's own access
    find, again         Found: the files, and where they are to be had
    links               path -> link
    look                artifacts, versions, history and explanations, as JSON
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from registry.client import ReceiptLinks, Service
from registry.connections import Connections, Proxies
from registry.domain import Revision, Selector, canonical_repository, without_credentials
from registry.errors import InvalidReceipt, NotARegistry, NotFoundThere
from registry.receipt import Receipt, ReceiptFile, Terms
from registry.transfer import JOBS, Sources
from registry.user import User

if TYPE_CHECKING:  # who asks a service needs neither Git nor DVC's files, nor the time to load them
    from registry.direct import Direct

LIFETIME = 3600
"""Seconds that a link lives which the user signs themselves."""

Json = Mapping[str, object]


@dataclass(frozen=True)
class Found:
    """What a question means: files, and where they are to be had. `receipt` is None, and `revision`
    may be empty, where a service knows no receipts.
    """

    files: Sequence[ReceiptFile]
    sources: Sources
    receipt: Receipt | None
    revision: str


class Inquiry(Protocol):
    """Whoever can be asked about one repository. What they raise is a RegistryError."""

    def find(self, selector: Selector) -> Found:
        """What the selector means right now."""
        ...

    def again(self, receipt: Receipt) -> Found:
        """Exactly what a receipt lists, whatever its stage means by now."""
        ...

    def links(self, selector: Selector) -> dict[str, str]:
        """Path -> link, for everybody who has the link."""
        ...

    def look(self, what: str, query: Mapping[str, str]) -> Json:
        """What the route of the registry's API below `/repositories/NAME/artifacts` answers."""
        ...


@dataclass(frozen=True)
class AtService:
    """A repository at a service, in whatever spelling the service knows."""

    service: Service
    repository: str

    def find(self, selector: Selector) -> Found:
        """What the service says that it means."""
        receipt = self.service.receipt(self.repository, selector)
        if receipt:
            links = ReceiptLinks(self.service, receipt)
            return Found(tuple(receipt.files), links, receipt, receipt.revision)
        studio = self.service.studio(self.repository, selector)
        return Found(studio.files, studio, None, studio.revision)

    def again(self, receipt: Receipt) -> Found:
        """By the digest of the receipt; by its revision from a service that never gave it out."""
        files = tuple(receipt.files)
        try:
            links = ReceiptLinks(self.service, receipt)
            for file in files[:1]:
                links.origin(file, None)
        except NotFoundThere:
            at_revision = Selector(receipt.selector.artifact, revision=receipt.revision)
            same = self.service.receipt(self.repository, at_revision)
            if same is None or tuple(same.files) != files:
                raise InvalidReceipt("lists other files than the service knows") from None
            links = ReceiptLinks(self.service, same)
        return Found(files, links, receipt, receipt.revision)

    def links(self, selector: Selector) -> dict[str, str]:
        """The links of the service."""
        if selector.revision:
            at_revision = self.find(selector)
            sources = at_revision.sources
            return {file.path: sources.origin(file, None).url for file in at_revision.files}
        found, _ = self.service.download_uris(self.repository, selector)
        return {path: link for path, link in found.items()}  # noqa: C416 paths as plain text

    def look(self, what: str, query: Mapping[str, str]) -> Json:
        """What the service answers."""
        spelled = canonical_repository(self.repository) or self.repository
        # A URL's path is the name that a service gives a repository unless it is told another.
        is_url = spelled != self.repository
        name = spelled.partition("/")[2] if is_url else spelled
        path = f"/api/v1/repositories/{quote(name.replace('/', '~'))}/artifacts{what}"
        value = self.service.get(path, query).value
        if not isinstance(value, dict):
            raise NotARegistry(self.service.url, "its answer is no JSON object")
        return value


@dataclass(frozen=True)
class InGit:
    """A repository itself, and the stores of its remotes."""

    direct: "Direct"

    def find(self, selector: Selector) -> Found:
        """What its tags say that it means."""
        given = self.direct.receipt(selector)
        receipt = given.receipt
        return Found(tuple(receipt.files), self.direct.origins(given), receipt, receipt.revision)

    def again(self, receipt: Receipt) -> Found:
        """From the revision of the receipt, which must hold what it lists."""
        terms = Terms(
            receipt.repository,
            receipt.selector,
            Revision(receipt.revision),
            receipt.version,
            receipt.tag,
        )
        given = self.direct.remake(terms)
        files = tuple(receipt.files)
        if tuple(given.receipt.files) != files:
            raise InvalidReceipt("lists other files than the repository holds at its revision")
        return Found(files, self.direct.origins(given), receipt, receipt.revision)

    def links(self, selector: Selector) -> dict[str, str]:
        """Links that the user's own keys sign."""
        return self.direct.links(self.direct.receipt(selector), LIFETIME)

    def look(self, what: str, query: Mapping[str, str]) -> Json:
        """The same as a service would answer."""
        from registry import told  # noqa: PLC0415 a service knows it itself

        name, _, route = what.removeprefix("/").partition("/")
        answer = told.ROUTES[f"/{route}" if route else "/" if name else ""]
        overview, view = self.direct.overview()
        return answer(told.Asked(overview, view, name.replace("~", "/"), query))


@contextmanager
def at(user: User, repository: str | None, connections: Connections) -> Iterator[Inquiry]:
    """Whom to ask about a repository: the user's service, if there is one and a token for it, and
    the repository is no path; otherwise the repository itself.
    """
    is_path = not repository or repository.startswith(("/", ".", "~", "file:"))
    if user.service and user.token and repository and not is_path:
        service = Service(user.service, user.token, connections)
        yield AtService(service, without_credentials(repository))  # they are Git's alone
        return
    from registry.direct import Direct  # noqa: PLC0415 with a service nobody needs it

    with Direct(user, repository) as direct:
        yield InGit(direct)


@contextmanager
def connections_of(user: User, jobs: int = JOBS) -> Iterator[Connections]:
    """Connections as the user's environment wants them, closed in the end."""
    connections = Connections(jobs, Proxies(user.proxies), user.ca_bundle)
    try:
        yield connections
    finally:
        connections.close()
