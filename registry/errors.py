"""Everything that can go wrong, as types that carry the evidence.

RegistryError
 ├── SettingsError               the configuration is wrong: the service does not start
 ├── InvalidRequest              the question itself is malformed
 ├── Unauthenticated             no token, or one that does not hold
 │    ├── HookRefused            a webhook of nobody we know
 │    ├── ExchangeRefused        an ID token that does not hold, or lets nobody in
 │    └── TokenRefused           said by a service to a client
 ├── Forbidden                   a token that holds, without the scope that is needed
 ├── TooManyRequests             a token that asks more often than it may
 ├── InvalidLink                 a gateway link that was changed, or whose hour is over
 ├── InvalidReceipt              a receipt that is broken, was changed, or makes no sense
 ├── Conflict                    what is there already stands in the way
 │    ├── ExperimentExists       the name is taken, if only by a deleted experiment
 │    ├── ParamExists            a param of a run is written once
 │    ├── ExperimentDeleted      a deleted experiment takes nothing new
 │    ├── RunDeleted             a deleted run takes nothing new
 │    └── LoggedFileInTheWay     a path is to be a file and a directory
 ├── NotServed                   a part of a dialect that this service does not speak
 ├── ClientError                 where a client runs: no service ever answers it
 │    ├── NotARegistry           what answers at the URL of the service is none
 │    ├── ArtifactMoved          a stage moved while it was downloaded
 │    ├── FileInTheWay           something else is where a file is to be written
 │    └── TargetUnusable         the target cannot be written, or has no room
 ├── NotFound
 │    ├── TokenNotFound          no token has this id
 │    ├── RepositoryNotFound     not configured, or not for this principal: the two look alike
 │    ├── ArtifactNotFound       no such artifact, or not declared at the revision
 │    ├── VersionNotFound        never registered, or deregistered
 │    ├── StageNotFound          nothing is assigned to it
 │    ├── RevisionNotFound       the repository has no such commit
 │    ├── ReceiptNotFound        never given out, or not for this principal: the two look alike
 │    ├── PathNotFound           neither DVC nor Git tracks it at the revision
 │    ├── EndpointNotFound       no such endpoint, or not by this method
 │    ├── ExperimentNotFound     never created, or not in the state that was asked for
 │    ├── RunNotFound            never created
 │    ├── LoggedModelNotFound    never created, or deleted
 │    ├── TagNotFound            nothing is tagged so
 │    ├── LoggedFileNotFound     a run or a logged model has no such file
 │    └── NotFoundThere          said by a service to a client
 ├── Unsignable                  found, but no link can be given for it
 │    ├── InvalidMetadata        a file of the repository is broken or hostile
 │    ├── UnsafePath             a path that a client must not write to
 │    ├── RemoteUnusable         the DVC remote is missing or of a kind nothing can sign
 │    ├── LocationNotGranted     the operator did not grant this storage location
 │    ├── NotInStorage           DVC's files say that the object is not in remote storage
 │    ├── ObjectMissing          they say that it is, and the store does not have it
 │    ├── ObjectsMissing         the same of some of those that were asked for
 │    ├── NoChecksum             DVC records no MD5 by which a file could be checked
 │    └── UnsignableThere        said by a service to a client
 └── Unavailable                 try again later
      ├── DatabaseUnavailable    the database that holds the tokens does not answer
      ├── MirrorNotReady         the first clone is still under way
      ├── ManifestNotReady       the list of a directory's files is being read for others
      ├── MirrorStale            what was last seen of the Git origin is too old to be told
      ├── OriginUnavailable      the Git origin does not answer, and there is nothing to serve
      ├── IssuerUnavailable      the keys that ID tokens are checked with cannot be had
      ├── CredentialsUnavailable the credentials for signing are gone or about to expire
      ├── ClockSkewed            our clock and the store's are too far apart: it would refuse links
      ├── ObjectCorrupt          the store has other bytes than those the object is named by
      ├── ServiceUnavailable     a client cannot reach its service, or is told to come later
      └── StorageUnavailable     the object store does not answer, or answers nonsense
           └── ObjectTooLarge    the object has more bytes than are read at once

No class knows an HTTP status: `registry.web.errors` maps kinds to statuses, once.
`detail` is one line for people. It never holds a secret, a signed link or a traceback.
"""

