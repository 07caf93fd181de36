"""Runs, as MLflow asks for them. Each function answers one row of `routes`."""

import json
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from posixpath import normpath
from typing import cast

from flask import Response

from registry.domain import Principal
from registry.errors import InvalidRequest
from registry.services import Services
from registry.tracking.query import Comparison, Operator, Search
from registry.tracking.records import Input, Metric, ModelMetric, Owner, RunModel, Status
from registry.tracking.runs import Batch
from registry.web.mlflow import artifacts, filters, lists, wire
from registry.web.mlflow.experiments import LARGEST_PAGE, PAGE, view_of
from registry.web.mlflow.names import random_name
from registry.web.mlflow.wire import (
    LONGEST_KEY,
    LONGEST_PARAM,
    LONGEST_TAG,
    RUN_NAME,
    Json,
    Message,
    fits,
)

LARGEST_BATCH = 1_000_000
"""Bytes of the body of log-batch."""
_METRICS = 1000
_PARAMS = 100
_TAGS = 100
_TOTAL = 1000
_LONGEST_EARLY_TAG = 5000
_LONGEST_IN_EARLY_BATCH = 250
_DATASETS = 1000
_PIECE = 10_000
"""Values of a history that are read at once."""
_HISTORY = 25_000
_HISTORIES = 100
_SAMPLE = 2500
_MODEL_HISTORY = "mlflow.log-model.history"
_NAME = re.compile(r"[/\w.\- :]+")


# One run


def create(services: Services, _: Principal, message: Message) -> Json:
    """runs/create"""
    tags = dict(wire.deprecated_tags(message)) if message.flavour.early else {}
    tags |= _tags(message)
    if message.flavour.early:
        for value in tags.values():
            fits(value, "tags", _LONGEST_EARLY_TAG, "bytes")
    name = message.text("run_name")
    tagged = tags.get(RUN_NAME)
    if name and tagged and name != tagged and not message.flavour.early:
        raise InvalidRequest("run_name", f"differs from the tag {RUN_NAME}")
    name = name or tagged or ("" if message.flavour.early else random_name(random))
    if name:
        tags[RUN_NAME] = name
    started = message.integer("start_time")
    run = services.tracking.runs.create(
        message.experiment_id() if "experiment_id" in message else 0,
        name=name,
        user_id=message.text("user_id"),
        started=started or None,
        tags=tags,
    )
    return {"run": wire.run(run, message.flavour)}


def get(services: Services, _: Principal, message: Message) -> Json:
    """runs/get"""
    return {"run": wire.run(services.tracking.runs.get(message.run_id()), message.flavour)}


def update(services: Services, _: Principal, message: Message) -> Json:
    """runs/update"""
    name = message.text("run_name") or None
    status = cast("Status | None", message.choice("status", wire.STATUSES))
    run = services.tracking.runs.update(
        message.run_id(),
        status=status,
        ended=message.integer("end_time"),
        name=name,
        tags={RUN_NAME: name} if name else {},
    )
    if status == "FINISHED" and run.artifact_location is None:
        artifacts.keep_directories(services, Owner("run", run.id, run.experiment))
    if message.flavour.early:
        run = services.tracking.runs.get(run.id)  # whose tags say what fields said before
    return {"run_info": wire.run_info(run, message.flavour)}


def delete(services: Services, _: Principal, message: Message) -> Json:
    """runs/delete"""
    services.tracking.runs.delete(message.run_id())
    return {}


def restore(services: Services, _: Principal, message: Message) -> Json:
    """runs/restore"""
    services.tracking.runs.restore(message.run_id())
    return {}


# Logging


def log_metric(services: Services, _: Principal, message: Message) -> Json:
    """runs/log-metric"""
    run_id = message.run_id()
    metric = _metric(message)
    services.tracking.runs.log(run_id, _of_metrics(run_id, [message], [metric]))
    return {}


