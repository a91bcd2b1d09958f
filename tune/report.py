"""What a search saw, as one page; knows nothing of how it was run."""

import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from matplotlib.figure import Figure
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from melanoma.config import TrainConfig
from melanoma.data.dataset import open_prepared
from melanoma.evidence.out_of_fold import FoldScores, Objective
from melanoma.evidence.page import html_table, page, picture, to_png
from melanoma.evidence.plots import ACCENT, INK, MUTED, new_axes
from melanoma.files import write_text
from tune.compare import Arm
from tune.search import METRIC, Search
from tune.space import GAMMA, to_config
from tune.trial import fold_scores

SPECIFICITIES = np.linspace(0.4, 0.98, 30)
COLOURS = {"finished": INK, "dropped": MUTED, "failed": ACCENT}
MIN_TRIALS = 6  # of an importance or a surface that says anything


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that a page shows.

    Attributes:
        search: what was asked.
        trials: trials.parquet's table.
        winner: the best setting.
        arms: the winner and the base setting with several seeds.
        plain: the folds of plain cross-entropy.
        result: result.json.
    """

    search: Search
    trials: pd.DataFrame
    winner: TrainConfig
    arms: dict[str, Arm]
    plain: Sequence[FoldScores]
    result: dict[str, Any]


def write_report(findings: Findings, path: Path) -> None:
    """Write the page with its pictures inside."""
    pictures = {
        "Melanoma recall against specificity, over trials": _plot_recall(findings),
        "The objective over gamma and the melanoma's weight": _plot_surface(findings),
        "Importance of each setting": _plot_importance(findings),
        "Folds that each trial trained": _plot_folds(findings),
    }
    figures = "".join(picture(name, to_png(figure)) for name, figure in pictures.items() if figure is not None)
    write_text(path, page("Melanoma triage: search", _body(findings, figures)))


def _body(findings: Findings, figures: str) -> str:
    result, trials = findings.result, findings.trials
    inside, test = result["out_of_fold_difference"], result["test_difference"]
    counts = ", ".join(f"{count} {status}" for status, count in result["by_status"].items())
    same = "<p><b>The winner is the base setting itself.</b></p>" if result["winner"]["same_as_base"] else ""
    failed = trials[trials["status"] == "failed"]
    failures = "".join(
        f"<li>{name}: {html.escape(error)}</li>" for name, error in zip(failed["trial"], failed["error"], strict=True)
    )
    rows = [
        [name, _loss(result[name]["loss"]), _spread(result[name]["by_seed"]), _spread(result[name]["by_fold"])]
        for name in ("winner", "base")
    ]
    rows.append(["plain cross-entropy", "gamma 0, no weights", f"{result['plain_cross_entropy']:.3f}", ""])
    return f"""<h1>Search for {html.escape(result["objective"])}</h1>
<p class="verdict"><b>{result["verdict"]}</b> on test: winner minus base {_interval(test)}.<br>
Out of fold, {len(inside["by_seed"])} seeds on the same folds: {_interval(inside)}.
A winner is flattered by having been chosen on these folds; test, looked at once for each of the two, is not.</p>{same}
{html_table(["", "loss", "mean over seeds <small>each</small>", "mean over folds <small>each</small>"], rows)}
<p>{_focal_against_plain(findings)}</p>
<p><small>One picture a group, a threshold for each fold, folds pooled by the units they hold. Intervals: 95 %, groups drawn with replacement, paired.
 The spread over folds is between patients, that over seeds between runs.</small></p>
