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

__version__ = "0.1.0"
