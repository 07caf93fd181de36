"""The Python API: what `import registry` offers, for scripts that hold no service.

Everything that can go wrong is a RegistryError (`registry.errors`), and says in one line what.
"""

import logging

from registry.direct import Direct
from registry.domain import Selector
from registry.user import User

# A script that sets up no logging is told by exceptions, and not twice.
logging.getLogger("registry").addHandler(logging.NullHandler())


def artifacts_show(
    name: str, version: str | None = None, stage: str | None = None, repo: str | None = None
) -> dict[str, str]:
    """The path of an artifact and the Git revision that a version or a stage of it means.

    Both fit DVC's own API (`dvc.api.read(path, repo=..., rev=rev)`), as do those of
    `dvc.api.artifacts_show`. Neither DVC nor a service is needed.

    Args:
        name: The artifact of the `dvc.yaml` at the root of the repository; `path/to:name` or
            `path/to/dvc.yaml:name` for one of another. Always counted from the root.
        version: A registered version such as `v1.2.0`. Without it and a stage, the greatest one.
        stage: A stage, instead of a version.
        repo: A path in a clone, a bare repository, or a URL (https, ssh, `user@host:path`), which
            is mirrored in the user's cache and brought up to date. By default the repository that
            the current directory lies in.

    Returns:
        `{"path": ..., "rev": ...}`: relative to the root of the repository, and a full commit id.

    Raises:
        registry.errors.InvalidRequest: A name or a combination that makes no sense.
        registry.errors.NotFound: No such repository, artifact, version or stage.
        registry.errors.InvalidMetadata: A file of the repository that matters cannot be read.
        registry.errors.UnsafePath: The path leaves the repository.
        registry.errors.OriginUnavailable: The repository cannot be reached or read.
    """
    selector = Selector.parse(name, version or "", stage or "")
    with Direct(User.load(), repo) as direct:
        found = direct.resolve(selector)
        return {"path": direct.path(selector, found.revision) or ".", "rev": found.revision}
