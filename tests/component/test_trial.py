"""What a trial does when it is tried again: what would fail in the same way is not computed
again."""

from pathlib import Path

import pytest

from melanoma.errors import DataError
from tune.trial import not_again


def _try(kept: Path, error: Exception, tried: list[str]) -> None:
    with not_again(kept):
        tried.append("tried")
        raise error


@pytest.mark.parametrize(
    "error", [DataError("no such fold."), FloatingPointError("nan"), ValueError("shape")]
)
def test_what_would_happen_again_is_not_tried_again(error: Exception, tmp_path: Path) -> None:
    kept, tried = tmp_path / "search" / "failed-one.txt", list[str]()
    with pytest.raises(type(error), match=str(error)):
        _try(kept, error, tried)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"{type(error).__name__}: {error}"):
            _try(kept, error, tried)
    assert tried == ["tried"]
    with not_again(tmp_path / "search" / "failed-another.txt"):
        tried.append("another")


def test_a_lost_worker_is_replaced(tmp_path: Path) -> None:
    kept, tried = tmp_path / "failed-one.txt", list[str]()
    for _ in range(3):
        with pytest.raises(ConnectionResetError):
            _try(kept, ConnectionResetError("Connection reset by peer"), tried)
    assert tried == ["tried"] * 3
