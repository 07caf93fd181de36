"""Looking around: repositories, artifacts, their versions, their history, and why a tag won."""

import json
from collections.abc import Callable, Mapping

from flask import Blueprint, Response

from registry import access, told
from registry.overview import Overview
from registry.services import Services
from registry.told import FRESH, PAGED, Asked, Json, moment, page_of, path_of
from registry.web.auth import principal
from registry.web.observe import trace
from registry.web.registry.asked import age, arguments, max_age_of


def add_to(routes: Blueprint, services: Services) -> None:
    """Adds the routes of this module."""

    @routes.get("/repositories")
    def repositories() -> Response:
        given = arguments(PAGED)
        access.require(principal(), "models:read")
        return _answer(_repositories(services.overview, given))

    def add(rule: str, allowed: frozenset[str], handler: Callable[[Asked], Json]) -> None:
        def view(repository: str, name: str = "") -> Response:
            given, asks = arguments(allowed), principal()
            access.require(asks, "models:read")
            found = services.overview.view(asks, repository.replace("~", "/"), max_age_of(given))
            checked, now = found.snapshot.checked, services.clock()
            trace().headers += age(checked, now, stale=found.stale)
            return _answer(handler(Asked(services.overview, found, name.replace("~", "/"), given)))

        endpoint = handler.__name__
        routes.add_url_rule(f"/repositories/<repository>/artifacts{rule}", endpoint, view)

    add("", told.LIST, told.artifacts)
    add("/<name>", FRESH, told.artifact)
    add("/<name>/versions", PAGED | FRESH, told.versions)
    add("/<name>/history", PAGED | FRESH, told.history)
    add("/<name>/explain", FRESH | {"version", "stage"}, told.explain)


def _repositories(overview: Overview, given: Mapping[str, str]) -> Json:
    page, following = page_of(
        overview.repositories(principal()), lambda it: [it.repository.name], given
    )
    listed = []
    for mirrored in page:
        name, status = mirrored.repository.name, mirrored.repository.status()
        listed.append(
            {
                "name": name,
                "last_seen": moment(status.checked),
                "problem": status.problem,
                "artifacts": path_of(name, "artifacts"),
            }
        )
    return {"repositories": listed, "next": following}


def _answer(body: Json) -> Response:
    trace().headers += [("Cache-Control", "private, no-cache"), ("Vary", "Authorization")]
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Response(text, mimetype="application/json")
