"""Experiments, as MLflow asks for them. Each function answers one row of `routes`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from flask import Response

from registry.domain import Principal
from registry.errors import InvalidRequest
from registry.services import Services
from registry.tracking.query import Search
from registry.tracking.records import View
from registry.web.mlflow import filters, lists, wire
from registry.web.mlflow.wire import LONGEST_KEY, Json, Message, fits

LARGEST_PAGE = 50_000
PAGE = 1000
RUNS_SHOWN = 10_000
"""Runs that the early `experiments/get` lists, newest first: the document announces a limit."""

_LONGEST_NAME = 500
_LONGEST_TAG = 20_000
_LONGEST_LOCATION = 2000
_LOCATION = re.compile(
    r"(?:(?:s3|gs|wasbs?|abfss?|hdfs|viewfs|dbfs|ftp|sftp|https?|file)://|/(?!/))[^\s?#\\]*"
)
_VIEWS: dict[str, View] = {"ACTIVE_ONLY": "active", "DELETED_ONLY": "deleted", "ALL": "all"}


def view_of(message: Message, field: str) -> View:
    """Which runs or experiments are asked for: the active ones, unless it is said."""
    return _VIEWS[message.choice(field, wire.VIEWS) or "ACTIVE_ONLY"]


def create(services: Services, _: Principal, message: Message) -> Json:
    """experiments/create"""
    tags = {tag.needed("key"): tag.text("value") for tag in message.messages("tags")}
    for key, value in tags.items():
        _check_tag(key, value)
    location = message.text("artifact_location")
    number = services.tracking.experiments.create(
        _name(message, "name"), _location(location) if location else None, tags
    )
    return {"experiment_id": str(number)}


def list_all(services: Services, _: Principal, message: Message) -> Json | Response:
    """experiments/list"""
    return _found(services, message, Search(limit=LARGEST_PAGE), pages=False)


def search(services: Services, _: Principal, message: Message) -> Json | Response:
    """experiments/search"""
    wanted = Search(
        filters.parse(message.text("filter"), filters.EXPERIMENTS),
        filters.parse_orders(message.texts("order_by"), filters.EXPERIMENTS),
        message.limit("max_results", PAGE, LARGEST_PAGE),
        message.text("page_token"),
    )
    return _found(services, message, wanted, pages=True)


def _found(services: Services, message: Message, wanted: Search, *, pages: bool) -> Json | Response:
    view = view_of(message, "view_type")

    def read(limit: int, page: str) -> tuple[Sequence[Json], str]:
        found = services.tracking.experiments.search(view, replace(wanted, limit=limit, page=page))
        return lists.spelled(found, lambda it: wire.experiment(it, message.flavour))

    return lists.answer("experiments", read, wanted.limit, wanted.page, pages=pages)


def get(services: Services, _: Principal, message: Message) -> Json:
    """experiments/get; the early one lists the active runs as well."""
    number = message.experiment_id()
    found: Json = {
        "experiment": wire.experiment(services.tracking.experiments.get(number), message.flavour)
    }
    if message.flavour.early:
        shown = list(_active_runs(services, number, message))
        if shown:
            found["runs"] = shown
    return found


def _active_runs(services: Services, number: int, message: Message) -> Iterator[Json]:
    page = ""
    for _ in range(RUNS_SHOWN // PAGE):
        some = services.tracking.runs.search([number], "active", Search(limit=PAGE, page=page))
        yield from (wire.run_info(it, message.flavour) for it in some.found)
        page = some.next
        if not page:
            break


def get_by_name(services: Services, _: Principal, message: Message) -> Json:
    """experiments/get-by-name"""
    found = services.tracking.experiments.get_by_name(message.needed("experiment_name"))
    return {"experiment": wire.experiment(found, message.flavour)}


def update(services: Services, _: Principal, message: Message) -> Json:
    """experiments/update"""
    name = _name(message, "new_name") if message.text("new_name") else None
    services.tracking.experiments.rename(message.experiment_id(), name)
    return {}


def delete(services: Services, _: Principal, message: Message) -> Json:
    """experiments/delete"""
    services.tracking.experiments.delete(message.experiment_id())
    return {}


def restore(services: Services, _: Principal, message: Message) -> Json:
    """experiments/restore"""
    services.tracking.experiments.restore(message.experiment_id())
    return {}


def set_tag(services: Services, _: Principal, message: Message) -> Json:
    """experiments/set-experiment-tag"""
    key, value = message.needed("key"), message.given("value")
    _check_tag(key, value)
    services.tracking.experiments.set_tag(message.experiment_id(), key, value)
    return {}


def delete_tag(services: Services, _: Principal, message: Message) -> Json:
    """experiments/delete-experiment-tag"""
    services.tracking.experiments.delete_tag(message.experiment_id(), message.needed("key"))
    return {}


def _name(message: Message, field: str) -> str:
    return fits(message.needed(field), field, _LONGEST_NAME)


def _check_tag(key: str, value: str) -> None:
    fits(key, "key", LONGEST_KEY)
    fits(value, "value", _LONGEST_TAG)


def _location(location: str) -> str:
    """Where clients keep the artifacts with credentials of their own; nothing here ever goes there.

    What points at the artifacts of this service is made by it, and never taken from a client.
    """
    parts = location.split("/")
    if (
        len(location) > _LONGEST_LOCATION
        or not _LOCATION.fullmatch(location)
        or ".." in parts
        or not location.isprintable()
    ):
        raise InvalidRequest(
            "artifact_location",
            "must be an absolute path or the URL of a store, without .., a query or a fragment",
        )
    return location
