"""The report on a search, as one HTML page. Knows nothing of how the search ran."""

import dataclasses
import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from optuna.distributions import BaseDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial

from melanoma.evidence.out_of_fold import WITHIN_SOURCE, FoldScores, Objective
from melanoma.evidence.page import html_table, image, page, to_png
from melanoma.evidence.plots import ACCENT, INK, MUTED, new_axes
from melanoma.io.files import write_text
from melanoma.io.storage import AnyPath
from tune.space import DRAWN_GAMMA, GAMMA, LEAD, METRIC

SPECIFICITIES = np.linspace(0.4, 0.98, 30)
COLOURS = {"finished": INK, "pruned": MUTED, "failed": ACCENT}
MIN_TRIALS = 6  # with fewer trials, an importance or a surface has no meaning


@dataclasses.dataclass(frozen=True)
class Findings:
    """Everything that the page shows.

    Attributes:
        trials: the table of trials.parquet.
        result: the content of result.json.
        space: the distribution of each setting.
        full_epochs: the epochs that the trials would have cost without pruning.
        finished: the folds of every trial that was not pruned.
        anchors: the folds of the winner, of the base and of plain cross-entropy, by name.
        commonest: the commonest class that is not a target.
        others_per_target: the number of its images for each image of a target; with it, tau and the
            target factor become one weight.
    """

    trials: pd.DataFrame
    result: dict[str, Any]
    space: dict[str, BaseDistribution]
    full_epochs: int
    finished: Sequence[Sequence[FoldScores]]
    anchors: dict[str, Sequence[FoldScores]]
    commonest: str
    others_per_target: float


def write_report(findings: Findings, path: AnyPath) -> None:
    """Write the page, with its plots inline."""
    images = {
        "Recall of the targets against specificity, over trials": _plot_recall(findings),
        "Lead over the base by gamma and the targets' weight": _plot_surface(findings),
        "Importance of each setting": _plot_importance(findings),
        "Folds that each trial trained": _plot_folds(findings),
    }
    figures = "".join(
        image(name, to_png(figure)) for name, figure in images.items() if figure is not None
    )
    write_text(path, page("Melanoma triage: search", _body(findings, figures)))


def _body(findings: Findings, figures: str) -> str:
    result, trials = findings.result, findings.trials
    inside, test = result["out_of_fold_difference"], result["test_difference"]
    counts = ", ".join(f"{count} {status}" for status, count in result["by_status"].items())
    same = (
        "<p><b>The winner is the base setting itself.</b></p>" if result["winner_is_base"] else ""
    )
    failed = trials[trials["status"] == "failed"]
    failures = "".join(
        f"<li>{name}: {html.escape(error)}</li>"
        for name, error in zip(failed["trial"], failed["error"], strict=True)
    )
    rows = [
        [name, _loss(result["loss"][name]), _spread(arm["by_seed"]), _spread(arm["by_fold"])]
        for name, arm in result["arms"].items()
    ]
    each = "<small>each</small>"
    columns = ["", "loss", f"mean over seeds {each}", f"mean over folds {each}"]
    return f"""<h1>Search for {html.escape(result["objective"])}</h1>
<p class="verdict"><b>{result["verdict"]}</b> on test: winner minus base {_interval(test)}, one
network of each. The interval is over groups of images, not over runs: other networks of the same
settings may differ more.<br>
Out of fold, {len(inside["by_seed"])} new seeds on the same folds: {_interval(inside)}.
This number is optimistic, because the winner was chosen on these folds; test had no part in the
choice. {_accesses(result)}</p>{same}
<p>Contract of the winner's bundle: <b>{result["contract"]["status"]}</b>.
{html.escape(result["contract_sentence"])}</p>
{html_table(columns, rows)}
<p>{_focal_against_plain(trials)}</p>
<p><small>One image per group and one threshold per fold; folds are pooled by their number of units.
Intervals are 95 %, paired, with groups and seeds drawn with replacement. The spread over folds is
between groups of images; the spread over seeds is between runs.{_within(result)}</small></p>
<p>{len(trials)} trials: {counts}. They trained {result["epochs_of_search"]} epochs;
{findings.full_epochs} without pruning. The comparison trained
{result["epochs_of_comparison"]} more.</p>
{f"<h2>Failed</h2><ul>{failures}</ul>" if failures else ""}
{figures}
<h2>Trials</h2>{_trials_table(findings)}"""


def _within(result: dict[str, Any]) -> str:
    within = result["objective"].endswith(WITHIN_SOURCE)
    return " Each source has its own threshold as well." if within else ""


def _loss(loss: dict[str, float]) -> str:
    return (
        f"gamma {loss['gamma']:.2f}, tau {loss['tau']:.2f}, targets x {loss['target_factor']:.2f}"
    )


def _interval(difference: dict[str, Any]) -> str:
    return f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"


def _accesses(result: dict[str, Any]) -> str:
    num = result["num_test_accesses"]
    return (
        f"The access log of the data set counts {num} accesses to test, this comparison included."
    )


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} <small>{', '.join(f'{value:.3f}' for value in values)}</small>"