from dataclasses import dataclass


@dataclass(eq=False)
class RegistryError(Exception):
    """The root. `detail` says what is wrong and, where it can, what to do about it."""

    @property
    def detail(self) -> str:
        """One line for the person who asked."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.detail


@dataclass(eq=False)
class SettingsError(RegistryError):
    """A key of the configuration is unknown, missing or has a value that is not allowed."""

    key: str
    problem: str

    @property
    def detail(self) -> str:
        """Names the key and what is allowed."""
        return f"{self.key}: {self.problem}"


@dataclass(eq=False)
class InvalidRequest(RegistryError):
    """A parameter of the request is missing or malformed."""

    parameter: str
    problem: str

    @property
    def detail(self) -> str:
        """Names the parameter."""
        return f"{self.parameter}: {self.problem}"


@dataclass(eq=False)
class Unauthenticated(RegistryError):
    """The caller did not prove who they are. The reason is for the log, not for the caller."""

    reason: str

    @property
    def detail(self) -> str:
        """What DVC Studio answered: the same for every reason, so that nothing can be learnt."""
        return "Invalid token."


@dataclass(eq=False)
class HookRefused(Unauthenticated):
    """A webhook whose signature does not hold, or for a repository that takes none."""

    @property
    def detail(self) -> str:
        """The same for every reason, so that nothing can be learnt."""
        return "Unknown repository or wrong signature."


@dataclass(eq=False)
class ExchangeRefused(Unauthenticated):
    """An ID token that is exchanged for nothing. `reason` is one word for programs.

    `subject` is whom the token speaks of, as far as its signature holds; otherwise it is empty.
    """

    problem: str
    subject: str = ""

    @property
    def detail(self) -> str:
        """Says why: whoever holds the ID token knows already what is in it."""
        return f"This ID token is not accepted: {self.problem}."


@dataclass(eq=False)
class TokenRefused(Unauthenticated):
    """The service does not take the client's token, or was given none."""

    service: str

    @property
    def detail(self) -> str:
        """Names the service, and what to set."""
        return f"{self.service} refuses the token: set REGISTRY_TOKEN to one that holds."


@dataclass(eq=False)
class Forbidden(RegistryError):
    """The principal lacks a scope."""

    scope: str

    @property
    def detail(self) -> str:
        """Names the scope to ask for."""
        return f"This token lacks the scope {self.scope}."


@dataclass(eq=False)
class TooManyRequests(RegistryError):
    """The principal asks more often than the operator allows. `retry_after` is in seconds."""

    limit: int
    retry_after: int

    @property
    def detail(self) -> str:
        """Names the limit, and when to come back."""
        return f"More than {self.limit} requests a minute, try again in {self.retry_after} s."


@dataclass(eq=False)
class InvalidLink(RegistryError):
    """A link of our own that does not hold. The reason is for the log."""

    reason: str

    @property
    def detail(self) -> str:
        """Says what to do, and not what was wrong."""
        return "This link is not valid or has expired: ask for a new one."


@dataclass(eq=False)
class InvalidReceipt(RegistryError):
    """What was given as a receipt is none, or not the one it says it is."""

    problem: str

    @property
    def detail(self) -> str:
        """Says what is wrong with it."""
        return f"The receipt {self.problem}."


class Conflict(RegistryError):
    """What is there already stands in the way of what was asked for."""


