"""What the benchmarks compute from their measurements."""

import pytest
import torch

from benchmarks.http_load import Asked, closed_rate
from benchmarks.kept_memory import PREDICTION, measure
from benchmarks.timing import side_by_side
from benchmarks.training_speed import ADAMW, MUON, PLAIN, Case
from benchmarks.training_speed import measure as training_speed
from melanoma.training.distributed import World


def test_the_rate_of_a_closed_loop_is_that_of_the_steady_state() -> None:
    """Three clients and a server that takes half a second for each request: two answers a second.
    The first requests wait for fewer others."""
    asked = [Asked(0.0, seconds, 200) for seconds in (0.5, 1.0, 1.5)]
    asked += [Asked(0.5 + 0.5 * step, 1.5, 200) for step in range(9)]
    assert closed_rate(asked, clients=3) == pytest.approx(2.0)


def test_a_loop_that_was_too_short_has_no_rate() -> None:
    with pytest.raises(ValueError, match="Ask for longer"):
        closed_rate([Asked(0.0, 0.5, 200), Asked(0.0, 1.0, 200), Asked(0.5, 0.5, 200)], clients=2)


def test_calls_side_by_side_are_timed_by_thread() -> None:
    called: list[None] = []
    times = side_by_side(lambda: called.append(None), at_once=2, seconds=0.0)
    assert [len(each) for each in times] == [1, 1]
    assert len(called) == 2


TINY = Case("test_convnext", (36, 48), (36, 48), 4, 2)


def test_the_loops_whose_speed_is_compared_run() -> None:
    rates = training_speed(TINY, torch.device("cpu"), World())
    assert min(rates[name] for name in (PLAIN, ADAMW, MUON)) > 0


def test_a_process_measures_training_and_prediction() -> None:
    found = measure(TINY)
    assert min(found[name] for name in (PLAIN, ADAMW, PREDICTION)) > 0
