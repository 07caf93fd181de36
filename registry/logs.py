"""Logs: one JSON object a line, without secrets, with the id of the request it is about.

    {"time": "2027-01-15T08:00:00.123Z", "level": "info", "logger": "registry.web.observe",
     "message": "request", "request": "5f0c...", "method": "GET", "route": "/api/...", ...}

What goes into a log is redacted here, once, whoever wrote it: libraries, tracebacks and the server
quote URLs and headers too.
"""

import json
import logging
import logging.config
import re
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import TextIO

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that is being answered. Empty between requests, and in threads of our own."""

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
_REDACTED = "***"
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

LINGER = 0.05
"""Seconds that the line of a request may wait for others, to be written with them."""
ROOM = 10_000
"""Lines that are kept while standard error takes none."""

# Each pattern keeps what its group 1 matched. The longest reach comes first.
_SECRETS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(authorization[\"']?\s{0,3}[:=,]\s{0,3}[\"']?(?:(?:token|bearer|basic|digest)\s+)?)[^\s\"',}\]]+",
        r"(\b(?:token|bearer|basic)\s+)(?=\S*\d)[A-Za-z0-9+/=_.~-]{16,}",
        r"\b(reg_)[A-Za-z0-9_.-]+",
        r"([a-z][a-z0-9+.-]*://)[^/\s\"'@]+@",
        r"([a-z][a-z0-9+.-]*://[^\s\"'?]*\?)[^\s\"'<>]+",
        r"(/objects/)[^\s\"'?<>]+",
        r"((?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|(?<![a-z0-9])(?:sig|signature|md5"
        r"|token|password|passwd|secret|(?:secret_|account_?|api_?|access_)+key))"
        r"[\"']?(?:=|%3D|:\s*)[\"']?)[^\s\"'&;,<>}]+",
    )
]
_SUSPECT = re.compile(
    r"reg_|authorization|token|bearer|basic|://|/objects/|sig|md5|pass|secret|key|X-Amz|X-Goog",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` without tokens, signatures, passwords, queries of URLs and gateway links."""
    return _redacted_again(text) if len(text) <= 200 else _redacted(text)


def _redacted(text: str) -> str:
    if _SUSPECT.search(text):
        for pattern in _SECRETS:
            text = pattern.sub(rf"\1{_REDACTED}", text)
    return text


_redacted_again = lru_cache(1024)(_redacted)  # methods, routes, ids of tokens, addresses


class JsonFormatter(logging.Formatter):
    """Writes a record as a line of JSON; every text in it is redacted, `extra` fields included."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, object] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        request = request_id.get()
        if request:
            line["request"] = request
        for name, value in vars(record).items():
            if name not in _STANDARD and value is not None:
                line[name] = value if isinstance(value, int | float) else redact(str(value))
        if record.exc_info:
            line["error"] = redact(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = redact(self.formatStack(record.stack_info))
        return _ENCODE(line)


def timestamp(moment: float) -> str:
    """Unix seconds as `2027-01-15T08:00:00.123Z`."""
    seconds, thousandths = divmod(int(moment * 1000), 1000)
    return f"{_second(seconds)}.{thousandths:03d}Z"


@lru_cache(16)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class Writer(logging.Handler):
    """Writes lines to a stream: a warning at once, and with it whatever waits; those that are less
    together with others, LINGER seconds later at most, by a thread.

    Threads that answer requests then neither wait for the stream nor for each other. What a stream
    takes nothing of is dropped, the oldest first, and its end says how much that was.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        self._waiting: deque[str] = deque()
        self._lost = 0
        self._writing = threading.Lock()
        self._some = threading.Event()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record, and never raises: there is nowhere to say so."""
        try:
            line = self.format(record)
        except Exception:  # a record that cannot be written must not end the request
            self.handleError(record)
            return
        if len(self._waiting) >= ROOM:
            with suppress(IndexError):
                self._waiting.popleft()
                self._lost += 1
        self._waiting.append(line)
        if record.levelno >= logging.WARNING:
            self.flush()
        elif not self._some.is_set():
            self._wake()

    def flush(self) -> None:
        """Writes what waits."""
        with self._writing:
            lines = []
            with suppress(IndexError):
                while True:
                    lines.append(self._waiting.popleft())
            if self._lost:
                self._lost, lost = 0, self._lost
                lines.append(_ENCODE({"level": "warning", "message": f"{lost} lines were lost"}))
            if lines:
                with suppress(OSError, ValueError):  # full, or closed
                    self._stream.write("\n".join(lines) + "\n")
                    self._stream.flush()

    def _wake(self) -> None:
        self._some.set()
        # Lazily: a thread started before the server forks its workers would exist in none of them.
        if not (self._thread and self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while self._some.wait():
            time.sleep(LINGER)
            self._some.clear()
            self.flush()


CONFIGURATION: dict[str, object] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"class": "registry.logs.JsonFormatter"}},
    "handlers": {
        "stderr": {
            "class": "registry.logs.Writer",
            "formatter": "json",
        }
    },
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {
        "registry": {"level": "INFO"},
        "gunicorn.error": {"level": "WARNING", "handlers": ["stderr"], "propagate": False},
        # Its lines would hold gateway links and queries; ours stand in for them.
        "gunicorn.access": {"handlers": [], "propagate": False},
    },
}
"""For logging.config: everything to standard error."""


def configure() -> None:
    """Sets up logging for a worker. What no line holds is not collected either: see "Optimization"
    in the documentation of the module `logging`.
    """
    logging.config.dictConfig(CONFIGURATION)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # who called: half of a record's cost
