"""What gunicorn reads: `gunicorn --config python:registry.server`. Logging, and the end of workers.

The rest of its settings are arguments of `registry serve`.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from registry import logs, metrics

logconfig_dict = logs.CONFIGURATION


def child_exit(_: object, worker: Any) -> None:
    """Takes what a worker that ended had in memory out of the metrics."""
    metrics.forget(worker.pid)


def on_exit(_: object) -> None:
    """Removes the directory in which the workers added up their metrics."""
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if shared:
        for file in Path(shared).glob("*.db"):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # what else is in there is not ours
            Path(shared).rmdir()