@dataclass(eq=False)
class ExperimentExists(Conflict):
    """An experiment has this name. A deleted one keeps its own."""

    name: str
    deleted: bool

    @property
    def detail(self) -> str:
        """Names it, and says how a deleted one comes back."""
        if self.deleted:
            return (
                f"Experiment {self.name!r} exists in the deleted state: restore it, or choose "
                "another name."
            )
        return f"Experiment {self.name!r} already exists."


@dataclass(eq=False)
class ParamExists(Conflict):
    """A param that was logged once is logged with another value."""

    key: str
    kept: str
    given: str

    @property
    def detail(self) -> str:
        """Names the param, and both values, shortened."""
        return (
            "Changing param value is not allowed. "
            f"Param with key={self.key!r} was already logged with value={_shortened(self.kept)!r}. "
            f"Attempted logging new value {_shortened(self.given)!r}."
        )


@dataclass(eq=False)
class ExperimentDeleted(Conflict):
    """The experiment was deleted, and so nothing can be added to it or changed."""

    experiment: str

    @property
    def detail(self) -> str:
        """Names it."""
        return f"The experiment {self.experiment} must be in the 'active' state: it is deleted."


@dataclass(eq=False)
class RunDeleted(Conflict):
    """The run, or its experiment, was deleted, and so nothing can be logged to it."""

    run: str

    @property
    def detail(self) -> str:
        """Names it."""
        return f"The run {self.run} must be in the 'active' state: it is deleted."


@dataclass(eq=False)
class LoggedFileInTheWay(Conflict):
    """A file is to be logged where a directory is, or below another file."""

    path: str
    taken: str

    @property
    def detail(self) -> str:
        """Names both."""
        return (
            f"{_shortened(self.path)!r} cannot be logged: {_shortened(self.taken)!r} is there, and "
            "nothing is a file and a directory."
        )


@dataclass(eq=False)
class NotServed(RegistryError):
    """A part of a dialect that this service does not speak. `said` is what its clients go by."""

    endpoint: str
    said: str = ""

    @property
    def detail(self) -> str:
        """Names it."""
        return self.said or f"This service does not serve {_shortened(self.endpoint)}."


class ClientError(RegistryError):
    """Something went wrong where a client runs."""


@dataclass(eq=False)
class NotARegistry(ClientError):
    """What answers at the URL that was given for a service is none."""

    service: str
    problem: str

    @property
    def detail(self) -> str:
        """Names the URL."""
        return f"{self.service} does not answer as a registry does: {self.problem}."


@dataclass(eq=False)
class ArtifactMoved(ClientError):
    """What was asked for means another revision now than when the download began."""

    name: str

    @property
    def detail(self) -> str:
        """Says what to do: nothing of the other model was written."""
        return f"{self.name!r} was assigned anew during the download: run it again."


@dataclass(eq=False)
class FileInTheWay(ClientError):
    """Something that the client did not make is where it is to write a file."""

    path: str
    problem: str

    @property
    def detail(self) -> str:
        """Names the file."""
        return f"{self.path!r} is in the way: {self.problem}."


@dataclass(eq=False)
class TargetUnusable(ClientError):
    """The directory to download to cannot be written, or the disk is full."""

    directory: str
    problem: str

    @property
    def detail(self) -> str:
        """Names the directory."""
        return f"{self.directory} cannot be written to: {self.problem}."


class NotFound(RegistryError):
    """What was asked for is not there."""


@dataclass(eq=False)
class TokenNotFound(NotFound):
    """No token has this id."""

    id: str

    @property
    def detail(self) -> str:
        """Names the id."""
        return f"No token has the id {self.id!r}."


@dataclass(eq=False)
class RepositoryNotFound(NotFound):
    """No such repository for this principal."""

    repository: str

    @property
    def detail(self) -> str:
        """The same for one that does not exist and one that may not be seen."""
        return f"Repository {self.repository!r} not found or you don't have access to it."


