"""A model registry that lives in Git.

Teams declare models in `dvc.yaml` and register versions and stages as Git tags (GTO). This
service mirrors the repositories, resolves a name to a revision, finds the objects behind the
artifact and signs links to them, so that a pipeline needs one token and nothing else.

domain      the nouns              gto         tags -> versions and stages
errors      what can go wrong      dvc         DVC's files -> values
repository  a mirrored Git repo    storage     objects -> links
catalog     the core: joins Git with storage
access      tokens -> principals   settings    the configuration file
web         HTTP, one module per dialect       cli         the `registry` command
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.api import artifacts_show, download, get_download_uris

__all__ = ["__version__", "artifacts_show", "download", "get_download_uris"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """The Python API, imported when it is used: to import the package takes no time (PEP 562)."""
    if name in __all__:
        from registry import api  # noqa: PLC0415 as it says

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
