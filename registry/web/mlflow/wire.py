"""MLflow's messages, both ways: protobuf as JSON spells it. Pure.

Two flavours of one language. The early one writes int64 as text and takes a number for an id; the
current one writes numbers and is strict. Both give a run's id under both of its names, for clients
ignore what they do not know.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from registry.errors import ExperimentNotFound, InvalidRequest
from registry.tracking.records import (
    UNKEPT,
    Dataset,
    Experiment,
    Input,
    LoggedModel,
    Metric,
    ModelMetric,
    Run,
)

Json = dict[str, Any]

RUN_NAME = "mlflow.runName"
_ARTIFACTS = "mlflow-artifacts:/"
_DEPRECATED = {
    "source_type": "mlflow.source.type",
    "source_name": "mlflow.source.name",
    "entry_point_name": "mlflow.project.entryPoint",
    "source_version": "mlflow.source.git.commit",
    "parent_run_id": "mlflow.parentRunId",
}
"""Fields of a run in the early document, and the tags that they became."""

STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
SOURCE_TYPES = ("NOTEBOOK", "JOB", "PROJECT", "LOCAL", "UNKNOWN")
VIEWS = ("ACTIVE_ONLY", "DELETED_ONLY", "ALL")
MODEL_STATUSES = {
    "LOGGED_MODEL_STATUS_UNSPECIFIED": "unspecified",
    "LOGGED_MODEL_PENDING": "pending",
    "LOGGED_MODEL_READY": "ready",
    "LOGGED_MODEL_UPLOAD_FAILED": "failed",
}

EXPERIMENTS = 10_000
"""Experiments of one search."""
LONGEST_KEY = 250
"""Characters of a key, and of an id. With the two that follow, today's lengths."""
LONGEST_PARAM = 6000
LONGEST_TAG = 8000

_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_CHOSEN = TypeVar("_CHOSEN")


@dataclass(frozen=True)
class Flavour:
    """How messages are spelled below one prefix."""

    early: bool

    def int64(self, value: int) -> int | str:
        """As the clients of the prefix are used to it."""
        return str(value) if self.early else value


EARLY = Flavour(early=True)
CURRENT = Flavour(early=False)


# Requests


