"""The nouns of tracking: what is read from the tables, and what is logged to them.

Times are Unix milliseconds. Each is a plain value; nothing here knows the database.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar

from registry.domain import RelPath

Status = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
View = Literal["active", "deleted", "all"]
Role = Literal["input", "output"]
Found = TypeVar("Found")
ModelStatus = Literal["unspecified", "pending", "ready", "failed"]

UNKEPT = re.compile("[\x00\ud800-\udfff]")
"""What no text here holds, for not every database takes it."""


class Metric(NamedTuple):
    """One value of a metric at one moment."""

    key: str
    value: float
    timestamp: int
    step: int = 0

    @property
    def order(self) -> tuple[int, int, bool, float]:
        """Of two values of one key, the one with the greater order is the latest.

        By step, then time; of several at one moment the largest, and any number before NaN.
        """
        nan = math.isnan(self.value)
        return (self.step, self.timestamp, not nan, 0.0 if nan else self.value)


@dataclass(frozen=True)
class Experiment:
    """A named set of runs. `artifact_location` None means where the registry keeps artifacts."""

    id: int
    name: str
    artifact_location: str | None
    deleted: bool
    created: int
    updated: int
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Data that a run was fed with, known by name and digest within an experiment."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str | None = None
    profile: str | None = None


@dataclass(frozen=True)
class Input:
    """That a run used a dataset, and what for."""

    dataset: Dataset
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunModel:
    """That a run used or made a logged model."""

    model: str
    role: Role
    step: int = 0


@dataclass(frozen=True)
class Run:
    """One execution, and what it logged: `metrics` are the latest values.

    `number` orders runs as they were created. `deleted` is also true of a run whose experiment is.
    """

    number: int
    id: str
    experiment: int
    artifact_location: str | None
    name: str
    user_id: str
    status: str
    started: int
    ended: int | None
    deleted: bool
    metrics: Sequence[Metric] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    inputs: Sequence[Input] = ()
    models: Sequence[RunModel] = ()


class ModelMetric(NamedTuple):
    """The latest value of a metric of a logged model, on one dataset or on none in particular."""

    metric: Metric
    run: str
    dataset_name: str = ""
    dataset_digest: str = ""


@dataclass(frozen=True)
class LoggedModel:
    """What a run, or somebody, logged as one loadable thing."""

    number: int
    id: str
    experiment: int
    artifact_location: str | None
    name: str
    type: str
    source_run: str
    status: ModelStatus
    created: int
    updated: int
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[ModelMetric] = ()


@dataclass(frozen=True)
class Owner:
    """What has files: a run or a logged model, by its id, in an experiment."""

    kind: Literal["run", "model"]
    id: str
    experiment: int


class LoggedFile(NamedTuple):
    """A file of a run or of a logged model, and the object that has its bytes."""

    path: RelPath
    md5: str
    size: int


class Listed(NamedTuple):
    """One name in a directory, by its whole path. `size` is None for a directory."""

    path: RelPath
    size: int | None


@dataclass(frozen=True)
class Page(Generic[Found]):
    """A part of a long answer. `next` asks for the part behind it, and is empty at the end."""

    found: Sequence[Found]
    next: str
