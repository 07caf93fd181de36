"""GTO: what the tags of a repository say about its artifacts. Pure: tags in, revisions out.

    tag               event            tag                  event
    m@v1.0.0          register         m#prod#3             assign to the stage `prod`
    m@v1.0.0#4        register         m#prod!#4            unassign
    m@v1.0.0!         deregister       a/b=m@v1.0.0         register `m` of `a/b/dvc.yaml`
    m@deprecated      deprecate        m#1#2                assign to the stage `1`

A trailing `#4` is a counter. The name of the ref counts, not the name inside the tag object; only
annotated tags of commits count (gto/tag.py); whatever else is tagged is ignored. Where GTO and DVC
contradict themselves or each other, the order of events below decides, for everything alike.
"""

import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from registry.domain import DIRNAME, NAME, ArtifactName, Revision, Selector
from registry.errors import ArtifactNotFound, RegistryError, StageNotFound, VersionNotFound

_LONGEST_TAG = 255
_PATIENCE = 1.0
"""Seconds to wait for another thread that reads the same tags, rather than read them, too."""
_FEW = 10
_NUMBER = r"(?:0|[1-9][0-9]*)"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
_SEMVER = (
    rf"v{_NUMBER}\.{_NUMBER}\.{_NUMBER}"
    rf"(?:-{_IDENTIFIER}(?:\.{_IDENTIFIER})*)?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?"
)
_TAG = re.compile(
    rf"(?P<fullname>(?:{DIRNAME}=)?{NAME})"
    rf"(?:(?:@(?P<version>{_SEMVER})|\#(?P<stage>{NAME}))(?P<removal>!)?|@deprecated)"
    r"(?:\#(?P<counter>[0-9]+))?\Z"
)


class Action(Enum):
    """What a tag does to its artifact."""

    REGISTER = "register"
    DEREGISTER = "deregister"
    ASSIGN = "assign"
    UNASSIGN = "unassign"
    DEPRECATE = "deprecate"


@dataclass(frozen=True, slots=True)
class Event:
    """What the name of a tag says. `fullname` is spelled as in tags (`a/b=m`); `subject` is the
    version or the stage, empty for a deprecation.
    """

    fullname: str
    action: Action
    subject: str = ""
    counter: int | None = None

    @classmethod
    def parse(cls, ref: str) -> "Event | None":
        """The event that a tag of this name stands for; None when it is not one of GTO's.

        `m@created` is in GTO's grammar, but stands for nothing.
        """
        found = _TAG.match(ref) if len(ref) <= _LONGEST_TAG else None
        if not found:
            return None
        if found["version"]:
            action = Action.DEREGISTER if found["removal"] else Action.REGISTER
        elif found["stage"]:
            action = Action.UNASSIGN if found["removal"] else Action.ASSIGN
        else:
            action = Action.DEPRECATE
        subject = found["version"] or found["stage"] or ""
        counter = int(found["counter"]) if found["counter"] else None
        return cls(found["fullname"], action, subject, counter)

    @property
    def is_removal(self) -> bool:
        """Whether it takes back what another event gave."""
        return self.action in (Action.DEREGISTER, Action.UNASSIGN)

    def __str__(self) -> str:
        of_stage = self.action in (Action.ASSIGN, Action.UNASSIGN)
        return (
            f"{self.fullname}{'#' if of_stage else '@'}{self.subject or 'deprecated'}"
            f"{'!' if self.is_removal else ''}{'' if self.counter is None else f'#{self.counter}'}"
        )


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of the repository: `name` without `refs/tags/`, `revision` the commit it peels to
    (None when there is none), `time` the tagger's, in Unix seconds, 0 when there is no tagger.
    """

    name: str
    revision: Revision | None
    time: int
    annotated: bool


class Ref(NamedTuple):
    """A tag that was not read yet: its name, and the id of the object that says the rest."""

    name: str
    oid: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a selector means. `version` is the greatest active one at the revision, if any; `tag`
    is the name of the tag that decided.
    """

    revision: Revision
    version: str | None
    tag: str
    deprecated: bool