@dataclass(eq=False)
class ArtifactNotFound(NotFound):
    """No such artifact: no tag names it, or dvc.yaml does not declare it at the revision."""

    artifact: str
    problem: str

    @property
    def detail(self) -> str:
        """Names the artifact and where it was looked for."""
        return f"Artifact {self.artifact!r} not found: {self.problem}."


@dataclass(eq=False)
class VersionNotFound(NotFound):
    """The version was never registered, or is not any more. `version` None means the latest."""

    artifact: str
    version: str | None
    problem: str

    @property
    def detail(self) -> str:
        """Names the version, and says why a tag that looks right does not count."""
        wanted = f"Version {self.version!r}" if self.version else "The latest version"
        return f"{wanted} of artifact {self.artifact!r} not found: {self.problem}."


@dataclass(eq=False)
class StageNotFound(NotFound):
    """No version is assigned to the stage."""

    artifact: str
    stage: str
    problem: str

    @property
    def detail(self) -> str:
        """Names the stage."""
        return f"No version of artifact {self.artifact!r} in stage {self.stage!r}: {self.problem}."


@dataclass(eq=False)
class RevisionNotFound(NotFound):
    """The repository has no such commit, also after a look at its origin."""

    revision: str

    @property
    def detail(self) -> str:
        """Names the revision."""
        return f"Revision {self.revision} not found: the repository has no such commit."


@dataclass(eq=False)
class ReceiptNotFound(NotFound):
    """No receipt with this digest was given out to anybody who may see what the caller may."""

    digest: str

    @property
    def detail(self) -> str:
        """Says what to do: what a receipt is made from is in the question that gave it."""
        return f"Receipt {self.digest} not found: resolve again, which gives a new one."


@dataclass(eq=False)
class PathNotFound(NotFound):
    """Nothing tracks the path at the revision."""

    path: str
    revision: str
    problem: str

    @property
    def detail(self) -> str:
        """Names the path and the revision."""
        return f"{self.path!r} not found at revision {self.revision[:7]}: {self.problem}."


@dataclass(eq=False)
class EndpointNotFound(NotFound):
    """Nothing answers at this place, or not by this method."""

    method: str
    path: str

    @property
    def detail(self) -> str:
        """Names both, shortened."""
        return f"No API found for {self.method} {_shortened(self.path)!r}."


@dataclass(eq=False)
class ExperimentNotFound(NotFound):
    """No experiment has this id or name, or none in the state that was asked for."""

    experiment: str
    problem: str = "there is none"

    @property
    def detail(self) -> str:
        """Names it."""
        return f"Could not find experiment {_shortened(self.experiment)!r}: {self.problem}."


@dataclass(eq=False)
class RunNotFound(NotFound):
    """No run has this id."""

    run: str

    @property
    def detail(self) -> str:
        """Names it."""
        return f"Run with id={_shortened(self.run)} not found."


@dataclass(eq=False)
class LoggedModelNotFound(NotFound):
    """No logged model has this id, or it was deleted."""

    model: str

    @property
    def detail(self) -> str:
        """Names it."""
        return f"Logged model with id={_shortened(self.model)} not found."


@dataclass(eq=False)
class TagNotFound(NotFound):
    """What was to lose a tag does not have it."""

    key: str
    owner: str

    @property
    def detail(self) -> str:
        """Names both."""
        return f"No tag with name {_shortened(self.key)!r} in {self.owner}."


@dataclass(eq=False)
class LoggedFileNotFound(NotFound):
    """A run or a logged model has no file of this path."""

    path: str
    owner: str

    @property
    def detail(self) -> str:
        """Names both."""
        return f"No file {_shortened(self.path)!r} in {self.owner}."


@dataclass(eq=False)
class NotFoundThere(NotFound):
    """A service does not find it. `code` is the kind of error there."""

    said: str
    code: str = ""

    @property
    def detail(self) -> str:
        """What the service says."""
        return f"The service says: {self.said}"


class Unsignable(RegistryError):
    """The artifact was found, but no link can be given for it."""


