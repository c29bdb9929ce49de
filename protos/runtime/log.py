"""Log lines of a process: one JSON object a line on standard error. Shell code."""

from __future__ import annotations

import logging
import sys

import orjson
import structlog


def log_json_lines(level: str, *also: structlog.typing.Processor) -> None:
    """Sets structlog up for this process: one JSON object a line on standard error. `also` see each line before it is
    written."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *also,
            structlog.processors.JSONRenderer(serializer=_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.BytesLoggerFactory(file=sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )


def _json(record: object, **_: object) -> bytes:
    return orjson.dumps(record, default=str)
