"""Reads what DVC leaves in a repository: bytes and values in, frozen values out, no I/O.

    yaml      YAML that strangers wrote, within limits
    config    .dvc/config: which remote, and where it is
    project   one revision's DVC files: which output holds a path, what an artifact's path is
     ├─ pipeline   dvc.yaml and dvc.lock: the outputs of stages
     ├─ template   the `${...}` in dvc.yaml
     └─ output     one output, as a .dvc file or dvc.lock records it
    manifest  where objects lie in a remote, and the `.dir` objects that list directories

Everything read here may be hostile: each module has its limits, and refuses what it cannot
prove harmless.
"""
