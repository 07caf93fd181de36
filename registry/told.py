"""What there is, as the registry tells it: pages of artifacts, versions, events and explanations.

Parameters in, JSON out. A service answers HTTP with it, and the command line prints it for a
repository that no service serves.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeVar

from registry.domain import ArtifactName, Selector
from registry.errors import InvalidRequest
from registry.gto import Action, Deed, Event, Resolution, Verdict, precedence
from registry.overview import Listed, Overview, View
from registry.receipt import details
from registry.repository.inscription import Inscription

Json = dict[str, object]
Item = TypeVar("Item")

LONGEST_PAGE = 1000
PAGE = 100
LONGEST_DESCRIPTION = 10_000
"""Characters that are shown of a description."""
MOST_LABELS = 100
MOST_VERDICTS = 1000
"""Tags that an explanation lists: the latest of those that were considered."""

PAGED = frozenset({"limit", "after"})
FRESH = frozenset({"max_age"})
_SORTS: Mapping[str, Callable[[Listed], int | str]] = {
    "name": lambda listed: str(listed.name),
    "updated": lambda listed: listed.updated,
}
LIST = PAGED | FRESH | {"search", "type", "label", "stage", "sort"}
_LONGEST_TEXT = 255
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Asked:
    """What is asked about a repository: the name of an artifact, and parameters."""

    overview: Overview
    view: View
    name: str
    given: Mapping[str, str]

    @property
    def artifact(self) -> ArtifactName:
        """The artifact. Raises InvalidRequest."""
        return ArtifactName.parse(self.name)


def artifacts(asked: Asked) -> Json:
    """A page of artifacts, by text, type, label and stage. Raises InvalidRequest, Unavailable."""
    sort = asked.given.get("sort", "name")
    key = _SORTS.get(sort.removeprefix("-"))
    if key is None:
        raise InvalidRequest("sort", f"one of {', '.join(_SORTS)}, or with - before it")
    found = [it for it in asked.overview.artifacts(asked.view) if _matches(it, asked.given)]
    page, following = page_of(
        found, lambda it: [key(it), str(it.name)], asked.given, reverse=sort.startswith("-")
    )
    name = asked.view.repository.name
    return {"artifacts": [_listed(name, listed) for listed in page], "next": following}


def artifact(asked: Asked) -> Json:
    """One artifact, with all that people wrote. Raises ArtifactNotFound, Unavailable."""
    listed = asked.overview.artifact(asked.view, asked.artifact)
    more = {"meta": _meta(listed), "versions": len(listed.history.versions)}
    return {**_listed(asked.view.repository.name, listed), **more}


def versions(asked: Asked) -> Json:
    """A page of its versions, the greatest first. Raises ArtifactNotFound."""
    history = asked.view.history(asked.artifact)
    page, following = page_of(
        history.versions, lambda it: [precedence(it), it], asked.given, reverse=True
    )
    holding: dict[str | None, list[str]] = {}
    for stage in history.stages:
        deed = history.current(stage)
        if deed:
            holding.setdefault(history.greatest(deed.revision), []).append(stage)
    listed = []
    for version in page:
        deed = history.registration(version)
        assert deed
        listed.append(
            {
                "version": version,
                "revision": deed.revision,
                "tag": deed.tag,
                "registered": moment(deed.time),
                "stages": holding.get(version, []),
            }
        )
    return {"versions": listed, "next": following}


def history(asked: Asked) -> Json:
    """A page of all that happened to it, the latest first. Raises ArtifactNotFound, Unavailable."""
    history = asked.view.history(asked.artifact)
    page, following = page_of(history.deeds, lambda it: it.order, asked.given, reverse=True)
    texts = asked.view.repository.inscriptions(page)
    return {
        "events": [_event(deed, text) for deed, text in zip(page, texts, strict=True)],
        "void": [_void(verdict) for verdict in history.void[:LONGEST_PAGE]],
        "next": following,
    }


def explain(asked: Asked) -> Json:
    """What a version or a stage means, and why each tag won or lost. Raises ArtifactNotFound."""
    given = asked.given
    selector = Selector.parse(asked.name, given.get("version", ""), given.get("stage", ""))
    found = asked.overview.explain(asked.view, selector)
    return {
        "selector": selector.asked,
        "answer": _resolved(found.resolution),
        "problem": found.problem,
        "considered": [_verdict(verdict) for verdict in found.verdicts[-MOST_VERDICTS:]],
    }


def path_of(repository: str, *more: str) -> str:
    """The route of what there is, where `~` stands for a slash."""
    parts = ["/api/v1/repositories", repository, *more]
    return "/".join([parts[0], *(part.replace("/", "~") for part in parts[1:])])


def _matches(listed: Listed, given: Mapping[str, str]) -> bool:
    written = listed.annotation.artifact
    stage, kind, label = given.get("stage"), given.get("type"), given.get("label")
    if stage and not listed.history.current(stage):
        return False
    if kind and not (written and written.type == kind):
        return False
    if label and not (written and label in written.labels):
        return False
    wanted = given.get("search", "").casefold()
    if len(wanted) > _LONGEST_TEXT:
        raise InvalidRequest("search", f"longer than {_LONGEST_TEXT} characters")
    description = written.description if written and written.description else ""
    return wanted in str(listed.name).casefold() or wanted in description.casefold()


def page_of(
    items: Iterable[Item],
    key: Callable[[Item], object],
    given: Mapping[str, str],
    *,
    reverse: bool = False,
) -> tuple[list[Item], str | None]:
    """The items after the cursor, in order, and the cursor of the next page.

    A cursor holds the key of the last one shown: what comes and goes in between moves nothing.
    """
    limit = number_of(given, "limit", LONGEST_PAGE) or PAGE
    keyed: list[tuple[Any, Item]] = [(json.loads(json.dumps(key(item))), item) for item in items]
    keyed.sort(key=lambda pair: pair[0], reverse=reverse)
    if "after" in given:
        after = _opened(given["after"])
        try:
            keyed = [pair for pair in keyed if (pair[0] < after if reverse else pair[0] > after)]
        except TypeError:
            raise InvalidRequest("after", "the `next` of another list") from None
    following = _closed(keyed[limit - 1][0]) if len(keyed) > limit else None
    return [item for _, item in keyed[:limit]], following


def _closed(key: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def _opened(cursor: str) -> Any:
    """The key in a cursor, which is the client's to invent: it selects, and shows nothing."""
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor.encode() + b"=="))
    except (ValueError, RecursionError):
        key = None
    if not isinstance(key, list):
        raise InvalidRequest("after", "the `next` of an earlier answer")
    return key


