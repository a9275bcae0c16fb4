"""Structured logs: one JSON line an event on stderr, a stable `action` beside the sentence for people."""

import json
import logging
import re
import sys
import time
from typing import Final

import orjson

_ROOT: Final = logging.getLogger("atlas")


class Logger:
    """Log by action: `log.warning("bus.lost", "The connection to NATS is lost", attempt=3)`."""

    def __init__(self, name: str) -> None:
        self._logger = _ROOT.getChild(name)

    def debug(self, action: str, message: str, **fields: object) -> None:
        self._write(logging.DEBUG, action, message, fields)

    def info(self, action: str, message: str, **fields: object) -> None:
        self._write(logging.INFO, action, message, fields)

    def warning(self, action: str, message: str, **fields: object) -> None:
        self._write(logging.WARNING, action, message, fields)

    def error(self, action: str, message: str, **fields: object) -> None:
        self._write(logging.ERROR, action, message, fields)

    def exception(self, action: str, message: str, **fields: object) -> None:
        """An error with the traceback of the exception being handled."""
        self._write(logging.ERROR, action, message, fields, exc_info=True)

    def _write(
        self, level: int, action: str, message: str, fields: dict[str, object], *, exc_info: bool = False
    ) -> None:
        self._logger.log(level, message, exc_info=exc_info, extra={"action": action, "fields": fields})


def logger(name: str) -> Logger:
    return Logger(name)


def configure(level: str) -> None:
    """Write lines from `level` (debug, info, warning, error) upwards to stderr. Call once, when a program starts.

    The engines and libraries, which use the standard logging, are written alike, from warnings upwards.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_tells_no_header)
    _ROOT.setLevel(level.upper())


def _tells_no_header(record: logging.LogRecord) -> bool:
    """gRPC logs each header that is not UTF-8, whole and with a traceback, though nothing is wrong with us."""
    return not str(record.msg).startswith("Invalid encoding on")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "action": getattr(record, "action", None),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            written = orjson.dumps(line, default=str).decode()
        except orjson.JSONEncodeError:  # lone surrogates or giant numbers, from user code; json escapes them
            written = json.dumps(line, default=str)
        return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", written)


_UNSAFE: Final = re.compile("[\x7f-\x9f\u2028\u2029]")
"""What JSON leaves as it is and terminals obey, or viewers take for the end of a line. User code writes here, too."""