def _focal_against_plain(trials: pd.DataFrame) -> str:
    """Return by how much the best focal loss wins or loses against the best loss without it."""
    finished = trials[trials["status"] == "finished"]
    focal, without = finished[finished[GAMMA] >= 1][METRIC], finished[finished[GAMMA] < 1][METRIC]
    plain = finished[finished["trial"] == "plain"][METRIC]
    unweighted = f" (plain, unweighted cross-entropy: {plain.iloc[0]:.3f})" if len(plain) else ""
    if focal.empty:
        return (
            "No focal setting was good enough to train on all folds. The best setting with gamma 0"
            f" reached {without.max():.3f}{unweighted}."
        )
    lead = focal.max() - without.max()
    drawn = finished[(finished[GAMMA] < 1) & ~finished["trial"].isin(["base", "plain"])]
    weights = (
        ""
        if len(drawn)
        else " No other setting with gamma 0 trained on all folds, so the gain may come from the"
        " class weights alone."
    )
    return (
        f"The best focal setting reached {focal.max():.3f}; the best with gamma 0 reached"
        f" {without.max():.3f}{unweighted}. With one seed, focal loss"
        f" {'wins' if lead > 0 else 'loses'} by {abs(lead):.3f}; both numbers are optimistic,"
        f" because they were chosen on these folds.{weights}"
    )


def _trials_table(findings: Findings) -> str:
    ordered = findings.trials.sort_values(["folds", METRIC], ascending=False)
    rows = [
        [
            row["trial"][-8:],
            *(f"{row[name]:.3g}" for name in findings.space),
            row["status"],
            str(row["folds"]),
            f"{row[METRIC]:.3f}",
            f"{row[LEAD]:+.3f}",
        ]
        for _, row in ordered.iterrows()
    ]
    return html_table(["", *findings.space, "", "folds", "objective", "lead over the base"], rows)


def _plot_recall(findings: Findings) -> Figure:
    figure, axes = new_axes(
        "Out of fold, one image per group", "specificity", "recall of the targets"
    )

    within = findings.result["objective"].endswith(WITHIN_SOURCE)

    def curve(folds: Sequence[FoldScores]) -> list[float]:
        return [
            Objective("melanoma_recall", float(at), within_source=within).score(folds)
            for at in SPECIFICITIES
        ]

    for folds in findings.finished:
        axes.plot(SPECIFICITIES, curve(folds), color="#d5dbe1", lw=1, zorder=1)
    styles = {"base": (INK, "-"), "plain": (INK, ":"), "winner": (ACCENT, "-")}
    for name, folds in findings.anchors.items():
        axes.plot(
            SPECIFICITIES,
            curve(folds),
            color=styles[name][0],
            ls=styles[name][1],
            lw=1.8,
            label=name,
        )
    axes.legend(frameon=False, loc="lower left", fontsize=9)
    return figure


def _plot_surface(findings: Findings) -> Figure:
    """Draw the leads over the base on the same folds.

    Objectives over different numbers of folds are not comparable; leads are.
    """
    figure, axes = new_axes(
        "Lead over the base", "gamma", f"weight of the targets / weight of {findings.commonest}"
    )
    tried = findings.trials.dropna(subset=[LEAD])
    weight = tried["target_factor"] * findings.others_per_target ** tried["tau"]
    axes.set_yscale("log")
    if len(tried) >= MIN_TRIALS and tried[GAMMA].nunique() > 2 and tried[LEAD].nunique() > 1:
        surface = axes.tricontourf(
            tried[GAMMA], weight, tried[LEAD], levels=8, cmap="Greys", alpha=0.6
        )
        figure.colorbar(surface, ax=axes, shrink=0.8)
    full = tried["status"] == "finished"
    axes.scatter(
        tried[GAMMA][~full],
        weight[~full],
        s=24,
        facecolors="white",
        edgecolors=INK,
        label="some folds",
    )
    axes.scatter(tried[GAMMA][full], weight[full], s=34, color=INK, label="all folds")
    loss = findings.result["loss"]["winner"]
    best = loss["target_factor"] * findings.others_per_target ** loss["tau"]
    axes.scatter(loss["gamma"], best, s=80, color=ACCENT, label="winner")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _plot_importance(findings: Findings) -> Figure | None:
    tried = findings.trials.dropna(subset=[LEAD])
    if len(tried) < MIN_TRIALS or tried[LEAD].nunique() == 1:
        return None
    study = optuna.create_study(direction="maximize")
    for _, row in tried.iterrows():
        params = {
            name: float(row[DRAWN_GAMMA if name == GAMMA else name]) for name in findings.space
        }
        done = create_trial(
            state=TrialState.COMPLETE,
            params=params,
            distributions=findings.space,
            value=float(row[LEAD]),
        )
        study.add_trial(done)
    importance = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    figure, axes = new_axes(
        f"Importance (fANOVA, {len(tried)} trials)", "share of the variance explained", ""
    )
    names = list(importance)[::-1]
    axes.barh(names, [importance[name] for name in names], color=INK, height=0.5)
    axes.set_xlim(0, 1)
    return figure


def _plot_folds(findings: Findings) -> Figure:
    figure, axes = new_axes("When trials were pruned", "folds trained", "trial, in order of start")
    trials = findings.trials.reset_index(drop=True)
    axes.barh(
        trials.index + 1,
        trials["folds"],
        color=[COLOURS[status] for status in trials["status"]],
        height=0.7,
    )
    for status, colour in COLOURS.items():
        if (trials["status"] == status).any():
            axes.barh([0], [0], color=colour, label=status)
    axes.set_ylim(len(trials) + 0.6, 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=8)
    return figure