class Message:
    """A request, or a part of one: its fields, read as what they should be.

    Whatever reads a field raises InvalidRequest, which names it, for a value of another kind. A
    field that is null counts as not given, as protobuf has it.
    """

    def __init__(
        self, fields: Mapping[str, object], flavour: Flavour = CURRENT, place: str = ""
    ) -> None:
        self.flavour = flavour
        self._fields = fields
        self._place = place

    @classmethod
    def of_query(cls, query: Mapping[str, Sequence[str]], flavour: Flavour) -> "Message":
        """Of the parameters of a URL; a list may be spelled `name[]`."""
        return cls(
            {key.removesuffix("[]"): _Given(values) for key, values in query.items()}, flavour
        )

    @classmethod
    def of_body(cls, body: bytes, flavour: Flavour) -> "Message":
        """Of a body of JSON; none at all is an empty message."""
        try:
            parsed = json.loads(body) if body.strip() else {}
            if isinstance(parsed, str) and flavour.early:
                parsed = json.loads(parsed)  # some of the first clients encoded twice
        except (ValueError, RecursionError):
            raise InvalidRequest("body", "must be JSON") from None
        if not isinstance(parsed, dict):
            raise InvalidRequest("body", "must be an object of JSON")
        return cls(parsed, flavour)

    def with_path(self, values: Mapping[str, str]) -> "Message":
        """The same with what the path says, which goes before."""
        return Message({**self._fields, **values}, self.flavour, self._place)

    def __contains__(self, name: str) -> bool:
        return self._fields.get(name) is not None

    def text(self, name: str, default: str = "") -> str:
        """A text."""
        value = self._scalar(name)
        if not isinstance(value, str):
            if value is None:
                return default
            raise self._wrong(name, value, "must be a text")
        if UNKEPT.search(value):
            raise self._wrong(name, value, "holds a character that no text may hold")
        return value

    def needed(self, name: str) -> str:
        """A text that must be given, and not be empty."""
        value = self.text(name)
        if not value:
            raise self._missing(name)
        return value

    def given(self, name: str) -> str:
        """A text that must be given, and may be empty."""
        if name not in self:
            raise self._missing(name)
        return self.text(name)

    def run_id(self) -> str:
        """The id of a run, under either of its names."""
        given = self.text("run_id") or self.text("run_uuid")
        if not given:
            raise self._missing("run_uuid" if self.flavour.early else "run_id")
        return given

    def experiment_id(self, name: str = "experiment_id") -> int:
        """The id of an experiment, which is always a text to clients, and a number to us."""
        if name not in self:
            raise self._missing(name)
        return self._experiment(name, self._scalar(name))

    def experiment_ids(self) -> list[int]:
        """The ids of experiments."""
        given = self._list("experiment_ids")
        if len(given) > EXPERIMENTS:
            raise InvalidRequest("experiment_ids", f"more than {EXPERIMENTS} experiments")
        return [self._experiment("experiment_ids", it) for it in given]

    def _experiment(self, name: str, value: object) -> int:
        if self.flavour.early and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise self._wrong(name, value, "must be a text")
        if not re.fullmatch(r"[+-]?[0-9]+", value):
            raise self._wrong(name, value, "must be a whole number")
        if not re.fullmatch(r"[0-9]{1,18}", value):
            raise ExperimentNotFound(value)
        return int(value)

    def integer(self, name: str) -> int | None:
        """An int64, as a number or as text."""
        value = self._scalar(name)
        if type(value) is int and -(2**63) <= value < 2**63:
            return value  # as almost every client spells it
        if value is None:
            return None
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, value, "must be a whole number")
        if not -(2**63) <= value < 2**63:
            raise self._wrong(name, value, "must fit into 64 bits")
        return value

    def moment(self, name: str) -> int:
        """Milliseconds since 1970, which must be given."""
        value = self.integer(name)
        if value is None:
            raise self._missing(name)
        if value < 0:
            raise self._wrong(name, value, "must not be negative")
        return value

    def limit(self, name: str, default: int, largest: int, otherwise: str = "") -> int:
        """How many of something, from 1 on; `otherwise` says what to do about more."""
        value = self.integer(name)
        if value is None:
            return default
        if not 1 <= value <= largest:
            raise self._wrong(name, value, f"must be from 1 to {largest}{otherwise}")
        return value

    def number(self, name: str) -> float:
        """A double, which must be given; NaN and the infinities by name."""
        value = self._scalar(name)
        if type(value) is float:
            return value
        if value is None:
            raise self._missing(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except (ValueError, OverflowError):
                pass
        raise self._wrong(name, value, "must be a number")

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self._scalar(name)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
        raise self._wrong(name, value, "must be true or false")

    def choice(self, name: str, allowed: Sequence[str], first: int = 1) -> str | None:
        """One of an enumeration, by name, or by number counted from `first`."""
        value = self._scalar(name)
        if value is None:
            return None
        if isinstance(value, str) and value in allowed:
            return value
        text = str(value)
        if not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,2}", text):
            place = int(text) - first
            if 0 <= place < len(allowed):
                return allowed[place]
        raise self._wrong(name, value, f"must be one of {', '.join(allowed)}")

    def messages(self, name: str) -> list["Message"]:
        """A list of messages."""
        found = []
        for number, item in enumerate(self._list(name)):
            place = f"{self._place}{name}[{number}]"
            if not isinstance(item, dict):
                raise InvalidRequest(place, "must be an object")
            found.append(Message(item, self.flavour, f"{place}."))
        return found

    def message(self, name: str) -> "Message":
        """A message, which must be given."""
        value = self._fields.get(name)
        if value is None:
            raise self._missing(name)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "must be an object")
        return Message(value, self.flavour, f"{self._place}{name}.")

    def texts(self, name: str) -> list[str]:
        """A list of texts."""
        items = self._list(name)
        return [
            Message({"item": item}, self.flavour, f"{self._place}{name}.").text("item")
            for item in items
        ]

    def _list(self, name: str) -> Sequence[object]:
        value = self._fields.get(name)
        if value is None:
            return ()
        if isinstance(value, _Given):
            return value.values
        if not isinstance(value, list):
            raise self._wrong(name, value, "must be a list")
        return value

    def _scalar(self, name: str) -> object:
        value = self._fields.get(name)
        return value.values[0] if type(value) is _Given else value

    def _missing(self, name: str) -> InvalidRequest:
        return InvalidRequest(self._place + name, "missing value for required parameter")

    def _wrong(self, name: str, value: object, problem: str) -> InvalidRequest:
        shown = json.dumps(value, ensure_ascii=True, default=str)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return InvalidRequest(self._place + name, f"invalid value {shown} supplied: {problem}")


def fits(text: str, parameter: str, largest: int, unit: str = "characters") -> str:
    """The text itself. Raises InvalidRequest if it is longer than that."""
    size = len(text.encode()) if unit == "bytes" else len(text)
    if size > largest:
        raise InvalidRequest(parameter, f"exceeds the maximum length of {largest} {unit}")
    return text


@dataclass(frozen=True)
class _Given:
    """What a URL says for one parameter: once or more often."""

    values: Sequence[str]


# Answers