@dataclass(eq=False)
class InvalidMetadata(Unsignable):
    """A file that the answer depends on cannot be read: broken, too large, or hostile."""

    file: str
    problem: str

    @property
    def detail(self) -> str:
        """Names the file."""
        return f"{self.file}: {self.problem}."


@dataclass(eq=False)
class UnsafePath(Unsignable):
    """A path that would leave the directory a client downloads to, or cannot be told apart."""

    path: str
    problem: str

    @property
    def detail(self) -> str:
        """Names the path, shortened and with control characters escaped."""
        shown = self.path if len(self.path) <= 100 else self.path[:97] + "..."
        return f"Unsafe path {shown!r}: {self.problem}."


@dataclass(eq=False)
class RemoteUnusable(Unsignable):
    """The output has no DVC remote, an undefined one, or one that nothing can sign links for."""

    remote: str | None
    problem: str

    @property
    def detail(self) -> str:
        """Names the remote."""
        return f"DVC remote {self.remote!r}: {self.problem}." if self.remote else f"{self.problem}."


@dataclass(eq=False)
class LocationNotGranted(Unsignable):
    """The operator did not grant this storage location to this repository."""

    location: str
    repository: str

    @property
    def detail(self) -> str:
        """Names the location, and the key of the configuration that would grant it."""
        return (
            f"Storage location {self.location} is not granted to repository {self.repository!r}: "
            "ask the operator to list it under `storage` in the registry's configuration."
        )


@dataclass(eq=False)
class NotInStorage(Unsignable):
    """DVC's files say that remote storage does not hold it: not cached, or without a hash."""

    path: str
    problem: str

    @property
    def detail(self) -> str:
        """Names the path and the usual way out."""
        return f"{self.path!r} is not in remote storage: {self.problem}."


@dataclass(eq=False)
class NoChecksum(Unsignable):
    """A file of which DVC records no MD5, such as one in external storage."""

    path: str

    @property
    def detail(self) -> str:
        """Names the file."""
        return f"DVC records no MD5 of {self.path!r}, so that it cannot be checked."


@dataclass(eq=False)
class ObjectMissing(Unsignable):
    """The store does not have an object that is needed now. `md5` is None where DVC records none,
    and `location` where it is not for the eyes of who asks.
    """

    path: str
    md5: str | None
    location: str | None = None

    @property
    def detail(self) -> str:
        """Names the object, and the usual way out."""
        md5 = f" {self.md5}" if self.md5 else ""
        where = f" at {self.location}" if self.location else ""
        return f"{self.path!r}: its object{md5} is missing{where}: run `dvc push`."


@dataclass(eq=False)
class ObjectsMissing(Unsignable):
    """The stores were asked for `checked` objects, and do not have those of the files `missing`."""

    missing: tuple[str, ...]
    checked: int

    @property
    def detail(self) -> str:
        """Names the first of the files, and the usual way out."""
        shown = ", ".join(repr(path) for path in self.missing[:3])
        more = ", ..." if len(self.missing) > 3 else ""
        files = "file" if len(self.missing) == 1 else "files"
        return (
            f"The objects of {len(self.missing)} {files} are missing in the store: run `dvc push`: "
            f"{shown}{more}."
        )


@dataclass(eq=False)
class UnsignableThere(Unsignable):
    """A service finds it, and can give no link for it. `code` is the kind of error there."""

    said: str
    code: str = ""

    @property
    def detail(self) -> str:
        """What the service says."""
        return f"The service says: {self.said}"


class Unavailable(RegistryError):
    """A fault that passes. `retry_after` is in seconds."""

    retry_after: int = 5


@dataclass(eq=False)
class DatabaseUnavailable(Unavailable):
    """The database does not answer. The problem is for the log."""

    problem: str
    retry_after: int = 5

    @property
    def detail(self) -> str:
        """Says to come back."""
        return f"The registry's database does not answer, try again in {self.retry_after} s."


