"""The service's own log on stderr: one line an event, with its time, level and process id; as JSON if wanted."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from typing import Any

from gunicorn import glogging

from storage.model import rfc3339

# gunicorn's lines at each start that say what the service's own line says better.
_COVERED = ("Starting gunicorn", "Listening at:", "Using worker:", "Booting worker with pid:")


def logger_class(form: str) -> type[glogging.Logger]:
    """Return the class of gunicorn's logger that writes in this form: "json", or "" for plain text."""
    formatter = _JsonFormatter() if form == "json" else _TextFormatter()

    class ServiceLogger(glogging.Logger):
        def setup(self, cfg: Any) -> None:
            super().setup(cfg)
            for handler in self.error_log.handlers:
                handler.setFormatter(formatter)
            self.error_log.addFilter(_is_shown)
            own = logging.StreamHandler(sys.stderr)
            own.setFormatter(formatter)
            logging.basicConfig(handlers=[own], level=logging.WARNING, force=True)

    return ServiceLogger


def _is_shown(record: logging.LogRecord) -> bool:
    """Hide lines that are covered, and from others the request: a header that gunicorn cites may be a token."""
    text = str(record.msg)
    if text.startswith("Invalid request from "):
        record.msg = ": ".join(text.split(": ")[:2])
    return not text.startswith(_COVERED)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {record.levelname} [{record.process}] {super().format(record)}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line)


def _time(record: logging.LogRecord) -> str:
    return rfc3339(int(record.created * 1000))