def number(value: float) -> float | str:
    """A double."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def pairs(values: Mapping[str, str]) -> list[Json]:
    """Params or tags."""
    return [{"key": key, "value": value} for key, value in values.items()]


def lifecycle(deleted: bool) -> str:
    """The stage of an experiment or a run."""
    return "deleted" if deleted else "active"


def experiment_root(number: int, location: str | None) -> str:
    """Where the artifacts of an experiment are."""
    return location if location is not None else f"{_ARTIFACTS}{number}"


def run_root(it: Run) -> str:
    """Where the artifacts of a run are."""
    return f"{experiment_root(it.experiment, it.artifact_location).rstrip('/')}/{it.id}/artifacts"


def model_root(it: LoggedModel) -> str:
    """Where the files of a logged model are."""
    root = experiment_root(it.experiment, it.artifact_location).rstrip("/")
    return f"{root}/models/{it.id}/artifacts"


def experiment(it: Experiment, flavour: Flavour) -> Json:
    """MLflow's Experiment."""
    found: Json = {
        "experiment_id": str(it.id),
        "name": it.name,
        "artifact_location": experiment_root(it.id, it.artifact_location),
        "lifecycle_stage": lifecycle(it.deleted),
        "last_update_time": flavour.int64(it.updated),
        "creation_time": flavour.int64(it.created),
    }
    if it.tags and not flavour.early:
        found["tags"] = pairs(it.tags)
    return found


def run_info(it: Run, flavour: Flavour) -> Json:
    """MLflow's RunInfo."""
    found: Json = {
        "run_id": it.id,
        "run_uuid": it.id,
        "name" if flavour.early else "run_name": it.name,
        "experiment_id": str(it.experiment),
        "user_id": it.user_id,
        "status": it.status,
        "start_time": flavour.int64(it.started),
        "artifact_uri": run_root(it),
        "lifecycle_stage": lifecycle(it.deleted),
    }
    if it.ended is not None:
        found["end_time"] = flavour.int64(it.ended)
    if flavour.early:
        for field, tag in _DEPRECATED.items():
            known = it.tags.get(tag)
            if known is not None and field != "parent_run_id":
                if field == "source_type" and known not in SOURCE_TYPES:
                    known = "UNKNOWN"  # a client stops at a name that it does not know
                found[field] = known
    return found


def metric(it: Metric, flavour: Flavour) -> Json:
    """MLflow's Metric."""
    found = {
        "key": it.key,
        "value": number(it.value),
        "timestamp": flavour.int64(it.timestamp),
    }
    # Steps came after the early document, and before its clients went.
    if it.step or not flavour.early:
        found["step"] = flavour.int64(it.step)
    return found


def run(it: Run, flavour: Flavour) -> Json:
    """MLflow's Run."""
    data = {
        "metrics": [metric(value, flavour) for value in it.metrics],
        "params": pairs(it.params),
        "tags": pairs(it.tags),
    }
    found: Json = {
        "info": run_info(it, flavour),
        "data": {key: value for key, value in data.items() if value},
    }
    if flavour.early:
        return found
    inputs: Json = {}
    if it.inputs:
        inputs["dataset_inputs"] = [dataset_input(value) for value in it.inputs]
    used = [{"model_id": link.model} for link in it.models if link.role == "input"]
    if used:
        inputs["model_inputs"] = used
    made = [
        {"model_id": link.model, "step": link.step} for link in it.models if link.role == "output"
    ]
    return {
        **found,
        "inputs": inputs,
        **({"outputs": {"model_outputs": made}} if made else {}),
    }


def dataset_input(it: Input) -> Json:
    """MLflow's DatasetInput."""
    data = it.dataset
    found = {key: value for key, value in vars(data).items() if value is not None}
    return {"tags": pairs(it.tags), "dataset": found}


def model(it: LoggedModel) -> Json:
    """MLflow's LoggedModel."""
    names = {ours: theirs for theirs, ours in MODEL_STATUSES.items()}
    info: Json = {
        "model_id": it.id,
        "experiment_id": str(it.experiment),
        "name": it.name,
        "creation_timestamp_ms": it.created,
        "last_updated_timestamp_ms": it.updated,
        "artifact_uri": model_root(it),
        "status": names[it.status],
        "model_type": it.type,
        "source_run_id": it.source_run,
    }
    if it.tags:
        info["tags"] = pairs(it.tags)
    data: Json = {}
    if it.params:
        data["params"] = pairs(it.params)
    if it.metrics:
        data["metrics"] = [_model_metric(it.id, value) for value in it.metrics]
    return {"info": info, "data": data}


def _model_metric(model_id: str, it: ModelMetric) -> Json:
    found = {**metric(it.metric, CURRENT), "model_id": model_id, "run_id": it.run}
    if it.dataset_name:
        found["dataset_name"] = it.dataset_name
        found["dataset_digest"] = it.dataset_digest
    return found


def deprecated_tags(message: Message) -> Iterator[tuple[str, str]]:
    """The tags that fields of the early document stand for."""
    source = message.choice("source_type", SOURCE_TYPES)
    for field, tag in _DEPRECATED.items():
        value = source if field == "source_type" else message.text(field)
        if value:
            yield tag, value


def dataset(message: Message) -> Dataset:
    """A dataset as a run is told of it."""
    return Dataset(
        name=message.needed("name"),
        digest=message.needed("digest"),
        source_type=message.given("source_type"),
        source=message.given("source"),
        schema=message.text("schema") if "schema" in message else None,
        profile=message.text("profile") if "profile" in message else None,
    )
