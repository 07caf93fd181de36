"""Logs: one JSON object a line, without secrets, with the id of the request it is about.

    {"time": "2027-01-15T08:00:00.123Z", "level": "info", "logger": "registry.web.observe",
     "message": "request", "request": "5f0c...", "method": "GET", "route": "/api/...", ...}

What goes into a log is redacted here, once, whoever wrote it: libraries, tracebacks and the server
quote URLs and headers too.
"""

import json
import logging
import re
from contextvars import ContextVar
from datetime import datetime, timezone

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that is being answered. Empty between requests, and in threads of our own."""

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
_REDACTED = "***"

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
    if _SUSPECT.search(text):
        for pattern in _SECRETS:
            text = pattern.sub(rf"\1{_REDACTED}", text)
    return text


class JsonFormatter(logging.Formatter):
    """Writes a record as a line of JSON; every text in it is redacted, `extra` fields included."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
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
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


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