def _listed(repository: str, listed: Listed) -> Json:
    history, written = listed.history, listed.annotation.artifact
    stages = {}
    for stage in history.stages:
        deed = history.current(stage)
        if deed:
            version = history.greatest(deed.revision)
            stages[stage] = {"version": version, "revision": deed.revision, "tag": deed.tag}
    here = path_of(repository, "artifacts", str(listed.name))
    description = written.description if written else None
    return {
        "name": str(listed.name),
        "type": written.type if written else None,
        "labels": list(written.labels[:MOST_LABELS]) if written else [],
        "description": description and description[:LONGEST_DESCRIPTION],
        "deprecated": history.deprecated,
        "latest": _resolved(listed.latest),
        "stages": stages,
        "updated": moment(listed.updated),
        "shown": listed.shown,
        "problem": listed.annotation.problem,
        "links": {
            "self": here,
            **{it: f"{here}/{it}" for it in ("versions", "history", "explain")},
        },
    }


def _meta(listed: Listed) -> object:
    written = listed.annotation.artifact
    try:
        return details(None, None, (), written.meta) if written else None
    except ValueError:
        return None  # it is too large to be looked at; a receipt says so


def _resolved(resolution: Resolution | None) -> Json | None:
    if resolution is None:
        return None
    return {
        "version": resolution.version,
        "revision": resolution.revision,
        "tag": resolution.tag,
    }


def _happened(event: Event) -> Json:
    of_stage = event.action in (Action.ASSIGN, Action.UNASSIGN)
    return {
        "action": event.action.value,
        "version": None if of_stage else event.subject or None,
        "stage": event.subject if of_stage else None,
    }


def _event(deed: Deed, text: Inscription | None) -> Json:
    return {
        "tag": deed.tag,
        **_happened(deed.event),
        "revision": deed.revision,
        "time": moment(deed.time),
        "who": text.who if text else None,
        "message": text.message if text else None,
    }


def _void(verdict: Verdict) -> Json:
    return {"tag": verdict.tag, **_happened(verdict.event), "problem": verdict.reason}


def _verdict(verdict: Verdict) -> Json:
    return {
        "tag": verdict.tag,
        **_happened(verdict.event),
        "revision": verdict.revision,
        "time": moment(verdict.time),
        "won": verdict.won,
        "reason": verdict.reason,
    }


def moment(seconds: float | None) -> str | None:
    """Unix time for people; None for none, and for what a hostile tag says beyond all years."""
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc) if seconds else None
    except (OverflowError, ValueError, OSError):
        return None
    return None if moment is None else f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def number_of(given: Mapping[str, str], name: str, most: int | None = None) -> int | None:
    """A parameter that is a whole number, up to `most`; None when it is absent. Raises
    InvalidRequest.
    """
    text = given.get(name)
    if text is None:
        return None
    number = int(text) if _NUMBER.fullmatch(text) else -1
    if number < 0 or (most is not None and not 1 <= number <= most):
        limits = "" if most is None else f" from 1 to {most}"
        raise InvalidRequest(name, f"a whole number{limits}")
    return number


ROUTES: Mapping[str, Callable[[Asked], Json]] = {
    "": artifacts,
    "/": artifact,
    "/versions": versions,
    "/history": history,
    "/explain": explain,
}
"""What follows the name of an artifact in a route, and what answers it."""
