"""What there is, for who wants to look around: repositories, artifacts, versions, history.

Everything is told from one snapshot of a repository's tags. What people wrote about an artifact is
read from the dvc.yaml of the revision that `Listed.shown` names; where that file is broken, the
artifact is listed all the same, with what is wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from cachetools import LRUCache

from registry.catalog import GIT_WAIT, Mirrored, Repositories
from registry.contents import Contents
from registry.domain import ArtifactName, Principal, Revision, Selector
from registry.dvc.project import Artifact
from registry.errors import (
    ArtifactNotFound,
    NotFound,
    RegistryError,
    RepositoryNotFound,
    Unavailable,
    VersionNotFound,
)
from registry.gto import History, Resolution, Verdict
from registry.repository import Repository, Snapshot

_REMEMBERED = 10_000


@dataclass(frozen=True)
class Annotation:
    """What people wrote about an artifact, or why that cannot be told."""

    artifact: Artifact | None
    problem: str | None = None


@dataclass(frozen=True)
class Listed:
    """An artifact in a list: what its tags say, and what people wrote at the revision `shown`."""

    name: ArtifactName
    history: History
    shown: Revision | None
    annotation: Annotation

    @property
    def latest(self) -> Resolution | None:
        """The latest version, if there is one."""
        try:
            return self.history.latest()
        except VersionNotFound:
            return None

    @property
    def updated(self) -> int:
        """When the last event was, in Unix seconds; 0 when there was none that counts."""
        return self.history.deeds[-1].time if self.history.deeds else 0


@dataclass(frozen=True)
class Explanation:
    """An answer, or why there is none, and every tag that was considered for it."""

    resolution: Resolution | None
    problem: str | None
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class View:
    """A repository at one moment: `snapshot` is what is told of it, `stale` that it is older than
    was allowed.
    """

    repository: Repository
    snapshot: Snapshot
    stale: bool

    def history(self, artifact: ArtifactName) -> History:
        """The history of an artifact. Raises ArtifactNotFound when no tag speaks of it."""
        history = self.snapshot.index.history(artifact)
        if history.is_empty:
            raise ArtifactNotFound(str(artifact), "no tag registers it")
        return history


class Overview:
    """Looks around for a principal. Safe to share between threads. `clock` gives Unix time."""

    def __init__(
        self, repositories: Repositories, contents: Contents, clock: Callable[[], float]
    ) -> None:
        self._repositories = repositories
        self._clock = clock
        self._contents = contents
        self._lock = Lock()
        self._annotations: LRUCache[tuple[str, Revision, str], Annotation] = LRUCache(_REMEMBERED)

    def repositories(self, principal: Principal) -> list[Mirrored]:
        """Those that the principal may see, by name."""
        seen = [it for it in self._repositories if principal.may_see(it.repository.name)]
        return sorted(seen, key=lambda mirrored: mirrored.repository.name)

    def view(self, principal: Principal, name: str, max_age: float | None = None) -> View:
        """The repository of this very name. Raises RepositoryNotFound, Unavailable."""
        mirrored = self._repositories.named(principal, name)
        if mirrored is None:
            raise RepositoryNotFound(name[:255])
        allowed = mirrored.allowed(max_age)
        needed = self._clock() - allowed
        snapshot = mirrored.repository.snapshot(allowed, GIT_WAIT)
        return View(mirrored.repository, snapshot, snapshot.checked < needed)

    def artifacts(self, view: View) -> list[Listed]:
        """Every artifact that a tag speaks of, by name. Raises Unavailable."""
        return [self.artifact(view, name) for name in view.snapshot.index.histories()]

    def artifact(self, view: View, name: ArtifactName) -> Listed:
        """One artifact. Raises ArtifactNotFound, Unavailable."""
        history = view.history(name)
        shown = _shown(history)
        annotation = Annotation(None)
        if shown is not None:
            annotation = self._annotation(view.repository, shown, name)
        return Listed(name, history, shown, annotation)

    def explain(self, view: View, selector: Selector) -> Explanation:
        """Every tag that was considered for an answer, and why it won or lost. Raises
        ArtifactNotFound.
        """
        history = view.history(selector.artifact)
        verdicts = history.explain(selector.version, selector.stage)
        try:
            return Explanation(view.snapshot.index.resolve(selector), None, verdicts)
        except NotFound as error:
            return Explanation(None, error.detail, verdicts)

    def _annotation(
        self, repository: Repository, revision: Revision, name: ArtifactName
    ) -> Annotation:
        key = (repository.name, revision, str(name))
        with self._lock:
            known = self._annotations.get(key)
        if known is None:
            try:
                known = Annotation(self._contents.annotation(repository, revision, name))
            except Unavailable:
                raise
            except RegistryError as error:
                known = Annotation(None, error.detail)
            with self._lock:
                self._annotations[key] = known
        return known


def _shown(history: History) -> Revision | None:
    """The revision at which people's words about an artifact are read: that of its latest version,
    or else that of the last event.
    """
    for version in history.versions[:1]:
        return history.version(version).revision
    return history.deeds[-1].revision if history.deeds else None