@dataclass(eq=False)
class MirrorNotReady(Unavailable):
    """The repository is being cloned for the first time."""

    repository: str
    retry_after: int = 2

    @property
    def detail(self) -> str:
        """Says to come back."""
        return f"Repository {self.repository!r} is being cloned, try again in {self.retry_after} s."


@dataclass(eq=False)
class ManifestNotReady(Unavailable):
    """The `.dir` object of a directory is being read, or there is no room yet to read it."""

    location: str
    retry_after: int = 2

    @property
    def detail(self) -> str:
        """Says to come back."""
        return (
            f"The list of files {self.location} is being read, try again in {self.retry_after} s."
        )


@dataclass(eq=False)
class MirrorStale(Unavailable):
    """The origin was last seen `age` seconds ago, which is longer than the operator allows."""

    repository: str
    age: int
    problem: str
    retry_after: int = 10

    @property
    def detail(self) -> str:
        """Names the repository and how old it is, never the credentials."""
        return (
            f"Repository {self.repository!r} was last seen {self.age} s ago, which is too long: "
            f"{self.problem}."
        )


@dataclass(eq=False)
class OriginUnavailable(Unavailable):
    """The Git origin cannot be reached, and no earlier state of it is there to serve."""

    repository: str
    problem: str
    retry_after: int = 10

    @property
    def detail(self) -> str:
        """Names the repository, never the credentials."""
        return f"Repository {self.repository!r} cannot be fetched: {self.problem}."


@dataclass(eq=False)
class IssuerUnavailable(Unavailable):
    """An issuer's public keys cannot be fetched, and none are at hand that are fresh enough."""

    issuer: str
    problem: str
    retry_after: int = 15

    @property
    def detail(self) -> str:
        """Names the issuer. The problem is for the log: it says what the network looks like."""
        return f"The keys of {self.issuer} cannot be had, try again in {self.retry_after} s."


@dataclass(eq=False)
class CredentialsUnavailable(Unavailable):
    """No credentials that live long enough to sign a link with."""

    location: str
    problem: str
    retry_after: int = 30

    @property
    def detail(self) -> str:
        """Names the location."""
        return f"No usable credentials for {self.location}: {self.problem}."


@dataclass(eq=False)
class ClockSkewed(Unavailable):
    """Our clock is `seconds` ahead of the store's, or behind it: links would be refused there."""

    location: str
    seconds: int
    retry_after: int = 30

    @property
    def detail(self) -> str:
        """Names the location, and by how much the clocks differ."""
        return (
            f"No links for {self.location}: the clock of this service and that of the store differ "
            f"by {abs(self.seconds)} s."
        )


@dataclass(eq=False)
class ObjectCorrupt(Unavailable):
    """The store sends bytes of another MD5 than the object is named by."""

    location: str
    md5: str
    retry_after: int = 30

    @property
    def detail(self) -> str:
        """Names the object."""
        return f"Storage {self.location}: its bytes do not have the MD5 {self.md5}."


@dataclass(eq=False)
class ServiceUnavailable(Unavailable):
    """A client cannot reach its service, or was told to come later for too long."""

    service: str
    problem: str
    retry_after: int = 5

    @property
    def detail(self) -> str:
        """Names the service, and what it said."""
        return f"{self.service}: {self.problem}."


@dataclass(eq=False)
class StorageUnavailable(Unavailable):
    """The object store refuses, or does not answer in time."""

    location: str
    problem: str
    retry_after: int = 5

    @property
    def detail(self) -> str:
        """Names the object by its location, without the query that signs it."""
        return f"Storage {self.location}: {self.problem}."


@dataclass(eq=False)
class ObjectTooLarge(StorageUnavailable):
    """The object has more bytes than were wanted: `size`, or more."""

    size: int = 0


def _shortened(text: str) -> str:
    return text if len(text) <= 250 else text[:247] + "..."
