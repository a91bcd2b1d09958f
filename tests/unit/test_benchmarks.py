"""What the benchmarks compute from their measurements."""

import pytest

from benchmarks.http_load import Asked, closed_rate


def test_the_rate_of_a_closed_loop_is_that_of_the_steady_state() -> None:
    """Two clients, one request at a time, half a second each: two answers a second."""
    asked = [Asked(0.0, 0.5, 200), Asked(0.0, 1.0, 200)]
    asked += [Asked(0.5 + 0.5 * step, 1.0, 200) for step in range(8)]
    assert closed_rate(asked, clients=2) == pytest.approx(2.0)


def test_a_loop_that_was_too_short_has_no_rate() -> None:
    with pytest.raises(ValueError, match="ask for longer"):
        closed_rate([Asked(0.0, 0.5, 200)], clients=1)
