"""Keeps tracebacks, the words of errors and secrets out of the logs of a replica; knows nothing of what is logged.

Ray Serve logs every exception that leaves a method of a deployment with its traceback. The words of
an exception may be those of a client, and the lines of a traceback show how a request was read, so
that only the kind and the place of an error are logged.
"""

import logging
import traceback
from pathlib import Path

from melanoma.io.storage import redacted

LOGGERS = ("ray.serve", "asyncio", "uvicorn.error")


def kind_and_place(error: BaseException) -> str:
    """Return what may be said of an error in a log: its class, and the file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


class _NoTraces(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        first, *more = record.getMessage().splitlines() or [""]
        if error is not None and str(error) and str(error) in first:
            first = first.replace(str(error), "").rstrip(": ")
        told = [
            first,
            "(the lines after it are left out)" if more else "",
            kind_and_place(error) if error else "",
        ]
        record.msg, record.args = redacted(" ".join(filter(None, told))), ()
        record.exc_info = record.exc_text = record.stack_info = None
        return True


_FILTER = _NoTraces()


def keep_traces_out() -> None:
    """Let no record of this process show a traceback or a secret; called once by every replica."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)  # once: the same one again changes nothing