def precedence(version: str) -> tuple[object, ...]:
    """A key that orders versions as SemVer 2.0 (section 11) does. Build metadata does not count."""
    release, _, pre = version.removeprefix("v").partition("+")[0].partition("-")
    identifiers = tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in pre.split(".") if part
    )
    return (*map(int, release.split(".")), not identifiers, identifiers)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a tag that was considered for an answer came to. `revision` is None, and `time` that of
    no event, where it does not count at all.
    """

    tag: str
    event: Event
    revision: Revision | None
    time: int
    won: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Deed:
    """An event that counts: one of an annotated tag of a commit. `time` is in Unix seconds."""

    event: Event
    revision: Revision
    tag: str
    time: int

    @property
    def order(self) -> tuple[int, int, bool, str]:
        """Ties of one second are common: scripts register and assign at once. Then the counter
        decides, as a number, and a removal comes after what it removes.
        """
        return (self.time, self.event.counter or 0, self.event.is_removal, self.tag)


class History:
    """The versions and stages of one artifact, folded from its tags.

    - A version is active when the last event of its name registers it, and means that commit.
    - A stage holds commits: those whose last event of the stage assigns it, unless everything
      registered there was deregistered. Of these, the one assigned last is what the stage means.
      A commit that was never registered can be in a stage, too.
    - A deprecated artifact, whose last event is its deprecation, has neither a latest version nor
      stages. Its versions remain: what is pinned stays reproducible.
    """

    def __init__(self, artifact: ArtifactName, tags: Iterable[Tag]) -> None:
        self._artifact = artifact
        self._void: dict[Event, Tag] = {}
        deeds = []
        for tag in sorted(tags, key=lambda tag: tag.name):
            event = Event.parse(tag.name)
            if event is None or event.fullname != artifact.in_tags:
                continue
            if tag.annotated and tag.revision:
                deeds.append(Deed(event, tag.revision, tag.name, tag.time))
            else:
                self._void[event] = tag
        deeds.sort(key=lambda deed: deed.order)
        self._deeds = tuple(deeds)
        self._fold(deeds)

    def _fold(self, deeds: list[Deed]) -> None:
        self._deprecated = bool(deeds) and deeds[-1].event.action is Action.DEPRECATE
        self._last: dict[str, Deed] = {}
        """The last event of each version."""
        self._stages: dict[str, dict[Revision, Deed]] = defaultdict(dict)
        """The last event of each stage on each commit."""
        ever: set[Revision] = set()
        standing: dict[str, set[Revision]] = defaultdict(set)
        for deed in deeds:
            version = deed.event.subject
            match deed.event.action:
                case Action.REGISTER:
                    self._last[version] = deed
                    ever.add(deed.revision)
                    standing[version].add(deed.revision)
                case Action.DEREGISTER:
                    self._last[version] = deed
                    standing[version].clear()
                case Action.ASSIGN | Action.UNASSIGN:
                    self._stages[version][deed.revision] = deed
        self._withdrawn = ever.difference(*standing.values())
        self._active = sorted(
            (deed for deed in self._last.values() if not deed.event.is_removal),
            key=lambda deed: (precedence(deed.event.subject), deed.order),
            reverse=True,
        )
        # Once, so that an answer takes as long with a thousand versions as with one.
        self._greatest: dict[Revision, str] = {}
        for deed in self._active:
            self._greatest.setdefault(deed.revision, deed.event.subject)
        self._current = {
            stage: max(held, key=lambda deed: deed.order)
            for stage in self._stages
            if (held := self._held(stage))
        }

    @property
    def is_empty(self) -> bool:
        """Whether no tag speaks of the artifact, not even one that does not count."""
        return not (self._last or self._stages or self._deprecated or self._void)

    @property
    def versions(self) -> tuple[str, ...]:
        """The active versions, greatest first."""
        return tuple(deed.event.subject for deed in self._active)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that hold something, in alphabetical order."""
        return tuple(sorted(self._current))

    def version(self, version: str) -> Resolution:
        """The commit that `version`, spelled exactly, means. Raises VersionNotFound."""
        deed = self._last.get(version)
        if deed is None or deed.event.is_removal:
            raise VersionNotFound(str(self._artifact), version, self._why_no_version(version))
        return self._resolution(deed)

    def latest(self) -> Resolution:
        """The greatest active version. Raises VersionNotFound."""
        if self._deprecated:
            problem = "the artifact is deprecated; its versions can be asked for"
        elif not self._active:
            void = self._why_void(Action.REGISTER)
            problem = f"no versions are registered{f': {void}' if void else ''}"
        else:
            return self._resolution(self._active[0])
        raise VersionNotFound(str(self._artifact), None, problem)

    def stage(self, stage: str) -> Resolution:
        """What was assigned to the stage last. Raises StageNotFound."""
        deed = None if self._deprecated else self._current.get(stage)
        if deed is None:
            raise StageNotFound(str(self._artifact), stage, self._why_no_stage(stage))
        return self._resolution(deed)

    def _resolution(self, deed: Deed) -> Resolution:
        version: str | None = deed.event.subject
        if deed.event.action is Action.ASSIGN:
            version = self._greatest.get(deed.revision)
        return Resolution(deed.revision, version, deed.tag, self._deprecated)

    def _held(self, stage: str) -> list[Deed]:
        return [
            deed
            for revision, deed in self._stages.get(stage, {}).items()
            if not deed.event.is_removal and revision not in self._withdrawn
        ]

    def _why_no_version(self, version: str) -> str:
        if version in self._last:
            return f"it was deregistered by the tag {self._last[version].tag}"
        if f"v{version}" in self.versions:
            return f"did you mean v{version}? Versions begin with a v"
        void = self._why_void(Action.REGISTER, version)
        if void:
            return void
        if not self._active:
            return "no versions are registered"
        if len(self._active) <= _FEW:
            return f"registered are {', '.join(self.versions)}"
        return f"{len(self._active)} versions are registered, the latest is {self.versions[0]}"

    def _why_no_stage(self, stage: str) -> str:
        if self._deprecated:
            return "the artifact is deprecated; its versions can be asked for"
        known = self._stages.get(stage, {}).values()
        if known:
            last = max(known, key=lambda deed: deed.order)
            if last.event.is_removal:
                return f"it was unassigned by the tag {last.tag}"
            return f"what the tag {last.tag} assigned was deregistered"
        void = self._why_void(Action.ASSIGN, stage)
        if void:
            return void
        stages = self.stages
        if not stages:
            return "nothing is assigned to any stage"
        return f"its stages are {', '.join(stages)}" if len(stages) <= _FEW else "never assigned"

    def _why_void(self, action: Action, subject: str | None = None) -> str | None:
        for event, tag in self._void.items():
            if event.action is action and subject in (None, event.subject):
                return f"its tag {tag.name} {_problem(tag)}"
        return None

    # Every tag, and why

    @property
    def deeds(self) -> tuple[Deed, ...]:
        """Every event that counts, oldest first."""
        return self._deeds

    @property
    def void(self) -> tuple[Verdict, ...]:
        """Every tag that looks like an event and counts for nothing."""
        return tuple(
            Verdict(tag.name, event, tag.revision, tag.time, False, f"it {_problem(tag)}")
            for event, tag in self._void.items()
        )

    @property
    def deprecated(self) -> bool:
        """Whether the last event is a deprecation."""
        return self._deprecated

    def current(self, stage: str) -> Deed | None:
        """What the stage means, if it means something."""
        return None if self._deprecated else self._current.get(stage)

    def registration(self, version: str) -> Deed | None:
        """What registers the version, if it is active."""
        deed = self._last.get(version)
        return None if deed is None or deed.event.is_removal else deed

    def greatest(self, revision: Revision) -> str | None:
        """The greatest active version at a commit."""
        return self._greatest.get(revision)

    def explain(self, version: str | None = None, stage: str | None = None) -> tuple[Verdict, ...]:
        """Every tag that was considered for a version, a stage or the latest version, in order,
        and why it won or lost. At most one of them wins: the one that the answer names.
        """
        judge: Callable[[Deed], str | None]
        if stage is not None:
            actions, subject, judge = _OF_STAGES, stage, self._why_not_current
            won = "nothing was assigned to the stage after it"
        elif version is not None:
            actions, subject, judge = _OF_VERSIONS, version, self._why_not_registered
            won = "nothing came after it"
        else:
            actions, subject, judge = _OF_VERSIONS, None, self._why_not_latest
            won = "it registers the greatest version"

        def is_considered(event: Event) -> bool:
            if event.action is Action.DEPRECATE:
                return version is None
            return event.action in actions and subject in (None, event.subject)

        found = []
        for deed in self._deeds:
            if is_considered(deed.event):
                lost = judge(deed)
                found.append(
                    Verdict(deed.tag, deed.event, deed.revision, deed.time, not lost, lost or won)
                )
        found += [verdict for verdict in self.void if is_considered(verdict.event)]
        return tuple(found)

    def _why_not_registered(self, deed: Deed) -> str | None:
        last = self._last[deed.event.subject]
        if deed is not last:
            return f"{last.tag} came after it"
        return "it deregisters the version" if deed.event.is_removal else None

    def _why_not_latest(self, deed: Deed) -> str | None:
        if deed.event.action is Action.DEPRECATE:
            return self._why_no_deprecation()
        reason = self._why_not_registered(deed)
        if reason:
            return reason
        if self._deprecated:
            return f"{self._deeds[-1].tag} deprecates the artifact"
        greatest = self._active[0]
        if deed is greatest:
            return None
        if precedence(greatest.event.subject) == precedence(deed.event.subject):
            return f"{greatest.tag} is of the same precedence, and came after it"
        return f"{greatest.event.subject} is greater"

    def _why_not_current(self, deed: Deed) -> str | None:
        if deed.event.action is Action.DEPRECATE:
            return self._why_no_deprecation()
        last = self._stages[deed.event.subject][deed.revision]
        if deed is not last:
            return f"{last.tag} came after it at the same commit"
        if deed.event.is_removal:
            return "it takes its commit out of the stage"
        if deed.revision in self._withdrawn:
            return "everything that was registered at its commit was deregistered"
        if self._deprecated:
            return f"{self._deeds[-1].tag} deprecates the artifact"
        current = self._current[deed.event.subject]
        return None if deed is current else f"{current.tag} was assigned after it"

    def _why_no_deprecation(self) -> str:
        if self._deprecated:
            return "it deprecates the artifact, which has neither a latest version nor stages then"
        return f"{self._deeds[-1].tag} came after it"


