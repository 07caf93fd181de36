"""Origins that hold a model, to be broken."""

from copy import copy
from pathlib import Path
from shutil import copytree

from gitrepo import GitRepository
from service import artifacts, digest, output, remote

from registry.domain import Revision

BUCKET = "s3://bucket"
"""Where every model is kept. Links to it are made offline."""
LINKS = "https://bucket.s3.amazonaws.com/dvc/"
"""What they begin with."""


def model(path: Path, content: str = "1") -> GitRepository:
    """A repository with an artifact `m`, registered as v1.0.0 and in the stage `prod`."""
    origin = GitRepository(path)
    origin.commit({".dvc/config": remote(f"{BUCKET}/dvc"), "dvc.yaml": artifacts(m="model.pkl")})
    publish(origin, content)
    origin.tag("m@v1.0.0")
    origin.tag("m#prod#1")
    return origin


def copy_of(origin: GitRepository, path: Path) -> GitRepository:
    """Another repository that is the same until now."""
    copytree(origin.path, path)
    made = copy(origin)
    made.path = path
    return made


def publish(origin: GitRepository, content: str) -> Revision:
    """Another commit, in which `m` is another file."""
    return origin.commit({"model.pkl.dvc": output("model.pkl", digest(content))})