<p>{len(trials)} trials: {counts}; {result["epochs"]} epochs in all, {_full_cost(findings)} without dropping any.</p>
{f"<h2>Failed</h2><ul>{failures}</ul>" if failures else ""}
{figures}
<h2>Trials</h2>{_trials_table(findings)}"""


def _loss(loss: dict[str, float]) -> str:
    return f"gamma {loss['gamma']:.2f}, tau {loss['tau']:.2f}, melanoma x {loss['melanoma_factor']:.2f}"


def _interval(difference: dict[str, Any]) -> str:
    return f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} <small>{', '.join(f'{value:.3f}' for value in values)}</small>"


def _focal_against_plain(findings: Findings) -> str:
    """Say by how much focal loss wins or loses against the best without it."""
    finished = findings.trials[findings.trials["status"] == "finished"]
    focal, without = finished[finished[GAMMA] >= 1], finished[finished[GAMMA] < 1]
    best_without = max(findings.result["plain_cross_entropy"], without[METRIC].max() if len(without) else 0.0)
    if focal.empty:
        return f"No focal setting finished all folds; the best without focusing reached {best_without:.3f}."
    lead = focal[METRIC].max() - best_without
    return (
        f"The best focal setting reached {focal[METRIC].max():.3f}, the best with gamma 0 {best_without:.3f}: focal loss "
        f"{'wins' if lead > 0 else 'loses'} by {abs(lead):.3f}, one seed, both flattered by the choice."
    )


def _full_cost(findings: Findings) -> int:
    return len(findings.trials) * findings.search.study.num_folds * findings.search.study.base.optim.epochs


def _trials_table(findings: Findings) -> str:
    names = list(findings.search.space.distributions(findings.search.study.base))
    ordered = findings.trials.sort_values(["folds", METRIC], ascending=False)
    rows = [
        [
            row["trial"][-8:],
            *(f"{row[name]:.3g}" for name in names),
            row["status"],
            str(row["folds"]),
            f"{row[METRIC]:.3f}",
        ]
        for _, row in ordered.iterrows()
    ]
    return html_table(["", *names, "", "folds", "objective"], rows)


def _plot_recall(findings: Findings) -> Figure:
    figure, axes = new_axes("Out of fold, one picture a group", "specificity", "melanoma recall")
    study = findings.search.study

    def curve(folds: Sequence[FoldScores]) -> list[float]:
        return [Objective("melanoma_recall", float(at)).score(folds) for at in SPECIFICITIES]

    for _, trial in findings.trials[findings.trials["status"] == "finished"].iterrows():
        config = to_config({str(key): value for key, value in trial.items()}, study.base)
        folds = [fold_scores(study, config, fold) for fold in range(study.num_folds)]
        axes.plot(SPECIFICITIES, curve(folds), color="#d5dbe1", lw=1, zorder=1)
    arms = findings.arms
    for name, runs, colour, style in (
        ("winner", arms["winner"].runs[0], ACCENT, "-"),
        ("base", arms["base"].runs[0], INK, "-"),
        ("plain cross-entropy", findings.plain, INK, ":"),
    ):
        axes.plot(SPECIFICITIES, curve(runs), color=colour, ls=style, lw=1.8, label=name)
    axes.legend(frameon=False, loc="lower left", fontsize=9)
    return figure


def _plot_surface(findings: Findings) -> Figure:
    figure, axes = new_axes("Objective", "gamma (below 1: 0)", "melanoma's weight / nevus's weight")
    labels = open_prepared(findings.search.study.dataset).rows("train")["dx"].value_counts()
    ratio = float(labels.get("nv", 1)) / float(labels["mel"])
    tried = findings.trials.dropna(subset=[METRIC])
    weight = tried["melanoma_factor"] * ratio ** tried["tau"]
    axes.set_yscale("log")
    if len(tried) >= MIN_TRIALS:
        surface = axes.tricontourf(tried[GAMMA], weight, tried[METRIC], levels=8, cmap="Greys", alpha=0.6)
        figure.colorbar(surface, ax=axes, shrink=0.8)
    full = tried["status"] == "finished"
    axes.scatter(tried[GAMMA][~full], weight[~full], s=24, facecolors="white", edgecolors=INK, label="dropped")
    axes.scatter(tried[GAMMA][full], weight[full], s=34, color=INK, label="all folds")
    loss = findings.winner.loss
    axes.scatter(loss.gamma, loss.melanoma_factor * ratio**loss.tau, s=80, color=ACCENT, label="winner")
    axes.legend(frameon=False, loc="upper right", fontsize=8)
    return figure


def _plot_importance(findings: Findings) -> Figure | None:
    space = findings.search.space.distributions(findings.search.study.base)
    tried = findings.trials.dropna(subset=[METRIC])
    if len(tried) < MIN_TRIALS or tried[METRIC].nunique() == 1:
        return None
    study = optuna.create_study(direction="maximize")
    rows = [{str(key): value for key, value in row.items()} for _, row in tried.iterrows()]
    study.add_trials([_as_optuna(row, space) for row in rows])
    importance = get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
    figure, axes = new_axes(f"Importance (fANOVA, {len(tried)} trials)", "share of the variance explained", "")
    names = list(importance)[::-1]
    axes.barh(names, [importance[name] for name in names], color=INK, height=0.5)
    axes.set_xlim(0, 1)
    return figure


def _as_optuna(row: dict[str, Any], space: dict[str, Any]) -> FrozenTrial:
    params = {name: float(row[name]) for name in space}
    return create_trial(state=TrialState.COMPLETE, params=params, distributions=space, value=float(row[METRIC]))


def _plot_folds(findings: Findings) -> Figure:
    figure, axes = new_axes("What was dropped when", "folds trained", "trial, in the order of its start")
    trials = findings.trials.reset_index(drop=True)
    axes.barh(trials.index + 1, trials["folds"], color=[COLOURS[status] for status in trials["status"]], height=0.7)
    for status, colour in COLOURS.items():
        if (trials["status"] == status).any():
            axes.barh([0], [0], color=colour, label=status)
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    return figure
