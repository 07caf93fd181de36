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
import time
from collections.abc import Mapping
from contextvars import ContextVar
from functools import lru_cache

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

# Each pattern keeps what its group 1 matched. The longest reach comes first. Clients choose what is
# matched here: no match may begin in a stretch that another attempt has read to its end.
_SECRETS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(authorization[\"']?\s{0,3}[:=,]\s{0,3}[\"']?(?:(?:token|bearer|basic|digest)\s+)?)[^\s\"',}\]]+",
        r"(\b(?:token|bearer|basic)\s+)(?=\S*\d)[A-Za-z0-9+/=_.~-]{16,}",
        r"\b(reg_)[A-Za-z0-9_.-]+",
        r"\b(eyJ)(?:[A-Za-z0-9_]|-(?!eyJ)){8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?",  # a JWT
        r"(://)[^/\s\"'@]+@",
        r"(://(?:[^\s\"'?:]|:(?!//))*\?)[^\s\"'<>]+",
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
    """Writes a record as a line of JSON; every text in it is redacted, `extra` fields included.

    A record may bring lines of its own instead, as `extra={"lines": [...]}`, each made by `line`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines, without the last end."""
        lines: list[str] | None = getattr(record, "lines", None)
        if lines:
            return "\n".join(lines)
        facts = {name: item for name, item in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            facts["error"] = self.formatException(record.exc_info)
        if record.stack_info:
            facts["stack"] = self.formatStack(record.stack_info)
        text, level = record.getMessage(), record.levelname.lower()
        return line(record.created, level, record.name, text, request_id.get(), facts)


def line(
    moment: float, level: str, logger: str, message: str, request: str, facts: Mapping[str, object]
) -> str:
    """A line of the log, without its end: what is said at a Unix time about a request, or about
    none where that is empty. Facts that are None are left out.
    """
    said: dict[str, object] = {
        "time": timestamp(moment),
        "level": level,
        "logger": logger,
        "message": redact(message),
    }
    if request:
        said["request"] = request
    for name, item in facts.items():
        if item is not None:
            said[name] = item if isinstance(item, int | float) else redact(str(item))
    return _ENCODE(said)


def timestamp(moment: float) -> str:
    """Unix seconds as `2027-01-15T08:00:00.123Z`."""
    seconds, thousandths = divmod(int(moment * 1000), 1000)
    return f"{_second(seconds)}.{thousandths:03d}Z"


@lru_cache(16)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


CONFIGURATION: dict[str, object] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"class": "registry.logs.JsonFormatter"}},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "json",
            "stream": "ext://sys.stderr",
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
