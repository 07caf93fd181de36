"""Logged models, as MLflow 3 asks for them. Each function answers one row of `routes`."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from flask import Response

from registry.domain import Principal
from registry.errors import InvalidRequest
from registry.services import Services
from registry.tracking.query import Comparison, Order, Search
from registry.tracking.records import ModelStatus, Owner
from registry.web.mlflow import filters, lists, wire
from registry.web.mlflow.artifacts import keep_directory
from registry.web.mlflow.names import random_name
from registry.web.mlflow.wire import (
    LONGEST_KEY,
    LONGEST_PARAM,
    LONGEST_TAG,
    MODEL_STATUSES,
    Json,
    Message,
    fits,
)

PAGE = 100
LARGEST_PAGE = 50_000
_LONGEST_NAME = 500
_LONGEST_TYPE = 500
_FORBIDDEN = ("/", ":", ".", "%", '"', "'")


def create(services: Services, _: Principal, message: Message) -> Json:
    """POST logged-models"""
    name = message.text("name") or random_name(random)
    if len(name) > _LONGEST_NAME or any(letter in name for letter in _FORBIDDEN):
        raise InvalidRequest(
            "name",
            f"must be at most {_LONGEST_NAME} characters, none of them {' '.join(_FORBIDDEN)}",
        )
    found = services.tracking.models.create(
        message.experiment_id(),
        name=name,
        type=fits(message.text("model_type"), "model_type", _LONGEST_TYPE),
        source_run=fits(message.text("source_run_id"), "source_run_id", LONGEST_KEY),
        params=_pairs(message, "params", LONGEST_PARAM),
        tags=_pairs(message, "tags", LONGEST_TAG),
    )
    return {"model": wire.model(found)}


def get(services: Services, _: Principal, message: Message) -> Json:
    """GET logged-models/{model_id}"""
    return {"model": wire.model(services.tracking.models.get(message.needed("model_id")))}


def finish(services: Services, _: Principal, message: Message) -> Json:
    """PATCH logged-models/{model_id}"""
    status = message.choice("status", [*MODEL_STATUSES], first=0)
    if status is None:
        raise InvalidRequest("status", "missing value for required parameter")
    found = services.tracking.models.finish(
        message.needed("model_id"), cast(ModelStatus, MODEL_STATUSES[status])
    )
    if found.status == "ready" and found.artifact_location is None:
        # What is loadable as a whole is so for DVC as well.
        keep_directory(services, Owner("model", found.id, found.experiment))
    return {"model": wire.model(found)}


def delete(services: Services, _: Principal, message: Message) -> Json:
    """DELETE logged-models/{model_id}"""
    services.tracking.models.delete(message.needed("model_id"))
    return {}


def log_params(services: Services, _: Principal, message: Message) -> Json:
    """POST logged-models/{model_id}/params"""
    params = _pairs(message, "params", LONGEST_PARAM)
    services.tracking.models.log_params(message.needed("model_id"), params)
    return {}


def set_tags(services: Services, _: Principal, message: Message) -> Json:
    """PATCH logged-models/{model_id}/tags"""
    model_id = message.needed("model_id")
    services.tracking.models.set_tags(model_id, _pairs(message, "tags", LONGEST_TAG))
    return {"model": wire.model(services.tracking.models.get(model_id))}


def delete_tag(services: Services, _: Principal, message: Message) -> Json:
    """DELETE logged-models/{model_id}/tags/{tag_key}"""
    services.tracking.models.delete_tag(message.needed("model_id"), message.needed("tag_key"))
    return {}


def search(services: Services, _: Principal, message: Message) -> Json | Response:
    """POST logged-models/search"""
    named = message.messages("datasets")
    if len(named) > filters.CLAUSES:
        raise InvalidRequest("datasets", f"more than {filters.CLAUSES} datasets")
    datasets = [
        (item.needed("dataset_name"), item.text("dataset_digest") or None) for item in named
    ]
    compared = filters.parse(message.text("filter"), filters.MODELS)
    wanted = Search(
        tuple(_of_status(comparison) for comparison in compared),
        _orders(message.messages("order_by")),
        message.limit("max_results", PAGE, LARGEST_PAGE),
        message.text("page_token"),
    )
    experiment_ids = message.experiment_ids()

    def read(limit: int, page: str) -> tuple[Sequence[Json], str]:
        some = replace(wanted, limit=limit, page=page)
        found = services.tracking.models.search(experiment_ids, some, datasets)
        return lists.spelled(found, wire.model)

    return lists.answer("models", read, wanted.limit, wanted.page)


def _orders(messages: Sequence[Message]) -> tuple[Order, ...]:
    if len(messages) > filters.COLUMNS:
        raise InvalidRequest("order_by", f"more than {filters.COLUMNS} columns")
    return tuple(map(_order, messages))


def _order(message: Message) -> Order:
    (order,) = filters.parse_orders([message.needed("field_name")], filters.MODELS)
    name = message.text("dataset_name")
    return replace(
        order,
        ascending=message.flag("ascending", True),
        dataset=(name, message.text("dataset_digest") or None) if name else None,
    )


def _of_status(comparison: Comparison) -> Comparison:
    """A comparison of a status with our word for it."""
    if (comparison.kind, comparison.key) != ("attribute", "status"):
        return comparison
    if isinstance(comparison.value, tuple):
        return replace(comparison, value=tuple(map(_status, comparison.value)))
    return replace(comparison, value=_status(str(comparison.value)))


def _status(word: str) -> str:
    return MODEL_STATUSES.get(word) or MODEL_STATUSES.get(f"LOGGED_MODEL_{word}") or word


def _pairs(message: Message, field: str, longest: int) -> dict[str, str]:
    found = {}
    for item in message.messages(field):
        key = fits(item.needed("key"), f"{field}.key", LONGEST_KEY)
        found[key] = item.text("value")[:longest]
    return found
