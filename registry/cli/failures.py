"""What a failure is to whoever typed the command: an exit code, and what to do next."""

from registry.errors import (
    ArtifactNotFound,
    ClientError,
    CredentialsUnavailable,
    Forbidden,
    NotFound,
    NotFoundThere,
    OriginUnavailable,
    RegistryError,
    RemoteUnusable,
    RepositoryNotFound,
    ServiceUnavailable,
    StageNotFound,
    StorageUnavailable,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    Unsignable,
    VersionNotFound,
)

CODES = {
    0: "all is well",
    1: "something that was looked at is not as it should be",
    2: "wrong usage or configuration",
    3: "there is no such repository, artifact, version, stage or token",
    4: "the service refuses the token, or it lacks a scope",
    5: "Git, a store, the database or the service does not answer now: try again",
    6: "found, but it cannot be downloaded, or not to where it should be",
    130: "interrupted; what was downloaded is kept, and the next run goes on with it",
}
"""Exit code -> what it means."""

_CODES: tuple[tuple[type[RegistryError], int], ...] = (
    (NotFound, 3),
    (Unauthenticated, 4),
    (Forbidden, 4),
    (TooManyRequests, 5),
    (Unavailable, 5),
    (Unsignable, 6),
    (ClientError, 6),
    (RegistryError, 2),
)
_LIST = "`registry ls REPO` lists what there is."
_EXPLAIN = "`registry explain REPO NAME` says which tags there are and why none of them counts."
_AGAIN = "Run the command again: it goes on where it stopped."
_NEXT: tuple[tuple[type[RegistryError], str], ...] = (
    (RepositoryNotFound, "Name a path or a URL, or set REGISTRY_URL and REGISTRY_TOKEN."),
    (ArtifactNotFound, _LIST),
    (VersionNotFound, _EXPLAIN),
    (StageNotFound, _EXPLAIN),
    (NotFoundThere, _LIST),
    (Forbidden, "Ask whoever runs the service for one that has it."),
    (OriginUnavailable, "`git ls-remote` of its URL must work first."),
    (CredentialsUnavailable, "Log in to the store, or set its keys in the environment."),
    (StorageUnavailable, _AGAIN),
    (ServiceUnavailable, "Is REGISTRY_URL right, and does its /healthz answer?"),
    (RemoteUnusable, "A service can serve it instead: set REGISTRY_URL and REGISTRY_TOKEN."),
)


def code_of(error: RegistryError) -> int:
    """The exit code of an error's kind."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


def line_of(error: RegistryError) -> str:
    """What is wrong and, where the error does not say so itself, what to do next."""
    hint = next((text for kind, text in _NEXT if isinstance(error, kind)), "")
    return f"{error} {hint}".rstrip()
