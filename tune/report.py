"""The report on a search, as one HTML page. Knows nothing of how the search ran."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from melanoma.evidence.objective import WITHIN_SOURCE, FoldScores, Objective
from melanoma.evidence.page import html_table, image, page, to_png
from melanoma.evidence.plots import ACCENT, INK, MUTED, new_axes
from melanoma.io.files import write_text
from melanoma.io.storage import AnyPath
from tune.columns import (
    BASE,
    DEVIATION,
    ERROR,
    EXPECTED,
    FAILED,
    FOLD,
    LEAD,
    PLAIN,
    SETTING,
    STATUS,
)
from tune.space import GAMMA

SPECIFICITIES = np.linspace(0.4, 0.98, 30)


@dataclasses.dataclass(frozen=True)
class Findings:
    """Everything that the page shows.

    Attributes:
        trials: the table of trials.parquet.
        result: the content of result.json.
        slices: for each searched setting, the expected lead when that setting of the winner
            changes; columns value, lead and sd.
        folds: the folds of the winner, of the base and of plain cross-entropy, by name.
    """

    trials: pd.DataFrame
    result: dict[str, Any]
    slices: dict[str, pd.DataFrame]
    folds: Mapping[str, Sequence[FoldScores]]


def write_report(findings: Findings, path: AnyPath) -> None:
    """Write the page, with its plots inline."""
    images = {"Recall of the targets against specificity": _plot_recall(findings)} | {
        f"Expected lead over the base by {name}": _plot_slice(findings, name)
        for name in findings.slices
    }
    figures = "".join(image(name, to_png(figure)) for name, figure in images.items())
    write_text(path, page("Melanoma triage: search", _body(findings, figures)))


def _body(findings: Findings, figures: str) -> str:
    result, trials = findings.result, findings.trials
    inside, test = result["out_of_fold_difference"], result["test_difference"]
    counts = ", ".join(f"{count} {status}" for status, count in result["by_status"].items())
    same = (
        "<p><b>The winner is the base setting itself.</b></p>" if result["winner_is_base"] else ""
    )
    failed = trials[trials[ERROR] != ""]
    failures = "".join(
        f"<li>{name}, fold {fold}: {html.escape(error)}</li>"
        for name, fold, error in zip(failed[SETTING], failed[FOLD], failed[ERROR], strict=True)
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
<p>{len(trials)} trials, each one fold of one of {result["num_settings"]} settings: {counts}. They
trained {result["epochs_of_search"]} epochs; the winner's other folds and the new seeds trained
{result["epochs_of_comparison"]} more, besides the final trainings.</p>
{f"<h2>Failed</h2><ul>{failures}</ul>" if failures else ""}
{figures}
<h2>Settings</h2>
<p><small>Expected leads rest on all trials, also on those of settings nearby; behind &plusmn; is
one standard deviation. The best of many settings looks better than it is.</small></p>
{_settings_table(findings)}"""


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
    accesses = "access" if num == 1 else "accesses"
    return f"The access log of the data set counts {num} {accesses} to test, with this comparison."


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} <small>{', '.join(f'{value:.3f}' for value in values)}</small>"


def _focal_against_plain(trials: pd.DataFrame) -> str:
    """Return the expected leads of the best focal loss and of the best loss without focusing."""
    failed = trials.loc[trials[STATUS] == FAILED, SETTING]
    ranked = trials[~trials[SETTING].isin(failed)].sort_values(EXPECTED, ascending=False)
    focal, without = ranked[ranked[GAMMA] > 0], ranked[ranked[GAMMA] == 0]
    plain = ranked[ranked[SETTING] == PLAIN]
    unweighted = f" (plain, unweighted cross-entropy: {_expected(plain)})" if len(plain) else ""
    if focal.empty:
        return "No focal setting was tried."
    return (
        f"Expected lead over the base on these folds: {_expected(focal)} for the best focal"
        f" setting, {_expected(without)} for the best with gamma 0{unweighted}."
    )


def _expected(settings: pd.DataFrame) -> str:
    """Return the expected lead of the first of some settings."""
    lead = round(settings[EXPECTED].iloc[0], 3) + 0.0  # not -0
    return f"{lead:+.3f} &plusmn; {settings[DEVIATION].iloc[0]:.3f}"


def _settings_table(findings: Findings) -> str:
    ordered = findings.trials.sort_values(EXPECTED, ascending=False, kind="stable")
    rows = [
        [
            str(name),
            *(f"{trials[setting].iloc[0]:.3g}" for setting in findings.slices),
            str(trials[LEAD].count()),
            f"{trials[LEAD].mean():+.3f}" if trials[LEAD].count() else "-",
            _expected(trials),
        ]
        for name, trials in ordered.groupby(SETTING, sort=False)
    ]
    head = ["", *findings.slices, "folds", "mean lead there", "expected lead"]
    return html_table(head, rows)


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

    styles = {BASE: (INK, "-"), PLAIN: (INK, ":"), "winner": (ACCENT, "-")}
    for name, folds in findings.folds.items():
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


def _plot_slice(findings: Findings, name: str) -> Figure:
    """Draw the expected lead over one setting, with the leads of all trials as dots."""
    figure, axes = new_axes(
        f"By {name}, other settings as in the winner", name, "lead over the base"
    )
    trials, slice_ = findings.trials, findings.slices[name]
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.scatter(trials[name], trials[LEAD], s=14, color=MUTED, label="one fold of a setting")
    axes.fill_between(
        slice_["value"],
        slice_["lead"] - 2 * slice_["sd"],
        slice_["lead"] + 2 * slice_["sd"],
        color=ACCENT,
        alpha=0.15,
        lw=0,
        label="\u00b1 2 standard deviations",
    )
    axes.plot(slice_["value"], slice_["lead"], color=ACCENT, lw=1.8, label="expected")
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=8)
    return figure