def log_parameter(services: Services, _: Principal, message: Message) -> Json:
    """runs/log-parameter"""
    run_id = message.run_id()
    if message.flavour.early:
        key = fits(message.needed("key"), "key", 255, "bytes")
        value = fits(message.given("value"), "value", 500, "bytes")
    else:
        key, value = _named(message), message.given("value")[:LONGEST_PARAM]
    services.tracking.runs.log(run_id, Batch(params=[(key, value)]))
    return {}


def set_tag(services: Services, _: Principal, message: Message) -> Json:
    """runs/set-tag"""
    run_id = message.run_id()
    if message.flavour.early:
        key = fits(message.needed("key"), "key", 255, "bytes")
        value = fits(message.given("value"), "value", _LONGEST_EARLY_TAG, "bytes")
    else:
        key, value = _tag(message)
    services.tracking.runs.log(run_id, Batch(tags={key: value}, name=_renamed({key: value})))
    return {}


def delete_tag(services: Services, _: Principal, message: Message) -> Json:
    """runs/delete-tag"""
    services.tracking.runs.delete_tag(message.run_id(), message.needed("key"))
    return {}


def log_batch(services: Services, _: Principal, message: Message) -> Json:
    """runs/log-batch: all of it or nothing, which is more than MLflow promises."""
    run_id = message.run_id()
    measured = message.messages("metrics")
    given = message.messages("params")
    _limit("metrics", len(measured), _METRICS)
    _limit("params", len(given), _PARAMS)
    _limit("tags", len(message.messages("tags")), _TAGS)
    total = len(measured) + len(given) + len(message.messages("tags"))
    _limit("metrics, params, and tags", total, _TOTAL)
    tags = _tags(message)
    if message.flavour.early:
        for value in tags.values():
            fits(value, "value", _LONGEST_IN_EARLY_BATCH)
    metrics = _of_metrics(run_id, measured, [_metric(item) for item in measured])
    batch = Batch(
        metrics=metrics.metrics,
        params=[_param(item) for item in given],
        tags=tags,
        name=_renamed(tags),
        model_metrics=metrics.model_metrics,
    )
    services.tracking.runs.log(run_id, batch)
    return {}


def log_inputs(services: Services, _: Principal, message: Message) -> Json:
    """runs/log-inputs"""
    used = message.messages("datasets")
    _limit("datasets", len(used), _DATASETS)
    inputs = []
    for item in used:
        data = wire.dataset(item.message("dataset"))
        fits(data.name, "dataset.name", 500, "bytes")
        fits(data.digest, "dataset.digest", 36)
        tags = {
            fits(tag.needed("key"), "key", 255): fits(tag.given("value"), "value", 500)
            for tag in item.messages("tags")
        }
        inputs.append(Input(data, tags))
    used_models = [_model(item) for item in message.messages("models")]
    services.tracking.runs.log_inputs(message.run_id(), inputs, used_models)
    return {}


def log_outputs(services: Services, _: Principal, message: Message) -> Json:
    """runs/outputs"""
    made = [
        RunModel(_model(item), "output", item.integer("step") or 0)
        for item in message.messages("models")
    ]
    services.tracking.runs.log_outputs(message.run_id(), made)
    return {}


def _model(message: Message) -> str:
    """The id of a logged model, which need not be there yet."""
    return fits(message.needed("model_id"), "model_id", LONGEST_KEY)


def log_model(services: Services, _: Principal, message: Message) -> Json:
    """runs/log-model: one more model in the tag that lists them, for clients before 3."""
    try:
        model = json.loads(message.needed("model_json"))
    except (ValueError, RecursionError):
        raise InvalidRequest("model_json", "must be JSON") from None
    needed = {"artifact_path", "flavors", "utc_time_created", "run_id"}
    if not isinstance(model, dict) or not isinstance(model.get("flavors"), dict):
        raise InvalidRequest("model_json", "must be an object, with flavors")
    missing = sorted(needed - set(model))
    if missing:
        raise InvalidRequest("model_json", f"is missing mandatory fields: {', '.join(missing)}")
    kept = {name: model[name] for name in sorted(needed | {"model_uuid"}) if name in model}
    # What a flavour is configured with can hold anything, and a tag cannot.
    kept["flavors"] = {
        name: {key: value for key, value in flavour.items() if key != "config"}
        if isinstance(flavour, dict)
        else flavour
        for name, flavour in model["flavors"].items()
    }

    def add(known: str | None) -> str:
        try:
            listed = json.loads(known) if known else []
        except ValueError:
            listed = []
        text = json.dumps([*listed, kept] if isinstance(listed, list) else [kept])
        return fits(text, _MODEL_HISTORY, LONGEST_TAG)

    services.tracking.runs.rewrite_tag(message.run_id(), _MODEL_HISTORY, add)
    return {}


