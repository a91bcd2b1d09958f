"""Keeps tracebacks, error messages and secrets out of the logs of a replica.

Ray Serve logs every exception that leaves a method of a deployment, with its traceback. The message
may contain a client's input, and a traceback shows how a request was read. Only the class and the
place of an error are therefore logged.
"""

import logging
import traceback
from pathlib import Path

from melanoma.io.storage import redacted

LOGGERS = ("ray.serve", "asyncio", "uvicorn.error")


def kind_and_place(error: BaseException) -> str:
    """Return what a log may contain of an error: its class, and the file and line of its origin."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


class _NoTraces(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        first, *more = record.getMessage().splitlines() or [""]
        if error is not None and str(error) and str(error) in first:
            first = first.replace(str(error), "").rstrip(": ")
        parts = [
            first,
            "(further lines left out)" if more else "",
            kind_and_place(error) if error else "",
        ]
        record.msg, record.args = redacted(" ".join(filter(None, parts))), ()
        record.exc_info = record.exc_text = record.stack_info = None
        return True


_FILTER = _NoTraces()


def keep_traces_out() -> None:
    """Remove tracebacks and secrets from the log records of this process.

    Every replica calls it when it starts. A second call changes nothing, because a logger keeps the
    same filter once.
    """
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)
