"""What gunicorn reads: `gunicorn --config python:registry.server registry.wsgi:app`.

Every setting is here but where to listen and how many workers to run, so that gunicorn started by
hand is the server that `registry serve` starts. GUNICORN_CMD_ARGS overrides each of them.

    a client has    to                                   and then
    5 s             send the head of a request           its connection is closed
    10 s, and 1 s   send the body, after the head        the body ends there
    for each 64 KB
    30 s            read on, while an answer is sent     its connection is closed
    75 s            ask again on an open connection      it is closed
    25 s            be answered after SIGTERM            its connection is closed
"""

import gc
import logging
import os
import select
import signal
from contextlib import suppress
from mmap import mmap
from pathlib import Path
from typing import Any

import gunicorn.glogging  # type: ignore[import-untyped]

from registry import logs, metrics

# Where there is no epoll, gunicorn's own: without the limits above, for developers.
worker_class = "registry.worker.Worker" if hasattr(select, "epoll") else "gthread"
workers = 2
threads = 16  # requests wait for Git and for storage
timeout = 60  # a worker that does not say for so long that it lives is replaced
graceful_timeout = 30
keepalive = 75  # longer than a proxy keeps a connection that it may want to use once more
limit_request_line = 8190  # the longest query: repositories and paths are long when escaped
limit_request_fields = 64
limit_request_field_size = 8190
control_socket_disable = True  # nobody asked for a way in
loglevel = "warning"
logger_class = "registry.server.Logger"
logconfig_dict = logs.CONFIGURATION

NOTICES = mmap(-1, 8)
"""Memory that all workers share, since the arbiter has it before it forks them."""

logger = logging.getLogger(__name__)


class Logger(gunicorn.glogging.Logger):  # type: ignore[misc]
    """gunicorn's own, without the access log, whose lines would hold gateway links: secrets. Where
    logging is configured it puts them together for every request, whoever reads them.
    """

    def access(self, *_: object) -> None:
        """Says nothing: `web.observe` does."""


def on_starting(_: object) -> None:
    """Imports what every worker needs, once and before any is forked: they share its memory."""
    import registry.services  # noqa: PLC0415 not for whoever reads only the settings
    import registry.web  # noqa: F401, PLC0415 the same

    gc.collect()
    gc.freeze()  # a collection writes to every object it looks at, and what is written is copied


def when_ready(server: Any) -> None:
    """Makes SIGHUP harmless while the configuration is not one to start workers with.

    gunicorn replaces its workers whether or not the new ones can start, and ends if they cannot.
    """
    reload = server.handle_hup

    def handle_hup() -> None:
        if _can_start():
            reload()

    server.handle_hup = handle_hup


def _can_start() -> bool:
    """Whether the configuration holds, tried in a process of its own, of which nothing is left."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        from registry.errors import RegistryError  # noqa: PLC0415 only in the child
        from registry.services import Services  # noqa: PLC0415
        from registry.settings import Settings  # noqa: PLC0415

        try:
            Services.of(Settings.load())
        except RegistryError as error:
            logger.error("the configuration is not read again, it does not hold: %s", error)
            os._exit(1)
        os._exit(0)
    finally:
        os._exit(1)


def child_exit(_: object, worker: Any) -> None:
    """Takes what a worker that ended had in memory out of the metrics."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        metrics.forget(worker.pid)


def on_exit(server: Any) -> None:
    """Removes the directory in which the workers added up their metrics, unless it was handed on
    to a server that took over.
    """
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if shared and not server.reexec_pid:
        for file in Path(shared).glob("*.db"):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # what else is in there is not ours
            Path(shared).rmdir()