def _metric(message: Message) -> Metric:
    key = _named(message)
    return Metric(
        key, message.number("value"), message.moment("timestamp"), message.integer("step") or 0
    )


def _of_metrics(run_id: str, messages: Sequence[Message], metrics: Sequence[Metric]) -> Batch:
    """Metrics of a run; one that names a model, or several on datasets, is also the model's."""
    of_models = []
    for message, metric in zip(messages, metrics, strict=True):
        model = message.text("model_id")
        if model:
            name = fits(message.text("dataset_name"), "dataset_name", 500, "bytes")
            digest = fits(message.text("dataset_digest"), "dataset_digest", 36)
            of_models.append((model, ModelMetric(metric, run_id, name, digest)))
    return Batch(metrics=metrics, model_metrics=of_models)


def _named(message: Message) -> str:
    """The key of a metric or a param, which clients may use as the name of a file."""
    key = fits(message.needed("key"), "key", LONGEST_KEY)
    if not message.flavour.early:
        if not _NAME.fullmatch(key):
            raise InvalidRequest(
                "key",
                f"invalid name {key!r}: names may only contain alphanumerics, underscores, dashes, "
                "periods, spaces, colons and slashes",
            )
        if ("/" in key or "." in key) and (
            normpath(key) != key or key.startswith(("/", "..")) or key == "."
        ):
            raise InvalidRequest("key", f"invalid name {key!r}: as a path it would be another one")
    return key


def _param(message: Message) -> tuple[str, str]:
    key, value = _named(message), message.text("value")
    if message.flavour.early:
        return key, fits(value, "value", _LONGEST_IN_EARLY_BATCH)
    return key, value[:LONGEST_PARAM]


def _tag(message: Message) -> tuple[str, str]:
    key, value = fits(message.needed("key"), "key", LONGEST_KEY), message.text("value")
    return key, value[:LONGEST_TAG]


def _tags(message: Message) -> dict[str, str]:
    """The tags of a message, of which the last one of a key counts."""
    return dict(_tag(item) for item in message.messages("tags"))


def _renamed(tags: dict[str, str]) -> str | None:
    """The name that tags give to their run."""
    return tags.get(RUN_NAME) or None


def _limit(what: str, given: int, allowed: int) -> None:
    if given > allowed:
        raise InvalidRequest(
            what,
            f"A batch logging request can contain at most {allowed} {what}. Got {given} {what}. "
            f"Please split up {what} across multiple requests and try again.",
        )


# Reading


def get_history(services: Services, _: Principal, message: Message) -> Json | Response:
    """metrics/get-history: all of it unless it is said how much."""
    run_id, key = message.run_id(), message.needed("metric_key")

    def read(limit: int, page: str) -> tuple[Sequence[Json], str]:
        found = services.tracking.runs.history(run_id, key, limit, page)
        return lists.spelled(found, lambda it: wire.metric(it, message.flavour))

    limit = message.limit("max_results", sys.maxsize, LARGEST_PAGE)
    return lists.answer("metrics", read, limit, message.text("page_token"), piece=_PIECE)


