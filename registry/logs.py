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
import time
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import TextIO

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that is being answered. Empty between requests, and in threads of our own."""

_STANDARD = {
    *vars(logging.makeLogRecord({})),
    "message",
    "more",
    "request",
    "asctime",
    "taskName",
    "color_message",
}
_REDACTED = "***"
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

# Each pattern keeps what its group 1 matched. The longest reach comes first.
_SECRETS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(authorization[\"']?\s{0,3}[:=,]\s{0,3}[\"']?(?:(?:token|bearer|basic|digest)\s+)?)[^\s\"',}\]]+",
        r"(\b(?:token|bearer|basic)\s+)(?=\S*\d)[A-Za-z0-9+/=_.~-]{16,}",
        r"\b(reg_)[A-Za-z0-9_.-]+",
        r"\b(eyJ)[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?",  # a JWT
        r"([a-z][a-z0-9+.-]*://)[^/\s\"'@]+@",
        r"([a-z][a-z0-9+.-]*://[^\s\"'?]*\?)[^\s\"'<>]+",
        r"(/objects/)[^\s\"'?<>]+",
        r"((?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|(?<![a-z0-9])(?:sig|signature|md5"
        r"|token|password|passwd|secret|(?:secret_|account_?|api_?|access_)+key))"
        r"[\"']?(?:=|%3D|:\s*)[\"']?)[^\s\"'&;,<>}]+",
    )
]
_SUSPECT = re.compile(
    r"reg_|eyJ|authorization|token|bearer|basic|://|/objects/|sig|md5|pass|secret|key|X-Amz|X-Goog",
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
        request = getattr(record, "request", None) or request_id.get()
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
    """Writes a line for each record to a stream, and waits with it where the record has an
    attribute `more`: it is written with those that follow, up to the first that has none.

    A stream that takes nothing, as on a full disk, holds nobody up: the lines are lost.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        self._waiting: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record, under the lock of all handlers, and raises nothing."""
        try:
            self._waiting.append(self.format(record))
        except Exception:  # a record that cannot be written must not end the request
            self.handleError(record)
        if not hasattr(record, "more"):
            self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        with self.lock or nullcontext():
            if self._waiting:
                text = "\n".join(self._waiting) + "\n"
                self._waiting.clear()
                with suppress(OSError, ValueError):  # full, or closed
                    self._stream.write(text)
                    self._stream.flush()


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
