"""What a replica logs of an error: its kind and its place, and neither its words nor a secret."""

import io
import logging
import sys
from collections.abc import Iterator

import pytest
from ray._common.formatters import JSONFormatter
from ray.exceptions import RayTaskError

from serve.logs import LOGGERS, keep_traces_out, kind_and_place

WORDS = "the words of a client"
SECRET = "s3://KEY:HUSHHUSH@bucket/bundle"


@pytest.fixture(params=LOGGERS)
def logged(request: pytest.FixtureRequest) -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """Give a logger as a replica has it, and what it writes."""
    logger, written = logging.getLogger(request.param), io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(
        JSONFormatter()
    )  # as the Serve config chooses it: it shows a trace wherever a record has one
    logger.addHandler(handler)
    keep_traces_out()
    keep_traces_out()
    yield logger, written
    logger.removeHandler(handler)
    for found in list(logger.filters):
        logger.removeFilter(found)


def _fail() -> None:
    raise FloatingPointError(WORDS)


def test_an_error_is_logged_by_its_kind_and_place(
    logged: tuple[logging.Logger, io.StringIO],
) -> None:
    """As Ray Serve logs it."""
    logger, written = logged
    try:
        _fail()
    except FloatingPointError:
        assert "Traceback" in JSONFormatter().format(
            logger.makeRecord("x", 40, "", 0, "", (), sys.exc_info())
        )
    for told in ("Request failed.", f"Request failed: {WORDS}"):
        try:
            _fail()
        except FloatingPointError:
            logger.exception(told)
    text = written.getvalue()
    assert text.count("FloatingPointError at test_logs.py:") == 2
    assert text.count("Request failed") == 2
    assert WORDS not in text
    assert "Traceback" not in text
    assert "raise FloatingPointError" not in text


def test_an_error_of_another_process_is_logged_without_its_trace(
    logged: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, written = logged
    error = RayTaskError(
        "predict", f"Traceback (most recent call last):\n{WORDS}", FloatingPointError(WORDS)
    )
    logger.warning(f"Request failed: {error}")
    assert WORDS not in written.getvalue()
    assert written.getvalue().count("\n") == 1


def test_a_secret_is_hidden_and_all_else_is_logged_as_it_is(
    logged: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, written = logged
    logger.warning("loading %s, %d of %d", SECRET, 1, 2)
    assert "loading s3://***@bucket/bundle, 1 of 2" in written.getvalue()
    assert len(logger.filters) == 1


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert kind_and_place(ValueError(WORDS)) == "ValueError"