def get_history_bulk(services: Services, _: Principal, message: Message) -> Json:
    """metrics/get-history-bulk, which draws a metric of several runs."""
    run_ids = message.texts("run_id")
    if not run_ids:
        raise InvalidRequest("run_id", "must be given at least once")
    if len(run_ids) > _HISTORIES:
        raise InvalidRequest("run_id", f"may be given {_HISTORIES} times at most")
    limit = message.limit("max_results", _HISTORY, _HISTORY)
    key = message.needed("metric_key")
    found = services.tracking.runs.histories(sorted(run_ids), key, limit)
    return {
        "metrics": [
            {**wire.metric(metric, message.flavour), "run_id": run_id} for run_id, metric in found
        ]
    }


def get_history_bulk_interval(services: Services, _: Principal, message: Message) -> Json:
    """metrics/get-history-bulk-interval: what is drawn of several runs, thinned out."""
    run_ids = message.texts("run_ids")
    if not run_ids:
        raise InvalidRequest("run_ids", "must be given at least once")
    if len(run_ids) > _HISTORIES:
        raise InvalidRequest("run_ids", f"may be given {_HISTORIES} times at most")
    first, last = message.integer("start_step"), message.integer("end_step")
    if (first is None) != (last is None):
        raise InvalidRequest("end_step", "is given with start_step, or neither is")
    steps = None if first is None or last is None else (first, last)
    if steps and steps[0] > steps[1]:
        raise InvalidRequest("end_step", "must not come before start_step")
    found = services.tracking.runs.sampled(
        run_ids,
        message.needed("metric_key"),
        message.limit("max_results", _SAMPLE, _SAMPLE),
        steps,
    )
    return {
        "metrics": [
            {**wire.metric(metric, message.flavour), "run_id": run_id} for run_id, metric in found
        ]
    }


def search(services: Services, _: Principal, message: Message) -> Json | Response:
    """runs/search"""
    view = view_of(message, "run_view_type")
    if message.flavour.early:
        if message.text("filter") and message.messages("anded_expressions"):
            raise InvalidRequest("filter", "may not be provided when anded_expressions is present")
        wanted = Search(
            _anded(message) or filters.parse(message.text("filter"), filters.SEED),
            limit=LARGEST_PAGE,
        )
    else:
        wanted = Search(
            filters.parse(message.text("filter"), filters.RUNS),
            filters.parse_orders(message.texts("order_by"), filters.RUNS),
            message.limit("max_results", PAGE, LARGEST_PAGE),
            message.text("page_token"),
        )
    experiment_ids = message.experiment_ids()

    def read(limit: int, page: str) -> tuple[Sequence[Json], str]:
        some = replace(wanted, limit=limit, page=page)
        found = services.tracking.runs.search(experiment_ids, view, some)
        return lists.spelled(found, lambda it: wire.run(it, message.flavour))

    return lists.answer("runs", read, wanted.limit, wanted.page, pages=not message.flavour.early)


_NUMERIC = {">": ">", ">=": ">=", "==": "=", "=": "=", "!=": "!=", "<=": "<=", "<": "<"}
# What `~` means the document does not say, and no server ever did: here it is LIKE.
_TEXTUAL = {"==": "=", "=": "=", "!=": "!=", "~": "like"}


def _anded(message: Message) -> tuple[Comparison, ...]:
    """The expressions that the early document has beside the filter."""
    found = []
    for item in message.messages("anded_expressions"):
        if "metric" in item:
            subject = item.message("metric")
            clause = subject.message("float" if "float" in subject else "double")
            operator = _comparator(clause, _NUMERIC)
            found.append(
                Comparison("metric", subject.needed("key"), operator, clause.number("value"))
            )
        else:
            subject = item.message("parameter")
            clause = subject.message("string")
            operator = _comparator(clause, _TEXTUAL)
            found.append(
                Comparison("param", subject.needed("key"), operator, clause.given("value"))
            )
    if len(found) > filters.CLAUSES:
        raise InvalidRequest("anded_expressions", f"more than {filters.CLAUSES} expressions")
    return tuple(found)


def _comparator(clause: Message, known: dict[str, str]) -> Operator:
    given = clause.needed("comparator")
    if given not in known:
        raise InvalidRequest(
            "comparator", f"invalid comparator {given!r}: one of {', '.join(known)}"
        )
    return cast(Operator, known[given])
