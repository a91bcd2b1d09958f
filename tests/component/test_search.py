"""What a search is and what it refuses, without Ray."""

import types
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest

from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData
from melanoma.errors import DataError
from melanoma.evidence.objective import Objective
from melanoma.presets import smoke
from melanoma.task import TASKS
from tune.checks import check_objective, usual_objective
from tune.search import Search, SearchPlan
from tune.space import SearchSpace, plain
from tune.trial import Study

WITHIN = Objective.parse("auroc,within=source")


def _search(base: TrainConfig, folder: Path) -> Search:
    space = SearchSpace.around(base)
    plan = SearchPlan(folder, base, "none", space, Objective("auroc"), num_trials=3)
    return Search(plan, Study(folder, TASKS["ham10000"], folder / "folds", base, num_folds=5))


def test_base_and_plain_cross_entropy_are_always_trained(tmp_path: Path) -> None:
    search = _search(smoke(), tmp_path)
    assert list(search.given()) == ["base", "plain"]
    assert search.num_trials == 2 * 5 + 3


def test_a_base_that_is_plain_cross_entropy_is_trained_once(tmp_path: Path) -> None:
    search = _search(plain(smoke()), tmp_path)
    assert list(search.given()) == ["base"]
    assert search.num_trials == 5 + 3


def _data(rows: list[tuple[int, str, str]]) -> PreparedData:
    """Return a data set of two folds, as far as the checks read one; rows (fold, source, dx)."""
    table = pd.DataFrame(rows, columns=["fold", "source", "dx"])
    table["group"] = table.index.astype(str)

    def of(split: str, fold: int | None = None) -> pd.DataFrame:
        assert split == "train"
        return table if fold is None else table[table["fold"] == fold]

    data: Any = types.SimpleNamespace(
        rows=of, task=TASKS["ham10000"], manifest=types.SimpleNamespace(num_folds=2)
    )
    return cast(PreparedData, data)


BOTH = [(0, "a", "mel"), (0, "a", "nv"), (0, "b", "mel"), (0, "b", "nv"), (1, "b", "nv")]


def test_an_objective_without_a_value_on_a_fold_is_refused() -> None:
    """In fold 1 the only melanoma stands in a source of its own."""
    data = _data([*BOTH, (1, "a", "mel")])
    with pytest.raises(DataError, match=r"auroc,within=source must have a value.* on fold 1 "):
        check_objective(data, WITHIN)
    check_objective(data, Objective("auroc"))
    assert not usual_objective(data).within_source


def test_the_usual_objective_compares_within_sources_where_it_can() -> None:
    data = _data([*BOTH, (1, "b", "mel")])
    check_objective(data, WITHIN)
    assert usual_objective(data) == Objective("melanoma_recall", 0.8, within_source=True)
    one_source = _data([(fold, "a", dx) for fold in (0, 1) for dx in ("mel", "nv")])
    assert usual_objective(one_source) == Objective("melanoma_recall", 0.8)