_OF_VERSIONS = (Action.REGISTER, Action.DEREGISTER)
_OF_STAGES = (Action.ASSIGN, Action.UNASSIGN)


def _problem(tag: Tag) -> str:
    return "points to no commit" if tag.annotated else "is lightweight, GTO needs an annotated one"


class Index:
    """The tags of a repository, by artifact. Immutable: an object id never means anything else.

    What is a Ref is read when its artifact is asked for, all tags of the artifact at once, and
    then remembered. `read` gives the tags of the refs, in their order; what it raises is passed on.
    """

    def __init__(
        self,
        tags: Iterable[Tag | Ref],
        read: Callable[[Sequence[Ref]], Sequence[Tag]] = lambda _: (),
    ) -> None:
        self._read = read
        self._grouped: dict[str, Iterable[Tag | Ref]] = dict(_grouped(tags))
        self._histories: dict[str, History] = {}
        self._reading = threading.Lock()

    @classmethod
    def of(
        cls,
        groups: Mapping[str, Iterable[Tag | Ref]],
        read: Callable[[Sequence[Ref]], Sequence[Tag]],
    ) -> "Index":
        """The same of tags that are grouped by their `fullname`, and looked at when asked for."""
        index = cls((), read)
        index._grouped.update(groups)
        return index

    def updated(self, gone: Iterable[str], new: Iterable[Tag | Ref]) -> "Index":
        """The index without the tags of the names `gone`, and then with the `new` ones. It shares
        every artifact that they do not touch, and reads of the others only what is new.
        """
        added, removed = _grouped(new), frozenset(gone)
        updated = Index((), self._read)
        updated._grouped = self._grouped.copy()  # at once, though other threads may read
        updated._histories = self._histories.copy()
        for name in {fullname_of(tag) for tag in removed}.union(added):
            kept = [tag for tag in self._grouped.get(name, ()) if tag.name not in removed]
            tags = (*kept, *added.get(name, ()))
            updated._histories.pop(name, None)
            updated._grouped.pop(name, None)
            if tags:
                updated._grouped[name] = tags
        return updated

    def artifacts(self) -> tuple[ArtifactName, ...]:
        """Every artifact that a tag speaks of, in alphabetical order. Reads nothing.

        Tags of `path/dvc.yaml=m` speak of none: nobody can ask for it, since that spelling means
        the artifact `path:m`.
        """
        found = []
        for fullname, tags in tuple(self._grouped.items()):
            if not any(Event.parse(tag.name) for tag in tags):
                continue
            try:
                artifact = ArtifactName.parse(fullname.replace("=", ":"))
            except RegistryError:
                continue
            if artifact.in_tags == fullname:
                found.append(artifact)
        return tuple(sorted(found))

    def history(self, artifact: ArtifactName) -> History:
        """The history of the artifact, an empty one if no tag speaks of it."""
        fullname = artifact.in_tags
        history = self._histories.get(fullname)
        if history is None:
            if fullname not in self._grouped:
                return History(artifact, ())  # which may be asked for without end
            self._fold((artifact,))
            history = self._histories[fullname]
        return history

    def histories(self) -> Mapping[ArtifactName, History]:
        """The histories of all artifacts, in alphabetical order, with one reading for all."""
        artifacts = self.artifacts()
        self._fold(artifacts)
        return {one: self._histories[one.in_tags] for one in artifacts}

    def _fold(self, artifacts: Iterable[ArtifactName]) -> None:
        """By one thread, if that is soon done: the others find what it read."""
        alone = self._reading.acquire(timeout=_PATIENCE)
        try:
            wanted = [one for one in artifacts if one.in_tags not in self._histories]
            groups = {one: tuple(self._grouped[one.in_tags]) for one in wanted}
            unread = [tag for tags in groups.values() for tag in tags if isinstance(tag, Ref)]
            read = dict(zip(unread, self._read(unread), strict=True)) if unread else {}
            for artifact, group in groups.items():
                tags = tuple(read[tag] if isinstance(tag, Ref) else tag for tag in group)
                self._grouped[artifact.in_tags] = tags
                self._histories[artifact.in_tags] = History(artifact, tags)
        finally:
            if alone:
                self._reading.release()

    def resolve(self, selector: Selector) -> Resolution:
        """What the selector means. Raises ArtifactNotFound, VersionNotFound, StageNotFound."""
        history = self.history(selector.artifact)
        if history.is_empty:
            raise ArtifactNotFound(str(selector.artifact), "no tag registers it")
        if selector.version:
            return history.version(selector.version)
        if selector.stage:
            return history.stage(selector.stage)
        return history.latest()


def _grouped(tags: Iterable[Tag | Ref]) -> Mapping[str, list[Tag | Ref]]:
    grouped: dict[str, list[Tag | Ref]] = defaultdict(list)
    for tag in tags:
        grouped[fullname_of(tag.name)].append(tag)
    return grouped


def fullname_of(tag: str) -> str:
    """That of the artifact that a tag may speak of, all of the tag if it speaks of none. No full
    name holds either character, so that this need not parse.
    """
    return tag.partition("@")[0].partition("#")[0]
